// Reads a JSON list of custom resources; prints what their schemas have against them, a line each.
const models = {
  "monitoring.coreos.com/v1": () => require("@kubernetes-models/prometheus-operator/monitoring.coreos.com/v1"),
  "keda.sh/v1alpha1": () => require("@kubernetes-models/keda/keda.sh/v1alpha1"),
};

for (const resource of JSON.parse(require("fs").readFileSync(0))) {
  const name = `${resource.kind} ${resource.metadata.name}`;
  try {
    const model = new (models[resource.apiVersion]()[resource.kind])(resource);
    model.validate();
    console.log(`${name}: ok`);
  } catch (error) {
    console.log(`${name}: ${error.message}`);
  }
}
