"""The rules, without a server: they are the mixin's, promtool takes them, they speak of what exists."""

import itertools
import json
import re
import shlex
import subprocess

import pytest
import yaml
from celery.worker.control import Panel
from harness.processes import ROOT, TESTS, need
from harness.servers import PROMETHEUSES, Prometheus

from celery_exporter.config.options import OPTIONS
from celery_exporter.core.types import State
from celery_exporter.metrics.model import MetricOptions
from celery_exporter.metrics.registry import select
from celery_exporter.status.thresholds import TABLE

from . import rulebook
from .rulebook import ALERTS, CASES, EXPRESSIONS, FOLDER, MIXIN, RECORDS, RULES, RUNBOOKS

KUBERNETES = ROOT / "deploy" / "kubernetes" / "prometheusrule.yaml"
CONTRACT = {
    alert["name"]: alert
    for entry in yaml.safe_load((TESTS / "data" / "compat" / "queries.yaml").read_text())
    if entry["profile"] == "native"
    for alert in entry["alerts"]
}
both = pytest.mark.parametrize("server", PROMETHEUSES, ids=lambda each: each.__name__)
#: Given by whoever scrapes, not by the exporter.
TARGET = {"job", "namespace", "instance"}
#: Metrics of other making, and the labels of those that the exporter makes.
LABELS: dict[str, set[str]] = {
    "up": set(),
    "process_start_time_seconds": set(),
    "task_name:celery_task_success_interval_seconds:max": {"task_name"},  # what a user records
}
for row in select(("native",), MetricOptions()).rows:
    if row.type == "histogram":
        LABELS |= {f"{row.name}_bucket": {*row.labels, "le"}}
        LABELS |= {f"{row.name}_{part}": {*row.labels} for part in ("sum", "count")}
    else:
        LABELS[row.name] = {*row.labels}
DASHBOARDS = {
    "celery-overview": {"job", "queue"},
    "celery-tasks": {"job", "task"},
    "celery-workers": {"job", "worker"},
    "celery-exporter": {"job"},
}


def jsonnet(program, *options):
    done = subprocess.run(
        [need("jsonnet"), "--jpath", str(FOLDER), *options, program],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def promtool(*arguments, server=Prometheus):
    """Run promtool, and return what it said when it did not agree."""
    done = subprocess.run(
        [server.promtool(), *map(str, arguments)], capture_output=True, text=True, check=False
    )
    return "" if done.returncode == 0 else done.stdout + done.stderr


def mixed(*configs):
    """Return the rules that the mixin gives with each of these additions to its configuration."""
    program = f"""
      [((import "mixin.libsonnet") + {{ _config+:: config }}).prometheusAlerts
       for config in {json.dumps(configs)}]
    """
    return json.loads(jsonnet(program, "-e"))


def configuration():
    return json.loads(jsonnet('(import "mixin.libsonnet")._config', "-e"))


# -- the mixin -----------------------------------------------------------------------------------------


def test_the_rules_are_those_of_the_mixin():
    """After a change that is meant: make alerts."""
    assert RULES.read_text() == jsonnet(str(FOLDER / "rules.jsonnet"), "--string")


@pytest.mark.parametrize(
    "file", [MIXIN, FOLDER / "rules.jsonnet", FOLDER / "thresholds.libsonnet"], ids=lambda file: file.name
)
def test_jsonnet_is_laid_out_as_its_own_tool_does(file):
    done = subprocess.run([need("jsonnetfmt"), "--test", file], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"jsonnetfmt -i {file.name}\n{done.stderr}"


OTHER_VALUES = {
    "clusterLabels": ["cluster", "job", "instance"],
    "periodicTasks": {"reports.nightly": 93_600},
    "taskSelector": 'worker!="",task_name!="other"',
    "longTasks": r"reports\..+",
    "broadcastTasks": "reload|clear",
    "pollingTasks": "wait_for_.+",
    "noWorkersAtRest": True,
}


def test_every_setting_changes_rules_that_promtool_takes(tmp_path):
    """Numbers grow, other values are those above, and durations get a second more."""
    config = configuration()
    assert set(OTHER_VALUES) <= set(config)
    others = {
        **OTHER_VALUES,
        "alerts": {name: {**each, "for": "17m"} for name, each in config["alerts"].items()},
    }
    other = {
        name: others.get(name, old + 17 if isinstance(old, int | float) else f"{old}1s")
        for name, old in config.items()
    }
    shipped, *changed = mixed({}, *({name: value} for name, value in other.items()))
    for name, rules in zip(other, changed, strict=True):
        assert rules != shipped, f"{name} is used nowhere"
        file = tmp_path / f"{name}.yml"
        file.write_text(json.dumps(rules))
        assert promtool("check", "rules", file) == "", name


def test_the_unconditional_form_of_the_guide_is_a_switch(tmp_path):
    """It is what contracts/queries.yaml means by its name: no worker online for 2 minutes."""
    (tmp_path / "rules.json").write_text(json.dumps(mixed({"noWorkersAtRest": True})[0]))
    series = {"celery_workers_online": "3x8 0x40", "celery_broker_up": "1x48", "celery_queue_length": "0x48"}
    of_group = {
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
                            "summary": "No Celery worker is online in celery",
                            "description": "No task has been executed for 2 minutes at least.",
                            "runbook_url": "http://localhost:9808/runbooks#celerynoworkersonline",
                            "dashboard_url": "http://localhost:3000/d/celery-workers?var-job=celery",
                        },
                    }
                ],
            },
        ],
    }
    (tmp_path / "test.yml").write_text(yaml.safe_dump({"rule_files": ["rules.json"], "tests": [of_group]}))
    assert promtool("test", "rules", tmp_path / "test.yml") == ""


def test_a_threshold_of_nothing_is_a_number():
    zeros = {name: 0 for name, value in configuration().items() if type(value) in (int, float)}
    assert "celery_queue_length) > 0" in json.dumps(mixed(zeros))


# -- promtool ------------------------------------------------------------------------------------------


@both
def test_promtool_takes_the_rules(server):
    assert promtool("check", "rules", "--lint=all", "--lint-fatal", RULES, server=server) == ""


@both
def test_promtool_sees_each_alert_fire_and_stay_silent(server):
    assert promtool("test", "rules", CASES, server=server) == ""


def cases(alert):
    """Return the groups of celery.rules.test.yml that are about an alert, by their kind."""
    kinds: dict[str, list[dict]] = {"fires": [], "silent": [], "missing": []}
    for group in yaml.safe_load(CASES.read_text())["tests"]:
        name, kind = re.match(r"(\w+) (\w+): ", group["name"]).groups()
        if name == alert:
            assert {test["alertname"] for test in group["alert_rule_test"]} == {alert}
            kinds[kind].append(group)
    return kinds


def inputs(group):
    """Return the metrics that a group is given, and whether one of them has a gap or ends."""
    series = group["input_series"]
    gaps = any(re.search(r"stale|_", str(each["values"])) for each in series)
    return {re.match(r"[\w:]+", each["series"]).group() for each in series}, gaps


@pytest.mark.parametrize("alert", ALERTS)
def test_every_alert_is_tried_firing_silent_and_without_data(alert):
    read = rulebook.read(ALERTS[alert]["expr"])
    found = cases(alert)
    for group in found["fires"]:
        given, _ = inputs(group)
        assert given >= read, group["name"]
        first = min(group["alert_rule_test"], key=lambda test: rulebook.seconds(test["eval_time"]))
        assert first["exp_alerts"] == [], f"{group['name']}: not before `for` has passed"
        assert any(test["exp_alerts"] for test in group["alert_rule_test"]), group["name"]
    for group in found["silent"]:
        given, _ = inputs(group)
        assert given >= read, group["name"]
        assert not any(test["exp_alerts"] for test in group["alert_rule_test"]), group["name"]
    for group in found["missing"]:
        given, gaps = inputs(group)
        assert gaps or not given >= read, f"{group['name']}: nothing is missing"
    assert all(found.values()), {kind: len(groups) for kind, groups in found.items()}


def test_no_case_is_of_an_alert_that_is_gone():
    names = {group["name"].split()[0] for group in yaml.safe_load(CASES.read_text())["tests"]}
    assert names == set(ALERTS)


def elsewhere(group, label, prefix):
    """Return the input of a group as that of other clusters; what a user records for all of them stays."""
    for each in group["input_series"]:
        name, labels = re.fullmatch(r"([\w:]+)\{(.*)\}", each["series"]).groups()
        if not name.startswith("task_name:"):
            found = dict(re.findall(r'(\w+)="([^"]*)"', labels))
            found[label] = prefix + found.get(label, "")
            labels = ",".join(f'{key}="{value}"' for key, value in found.items())
        yield {"series": f"{name}{{{labels}}}", "values": each["values"]}


def beside(ill, well, label):
    """Return a group of two: the clusters of one have another job, or both have namespaces."""
    tests = ill["alert_rule_test"]
    series = [*ill["input_series"], *elsewhere(well, label, "well")]
    if label == "namespace":
        series = [*elsewhere(ill, label, "ill"), *elsewhere(well, label, "well")]
        tests = [
            {**test, "exp_alerts": [within(alert, label) for alert in test["exp_alerts"]]} for test in tests
        ]
    return {
        "name": f"{ill['name']} / {well['name']}",
        "interval": ill["interval"],
        "input_series": list({each["series"]: each for each in series}.values()),
        "alert_rule_test": tests,
    }


def within(alert, label):
    labels = alert["exp_labels"]
    return {**alert, "exp_labels": {**labels, label: "ill" + labels.get(label, "")}}


@pytest.mark.parametrize("label", ["job", "namespace"])
def test_a_cluster_that_is_well_hides_none_that_is_not(tmp_path, label):
    """Each case in which an alert fires, with each beside it in which it does not."""
    pairs = [
        beside(ill, well, label)
        for found in map(cases, ALERTS)
        for ill, well in itertools.product(found["fires"], found["silent"])
        if ill["interval"] == well["interval"]
    ]
    assert {pair["name"].split()[0] for pair in pairs} == set(ALERTS)
    file = tmp_path / "pairs.yml"
    file.write_text(yaml.safe_dump({"rule_files": [str(RULES)], "evaluation_interval": "1m", "tests": pairs}))
    assert promtool("test", "rules", file) == ""


# -- names and labels ----------------------------------------------------------------------------------


@pytest.mark.parametrize("promql", EXPRESSIONS.values(), ids=EXPRESSIONS)
def test_every_metric_label_and_state_exists(promql):
    known = {**LABELS, **{record: rulebook.grouped_by(expr) for record, expr in RECORDS.items()}}
    there = set(TARGET)
    for metric, matchers in rulebook.selectors(promql):
        assert metric in known
        there |= known[metric]
        for label, operator, value in matchers:
            assert label in known[metric] | TARGET, metric
            if label == "state":
                assert operator in {"=", "=~"}
                assert set(value.split("|")) <= {state.name for state in State}
    assert rulebook.grouped_by(promql) <= there


@pytest.mark.parametrize("promql", EXPRESSIONS.values(), ids=EXPRESSIONS)
def test_a_counter_is_read_through_its_growth_only(promql):
    """Counters fall when the exporter begins anew; `0 *` and `unless` ask only whether one is there."""
    bare = re.sub(r"(?:rate|increase)\([^()]*\)|0 \* \w+|unless on \([^)]*\) \w+_total", "", promql)
    ends = ("_total", "_bucket", "_sum", "_count")
    assert [name for name, _ in rulebook.selectors(bare) if name.endswith(ends)] == []


@pytest.mark.parametrize("record", RECORDS)
def test_a_record_is_called_level_metric_operations(record):
    level, metric, operations = record.split(":")
    kept = set(re.findall(r"\w+", rulebook.LISTS.findall(RECORDS[record])[0])) - {"namespace", "le"}
    assert sorted(level.split("_")) == sorted("_".join(kept).split("_"))
    assert re.fullmatch(r"celery_[a-z_]+", metric)
    assert not metric.endswith("_total")
    assert re.fullmatch(r"(?:ratio_|p95_)?rate\d+m|mean\d+m|ratio|sum|min|max", operations)


#: What the contract's words say of a number, and which setting has it; the minutes after "for" are `for`.
NUMBERS = {
    "CeleryHighFailureRate": {"over {failureRatio} %": 0.01, "over {window} minutes": "m"},
    "CeleryHighRetryRate": {"above {retryRatio} %": 0.01},
    "CeleryHighQueueDepth": {"over {queueDepth} messages": 1},
    "CelerySlowTaskProcessing": {"above {meanRuntimeSeconds} s": 1, "over {window} minutes": "m"},
}


@pytest.mark.parametrize("name", CONTRACT)
def test_an_alert_of_the_contract_has_its_name_and_numbers(name):
    promised, alert = CONTRACT[name], ALERTS[name]
    assert alert["labels"]["severity"] == promised["severity"]
    *before, last = re.findall(r"for (\d+) minutes", promised["means"])
    assert (before, alert["for"]) == ([], f"{last}m")
    config, spoken = configuration(), [last]
    for words, unit in NUMBERS.get(name, {}).items():
        setting = re.search(r"\{(\w+)\}", words).group(1)
        (number,) = re.findall(re.sub(r"\{\w+\}", r"(\\d+)", words), promised["means"])
        spoken.append(number)
        if unit == "m":
            assert config[setting] == f"{number}m", setting
        else:
            assert config[setting] == pytest.approx(int(number) * unit), setting
            (threshold,) = re.findall(r"> ([\d.]+)$", alert["expr"])
            assert float(threshold) == config[setting], alert["expr"]
    assert sorted(re.findall(r"\d+", promised["means"])) == sorted(spoken), "a number that nobody compares"


@pytest.mark.parametrize("name", ALERTS)
def test_every_alert_says_how_bad_it_is_what_it_is_and_where_to_look(name):
    alert = ALERTS[name]
    assert alert["labels"].keys() == {"severity"}
    assert alert["labels"]["severity"] in {"critical", "warning", "info"}
    assert rulebook.seconds(alert["for"]) >= 120
    notes = alert["annotations"]
    assert notes.keys() == {"summary", "description", "runbook_url", "dashboard_url"}
    assert all(notes.values())
    base, _, anchor = notes["runbook_url"].partition("#")
    assert base == "http://localhost:9808/runbooks"
    assert anchor in anchors(), f"{RUNBOOKS.name} has no heading {name}"
    uid = re.match(r"https?://[^/]+/d/([\w-]+)(?:\?|\{\{)", notes["dashboard_url"]).group(1)
    variables = set(re.findall(r"\bvar-(\w+)=\{\{", notes["dashboard_url"]))
    assert {"job"} <= variables <= DASHBOARDS[uid], uid


def test_the_dashboards_that_alerts_link_to_take_these_variables():
    for file in (ROOT / "dashboards").glob("provisioning/celery-*.json"):
        board = json.loads(file.read_text())
        taken = {variable["name"] for variable in board["templating"]["list"]}
        assert DASHBOARDS[board["uid"]] <= taken


def test_an_alert_that_fires_leaves_no_placeholder_empty():
    for group in yaml.safe_load(CASES.read_text())["tests"]:
        for test in group["alert_rule_test"]:
            for alert in test["exp_alerts"]:
                text = json.dumps(alert["exp_annotations"])
                assert "no value" not in text
                address, _, query = alert["exp_annotations"]["dashboard_url"].partition("?")
                assert re.fullmatch(r"http://[\w:/-]+", address)
                assert all(re.fullmatch(r"var-\w+=.+", part) for part in query.split("&") if query), query


def test_the_links_are_set_without_jsonnet(tmp_path):
    """By the commands of docs/how-to/alerts.md, on a copy of the rules."""
    lines = map(str.strip, (ROOT / "docs/how-to/alerts.md").read_text().splitlines())
    commands = [line for line in lines if line.startswith("$ sed -i ")]
    assert len(commands) == 2
    copies = [tmp_path / path.relative_to(ROOT) for path in (RULES, KUBERNETES)]
    for path in copies:
        path.parent.mkdir(parents=True)
        path.write_text((ROOT / path.relative_to(tmp_path)).read_text())
    for command in commands:
        subprocess.run(shlex.split(command.removeprefix("$ ")), cwd=tmp_path, check=True)
    copy, kubernetes = (path.read_text() for path in copies)
    assert "localhost" not in copy + kubernetes
    notes = yaml.safe_load(copy)["groups"][0]["rules"]
    urls = [rule["annotations"]["dashboard_url"] for rule in notes if "alert" in rule]
    assert {url.partition("/d/")[0] for url in urls} == {"https://grafana.example.com"}


def test_severities_and_times_are_those_of_the_table():
    """So are thresholds and windows, which the mixin imports; each alert has its row there."""
    assert {row.alert: (row.severity, row.pending) for row in TABLE} == {
        name: (alert["labels"]["severity"], rulebook.seconds(alert["for"])) for name, alert in ALERTS.items()
    }


# -- runbooks ------------------------------------------------------------------------------------------


def anchors():
    """Return the anchors of the runbooks' headings, as GitHub and others make them."""
    return {heading.lower() for heading in re.findall(r"^### (\w+)$", RUNBOOKS.read_text(), re.MULTILINE)}


def chapters():
    parts = re.split(r"^#{2,3} (.+)$", RUNBOOKS.read_text(), flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


@pytest.mark.parametrize("name", ALERTS)
def test_a_runbook_has_three_commands_and_usual_causes(name):
    chapter = chapters()[name]
    (commands,) = re.findall(r"```console\n(.*?)```", chapter, re.DOTALL)
    assert [line[:2] for line in commands.splitlines()] == ["$ "] * 3
    assert "sual causes" in chapter


def test_there_is_no_runbook_without_an_alert():
    assert anchors() == {name.lower() for name in ALERTS}


def test_the_runbooks_speak_of_metrics_options_alerts_and_settings_that_exist():
    text = RUNBOOKS.read_text()
    ours = r"(?<![\w:-])celery_(?:tasks?|workers?|queue|broker|exporter)_[a-z_]*[a-z](?![\w(])"
    spoken = set(re.findall(ours, text))
    assert [name for name in spoken if not any(metric.startswith(name) for metric in LABELS)] == []
    assert set(re.findall(r"\b\w+:celery\w+:\w+", text)) <= {*RECORDS, *LABELS}
    assert set(re.findall(r"\bCelery[A-Z]\w+", text)) == set(ALERTS)
    assert set(re.findall(r"`([a-z]+[A-Z]\w+)`", text)) <= set(configuration())
    ours = {f"--{option.name}" for option in OPTIONS}
    theirs = {
        "--app",
        "--broker",
        "--destination",
        "--since",
        "--previous",
        "--dump",
        "--without-heartbeat",
        "--pid",
        "--cacert",
    }
    assert set(re.findall(r"(?<![\w-])--[a-z][a-z.-]*[a-z]", text)) <= ours | theirs


def test_the_runbooks_ask_workers_what_they_can_answer():
    asked = set(re.findall(r"celery --app \$APP (?:inspect|control) (\w+)", RUNBOOKS.read_text()))
    assert asked
    assert asked <= set(Panel.data)


# -- what the exporter and the rules have to agree on --------------------------------------------------


def test_a_dead_worker_is_shown_for_longer_than_its_alert_waits():
    """A minute is between two scrapes, and between two evaluations, unless Prometheus is told otherwise."""
    (purge,) = (option.default for option in OPTIONS if option.name == "purge-offline-worker-metrics")
    rule = ALERTS["CeleryWorkerDown"]
    assert rulebook.seconds(rule["for"]) + 60 + 60 < purge
    (window,) = re.findall(r"\[(\w+):\w+\]", rule["expr"])
    assert rulebook.seconds(window) > purge + 60, "what it was when it was last up is forgotten too early"
