// Reads a JSON list of custom resources; prints for each a line that says what its schema has against it, or ok.
//
// The schemas let keys pass that they do not know, as the API server does, which drops them: most likely they are
// misspelt. A key that the schema's code has not read is one.
import { readFileSync } from "node:fs";

const packages = {
  "monitoring.coreos.com/v1": "@kubernetes-models/prometheus-operator",
  "keda.sh/v1alpha1": "@kubernetes-models/keda",
};

function watched(value, path, unread) {
  if (value === null || typeof value !== "object") return value;
  const below = Object.fromEntries(
    Object.keys(value).map((key) => [key, watched(value[key], `${path}.${key}`, unread)]),
  );
  if (!Array.isArray(value)) Object.keys(below).forEach((key) => unread.add(`${path}.${key}`));
  return new Proxy(value, {
    get(target, key) {
      if (!Object.hasOwn(below, key)) return target[key];
      unread.delete(`${path}.${key}`);
      return below[key];
    },
  });
}

for (const resource of JSON.parse(readFileSync(0))) {
  const unread = new Set();
  let complaint;
  try {
    const models = await import(`${packages[resource.apiVersion]}/${resource.apiVersion}`);
    const model = new models[resource.kind](resource);
    for (const key of Object.keys(resource)) model[key] = watched(resource[key], key, unread);
    model.validate();
    if (unread.size) complaint = `unknown: ${[...unread].join(", ")}`;
  } catch (error) {
    complaint = error.message.replaceAll("\n", "; ");
  }
  console.log(`${resource.kind} ${resource.metadata.name}: ${complaint ?? "ok"}`);
}
