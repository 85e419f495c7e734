"""The manifests that kustomize builds are valid for Kubernetes and operators, and match the exporter."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from documentation.test_docs import blocks
from harness.manifests import CUSTOM, MAX_OBJECT_BYTES, CustomSchemas, assert_accepted, build, only
from harness.memory_limits import MAX_MEMORY_BYTES
from harness.processes import ROOT, missing, need

import celery_exporter
from alerts import rulebook
from celery_exporter.app import STOP_TIMEOUT_SECONDS
from celery_exporter.config.loader import load
from celery_exporter.config.options import OPTIONS
from celery_exporter.core.shards import Shard
from celery_exporter.metrics.model import TASK_LABELS, MetricOptions
from celery_exporter.metrics.registry import select
from celery_exporter.monitor.monitor import LAST_SAVE_SECONDS
from celery_exporter.web.auth import UNAUTHENTICATED_PATHS
from celery_exporter.web.healthcheck import TIMEOUT_SECONDS

KUBERNETES = ROOT / "deploy/kubernetes"
SECOND_BROKER = ROOT / "deploy/kubernetes-second-broker"
SHARDS = ROOT / "deploy/kubernetes-shards"
PAGE = (ROOT / "docs/how-to/kubernetes.md").read_text()
RULES, DASHBOARDS = Path("alerts/celery.rules.yml"), Path("dashboards/provisioning")
CHART_FILES = Path("deploy/helm/celery-exporter/files")
A_RULE = """\
# One.
groups:
- name: a
  rules:
  - alert: A
    expr: |
      up == 0

      or absent(up)
    annotations: {summary: "{{ $labels.job }} is down"}
"""


def generate(root: Path) -> None:
    """Run the generator in a tree."""
    subprocess.run([sys.executable, root / "deploy/kubernetes/generate.py"], check=True)


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """Return a copy of the files that kustomize reads, with newly generated ones."""
    root = tmp_path_factory.mktemp("kustomize")
    for folder in (KUBERNETES, SECOND_BROKER, SHARDS):
        shutil.copytree(folder, root / folder.relative_to(ROOT))
    for path in (RULES, DASHBOARDS):
        (root / path).parent.mkdir(exist_ok=True)
        if not (ROOT / path).exists():
            missing(str(path))
    shutil.copy(ROOT / RULES, root / RULES)
    shutil.copytree(ROOT / DASHBOARDS, root / DASHBOARDS)
    generate(root)
    return root


@pytest.fixture(scope="module")
def built(tree):
    """Return the objects of `kubectl apply -k`."""
    return build(tree / "deploy/kubernetes")


@pytest.fixture(scope="module")
def second(tree):
    """Return the objects of the overlay for a second broker."""
    return build(tree / SECOND_BROKER.relative_to(ROOT))


@pytest.fixture(scope="module")
def deployment(built):
    return only(built, "Deployment")


def loaded(*names):
    """Return the content of manifests that the kustomization does not include."""
    return [yaml.safe_load((KUBERNETES / name).read_text()) for name in names]


# -- generated files ------------------------------------------------------------------------------------


def test_generated_files_are_current(tree):
    """Run `make golden` after a change of the alerts or dashboards."""
    for path in (KUBERNETES / "prometheusrule.yaml", ROOT / DASHBOARDS / "kustomization.yaml"):
        assert path.read_text() == (tree / path.relative_to(ROOT)).read_text()
    generated, committed = (
        {path.relative_to(root): path.read_text() for path in root.rglob("*.*")}
        for root in (tree / CHART_FILES, ROOT / CHART_FILES)
    )
    assert committed == generated


@pytest.mark.parametrize("text", [A_RULE, "---\n" + A_RULE])
def test_a_rule_file_becomes_an_object_with_its_content(tmp_path, text):
    shutil.copytree(KUBERNETES, tmp_path / "deploy/kubernetes")
    (tmp_path / "alerts").mkdir()
    (tmp_path / RULES).write_text(text)
    (tmp_path / DASHBOARDS).mkdir(parents=True)
    (tmp_path / DASHBOARDS / "celery-b.json").write_text("{}")
    (tmp_path / DASHBOARDS / "celery-a.json").write_text("{}")
    generate(tmp_path)
    rule = (tmp_path / "deploy/kubernetes/prometheusrule.yaml").read_text()
    assert yaml.safe_load(rule)["spec"] == yaml.safe_load(A_RULE)
    assert "# One." in rule
    copies = tmp_path / CHART_FILES
    assert (copies / "celery.rules.yml").read_text() == text
    assert sorted(path.name for path in copies.glob("dashboards/*")) == ["celery-a.json", "celery-b.json"]
    maps = yaml.safe_load((tmp_path / DASHBOARDS / "kustomization.yaml").read_text())["configMapGenerator"]
    assert [item["files"] for item in maps] == [["celery-a.json"], ["celery-b.json"]]


def test_the_rules_equal_the_rule_file(built):
    assert only(built, "PrometheusRule")["spec"] == yaml.safe_load((ROOT / RULES).read_text())


def test_every_dashboard_is_a_config_map_with_the_label_for_grafana(built):
    maps = [item for item in built if item["kind"] == "ConfigMap"]
    files = {name: text for item in maps for name, text in item["data"].items()}
    assert files == {path.name: path.read_text() for path in (ROOT / DASHBOARDS).glob("*.json")}
    for item in maps:
        assert item["metadata"]["labels"] == {"grafana_dashboard": "1"}
        assert len(json.dumps(item)) < MAX_OBJECT_BYTES


# -- schemas ----------------------------------------------------------------------------------------------


def test_kubernetes_accepts_the_objects(built, tmp_path):
    """With --strict, an unknown key is an error."""
    assert_accepted([*built, *loaded("examples/hpa.yaml")], tmp_path / "built.yaml")


@pytest.fixture(scope="module")
def schema_errors(tmp_path_factory):
    """Return a function that validates custom resources."""
    return CustomSchemas(tmp_path_factory.mktemp("schemas")).errors


def test_the_operators_accept_the_custom_resources(built, schema_errors):
    """The operators are those of Prometheus and KEDA."""
    custom = [item for item in built if item["kind"] in CUSTOM]
    assert {item["kind"] for item in custom} == {"ServiceMonitor", "PrometheusRule"}
    assert schema_errors([*custom, *loaded("podmonitor.yaml", "examples/keda.yaml")]) == []


def test_the_schemas_find_errors(schema_errors):
    monitor, scaled = loaded("podmonitor.yaml", "examples/keda.yaml")
    monitor["spec"]["podMetricsEndpoints"][0]["pott"] = "metrics"
    del scaled["spec"]["triggers"]
    assert schema_errors([monitor, scaled]) == [
        "PodMonitor celery-exporter: unknown: spec.podMetricsEndpoints.0.pott",
        "ScaledObject celery-worker-emails: data/spec must have required property triggers",
    ]


def test_an_unknown_key_is_found(built, tmp_path):
    service = only(built, "Service")
    file = tmp_path / "service.yaml"
    file.write_text(yaml.safe_dump({**service, "spec": {**service["spec"], "pots": []}}))
    command = [need("kubernetes-validate"), "--strict", file]
    assert subprocess.run(command, capture_output=True, check=False).returncode != 0


# -- references between objects, and the exporter ----------------------------------------------------------


def test_one_replica_at_a_time(deployment):
    assert deployment["spec"]["replicas"] == 1
    assert deployment["spec"]["strategy"] == {"type": "Recreate"}


def test_the_pod_meets_the_restricted_security_standard(deployment):
    pod = deployment["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert pod["automountServiceAccountToken"] is False
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    ids = {pod["securityContext"][key] for key in ("runAsUser", "runAsGroup", "fsGroup")}
    assert {f"{user}:{user}" for user in ids} == set(re.findall(r"^USER (\S+)$", dockerfile(), re.MULTILINE))


def test_the_image_is_that_of_the_dockerfile(deployment):
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    _, _, name = container["image"].rpartition("/")  # the registry is known at the first release
    assert name == f"celery-exporter:{celery_exporter.__version__}"
    assert f"EXPOSE {container['ports'][0]['containerPort']}\n" in dockerfile()


def dockerfile() -> str:
    """Return the text of the Dockerfile."""
    return (ROOT / "Dockerfile").read_text()


def test_the_exporter_reads_its_environment(deployment, tmp_path):
    """Each variable belongs to an option, and each file is in a volume; the URL is in the secret."""
    pod = deployment["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    environment = {variable["name"]: variable["value"] for variable in container["env"]}
    assert environment.keys() <= {name for option in OPTIONS for name in option.variables}
    mounts = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    url = Path(environment["CELERY_EXPORTER_BROKER_URL_FILE"])
    assert "secret" in volumes[mounts[str(url.parent)]]
    assert str(Path(environment["CELERY_EXPORTER_STATE_FILE"]).parent) in mounts
    secret = tmp_path / url.name
    secret.write_text("redis://:pw@redis:6379/0\n")
    settings = load({}, {**environment, "CELERY_EXPORTER_BROKER_URL_FILE": str(secret)})
    assert (settings.monitor.broker.broker_url, settings.listen.port) == ("redis://:pw@redis:6379/0", 9808)


def test_the_page_creates_the_secret_that_the_pod_mounts(deployment):
    volumes = deployment["spec"]["template"]["spec"]["volumes"]
    (secret,) = [volume["secret"] for volume in volumes if "secret" in volume]
    command = re.search(r"create secret generic (\S+) --from-file=(\S+)", PAGE)
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    assert command
    assert command[1] == secret["secretName"]
    assert command[2] == Path(container["env"][0]["value"]).name


def test_probes_use_endpoints_of_the_exporter(deployment):
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    requests = {kind: container[kind]["httpGet"] for kind in ("livenessProbe", "readinessProbe")}
    assert requests == {
        "livenessProbe": {"path": "/-/healthy", "port": "metrics"},
        "readinessProbe": {"path": "/-/ready", "port": "metrics"},
    }


def test_the_liveness_probe_tolerates_more_failures_than_the_readiness_probe(deployment):
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    live, ready = container["livenessProbe"], container["readinessProbe"]
    assert live["timeoutSeconds"] >= TIMEOUT_SECONDS
    assert live["failureThreshold"] >= 3
    assert live["failureThreshold"] * live["periodSeconds"] <= 60
    assert ready["timeoutSeconds"] >= TIMEOUT_SECONDS
    assert ready["failureThreshold"] * ready["periodSeconds"] <= 15


def test_the_liveness_probe_needs_no_authentication(deployment):
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    assert container["livenessProbe"]["httpGet"]["path"] in UNAUTHENTICATED_PATHS


def test_it_has_time_to_stop(deployment):
    assert (
        deployment["spec"]["template"]["spec"]["terminationGracePeriodSeconds"]
        > STOP_TIMEOUT_SECONDS + LAST_SAVE_SECONDS
    )


def test_its_memory_limit_exceeds_its_maximum_usage(deployment):
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    limit = re.fullmatch(r"(\d+)Mi", container["resources"]["limits"]["memory"])
    assert int(limit[1]) * 2**20 >= MAX_MEMORY_BYTES


def test_service_links_are_disabled_and_ignored(deployment, built):
    """Service links would set CELERY_EXPORTER_PORT, the variable of an option, to tcp://….

    The exporter ignores such a value, also if another deployment enables service links.
    """
    variable = only(built, "Service")["metadata"]["name"].upper().replace("-", "_") + "_PORT"
    assert variable in {name for option in OPTIONS for name in option.variables}
    assert (
        load({}, {variable: "tcp://10.96.0.1:9808", "CELERY_BROKER_URL": "redis://redis/0"}).listen.port
        == 9808
    )
    assert deployment["spec"]["template"]["spec"]["enableServiceLinks"] is False


def test_it_is_scraped_even_when_it_is_not_ready(built):
    (pods,) = loaded("podmonitor.yaml")
    assert only(built, "Service")["spec"]["publishNotReadyAddresses"] is True
    assert [item["path"] for item in only(built, "ServiceMonitor")["spec"]["endpoints"]] == ["/metrics"]
    assert [item["path"] for item in pods["spec"]["podMetricsEndpoints"]] == ["/metrics"]


def test_every_selector_matches_its_objects(built, deployment):
    assert_references_resolve(built, deployment)
    (pods,) = loaded("podmonitor.yaml")
    template = deployment["spec"]["template"]
    labels = template["metadata"]["labels"]
    assert pods["spec"]["selector"]["matchLabels"].items() <= labels.items()
    assert {item["port"] for item in pods["spec"]["podMetricsEndpoints"]} <= ports_of(deployment)
    assert pods["spec"]["jobLabel"] in labels


def ports_of(deployment):
    """Return the names of the container ports."""
    return {port["name"] for port in deployment["spec"]["template"]["spec"]["containers"][0]["ports"]}


def assert_references_resolve(built, deployment):
    """Assert that selectors and ports match between Deployment, Service and ServiceMonitor."""
    labels = deployment["spec"]["template"]["metadata"]["labels"]
    service, monitor = only(built, "Service"), only(built, "ServiceMonitor")
    assert deployment["spec"]["selector"]["matchLabels"].items() <= labels.items()
    assert service["spec"]["selector"].items() <= labels.items()
    assert monitor["spec"]["selector"]["matchLabels"].items() <= service["metadata"]["labels"].items()
    assert {port["targetPort"] for port in service["spec"]["ports"]} <= ports_of(deployment)
    assert {item["port"] for item in monitor["spec"]["endpoints"]} <= {
        port["name"] for port in service["spec"]["ports"]
    }
    assert monitor["spec"]["jobLabel"] in service["metadata"]["labels"]


# -- a second broker, and labels --------------------------------------------------------------------------


def test_a_second_broker_has_a_separate_exporter(built, second, deployment):
    """Selectors of one exporter match no objects of the other; alerts and dashboards occur once."""
    assert {item["kind"] for item in second} == {"Deployment", "Service", "ServiceMonitor"}
    other_deployment = only(second, "Deployment")
    assert_references_resolve(second, other_deployment)
    for objects, other in ((built, other_deployment), (second, deployment)):
        labels = other["spec"]["template"]["metadata"]["labels"]
        assert not only(objects, "Deployment")["spec"]["selector"]["matchLabels"].items() <= labels.items()
        assert not only(objects, "Service")["spec"]["selector"].items() <= labels.items()
        selector = only(objects, "ServiceMonitor")["spec"]["selector"]["matchLabels"].items()
        service = only(second if objects is built else built, "Service")
        assert not selector <= service["metadata"]["labels"].items()
    jobs = [
        only(objects, "Service")["metadata"]["labels"][only(objects, "ServiceMonitor")["spec"]["jobLabel"]]
        for objects in (built, second)
    ]
    assert len(set(jobs)) == 2
    assert all("celery" in job for job in jobs)
    names = [{(item["kind"], item["metadata"]["name"]) for item in objects} for objects in (built, second)]
    assert names[0].isdisjoint(names[1])


def test_a_second_broker_has_a_separate_secret(deployment, second):
    secrets = [
        volume["secret"]["secretName"]
        for item in (deployment, only(second, "Deployment"))
        for volume in item["spec"]["template"]["spec"]["volumes"]
        if "secret" in volume
    ]
    assert len(set(secrets)) == 2
    assert (
        f"create secret generic {secrets[1]} --from-file=broker-url"
        in (SECOND_BROKER / "kustomization.yaml").read_text()
    )


def test_shards_are_the_pods_of_a_stateful_set(tree, built, deployment, tmp_path):
    """Each pod is a shard, and there are as many as the variable says; all else is that of one exporter."""
    shards = build(tree / SHARDS.relative_to(ROOT))
    stateful = only(shards, "StatefulSet")
    (tmp_path / "shards.yaml").write_text(yaml.safe_dump(stateful))
    subprocess.run([need("kubernetes-validate"), "--strict", tmp_path / "shards.yaml"], check=True)
    assert_references_resolve(shards, stateful)
    assert stateful["spec"]["serviceName"] == only(shards, "Service")["metadata"]["name"]
    pod, (container,) = stateful["spec"]["template"], stateful["spec"]["template"]["spec"]["containers"]
    *environment, index, shard = container["env"]
    assert index["valueFrom"]["fieldRef"]["fieldPath"] == "metadata.labels['apps.kubernetes.io/pod-index']"
    for number in range(stateful["spec"]["replicas"]):
        text = shard["value"].replace(f"$({index['name']})", str(number))
        settings = load({}, {"CELERY_BROKER_URL": "redis://", shard["name"]: text})
        assert settings.monitor.shard == Shard(number, stateful["spec"]["replicas"])
    container["env"] = environment
    assert pod == deployment["spec"]["template"]
    others = [
        [item for item in objects if item["kind"] not in {"Deployment", "StatefulSet"}]
        for objects in (built, shards)
    ]
    assert others[0] == others[1]


def test_the_release_label_of_the_page(tree, built):
    """It is added to the objects that the operator selects, and to no selector, which are immutable."""
    (snippet,) = re.findall(r"```yaml\n(resources:\n  - deploy/kubernetes\n.*?)```", PAGE, re.DOTALL)
    (tree / "kustomization.yaml").write_text(snippet)
    labelled = build(tree)
    added = yaml.safe_load(snippet)["labels"][0]["pairs"]
    assert len(labelled) == len(built)
    for kind in ("ServiceMonitor", "PrometheusRule"):
        assert only(labelled, kind)["metadata"]["labels"].items() > added.items()
    for kind in ("Deployment", "Service", "ServiceMonitor"):
        assert only(labelled, kind)["spec"] == only(built, kind)["spec"]


# -- scaling --------------------------------------------------------------------------------------------


def queries():
    """Return the queries of the KEDA example."""
    (scaled,) = loaded("examples/keda.yaml")
    return [trigger["metadata"]["query"].strip() for trigger in scaled["spec"]["triggers"]]


def test_a_share_is_not_divided_by_pods_and_a_backlog_is():
    (scaled,) = loaded("examples/keda.yaml")
    kinds = {
        bool(re.search("per_slot", trigger["metadata"]["query"])): trigger["metricType"]
        for trigger in scaled["spec"]["triggers"]
    }
    assert kinds == {True: "Value", False: "AverageValue"}


def test_the_page_about_keda_has_the_queries_of_the_example():
    page = blocks(ROOT / "docs/how-to/keda.md")
    assert [block.text.strip() for block in page if block.language == "promql"] == queries()


def test_the_hpa_scales_on_a_record_that_the_adapter_serves():
    (autoscaler,) = loaded("examples/hpa.yaml")
    (metric,) = autoscaler["spec"]["metrics"]
    assert metric["external"]["target"]["type"] == "Value"
    (values,) = loaded("examples/prometheus-adapter.yaml")
    served = {rule["name"]["as"]: rule for rule in values["rules"]["external"]}
    assert metric["external"]["metric"]["name"] in served
    for rule in served.values():
        (record,) = re.findall(r'__name__="([^"]+)"', rule["seriesQuery"])
        query = rule["metricsQuery"].replace("<<.Series>>", record)
        labels = metric["external"]["metric"]["selector"]["matchLabels"].keys()
        assert labels <= rulebook.grouped_by(rulebook.RECORDS[record])
        assert labels <= rulebook.grouped_by(query)


def test_it_scales_on_metrics_that_exist():
    names = {row.name for row in select(("native",), MetricOptions(task_labels=TASK_LABELS)).rows}
    used = set(re.findall(r"\b(?:job_queue_name:)?celery_[\w:]+", " ".join(queries())))
    assert len(used) == 2
    assert used <= names | set(rulebook.RECORDS)


REPLICAS = ("a", "b")


@pytest.mark.parametrize(
    ("series", "saturation", "backlog"),
    [
        (
            [
                *('queue_length{queue_name="emails"} 1', 'queue_worker_processes{queue_name="emails"} 4'),
                'tasks_in_flight{queue_name="emails",state="STARTED"} 2',
                *('queue_length{queue_name="reports"} 9', 'queue_worker_processes{queue_name="reports"} 9'),
            ],
            0.75,
            1,
        ),
        (
            [
                *('queue_length{queue_name="emails"} 0', 'queue_worker_processes{queue_name="emails"} 4'),
                'tasks_in_flight{queue_name="emails",state="RECEIVED"} 1',
            ],
            0.25,
            0,
        ),
        (
            ['queue_length{queue_name="emails"} 250', 'queue_worker_processes{queue_name="emails"} 0'],
            None,
            250,
        ),
        (['queue_length{queue_name="emails"} 250', 'queue_length{queue_name="reports"} 9'], None, 250),
    ],
    ids=["messages, and tasks that run", "a reserved task", "no slot, a backlog", "no worker, a backlog"],
)
def test_saturation_is_a_share_and_absent_without_workers(tmp_path, series, saturation, backlog):
    """The queries are evaluated by promtool, for two replicas of the exporter.

    KEDA uses 0 for an absent value.
    """
    samples = [f"celery_{text}" for text in (*series, 'exporter_build_info{version="1"} 1')]
    pairs = [sample.rsplit(" ", 1) for sample in samples]
    inputs = [
        {"series": name.replace("{", f'{{instance="{instance}",'), "values": value}
        for name, value in pairs
        for instance in REPLICAS
    ]
    expected = [
        {
            "expr": query,
            "eval_time": "0m",
            "exp_samples": [] if value is None else [{"labels": "{}", "value": value}],
        }
        for query, value in zip(queries(), (saturation, backlog), strict=True)
    ]
    tests = [{"input_series": inputs, "promql_expr_test": expected}]
    file = tmp_path / "test.yml"
    file.write_text(json.dumps({"rule_files": [str(rulebook.RULES)], "tests": tests}))
    command = [need("promtool"), "test", "rules", file]
    result = subprocess.run(command, capture_output=True, text=True, check=False, env=dict(os.environ))
    assert result.returncode == 0, result.stdout + result.stderr
