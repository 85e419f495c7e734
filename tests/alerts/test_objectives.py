"""The rules of objectives: what is an error in the table, what counts, and when the alerts fire.

`docs/how-to/objectives.md` has the times after which an alert fires. promtool checks each of them.
"""

import json
import re
import subprocess

import pytest
import yaml
from harness.objectives import EXAMPLE, SLIS, evaluate, generate, rules_of
from harness.processes import ROOT, need
from harness.servers import PROMETHEUSES, Prometheus

from celery_exporter.metrics.profiles.native import RUNTIME_BUCKETS, WAIT_BUCKETS

from .rulebook import OBJECTIVE_ALERTS, OBJECTIVE_RECORDS, seconds

PAGE = ROOT / "docs" / "how-to" / "objectives.md"
LEVEL = "job_objective_sli:celery_objective_"
FAST, SLOW = OBJECTIVE_ALERTS
#: Tasks per interval of the series below.
RATE = 100
HOUR, DAY = 60, 24 * 60  # minutes
#: Without errors, before they begin in the tests of the fast alert.
BEFORE = 6 * HOUR
each_prometheus = pytest.mark.parametrize("server", PROMETHEUSES, ids=lambda server: server.__name__)


# -- the table -----------------------------------------------------------------------------------------


def test_the_bounds_are_those_of_the_exporter():
    config = json.loads(evaluate('(import "mixin.libsonnet")._config').stdout)
    assert tuple(config["runtimeBuckets"]) == RUNTIME_BUCKETS
    assert tuple(config["waitBuckets"]) == WAIT_BUCKETS


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"runtimeSeconds": 20},
            "runtimeSeconds is 20, which is not the bound of a bucket. Nearest: 10 and 30.",
        ),
        ({"runtimeSeconds": 400}, "is not the bound of a bucket. Nearest: 300. Other bounds: --buckets and"),
        (
            {"queueWaitSeconds": 0.3},
            "queueWaitSeconds is 0.3, which is not the bound of a bucket. Nearest: 0.1 and 0.5.",
        ),
        ({"queueWaitSeconds": 0}, "Nearest: 0.01. Other bounds: --queue-wait-buckets and waitBuckets."),
        ({"runtime": 10}, "unknown fields: runtime"),
        ({"objective": 99}, "objective is 99. It must be above 0 and at most 0.99999."),
        ({"objective": 1}, "objective is 1. It must be above 0 and at most 0.99999."),
        ({"name": ""}, "an objective has no name"),
    ],
)
def test_a_mistake_in_the_table_is_an_error(change, message):
    result = generate([{**EXAMPLE, **change}])
    assert result.returncode != 0
    assert message in result.stderr


def test_names_are_unique():
    assert "two objectives have the same name: mail, mail" in generate([EXAMPLE, EXAMPLE]).stderr


def test_other_bounds_can_be_set():
    (group,) = rules_of({**EXAMPLE, "runtimeSeconds": 20}, runtimeBuckets=[20])["groups"]
    assert 'le=~\\"20|20[.]0\\"' in json.dumps(group)


def test_without_objectives_there_are_no_rules():
    assert rules_of() == {"groups": []}


def test_an_objective_has_an_indicator_for_each_threshold():
    names = {
        (): {"success"},
        ("runtimeSeconds",): {"success", "runtime"},
        ("queueWaitSeconds",): {"success", "wait"},
        ("runtimeSeconds", "queueWaitSeconds"): SLIS,
    }
    for fields, slis in names.items():
        objective = {name: EXAMPLE[name] for name in ("name", "objective", *fields)}
        (group,) = rules_of(objective)["groups"]
        assert {rule["labels"]["sli"] for rule in group["rules"] if "sli" in rule.get("labels", {})} == slis


def test_the_names_of_the_records_and_alerts():
    (group,) = rules_of(EXAMPLE)["groups"]
    assert {rule["record"] for rule in group["rules"] if "record" in rule} == OBJECTIVE_RECORDS
    assert tuple(rule["alert"] for rule in group["rules"] if "alert" in rule) == OBJECTIVE_ALERTS


def test_matchers_are_escaped_and_include_the_selector():
    objective = {**EXAMPLE, "task": 'a"b', "queue": None}
    text = rules_of(objective, taskSelector='worker!=""')["groups"][0]["rules"][0]["expr"]
    assert '{task_name="a\\"b",state=~"SUCCESS|FAILURE",worker!=""}' in text


@each_prometheus
def test_promtool_accepts_the_rules(tmp_path, server):
    file = tmp_path / "rules.json"
    file.write_text(json.dumps(rules_of(EXAMPLE, {"name": "all", "objective": 0.999})))
    result = run(server.promtool(), "check", "rules", "--lint=all", "--lint-fatal", file)
    assert result == ""


# -- promtool ------------------------------------------------------------------------------------------


def run(*command):
    """Run promtool, and return its output if it fails, or an empty string."""
    result = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
    return "" if result.returncode == 0 else result.stdout + result.stderr


def check(folder, series, *tests, interval=1, **group):
    """Check the rules of EXAMPLE with these series, and return how promtool disagrees.

    The interval of samples and evaluations is in minutes. Long windows take minutes with a short one.
    """
    (folder / "rules.json").write_text(json.dumps(rules_of(EXAMPLE)))
    inputs = [{"series": name, "values": values} for name, values in series.items()]
    group = {"interval": f"{interval}m", "input_series": inputs, "promql_expr_test": list(tests), **group}
    file = folder / "test.yml"
    file.write_text(
        yaml.safe_dump(
            {"rule_files": ["rules.json"], "evaluation_interval": f"{interval}m", "tests": [group]}
        )
    )
    return run(Prometheus.promtool(), "test", "rules", file)


def counter(*phases):
    """Return the values of a counter: of each phase, its increase per interval and its intervals."""
    total, texts = 0, []
    for increase, count in phases:
        texts.append(f"{total}+{increase}x{count - 1}")
        total += increase * count
    return " ".join(texts)


def name_of(metric, labels="", job="celery"):
    """Return a series of the task and the queue of EXAMPLE."""
    return f'{metric}{{job="{job}",task_name="mail.send",queue_name="emails"{labels}}}'


def success(*phases, job="celery", interval=1):
    """Return the series of the indicator `success`: of each phase, the share of failures and its minutes."""
    counts = {"SUCCESS": [(RATE * (1 - share), minutes // interval) for share, minutes in phases]}
    counts["FAILURE"] = [(RATE * share, minutes // interval) for share, minutes in phases]
    return {
        name_of("celery_tasks_total", f',state="{state}"', job): counter(*values)
        for state, values in counts.items()
    }


def histogram(metric, bounds, *phases, labels=""):
    """Return the series of a histogram: of each phase, the share above the first bound and its minutes."""
    good = counter(*((RATE * (1 - share), minutes) for share, minutes in phases))
    every = counter(*((RATE, minutes) for _, minutes in phases))
    first, *others = bounds
    buckets = {first: good, **dict.fromkeys(others, every)}
    series = {name_of(f"{metric}_bucket", f'{labels},le="{le}"'): values for le, values in buckets.items()}
    return {**series, name_of(f"{metric}_count", labels): every}


def fires(alert, minute, *firing, job="celery"):
    """Return a check of which indicators the alert fires for at this minute."""
    expr = f'count by (job, objective, sli) (ALERTS{{alertstate="firing",alertname="{alert}"}})'
    samples = [
        {"labels": f'{{job="{job}",objective="mail",sli="{sli}"}}', "value": 1} for sli in sorted(firing)
    ]
    return {"expr": expr, "eval_time": f"{minute}m", "exp_samples": samples}


def detections():
    """Return the rows of the page: the share of bad tasks, the alert, and the minutes until it fires."""
    rows = re.findall(r"^\| (\d+) % \| `?(\w+)`? \| (\w+) \|$", PAGE.read_text(), re.MULTILINE)
    return [(int(percent) / 100, alert, round(seconds(duration) / 60)) for percent, alert, duration in rows]


def test_the_page_has_times_of_both_alerts():
    assert {alert for _, alert, _ in detections()} == {FAST, SLOW}
    assert {share for share, _, _ in detections()} >= {1.0, 0.02}


@pytest.mark.parametrize(("share", "alert", "minutes"), detections())
def test_an_alert_fires_after_the_time_on_the_page(tmp_path, share, alert, minutes):
    """After a time without errors that is as long as the windows of the alert.

    The times of the slow alert are checked to one interval of 4 minutes.
    """
    before, interval, margin = (BEFORE, 1, 0) if alert == FAST else (3 * DAY, 4, 4)
    series = success((0, before), (share, minutes + 12), interval=interval)
    checks = (
        fires(alert, before + minutes - interval),
        fires(alert, before + minutes + margin, "success"),
    )
    assert check(tmp_path, series, *checks, interval=interval) == ""


def test_errors_within_the_budget_fire_nothing(tmp_path):
    checks = [fires(alert, minute) for alert in (FAST, SLOW) for minute in (HOUR, DAY, 4 * DAY)]
    assert check(tmp_path, success((0.0099, 4 * DAY), interval=4), *checks, interval=4) == ""


def test_the_fast_alert_ends_soon_after_the_errors(tmp_path):
    """The error ratio of an hour is still too high then."""
    series = success((0, BEFORE), (1, 30), (0, 60))
    end = BEFORE + 30
    high = {"expr": f"{LEVEL}errors:ratio_rate1h > bool 0.144", "eval_time": f"{end + 6}m"}
    high["exp_samples"] = [{"labels": '{job="celery",objective="mail",sli="success"}', "value": 1}]
    checks = fires(FAST, end, "success"), fires(FAST, end + 6), high
    assert check(tmp_path, series, *checks) == ""


def test_a_short_burst_does_not_fire(tmp_path):
    checks = [fires(FAST, BEFORE + minute) for minute in range(30)]
    assert check(tmp_path, success((0, BEFORE), (1, 6), (0, 30)), *checks) == ""


@pytest.mark.parametrize("bounds", [("10", "30", "+Inf"), ("10.0", "30.0", "+Inf")], ids=["10", "10.0"])
def test_tasks_that_run_too_long_fire(tmp_path, bounds):
    metric = "celery_task_runtime_seconds"
    series = histogram(metric, bounds, (0, BEFORE), (1, 30), labels=',state="SUCCESS"')
    assert check(tmp_path, series, fires(FAST, BEFORE + 10), fires(FAST, BEFORE + 11, "runtime")) == ""


def test_tasks_that_wait_too_long_fire(tmp_path):
    series = histogram("celery_task_queue_wait_seconds", ("60", "300", "+Inf"), (0, BEFORE), (1, 30))
    assert check(tmp_path, series, fires(FAST, BEFORE + 10), fires(FAST, BEFORE + 11, "wait")) == ""


def test_executions_that_end_in_a_retry_do_not_count(tmp_path):
    metric, bounds = "celery_task_runtime_seconds", ("10", "+Inf")
    series = histogram(metric, bounds, (0, BEFORE), (0, 30), labels=',state="SUCCESS"')
    series |= histogram(metric, bounds, (1, BEFORE), (1, 30), labels=',state="RETRY"')
    assert check(tmp_path, series, fires(FAST, BEFORE), fires(SLOW, BEFORE)) == ""


def test_another_task_another_queue_and_another_cluster_do_not_count(tmp_path):
    series = {
        **success((0, BEFORE), (1, 30)),
        **success((0, BEFORE), (0, 30), job="well"),
        **{
            f'celery_tasks_total{{job="well",{labels},state="FAILURE"}}': "0+100x400"
            for labels in (
                'task_name="mail.send",queue_name="other"',
                'task_name="other",queue_name="emails"',
            )
        },
    }
    assert check(tmp_path, series, fires(FAST, BEFORE + 20, "success")) == ""


@pytest.mark.parametrize(
    "series",
    [
        {},
        success((0, BEFORE), (0, 30))
        | {name_of("celery_tasks_total", ',state="SUCCESS"'): f"0x{BEFORE + 30}"},
        {name_of("celery_tasks_total", ',state="SUCCESS"'): counter((RATE, 60)) + " stale"},
    ],
    ids=["no task", "no task finishes", "exporter down"],
)
def test_without_tasks_nothing_fires(tmp_path, series):
    checks = [fires(alert, minute) for alert in (FAST, SLOW) for minute in (59, 90, BEFORE)]
    assert check(tmp_path, series, *checks) == ""


def test_histograms_without_the_bucket_have_no_ratio(tmp_path):
    """With other --buckets, the share of good tasks is unknown, not 0."""
    series = histogram("celery_task_runtime_seconds", ("7", "+Inf"), (1, BEFORE), labels=',state="SUCCESS"')
    unknown = {"expr": f"{LEVEL}errors:ratio_rate1h", "eval_time": f"{BEFORE}m", "exp_samples": []}
    assert check(tmp_path, series, unknown, fires(FAST, BEFORE)) == ""


def test_an_alert_has_texts_and_links(tmp_path):
    annotations = {
        "summary": "Celery tasks in celery miss objective mail (success) 50.0 times as often as it allows",
        "description": "More than 2% of an error budget of 30 days was spent in one hour. Check the "
        "dashboard for when the errors began, and compare with releases and other alerts.",
        "runbook_url": "http://localhost:9808/runbooks#celeryerrorbudgetburnfast",
        "dashboard_url": "http://localhost:3000/d/celery-objectives?var-job=celery",
    }
    labels = {"job": "celery", "objective": "mail", "sli": "success", "severity": "critical"}
    alert = {"alertname": FAST, "eval_time": f"{BEFORE}m"}
    alert["exp_alerts"] = [{"exp_labels": labels, "exp_annotations": annotations}]
    assert check(tmp_path, success((0.5, BEFORE + 10)), alert_rule_test=[alert]) == ""


def test_jsonnet_is_formatted():
    assert run(need("jsonnetfmt"), "--test", ROOT / "alerts" / "objectives.libsonnet") == ""
