"""The shipped rules are generated from the mixin, valid, and use existing names."""

import itertools
import json
import re
import shlex
import subprocess

import pytest
import yaml
from celery.worker.control import Panel
from harness.objectives import EXAMPLE
from harness.processes import ROOT, TESTS, need
from harness.servers import PROMETHEUSES, Prometheus

from celery_exporter.config.options import OPTIONS
from celery_exporter.core.types import State
from celery_exporter.metrics.model import MetricOptions
from celery_exporter.metrics.registry import select
from celery_exporter.status.thresholds import TABLE

from . import rulebook
from .rulebook import (
    ALERTS,
    CASE_GROUPS,
    CASES,
    EXPRESSIONS,
    FOLDER,
    MIXIN,
    OBJECTIVE_ALERTS,
    OBJECTIVE_RECORDS,
    RECORDS,
    RULES,
    RUNBOOKS,
)

KUBERNETES = ROOT / "deploy" / "kubernetes" / "prometheusrule.yaml"
CONTRACT = {
    alert["name"]: alert
    for entry in yaml.safe_load((TESTS / "data" / "compat" / "queries.yaml").read_text())
    if entry["profile"] == "native"
    for alert in entry["alerts"]
}
each_prometheus = pytest.mark.parametrize("server", PROMETHEUSES, ids=lambda server: server.__name__)
#: Labels that Prometheus adds when it scrapes.
TARGET_LABELS = {"job", "namespace", "instance"}
#: Labels by metric: of Prometheus, of a user's recording rule, and of the exporter.
LABELS: dict[str, set[str]] = {
    "up": set(),
    "process_start_time_seconds": set(),
}
for row in select(("native",), MetricOptions()).rows:
    if row.type == "histogram":
        LABELS |= {f"{row.name}_bucket": {*row.labels, "le"}}
        LABELS |= {f"{row.name}_{part}": {*row.labels} for part in ("sum", "count")}
    elif row.type == "summary":
        LABELS |= {f"{row.name}_{part}": {*row.labels} for part in ("sum", "count")}
    else:
        LABELS[row.name] = {*row.labels}
DASHBOARDS = {
    "celery-overview": {"job", "queue"},
    "celery-tasks": {"job", "task"},
    "celery-workers": {"job", "worker"},
    "celery-exporter": {"job"},
    "celery-objectives": {"job"},
    "celery-task-log": {"job", "task", "worker", "queue", "state", "uuid"},
    "celery-points": {"service", "task"},
}


def jsonnet(program, *options):
    """Run jsonnet, and return its output."""
    result = subprocess.run(
        [need("jsonnet"), "--jpath", str(FOLDER), *options, program],
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


def promtool(*arguments, server=Prometheus):
    """Run promtool, and return its output if it fails, or an empty string."""
    result = subprocess.run(
        [server.promtool(), *map(str, arguments)], capture_output=True, text=True, check=False
    )
    return "" if result.returncode == 0 else result.stdout + result.stderr


def rules_with(*configs):
    """Return the rules of the mixin for each of these additions to its configuration."""
    program = f"""
      [((import "mixin.libsonnet") + {{ _config+:: config }}).prometheusAlerts
       for config in {json.dumps(configs)}]
    """
    return json.loads(jsonnet(program, "-e"))


def configuration():
    """Return the default configuration of the mixin."""
    return json.loads(jsonnet('(import "mixin.libsonnet")._config', "-e"))


# -- the mixin -----------------------------------------------------------------------------------------


def test_rules_are_generated_from_the_mixin():
    """Run `make alerts` after an intended change."""
    assert RULES.read_text() == jsonnet(str(FOLDER / "rules.jsonnet"), "--string")


@pytest.mark.parametrize(
    "file", [MIXIN, FOLDER / "rules.jsonnet", FOLDER / "thresholds.libsonnet"], ids=lambda file: file.name
)
def test_jsonnet_is_formatted(file):
    result = subprocess.run([need("jsonnetfmt"), "--test", file], capture_output=True, text=True, check=False)
    assert result.returncode == 0, f"run jsonnetfmt -i {file.name}\n{result.stderr}"


OTHER_VALUES = {
    "clusterLabels": ["cluster", "job", "instance"],
    "taskSelector": 'worker!="",task_name!="other"',
    "longTasks": r"reports\..+",
    "broadcastTasks": "reload|clear",
    "pollingTasks": "wait_for_.+",
    "noWorkersAtRest": True,
    "objectives": [EXAMPLE],
}
#: The bounds of buckets only say which objectives are valid: tests/alerts/test_objectives.py.
CHECKS_ONLY = {"runtimeBuckets", "waitBuckets"}


def test_every_setting_changes_the_rules_and_they_stay_valid(tmp_path):
    """Change one setting at a time: a greater number, a value of OTHER_VALUES, or a longer duration."""
    config = configuration()
    assert set(OTHER_VALUES) <= set(config)
    other_values = {
        **OTHER_VALUES,
        "alerts": {name: {**alert, "for": "17m"} for name, alert in config["alerts"].items()},
    }
    changes = {
        name: other_values.get(name, old + 17 if isinstance(old, int | float) else f"{old}1s")
        for name, old in config.items()
        if name not in CHECKS_ONLY
    }
    shipped, *changed = rules_with({}, *({name: value} for name, value in changes.items()))
    for name, rules in zip(changes, changed, strict=True):
        assert rules != shipped, f"no rule uses {name}"
        file = tmp_path / f"{name}.yml"
        file.write_text(json.dumps(rules))
        assert promtool("check", "rules", file) == "", name


def test_no_workers_at_rest_makes_the_alert_unconditional(tmp_path):
    """The contract in queries.yaml defines it like this: no worker online for 2 minutes."""
    (tmp_path / "rules.json").write_text(json.dumps(rules_with({"noWorkersAtRest": True})[0]))
    series = {"celery_workers_online": "3x8 0x40", "celery_broker_up": "1x48", "celery_queue_length": "0x48"}
    group = {
        "interval": "15s",
        "input_series": [
            {"series": f'{name}{{job="celery"}}', "values": values} for name, values in series.items()
        ],
        "alert_rule_test": [
            {"alertname": "CeleryNoWorkersOnline", "eval_time": "4m", "exp_alerts": []},
            {
                "alertname": "CeleryNoWorkersOnline",
                "eval_time": "5m",
                "exp_alerts": [
                    {
                        "exp_labels": {"job": "celery", "severity": "critical"},
                        "exp_annotations": {
                            "summary": "No Celery worker has been online in celery for at least 2m",
                            "description": "No task is executed. Check whether workers run or crash at "
                            "start, and whether they can reach the broker that the exporter uses.",
                            "runbook_url": "http://localhost:9808/runbooks#celerynoworkersonline",
                            "dashboard_url": "http://localhost:3000/d/celery-workers?var-job=celery",
                        },
                    }
                ],
            },
        ],
    }
    (tmp_path / "test.yml").write_text(yaml.safe_dump({"rule_files": ["rules.json"], "tests": [group]}))
    assert promtool("test", "rules", tmp_path / "test.yml") == ""


def test_a_threshold_can_be_zero():
    zeros = {name: 0 for name, value in configuration().items() if type(value) in (int, float)}
    assert "celery_queue_length) > 0" in json.dumps(rules_with(zeros))


# -- promtool ------------------------------------------------------------------------------------------


@each_prometheus
def test_promtool_accepts_the_rules(server):
    assert promtool("check", "rules", "--lint=all", "--lint-fatal", RULES, server=server) == ""


@each_prometheus
def test_promtool_passes_the_cases(server):
    assert promtool("test", "rules", CASES, server=server) == ""


def cases(alert):
    """Return the groups of an alert in celery.rules.test.yml, by kind."""
    kinds: dict[str, list[dict]] = {"fires": [], "silent": [], "missing": []}
    for group in CASE_GROUPS:
        name, kind = re.match(r"(\w+) (\w+): ", group["name"]).groups()
        if name == alert:
            assert {test["alertname"] for test in group["alert_rule_test"]} == {alert}
            kinds[kind].append(group)
    return kinds


def inputs(group):
    """Return the input metrics of a group, and whether one of them has a gap or ends."""
    inputs = group["input_series"]
    has_gaps = any(re.search(r"stale|_", str(row["values"])) for row in inputs)
    return {re.match(r"[\w:]+", row["series"]).group() for row in inputs}, has_gaps


@pytest.mark.parametrize("alert", ALERTS)
def test_every_alert_has_cases_that_fire_stay_silent_and_lack_data(alert):
    required = rulebook.read(ALERTS[alert]["expr"])
    groups_by_kind = cases(alert)
    for group in groups_by_kind["fires"]:
        metrics, _ = inputs(group)
        assert metrics >= required, group["name"]
        first = min(group["alert_rule_test"], key=lambda test: rulebook.seconds(test["eval_time"]))
        assert first["exp_alerts"] == [], f"{group['name']}: not before `for` has passed"
        assert any(test["exp_alerts"] for test in group["alert_rule_test"]), group["name"]
    for group in groups_by_kind["silent"]:
        metrics, _ = inputs(group)
        assert metrics >= required, group["name"]
        assert not any(test["exp_alerts"] for test in group["alert_rule_test"]), group["name"]
    for group in groups_by_kind["missing"]:
        metrics, has_gaps = inputs(group)
        assert has_gaps or not metrics >= required, f"{group['name']}: nothing is missing"
    assert all(groups_by_kind.values()), {kind: len(groups) for kind, groups in groups_by_kind.items()}


def test_cases_name_existing_alerts_only():
    names = {group["name"].split()[0] for group in CASE_GROUPS}
    assert names == set(ALERTS)


def in_other_cluster(group, label, prefix):
    """Yield the input of a group for other clusters; intervals for all clusters stay."""
    for row in group["input_series"]:
        name, labels = re.fullmatch(r"([\w:]+)\{(.*)\}", row["series"]).groups()
        if not name.startswith("task_name:"):
            values = dict(re.findall(r'(\w+)="([^"]*)"', labels))
            values[label] = prefix + values.get(label, "")
            labels = ",".join(f'{key}="{value}"' for key, value in values.items())
        yield {"series": f"{name}{{{labels}}}", "values": row["values"]}


def combined(firing, silent, label):
    """Return a group with the input of both; the clusters differ by this label, job or namespace."""
    tests = firing["alert_rule_test"]
    series = [*firing["input_series"], *in_other_cluster(silent, label, "well")]
    if label == "namespace":
        series = [*in_other_cluster(firing, label, "ill"), *in_other_cluster(silent, label, "well")]
        tests = [
            {**test, "exp_alerts": [with_label(alert, label) for alert in test["exp_alerts"]]}
            for test in tests
        ]
    return {
        "name": f"{firing['name']} / {silent['name']}",
        "interval": firing["interval"],
        "input_series": list({row["series"]: row for row in series}.values()),
        "alert_rule_test": tests,
    }


def with_label(alert, label):
    """Return an expected alert with the label value that `combined` gives to the firing cluster."""
    labels = alert["exp_labels"]
    return {**alert, "exp_labels": {**labels, label: "ill" + labels.get(label, "")}}


@pytest.mark.parametrize("label", ["job", "namespace"])
def test_a_healthy_cluster_does_not_hide_an_alert_of_another_one(tmp_path, label):
    """Combine each case in which an alert fires with each case in which it stays silent."""
    pairs = [
        combined(firing, silent, label)
        for groups in map(cases, ALERTS)
        for firing, silent in itertools.product(groups["fires"], groups["silent"])
        if firing["interval"] == silent["interval"]
    ]
    assert {pair["name"].split()[0] for pair in pairs} == set(ALERTS)
    file = tmp_path / "pairs.yml"
    file.write_text(yaml.safe_dump({"rule_files": [str(RULES)], "evaluation_interval": "1m", "tests": pairs}))
    assert promtool("test", "rules", file) == ""


# -- names and labels ----------------------------------------------------------------------------------


@pytest.mark.parametrize("promql", EXPRESSIONS.values(), ids=EXPRESSIONS)
def test_every_metric_label_and_state_exists(promql):
    labels_by_metric = {**LABELS, **{record: rulebook.grouped_by(expr) for record, expr in RECORDS.items()}}
    available = TARGET_LABELS | set(re.findall(r'label_replace\([^"]+, "(\w+)"', promql))
    for metric, matchers in rulebook.selectors(promql):
        assert metric in labels_by_metric
        available |= labels_by_metric[metric]
        for label, operator, value in matchers:
            assert label in labels_by_metric[metric] | TARGET_LABELS, metric
            if label == "state":
                assert operator in {"=", "=~"}
                assert set(value.split("|")) <= {state.name for state in State}
    assert rulebook.grouped_by(promql) <= available


@pytest.mark.parametrize("promql", EXPRESSIONS.values(), ids=EXPRESSIONS)
def test_counters_are_used_in_rate_or_increase_only(promql):
    """A restart of the exporter resets counters. `0 *` and `unless` only use whether a series exists."""
    bare = re.sub(r"(?:rate|increase)\([^()]*\)|0 \* \w+|unless on \([^)]*\) \w+_total", "", promql)
    ends = ("_total", "_bucket", "_sum", "_count")
    assert [name for name, _ in rulebook.selectors(bare) if name.endswith(ends)] == []


@pytest.mark.parametrize("record", RECORDS)
def test_a_record_is_named_level_metric_operations(record):
    level, metric, operations = record.split(":")
    labels = set(re.findall(r"\w+", rulebook.LISTS.findall(RECORDS[record])[0])) - {"namespace", "le"}
    assert sorted(level.split("_")) == sorted("_".join(labels).split("_"))
    assert re.fullmatch(r"celery_[a-z_]+", metric)
    assert not metric.endswith("_total")
    assert re.fullmatch(r"(?:ratio_|p95_)?rate\d+m|mean\d+m|ratio|sum|min|max|group", operations)


#: Phrases of the contract with a number, the setting that holds the number, and its unit. The minutes after
#: "for" are the pending time of the alert.
NUMBERS = {
    "CeleryHighFailureRate": {"over {failureRatio} %": 0.01, "over {window} minutes": "m"},
    "CeleryHighRetryRate": {"above {retryRatio} %": 0.01},
    "CeleryHighQueueDepth": {"over {queueDepth} messages": 1},
    "CelerySlowTaskProcessing": {"above {meanRuntimeSeconds} s": 1, "over {window} minutes": "m"},
}


@pytest.mark.parametrize("name", CONTRACT)
def test_an_alert_of_the_contract_has_the_numbers_of_the_contract(name):
    contract, alert = CONTRACT[name], ALERTS[name]
    assert alert["labels"]["severity"] == contract["severity"]
    *before, last = re.findall(r"for (\d+) minutes", contract["means"])
    assert (before, alert["for"]) == ([], f"{last}m")
    config, compared = configuration(), [last]
    for phrase, unit in NUMBERS.get(name, {}).items():
        setting = re.search(r"\{(\w+)\}", phrase).group(1)
        (number,) = re.findall(re.sub(r"\{\w+\}", r"(\\d+)", phrase), contract["means"])
        compared.append(number)
        if unit == "m":
            assert config[setting] == f"{number}m", setting
        else:
            assert config[setting] == pytest.approx(int(number) * unit), setting
            (threshold,) = re.findall(r"> ([\d.]+)$", alert["expr"])
            assert float(threshold) == config[setting], alert["expr"]
    assert sorted(re.findall(r"\d+", contract["means"])) == sorted(compared), "a number is not compared"


@pytest.mark.parametrize("name", ALERTS)
def test_every_alert_has_a_severity_texts_and_links(name):
    alert = ALERTS[name]
    assert alert["labels"].keys() == {"severity"}
    assert alert["labels"]["severity"] in {"critical", "warning", "info"}
    assert rulebook.seconds(alert["for"]) >= 120
    annotations = alert["annotations"]
    assert annotations.keys() == {"summary", "description", "runbook_url", "dashboard_url"}
    assert all(annotations.values())
    base, _, anchor = annotations["runbook_url"].partition("#")
    assert base == "http://localhost:9808/runbooks"
    assert anchor in anchors(), f"{RUNBOOKS.name} has no heading {name}"
    uid = re.match(r"https?://[^/]+/d/([\w-]+)(?:\?|\{\{)", annotations["dashboard_url"]).group(1)
    variables = set(re.findall(r"\bvar-(\w+)=\{\{", annotations["dashboard_url"]))
    assert {"job"} <= variables <= DASHBOARDS[uid], uid


def test_linked_dashboards_have_the_variables_of_the_links():
    for file in (ROOT / "dashboards").glob("provisioning/celery-*.json"):
        board = json.loads(file.read_text())
        variables = {variable["name"] for variable in board["templating"]["list"]}
        assert DASHBOARDS[board["uid"]] <= variables


def test_expected_alerts_have_no_empty_placeholder():
    for group in CASE_GROUPS:
        for test in group["alert_rule_test"]:
            for alert in test["exp_alerts"]:
                text = json.dumps(alert["exp_annotations"])
                assert "no value" not in text
                address, _, query = alert["exp_annotations"]["dashboard_url"].partition("?")
                assert re.fullmatch(r"http://[\w:/-]+", address)
                assert all(re.fullmatch(r"var-\w+=.+", part) for part in query.split("&") if query), query


def test_links_can_be_set_without_jsonnet(tmp_path):
    """Run the commands of docs/how-to/alerts.md on a copy of the manifest."""
    lines = map(str.strip, (ROOT / "docs/how-to/alerts.md").read_text().splitlines())
    commands = [line for line in lines if line.startswith("$ sed -i ")]
    assert len(commands) == 2
    copy = tmp_path / KUBERNETES.relative_to(ROOT)
    copy.parent.mkdir(parents=True)
    copy.write_text(KUBERNETES.read_text())
    for command in commands:
        subprocess.run(shlex.split(command.removeprefix("$ ")), cwd=tmp_path, check=True)
    assert "localhost" not in copy.read_text()
    rules = yaml.safe_load(copy.read_text())["spec"]["groups"][0]["rules"]
    urls = [rule["annotations"]["dashboard_url"] for rule in rules if "alert" in rule]
    assert {url.partition("/d/")[0] for url in urls} == {"https://grafana.example.com"}


def test_severities_and_pending_times_match_the_table():
    """The mixin imports thresholds and windows from the table, so they need no comparison."""
    assert {row.alert: (row.severity, row.pending) for row in TABLE} == {
        name: (alert["labels"]["severity"], rulebook.seconds(alert["for"])) for name, alert in ALERTS.items()
    }


# -- runbooks ------------------------------------------------------------------------------------------


def anchors():
    """Return the anchors of the headings in the runbooks, as GitHub generates them."""
    return {heading.lower() for heading in re.findall(r"^### (\w+)$", RUNBOOKS.read_text(), re.MULTILINE)}


def chapters():
    """Return the text of the runbooks by heading."""
    parts = re.split(r"^#{2,3} (.+)$", RUNBOOKS.read_text(), flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


@pytest.mark.parametrize("name", [*ALERTS, *OBJECTIVE_ALERTS])
def test_a_runbook_has_three_commands_and_usual_causes(name):
    chapter = chapters()[name]
    (commands,) = re.findall(r"```console\n(.*?)```", chapter, re.DOTALL)
    assert [line[:2] for line in commands.splitlines()] == ["$ "] * 3
    assert "sual causes" in chapter


def test_every_runbook_has_an_alert():
    assert anchors() == {name.lower() for name in (*ALERTS, *OBJECTIVE_ALERTS)}


def test_runbooks_name_existing_metrics_options_alerts_and_settings():
    text = RUNBOOKS.read_text()
    metric_name = r"(?<![\w:-])celery_(?:tasks?|workers?|queue|broker|exporter)_[a-z_]*[a-z](?![\w(])"
    names = set(re.findall(metric_name, text))
    assert [name for name in names if not any(metric.startswith(name) for metric in LABELS)] == []
    assert set(re.findall(r"\b\w+:celery\w+:\w+", text)) <= {*RECORDS, *OBJECTIVE_RECORDS, *LABELS}
    assert set(re.findall(r"\bCelery[A-Z]\w+", text)) == {*ALERTS, *OBJECTIVE_ALERTS}
    assert set(re.findall(r"`([a-z]+[A-Z]\w+)`", text)) <= set(configuration())
    exporter_options = {f"--{option.name}" for option in OPTIONS}
    other_options = {
        "--app",
        "--broker",
        "--destination",
        "--since",
        "--previous",
        "--dump",
        "--without-heartbeat",
        "--pid",
        "--cacert",
        "--name",
        "--url",
    }
    assert set(re.findall(r"(?<![\w-])--[a-z][a-z.-]*[a-z]", text)) <= exporter_options | other_options


def test_runbooks_use_existing_remote_control_commands():
    commands = set(re.findall(r"celery --app \$APP (?:inspect|control) (\w+)", RUNBOOKS.read_text()))
    assert commands
    assert commands <= set(Panel.data)


# -- defaults of the exporter that the rules depend on ------------------------------------------------


def test_a_dead_worker_is_exposed_for_longer_than_its_alert_is_pending():
    """By default, one minute passes between two scrapes and between two evaluations."""
    (purge,) = (option.default for option in OPTIONS if option.name == "purge-offline-worker-metrics")
    rule = ALERTS["CeleryWorkerDown"]
    assert rulebook.seconds(rule["for"]) + 60 + 60 < purge
    (window,) = re.findall(r"\[(\w+):\w+\]", rule["expr"])
    assert rulebook.seconds(window) > purge + 60, "the window ends before the worker is removed"
