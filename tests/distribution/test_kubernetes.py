"""The manifests: what kustomize builds, against the schemas of Kubernetes and operators, and our settings."""

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
from harness.memory_limits import MAX_MEMORY_BYTES
from harness.processes import ROOT, missing, need

import celery_exporter
from celery_exporter.app import STOP_TIMEOUT_SECONDS
from celery_exporter.config.loader import load
from celery_exporter.config.options import OPTIONS
from celery_exporter.metrics.model import TASK_LABELS, MetricOptions
from celery_exporter.metrics.registry import select
from celery_exporter.monitor.monitor import LAST_SAVE_SECONDS
from celery_exporter.web.auth import UNAUTHENTICATED_PATHS
from celery_exporter.web.healthcheck import TIMEOUT_SECONDS

KUBERNETES = ROOT / "deploy/kubernetes"
SECOND = ROOT / "deploy/kubernetes-second-broker"
PAGE = (ROOT / "docs/how-to/kubernetes.md").read_text()
SCHEMAS = Path(__file__).parent / "schemas"
RULES, DASHBOARDS = Path("alerts/celery.rules.yml"), Path("dashboards/provisioning")
CUSTOM = {"ServiceMonitor", "PodMonitor", "PrometheusRule", "ScaledObject"}
#: Bytes of an object that `kubectl apply` can keep in an annotation of it.
LARGEST = 262_144
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
    subprocess.run([sys.executable, root / "deploy/kubernetes/generate.py"], check=True)


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """Return a copy of what kustomize reads, with what is generated in it."""
    root = tmp_path_factory.mktemp("kustomize")
    for folder in (KUBERNETES, SECOND):
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
    """Return the objects that `kubectl apply -k` would send."""
    return build(tree / "deploy/kubernetes")


@pytest.fixture(scope="module")
def second(tree):
    """Return those of the overlay for a second broker."""
    return build(tree / SECOND.relative_to(ROOT))


def build(folder):
    command = [need("kubectl"), "kustomize", folder]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.stderr, done.returncode) == ("", 0)
    return list(yaml.safe_load_all(done.stdout))


@pytest.fixture(scope="module")
def deployment(built):
    return the(built, "Deployment")


def the(objects, kind):
    (found,) = [one for one in objects if one["kind"] == kind]
    return found


def loaded(*names):
    return [yaml.safe_load((KUBERNETES / name).read_text()) for name in names]


# -- what is made from elsewhere ------------------------------------------------------------------------


def test_what_is_committed_is_current(tree):
    """After a change of the alerts or dashboards: make golden."""
    for path in (KUBERNETES / "prometheusrule.yaml", ROOT / DASHBOARDS / "kustomization.yaml"):
        assert path.read_text() == (tree / path.relative_to(ROOT)).read_text()


@pytest.mark.parametrize("text", [A_RULE, "---\n" + A_RULE])
def test_a_rule_file_becomes_an_object_with_all_that_it_says(tmp_path, text):
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
    maps = yaml.safe_load((tmp_path / DASHBOARDS / "kustomization.yaml").read_text())["configMapGenerator"]
    assert [each["files"] for each in maps] == [["celery-a.json"], ["celery-b.json"]]


def test_the_rules_are_those_of_prometheus(built):
    assert the(built, "PrometheusRule")["spec"] == yaml.safe_load((ROOT / RULES).read_text())


def test_each_dashboard_is_a_config_map_that_grafana_finds(built):
    maps = [one for one in built if one["kind"] == "ConfigMap"]
    files = {name: text for one in maps for name, text in one["data"].items()}
    assert files == {path.name: path.read_text() for path in (ROOT / DASHBOARDS).glob("*.json")}
    for one in maps:
        assert one["metadata"]["labels"] == {"grafana_dashboard": "1"}
        assert len(json.dumps(one)) < LARGEST


# -- schemas ----------------------------------------------------------------------------------------------


def test_kubernetes_takes_them(built, tmp_path):
    """Strictly: a key that it does not know is an error."""
    file = tmp_path / "built.yaml"
    file.write_text(yaml.safe_dump_all([one for one in built if one["kind"] not in CUSTOM]))
    command = [need("kubernetes-validate"), "--strict", file]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("passed") == len([one for one in built if one["kind"] not in CUSTOM]), (
        done.stdout
    )


@pytest.fixture(scope="module")
def complaints(tmp_path_factory):
    """`complaints(objects)` are what the schemas of custom resources, from npm, have against them."""
    node, npm = need("node"), need("npm")
    folder = tmp_path_factory.mktemp("schemas")
    for path in SCHEMAS.iterdir():
        if path.is_file():
            shutil.copy(path, folder)
    options = ["--ignore-scripts", "--no-audit", "--no-fund"]
    done = subprocess.run([npm, "ci", *options], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr

    def ask(objects):
        command = [node, folder / "validate.mjs"]
        done = subprocess.run(
            command, input=json.dumps(objects), capture_output=True, text=True, cwd=folder, check=False
        )
        assert done.returncode == 0, done.stderr
        lines = done.stdout.splitlines()
        assert len(lines) == len(objects)
        return [line for line in lines if not line.endswith(": ok")]

    return ask


def test_the_operators_take_theirs(built, complaints):
    """Those of Prometheus and KEDA."""
    custom = [one for one in built if one["kind"] in CUSTOM]
    assert {one["kind"] for one in custom} == {"ServiceMonitor", "PrometheusRule"}
    assert complaints([*custom, *loaded("podmonitor.yaml", "examples/keda.yaml")]) == []


def test_the_schemas_see_what_is_wrong(complaints):
    """Or the test above would hold of anything."""
    monitor, scaled = loaded("podmonitor.yaml", "examples/keda.yaml")
    monitor["spec"]["podMetricsEndpoints"][0]["pott"] = "metrics"
    del scaled["spec"]["triggers"]
    assert complaints([monitor, scaled]) == [
        "PodMonitor celery-exporter: unknown: spec.podMetricsEndpoints.0.pott",
        "ScaledObject celery-worker-emails: data/spec must have required property triggers",
    ]


def test_a_key_that_kubernetes_does_not_know_is_seen(built, tmp_path):
    service = the(built, "Service")
    file = tmp_path / "service.yaml"
    file.write_text(yaml.safe_dump({**service, "spec": {**service["spec"], "pots": []}}))
    command = [need("kubernetes-validate"), "--strict", file]
    assert subprocess.run(command, capture_output=True, check=False).returncode != 0


# -- that they fit together, and the exporter ---------------------------------------------------------------


def test_one_at_a_time(deployment):
    assert deployment["spec"]["replicas"] == 1
    assert deployment["spec"]["strategy"] == {"type": "Recreate"}


def test_its_pod_may_run_where_the_restricted_standard_is_enforced(deployment):
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
    assert container["image"] == f"celery-exporter:{celery_exporter.__version__}"
    assert f"EXPOSE {container['ports'][0]['containerPort']}\n" in dockerfile()


def dockerfile() -> str:
    return (ROOT / "Dockerfile").read_text()


def test_its_environment_is_what_the_exporter_reads(deployment, tmp_path):
    """Each name is one of an option; each file is in a volume, the broker's URL in the secret."""
    pod = deployment["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    environment = {each["name"]: each["value"] for each in container["env"]}
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


def test_the_page_makes_the_secret_that_the_pod_mounts(deployment):
    (secret,) = [
        each["secret"] for each in deployment["spec"]["template"]["spec"]["volumes"] if "secret" in each
    ]
    made = re.search(r"create secret generic (\S+) --from-file=(\S+)", PAGE)
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    assert made
    assert made[1] == secret["secretName"]
    assert made[2] == Path(container["env"][0]["value"]).name


def test_probes_ask_what_the_exporter_answers(deployment):
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    asked = {kind: container[kind]["httpGet"] for kind in ("livenessProbe", "readinessProbe")}
    assert asked == {
        "livenessProbe": {"path": "/-/healthy", "port": "metrics"},
        "readinessProbe": {"path": "/-/ready", "port": "metrics"},
    }


def test_probes_are_patient_with_the_process_and_not_with_its_subscription(deployment):
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    live, ready = container["livenessProbe"], container["readinessProbe"]
    assert live["timeoutSeconds"] >= TIMEOUT_SECONDS
    assert live["failureThreshold"] >= 3
    assert live["failureThreshold"] * live["periodSeconds"] <= 60
    assert ready["timeoutSeconds"] >= TIMEOUT_SECONDS
    assert ready["failureThreshold"] * ready["periodSeconds"] <= 15


def test_behind_a_password_the_probe_of_the_process_still_asks_what_is_open(deployment):
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    assert container["livenessProbe"]["httpGet"]["path"] in UNAUTHENTICATED_PATHS


def test_it_has_time_to_end(deployment):
    assert (
        deployment["spec"]["template"]["spec"]["terminationGracePeriodSeconds"]
        > STOP_TIMEOUT_SECONDS + LAST_SAVE_SECONDS
    )


def test_its_memory_is_bounded_above_what_it_takes(deployment):
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    limit = re.fullmatch(r"(\d+)Mi", container["resources"]["limits"]["memory"])
    assert int(limit[1]) * 2**20 >= MAX_MEMORY_BYTES


def test_other_services_set_nothing_in_its_environment(deployment, built):
    """Kubernetes would set a variable like CELERY_EXPORTER_PORT, which is an option's, to tcp://….

    The exporter does not take that for a port, as it does not take what another Service is called for.
    """
    variable = the(built, "Service")["metadata"]["name"].upper().replace("-", "_") + "_PORT"
    assert variable in {name for option in OPTIONS for name in option.variables}
    assert (
        load({}, {variable: "tcp://10.96.0.1:9808", "CELERY_BROKER_URL": "redis://redis/0"}).listen.port
        == 9808
    )
    assert deployment["spec"]["template"]["spec"]["enableServiceLinks"] is False


def test_it_is_scraped_where_its_metrics_are_even_when_it_is_not_ready(built):
    (pods,) = loaded("podmonitor.yaml")
    assert the(built, "Service")["spec"]["publishNotReadyAddresses"] is True
    assert [each["path"] for each in the(built, "ServiceMonitor")["spec"]["endpoints"]] == ["/metrics"]
    assert [each["path"] for each in pods["spec"]["podMetricsEndpoints"]] == ["/metrics"]


def test_each_selector_finds_what_it_selects(built, deployment):
    fits_together(built, deployment)
    (pods,) = loaded("podmonitor.yaml")
    template = deployment["spec"]["template"]
    labels = template["metadata"]["labels"]
    assert pods["spec"]["selector"]["matchLabels"].items() <= labels.items()
    assert {each["port"] for each in pods["spec"]["podMetricsEndpoints"]} <= ports_of(deployment)
    assert pods["spec"]["jobLabel"] in labels


def ports_of(deployment):
    return {port["name"] for port in deployment["spec"]["template"]["spec"]["containers"][0]["ports"]}


def fits_together(built, deployment):
    labels = deployment["spec"]["template"]["metadata"]["labels"]
    service, monitor = the(built, "Service"), the(built, "ServiceMonitor")
    assert deployment["spec"]["selector"]["matchLabels"].items() <= labels.items()
    assert service["spec"]["selector"].items() <= labels.items()
    assert monitor["spec"]["selector"]["matchLabels"].items() <= service["metadata"]["labels"].items()
    assert {port["targetPort"] for port in service["spec"]["ports"]} <= ports_of(deployment)
    assert {each["port"] for each in monitor["spec"]["endpoints"]} <= {
        p["name"] for p in service["spec"]["ports"]
    }
    assert monitor["spec"]["jobLabel"] in service["metadata"]["labels"]


# -- beside others --------------------------------------------------------------------------------------


def test_a_second_broker_has_an_exporter_of_its_own(built, second, deployment):
    """Nothing of either selects anything of the other, and alerts and dashboards are there once."""
    assert {one["kind"] for one in second} == {"Deployment", "Service", "ServiceMonitor"}
    other = the(second, "Deployment")
    fits_together(second, other)
    for ours, theirs in ((built, other), (second, deployment)):
        labels = theirs["spec"]["template"]["metadata"]["labels"]
        assert not the(ours, "Deployment")["spec"]["selector"]["matchLabels"].items() <= labels.items()
        assert not the(ours, "Service")["spec"]["selector"].items() <= labels.items()
        found = the(ours, "ServiceMonitor")["spec"]["selector"]["matchLabels"].items()
        assert not found <= the(second if ours is built else built, "Service")["metadata"]["labels"].items()
    jobs = [
        the(one, "Service")["metadata"]["labels"][the(one, "ServiceMonitor")["spec"]["jobLabel"]]
        for one in (built, second)
    ]
    assert len(set(jobs)) == 2
    assert all("celery" in job for job in jobs), "by which alerts and dashboards find them"
    names = [{(each["kind"], each["metadata"]["name"]) for each in one} for one in (built, second)]
    assert names[0].isdisjoint(names[1])


def test_a_second_broker_has_a_secret_of_its_own(deployment, second):
    secrets = [
        volume["secret"]["secretName"]
        for one in (deployment, the(second, "Deployment"))
        for volume in one["spec"]["template"]["spec"]["volumes"]
        if "secret" in volume
    ]
    assert len(set(secrets)) == 2
    assert (
        f"create secret generic {secrets[1]} --from-file=broker-url"
        in (SECOND / "kustomization.yaml").read_text()
    )


def test_the_label_of_a_release_as_the_page_adds_it(tree, built):
    """To what the operator selects, and to no selector: that of a Deployment cannot be changed."""
    (snippet,) = re.findall(r"```yaml\n(resources:\n  - deploy/kubernetes\n.*?)```", PAGE, re.DOTALL)
    (tree / "kustomization.yaml").write_text(snippet)
    labelled = build(tree)
    added = yaml.safe_load(snippet)["labels"][0]["pairs"]
    assert len(labelled) == len(built)
    for kind in ("ServiceMonitor", "PrometheusRule"):
        assert the(labelled, kind)["metadata"]["labels"].items() > added.items()
    for kind in ("Deployment", "Service", "ServiceMonitor"):
        assert the(labelled, kind)["spec"] == the(built, kind)["spec"]


# -- scaling --------------------------------------------------------------------------------------------


def queries():
    (scaled,) = loaded("examples/keda.yaml")
    return [trigger["metadata"]["query"].strip() for trigger in scaled["spec"]["triggers"]]


def test_a_share_is_not_divided_by_pods_and_a_backlog_is():
    (scaled,) = loaded("examples/keda.yaml")
    kinds = {
        bool(re.search("pool_size", trigger["metadata"]["query"])): trigger["metricType"]
        for trigger in scaled["spec"]["triggers"]
    }
    assert kinds == {True: "Value", False: "AverageValue"}


def test_it_scales_on_metrics_that_exist():
    names = {row.name for row in select(("native",), MetricOptions(task_labels=TASK_LABELS)).rows}
    spoken = set(re.findall(r"\bcelery_\w+", " ".join(queries())))
    assert spoken
    assert spoken <= names


@pytest.mark.parametrize(
    ("series", "saturation", "backlog"),
    [
        (['active_tasks{worker="emails@a"} 3', 'pool_size{worker="emails@a"} 4'], 0.75, None),
        (
            [
                *('active_tasks{worker="emails@a"} 4', 'active_tasks{worker="emails@b"} 2'),
                *('pool_size{worker="emails@a"} 4', 'pool_size{worker="emails@b"} 4'),
                *('active_tasks{worker="reports@a"} 9', 'pool_size{worker="reports@a"} 9'),
            ],
            0.75,
            None,
        ),
        (
            [
                *('active_tasks{worker="emails@a"} 4', 'active_tasks{worker="emails@b"} 2'),
                *('pool_size{worker="emails@a"} 4', 'pool_max{worker="emails@a"} 8'),
                'pool_size{worker="emails@b"} 4',
            ],
            0.5,
            None,
        ),
        (['length{queue_name="emails"} 250', 'length{queue_name="reports"} 9'], None, 250),
    ],
    ids=["one worker", "two, and another's", "one scales by itself", "no worker, a backlog"],
)
def test_saturation_is_a_share_and_absent_without_workers(tmp_path, series, saturation, backlog):
    """As a real Prometheus' own engine works it out. What is absent KEDA takes for 0."""
    prefix = "celery_queue_" if backlog is not None else "celery_worker_"
    inputs = [dict(zip(("series", "values"), (prefix + each).rsplit(" ", 1), strict=True)) for each in series]
    wanted = [
        {
            "expr": query,
            "eval_time": "0m",
            "exp_samples": [] if value is None else [{"labels": "{}", "value": value}],
        }
        for query, value in zip(queries(), (saturation, backlog), strict=True)
    ]
    file = tmp_path / "test.yml"
    file.write_text(json.dumps({"tests": [{"input_series": inputs, "promql_expr_test": wanted}]}))
    command = [need("promtool"), "test", "rules", file]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=dict(os.environ))
    assert done.returncode == 0, done.stdout + done.stderr
