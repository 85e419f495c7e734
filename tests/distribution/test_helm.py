"""The chart renders with Helm 3 and 4, is valid for Kubernetes, and is what kustomize builds."""

from __future__ import annotations

import base64
import json
import re
import shlex
import subprocess
from copy import deepcopy
from pathlib import Path

import pytest
import yaml
from harness import helm
from harness.helm import CHART, VERSIONS
from harness.manifests import CUSTOM, MAX_OBJECT_BYTES, CustomSchemas, assert_accepted, build, only
from harness.processes import ROOT, need

import celery_exporter
from celery_exporter.config.loader import load
from celery_exporter.config.options import OPTIONS
from celery_exporter.core.shards import Shard
from tools.docgen.helm import schema

CASES = {path.name.removesuffix("-values.yaml"): path for path in sorted(CHART.glob("ci/*-values.yaml"))}
GUIDE = (ROOT / "docs/how-to/helm.md").read_text()
RULES = yaml.safe_load((ROOT / "alerts/celery.rules.yml").read_text())
#: The password in values of CASES.
PASSWORD = "s3cret"
#: Helm stores a release, with the files of its chart, in a Secret of at most this size.
MAX_RELEASE_BYTES = 1_048_576

every_version = pytest.mark.parametrize("version", VERSIONS)
every_case = pytest.mark.parametrize("case", CASES)


@pytest.fixture(scope="module")
def rendered():
    """Return the objects of each case, rendered by Helm 4. A test must not change them."""
    return {case: helm.render("helm4", path) for case, path in CASES.items()}


@pytest.fixture(scope="module")
def schema_errors(tmp_path_factory):
    """Return a function that validates custom resources."""
    return CustomSchemas(tmp_path_factory.mktemp("schemas")).errors


@pytest.fixture
def values(tmp_path):
    """Return a function that writes values to a file."""

    def write(text):
        file = tmp_path / "values.yaml"
        file.write_text(text)
        return file

    return write


def workload(objects):
    """Return the Deployment or StatefulSet."""
    (match,) = [item for item in objects if item["kind"] in {"Deployment", "StatefulSet"}]
    return match


def pod_of(objects):
    """Return the specification of the pods, and the container of the exporter."""
    pod = workload(objects)["spec"]["template"]["spec"]
    return pod, pod["containers"][0]


# -- Helm and schemas -------------------------------------------------------------------------------------


@every_case
@every_version
def test_the_chart_passes_lint(version, case):
    """Helm recommends an icon, which is information only."""
    result = helm.run(version, "lint", "--strict", CHART, f"--values={CASES[case]}")
    assert result.returncode == 0, result.stdout + result.stderr
    assert re.findall(r"\[(?:WARNING|ERROR)\].*", result.stdout) == []


@every_case
def test_both_versions_of_helm_render_the_same(rendered, case):
    assert helm.render("helm3", CASES[case]) == rendered[case]


def test_kubernetes_accepts_the_objects(rendered, tmp_path):
    """With --strict, an unknown key is an error."""
    objects = [item for case in rendered.values() for item in case]
    assert_accepted(objects, tmp_path / "rendered.yaml")


def test_the_operators_accept_the_custom_resources(rendered, schema_errors):
    custom = [item for case in rendered.values() for item in case if item["kind"] in CUSTOM]
    assert {item["kind"] for item in custom} == CUSTOM
    assert schema_errors(custom) == []


def leaves(content, section, prefix=""):
    """Yield the name of each value that is in `content`."""
    definitions = schema()["definitions"]
    for name, value in content.items():
        part = section["properties"][name]
        part = definitions[part["$ref"].rpartition("/")[2]] if "$ref" in part else part
        yield f"{prefix}{name}"
        if "properties" in part:
            yield from leaves(value, part, f"{prefix}{name}.")


def test_every_value_is_set_in_a_case():
    """A value that no case sets could break the chart. Both kinds of monitors have one template."""
    defaults = yaml.safe_load((CHART / "values.yaml").read_text())
    cases = [yaml.safe_load(path.read_text()) for path in CASES.values()]
    untested = set(leaves(defaults, schema())) - {name for case in cases for name in leaves(case, schema())}
    assert {name for name in untested if not name.startswith("podMonitor.")} == set()


@every_version
@pytest.mark.parametrize(
    "text",
    [
        "replicas: 2",
        "serviceMonitor: {enable: true}",
        "shards: 0",
        "image: {tag: 1}",
        "image: {repository: ''}",
        "existingSecretKey: ../url",
        "fullnameOverride: Celery Exporter",
        "nameOverride: celery exporter",
        "namespaceOverride: Monitoring",
        "commonLabels: {app.kubernetes.io/name: other}",
        "podLabels: {app.kubernetes.io/instance: other}",
        "service: {labels: {app.kubernetes.io/name: other}}",
        "serviceMonitor: {interval: often}",
        "podMonitor: {scrapeTimeout: 10}",
        "serviceMonitor: {scheme: ftp}",
        "persistence: {size: large}",
        "podDisruptionBudget: {maxUnavailable: one}",
        "dnsPolicy: Cluster",
    ],
)
def test_a_value_that_the_schema_does_not_have_is_an_error(version, values, text):
    assert "values" in helm.error(version, values(text))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{brokerUrl: 'redis://', brokers: {a: {}}}", "brokerUrl and brokers are set"),
        ("{brokerUrl: 'redis://', existingSecret: a}", "existingSecret and the URL of a broker are set"),
        ("{brokers: {a: {url: 'redis://'}, b: {}}}", "brokers.b has no url"),
        ("config: {broker_url: 'redis://'}", "config.broker_url is set"),
        ("config: {brokers: {}}", "config.brokers is set"),
        ("replicaCount: 2", "Two exporters count each event twice"),
        ("{replicaCount: 2, shards: 2}", "replicaCount and shards are above 1"),
        ("{serviceMonitor: {enabled: true}, podMonitor: {enabled: true}}", "scrape each pod twice"),
        ("{serviceMonitor: {enabled: true}, service: {enabled: false}}", "enabled without service"),
        ("config: {port: 9999}", "Probes and monitors use port 9808"),
        ("config: {state_file: /tmp/state}", "config.state_file is set"),
        ("webConfig: {tls: true}", "webConfig describes a file, but there is none"),
        ("webConfig: {authentication: true}", "webConfig describes a file, but there is none"),
        ("{webConfig: {existingSecret: a}, config: {web_config_file: /a}}", "Keep one of the two"),
        (
            "keda: {scaledObjects: [{name: a, queue: a, minReplicaCount: 3, maxReplicaCount: 2}]}",
            "a has a minReplicaCount above its maxReplicaCount",
        ),
    ],
)
def test_values_that_contradict_each_other_are_an_error(values, text, message):
    assert message in helm.error("helm4", values(text))


@every_version
def test_large_numbers_have_no_exponent(version, values):
    """Helm reads numbers as floating point, and would print 1e+06."""
    text = """
        config: {history_max_tasks: 1000000}
        serviceMonitor: {enabled: true, sampleLimit: 1000000}
        terminationGracePeriodSeconds: 1000000
        podDisruptionBudget: {enabled: true, maxUnavailable: 1000000}
        keda: {scaledObjects: [{name: a, queue: a, messages: 1000000, cooldownPeriod: 1000000}]}
    """
    objects = helm.render(version, values(text))
    assert len(re.findall(r"\b1000000\b", json.dumps(objects))) == 6
    assert "e+06" not in json.dumps(objects)


def test_names_that_look_like_numbers_are_text(values, tmp_path):
    """YAML would read a release of the name 123, a namespace 456 or a broker 1e3 as a number."""
    text = """
        brokers: {'1e3': {url: "redis://a"}, 'null': {url: "redis://b"}, '0x10': {url: "redis://c"}}
        serviceMonitor: {enabled: true}
    """
    result = helm.run(
        "helm4",
        "template",
        "123",
        CHART,
        f"--values={values(text)}",
        "--set-string=fullnameOverride=123",
        "-n=456",
    )
    assert result.returncode == 0, result.stderr
    objects = [item for item in yaml.safe_load_all(result.stdout) if item]
    assert_accepted(objects, tmp_path / "rendered.yaml")
    assert only(objects, "Secret")["data"].keys() == {"1e3", "null", "0x10"}
    assert only(objects, "ServiceMonitor")["spec"]["namespaceSelector"]["matchNames"] == ["456"]


class UniqueKeys(yaml.SafeLoader):
    """Refuses a key that is twice in a mapping, as Flux and kustomize do."""

    def construct_mapping(self, node, deep=False):
        keys = [self.construct_object(key, deep=deep) for key, _ in node.value]
        assert len(set(keys)) == len(keys), keys
        return super().construct_mapping(node, deep)


def test_a_label_of_one_object_replaces_a_common_label(values):
    text = """
        commonLabels: {team: platform}
        podLabels: {team: pod}
        service: {labels: {team: service}}
        dashboards: {enabled: true, labels: {team: dashboards}}
    """
    result = helm.run("helm4", "template", "celery-exporter", CHART, f"--values={values(text)}")
    objects = [item for item in yaml.load_all(result.stdout, UniqueKeys) if item]
    assert workload(objects)["metadata"]["labels"]["team"] == "platform"
    assert workload(objects)["spec"]["template"]["metadata"]["labels"]["team"] == "pod"
    assert only(objects, "Service")["metadata"]["labels"]["team"] == "service"
    maps = [item["metadata"]["labels"]["team"] for item in objects if item["kind"] == "ConfigMap"]
    assert set(maps) == {"dashboards"}


def test_further_objects_may_be_texts(values):
    """Only a text can have a template round a key."""
    text = """
        extraManifests:
          - |
            apiVersion: v1
            kind: ConfigMap
            metadata: {name: "{{ .Release.Name }}-extra"}
            {{- if .Values.service.enabled }}
            data: {a: b}
            {{- end }}
    """
    extra = only(helm.render("helm4", values(text)), "ConfigMap")
    assert (extra["metadata"]["name"], extra["data"]) == ("celery-exporter-extra", {"a": "b"})


def test_a_web_configuration_file_can_be_that_of_a_further_volume(values):
    text = "{webConfig: {tls: true}, config: {web_config_file: /web/web.yml}}"
    _, container = pod_of(helm.render("helm4", values(text)))
    assert container["readinessProbe"]["httpGet"]["scheme"] == "HTTPS"


def test_a_probe_can_be_removed(values):
    _, container = pod_of(helm.render("helm4", values("{livenessProbe: null, readinessProbe: null}")))
    assert not {"livenessProbe", "readinessProbe"} & container.keys()


def test_the_versions_are_those_of_the_exporter():
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    assert chart["appVersion"] == celery_exporter.__version__


def test_a_release_fits_in_a_secret(tmp_path, rendered):
    result = helm.run("helm4", "package", CHART, f"--destination={tmp_path}")
    assert result.returncode == 0, result.stderr
    (package,) = tmp_path.glob("*.tgz")
    assert package.stat().st_size < MAX_RELEASE_BYTES / 4  # it has the rendered objects, too, in Base64
    assert all(len(json.dumps(item)) < MAX_OBJECT_BYTES for item in rendered["all"])


# -- the same as kustomize --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("case", "folder"), [("operator", "deploy/kubernetes"), ("shards", "deploy/kubernetes-shards")]
)
def test_the_pods_are_those_of_kustomize(rendered, case, folder):
    """A chart also sets the pull policy and a service account."""
    chart, kustomize = deepcopy(workload(rendered[case])), workload(build(ROOT / folder))
    assert (chart["kind"], chart["metadata"]["name"]) == (kustomize["kind"], kustomize["metadata"]["name"])
    pod = chart["spec"].pop("template")["spec"]
    assert pod["containers"][0].pop("imagePullPolicy") == "IfNotPresent"
    assert pod.pop("serviceAccountName") == only(rendered[case], "ServiceAccount")["metadata"]["name"]
    assert pod == kustomize["spec"].pop("template")["spec"]
    del chart["spec"]["selector"], kustomize["spec"]["selector"], chart["spec"]["revisionHistoryLimit"]
    assert chart["spec"] == kustomize["spec"]


def test_the_other_objects_are_those_of_kustomize(rendered):
    chart, kustomize = deepcopy(rendered["operator"]), build(ROOT / "deploy/kubernetes")
    assert only(chart, "PrometheusRule")["spec"] == only(kustomize, "PrometheusRule")["spec"] == RULES
    services = [only(objects, "Service")["spec"] for objects in (chart, kustomize)]
    assert services[0].pop("type") == "ClusterIP"
    for service in services:
        del service["selector"]
    assert services[0] == services[1]
    monitors = [only(objects, "ServiceMonitor")["spec"] for objects in (chart, kustomize)]
    assert monitors[0]["endpoints"] == monitors[1]["endpoints"]
    maps = [[item for item in objects if item["kind"] == "ConfigMap"] for objects in (chart, kustomize)]
    files = [
        {name: json.loads(text) for item in items for name, text in item["data"].items()} for items in maps
    ]
    assert files[0] == files[1]
    label = {"grafana_dashboard": "1"}.items()
    assert all(label <= item["metadata"]["labels"].items() for items in maps for item in items)


def test_the_scaled_object_is_that_of_the_example(rendered):
    """Its numbers are the defaults."""
    first, second = [item for item in rendered["all"] if item["kind"] == "ScaledObject"]
    items = schema()["properties"]["keda"]["properties"]["scaledObjects"]["items"]["properties"]
    defaults = {name: item["default"] for name, item in items.items() if "default" in item}
    assert defaults.pop("job") == ""
    thresholds = [trigger["metadata"]["threshold"] for trigger in first["spec"]["triggers"]]
    assert thresholds == [str(defaults.pop("saturation")), str(defaults.pop("messages"))]
    assert {name: first["spec"].get(name) for name in defaults} == defaults
    example = yaml.safe_load((ROOT / "deploy/kubernetes/examples/keda.yaml").read_text())
    address = "http://prometheus:9090"
    for trigger in example["spec"]["triggers"]:
        trigger["metadata"]["serverAddress"] = address
    assert first["spec"] == example["spec"]
    queries = " ".join(trigger["metadata"]["query"] for trigger in second["spec"]["triggers"])
    assert queries.count('{job="celery",queue_name="reports"}') == 2


# -- the exporter -----------------------------------------------------------------------------------------


@pytest.fixture
def mounted(tmp_path):
    """Return a function that replaces paths of secrets in a text by those of files with a URL."""

    def replace(text):
        for name in set(re.findall(r"/run/secrets(/[\w./-]+)", text)):
            (tmp_path / name[1:]).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name[1:]).write_text("amqp://rabbitmq/shop\n")
        return text.replace("/run/secrets", str(tmp_path))

    return replace


@every_case
def test_the_exporter_accepts_its_variables_and_its_file(rendered, case, tmp_path, mounted):
    _, container = pod_of(rendered[case])
    environment = {
        item["name"]: mounted(item["value"])
        for item in container["env"]
        if item["name"].startswith("CELERY_") and item["name"] != "CELERY_EXPORTER_WEB_CONFIG_FILE"
    }
    assert environment.keys() <= {name for option in OPTIONS for name in option.variables}
    for item in rendered[case]:
        if item["kind"] == "ConfigMap" and "config.yml" in item["data"]:
            path = Path(environment["CELERY_EXPORTER_CONFIG_FILE"])
            assert str(path.parent) in {mount["mountPath"] for mount in container["volumeMounts"]}
            (tmp_path / path.name).write_text(mounted(item["data"]["config.yml"]))
            environment["CELERY_EXPORTER_CONFIG_FILE"] = str(tmp_path / path.name)
    shard = environment.get("CELERY_EXPORTER_SHARD")
    if shard:
        environment["CELERY_EXPORTER_SHARD"] = shard.replace("$(SHARD)", "1")
    settings = load({}, environment)
    expected = Shard(1, workload(rendered[case])["spec"]["replicas"]) if shard else None
    assert {broker.monitor.shard for broker in settings.brokers.values()} == {expected}


@every_case
def test_every_secret_that_the_exporter_reads_is_mounted(rendered, case):
    _, container = pod_of(rendered[case])
    maps = [item["data"].get("config.yml", "") for item in rendered[case] if item["kind"] == "ConfigMap"]
    paths = re.findall(r"(/run/secrets/[\w./-]+)/[\w.-]+", json.dumps([container["env"], maps]))
    assert paths
    assert set(paths) <= {mount["mountPath"] for mount in container["volumeMounts"]}


@every_case
def test_every_mount_has_a_volume(rendered, case):
    pod, _ = pod_of(rendered[case])
    claims = workload(rendered[case])["spec"].get("volumeClaimTemplates", [])
    volumes = [item["name"] for item in pod["volumes"]] + [item["metadata"]["name"] for item in claims]
    mounts = [mount["name"] for item in pod["containers"] for mount in item.get("volumeMounts", ())]
    assert len(set(volumes)) == len(volumes)
    assert set(mounts) == set(volumes)


@every_case
def test_selectors_match_the_pods_of_this_release_only(rendered, case):
    other = workload(helm.render("helm4", CASES[case], release="other"))
    labels = [item["spec"]["template"]["metadata"]["labels"] for item in (workload(rendered[case]), other)]
    selectors = [
        selector.get("matchLabels", selector)
        for item in rendered[case]
        for selector in [item.get("spec", {}).get("selector") or item.get("spec", {}).get("podSelector")]
        if selector
    ]
    assert selectors
    for selector in selectors:
        assert selector.items() <= labels[0].items()
        assert not selector.items() <= labels[1].items()


def test_a_service_monitor_finds_the_service(rendered):
    monitor, service = (only(rendered["all"], kind) for kind in ("ServiceMonitor", "Service"))
    labels = service["metadata"]["labels"]
    assert monitor["spec"]["selector"]["matchLabels"].items() <= labels.items()
    assert monitor["spec"]["namespaceSelector"]["matchNames"] == [service["metadata"]["namespace"]]
    assert monitor["spec"]["jobLabel"] in labels
    assert [item["port"] for item in monitor["spec"]["endpoints"]] == [service["spec"]["ports"][0]["name"]]


def test_each_release_is_a_job_of_its_own(rendered):
    """Alerts treat a job as one cluster."""
    jobs = [
        only(objects, "Service")["metadata"]["labels"][only(objects, "ServiceMonitor")["spec"]["jobLabel"]]
        for objects in (rendered["operator"], helm.render("helm4", CASES["operator"], release="billing"))
    ]
    assert jobs == ["celery-exporter", "billing"]


@pytest.mark.parametrize("case", ["brokers", "broker-urls"])
def test_each_broker_is_a_job_of_its_own(rendered, case):
    """As /sd says, which a ServiceMonitor cannot use."""
    (monitor,) = [item["spec"] for item in rendered[case] if item["kind"] in {"ServiceMonitor", "PodMonitor"}]
    endpoints = monitor.get("endpoints") or monitor["podMetricsEndpoints"]
    names = yaml.safe_load(CASES[case].read_text())["brokers"].keys()
    assert {item["params"]["broker"][0]: item["relabelings"][0] for item in endpoints} == {
        name: {"targetLabel": "job", "replacement": name} for name in names
    }


def test_tls_and_users_change_the_probes_and_the_scrape(rendered):
    _, container = pod_of(rendered["all"])
    probes = [container[kind]["httpGet"] for kind in ("livenessProbe", "readinessProbe", "startupProbe")]
    assert probes == [{"path": "/-/healthy", "port": "metrics", "scheme": "HTTPS"}] * 3
    (endpoint,) = only(rendered["all"], "ServiceMonitor")["spec"]["endpoints"]
    assert endpoint["scheme"] == "https"


def test_a_change_of_the_configuration_replaces_the_pods(rendered, values):
    """The exporter reads the file at SIGHUP only. A change of anything else keeps the checksum."""
    text = CASES["podmonitor"].read_text()
    checksums = [
        workload(objects)["spec"]["template"]["metadata"]["annotations"]["checksum/config"]
        for objects in (
            rendered["podmonitor"],
            helm.render("helm4", values(text.replace("replicaCount: 2", "replicaCount: 3"))),
            helm.render("helm4", values(text.replace("durable: true", "durable: true\n  task_ttl: 60"))),
        )
    ]
    assert checksums[0] == checksums[1] != checksums[2]


# -- secrets, rules and notes -----------------------------------------------------------------------------


@pytest.mark.parametrize("case", ["podmonitor", "broker-urls"])
def test_a_url_in_values_is_in_the_secret_only(rendered, case):
    secret = only(rendered[case], "Secret")
    others = [item for item in rendered[case] if item is not secret]
    assert PASSWORD not in json.dumps(others) + helm.notes(CASES[case])
    content = {key: base64.b64decode(data).decode() for key, data in secret["data"].items()}
    assert all(PASSWORD in url for url in content.values())
    pod, container = pod_of(rendered[case])
    (volume,) = [item for item in pod["volumes"] if "secret" in item]
    assert volume["secret"]["secretName"] == secret["metadata"]["name"]
    text = json.dumps([container["env"], others])
    assert all(f"/run/secrets/celery-exporter/{key}" in text for key in content)


def test_without_a_url_no_secret_is_created(rendered):
    for case in ("default", "brokers", "all"):
        assert "Secret" not in {item["kind"] for item in rendered[case]}


def test_links_and_rules_of_a_user(rendered, tmp_path):
    """Braces of annotations reach Prometheus as they are."""
    spec = only(rendered["all"], "PrometheusRule")["spec"]
    *groups, own = spec["groups"]
    shipped = json.dumps(RULES["groups"])
    for default, address in (
        ("localhost:3000", "grafana.example.com"),
        ("localhost:9808", "celery.example.com"),
    ):
        shipped = shipped.replace(f"http://{default}", f"https://{address}")
    assert groups == json.loads(shipped)
    assert own["rules"] == yaml.safe_load(CASES["all"].read_text())["prometheusRule"]["rules"]
    file = tmp_path / "rules.yml"
    file.write_text(yaml.safe_dump(spec))
    subprocess.run([need("promtool"), "check", "rules", file], check=True, capture_output=True)


def test_the_notes_name_the_secret_that_the_pods_need(rendered):
    for case, command in {
        "default": "create secret generic celery-exporter --from-file=broker-url",
        "brokers": "create secret generic brokers --from-file=billing --from-file=shop\n",
        "all": "-n celery create secret generic broker --from-file=url",
    }.items():
        assert command in helm.notes(CASES[case])
        pod, _ = pod_of(rendered[case])
        names = [item["secret"]["secretName"] for item in pod["volumes"] if "secret" in item]
        assert re.search(r"generic (\S+)", command)[1] in names


def test_the_notes_say_when_nothing_scrapes():
    assert "Prometheus does not scrape this release" in helm.notes(CASES["default"])
    assert "does not scrape" not in helm.notes(CASES["operator"])


# -- the guide --------------------------------------------------------------------------------------------


def commands(program):
    """Return the commands of the guide that run this program."""
    return [shlex.split(line) for line in re.findall(rf"^\$ ({program} .*)$", GUIDE, re.MULTILINE)]


def test_the_commands_of_the_guide_render():
    """The Secret that the guide creates is the one that the pods mount, with the keys that they read."""
    created = {
        frozenset(word.removeprefix("--from-file=") for word in command if word.startswith("--from-file="))
        for command in commands("kubectl")
    }
    mounted_keys = set()
    for _, _, release, chart, *options in commands("helm"):
        further = [option for option in options if option != "--reuse-values"]
        result = helm.run("helm4", "template", release, ROOT / chart, *further)
        assert result.returncode == 0, result.stderr
        objects = [item for item in yaml.safe_load_all(result.stdout) if item]
        pod, _ = pod_of(objects)
        assert {item["secret"]["secretName"] for item in pod["volumes"] if "secret" in item} == {release}
        keys = re.findall(r"/run/secrets/celery-exporter/([\w-]+)", result.stdout)
        mounted_keys.add(frozenset(keys))
    assert mounted_keys == created


def test_the_values_of_the_guide_exist():
    """Those below another value: either both are in the schema, or the other one is a map of any names."""
    known = set(leaves(yaml.safe_load((CHART / "values.yaml").read_text()), schema()))
    names = set(re.findall(r"`([a-z]\w+(?:\.\w+)+)(?:: [^`]*)?`", GUIDE))
    parents = {name for name in known if not any(other.startswith(f"{name}.") for other in known)}
    assert {name for name in names - known if name.rpartition(".")[0] not in parents} == set()
    assert names & known
