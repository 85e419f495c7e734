"""alerts/review.yml is complete and true, and the Alertmanager has its inhibit rules."""

import itertools
import json
import re
import subprocess
import urllib.request
from graphlib import TopologicalSorter

import pytest
import yaml
from harness.processes import ROOT
from harness.servers import Prometheus, ShippedAlertmanager
from harness.waiting import ANSWER_TIMEOUT, until_equal
from harness.webhook import Webhook

from celery_exporter.status.thresholds import TABLE

from .review import CAUSES, REVIEWS
from .rulebook import ALERTS, CASE_GROUPS, OBJECTIVE_ALERTS, RULES, seconds
from .test_objectives import detections

#: The time of the cause in the series of the file.
CAUSE_SECONDS = 20 * 60
INTERVAL_SECONDS = 15
#: After the time of the review, so that a later time is measured, too.
MARGIN_SECONDS = 5 * 60


def test_every_alert_has_a_row():
    assert list(REVIEWS) == [*(row.alert for row in TABLE), *OBJECTIVE_ALERTS]


# -- detection times -----------------------------------------------------------------------------------


def case(name):
    """Return a test of promtool: when the alert fires for the first time."""
    review = REVIEWS[name]
    fires = CAUSE_SECONDS + seconds(review["detected"])
    end = f"{fires + MARGIN_SECONDS:.0f}s"
    firing = f'ALERTS{{alertname="{name}",alertstate="firing"}}'
    first = f"min_over_time(timestamp({firing})[{end}:{INTERVAL_SECONDS}s])"
    return {
        "name": name,
        "interval": f"{INTERVAL_SECONDS}s",
        "input_series": [{"series": series, "values": values} for series, values in review["series"].items()],
        "promql_expr_test": [
            {"expr": f"min({first})", "eval_time": end, "exp_samples": [{"labels": "{}", "value": fires}]}
        ],
    }


def write_tests(folder):
    """Write the tests of each group of rules, which then evaluate only this group; return the files."""
    for group in yaml.safe_load(RULES.read_text())["groups"]:
        rules = folder / f"{group['name']}.yml"
        rules.write_text(yaml.safe_dump({"groups": [group]}))
        tests = {
            "rule_files": [str(rules)],
            "evaluation_interval": f"{INTERVAL_SECONDS}s",
            "tests": [case(rule["alert"]) for rule in group["rules"] if "alert" in rule],
        }
        file = folder / f"{group['name']}.test.yml"
        file.write_text(yaml.safe_dump(tests))
        yield file


def test_alerts_fire_after_the_time_in_the_review(tmp_path):
    command = [Prometheus.promtool(), "test", "rules", *write_tests(tmp_path)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert measured(result.stderr) == {}, "seconds that promtool measured"
    assert result.returncode == 0, result.stderr


def measured(output):
    """Return the seconds that promtool measured for alerts whose row has another time."""
    rows = re.findall(r'alertname=\\?"(\w+).*?got:\s*(\S.*?)$', output, re.DOTALL | re.MULTILINE)
    return {name: float(got.split()[-1]) - CAUSE_SECONDS if got != "nil" else None for name, got in rows}


def test_alerts_of_objectives_fire_after_the_time_on_their_page():
    for name, share in zip(OBJECTIVE_ALERTS, (1.0, 0.02), strict=True):
        (minutes,) = [minutes for other, alert, minutes in detections() if (other, alert) == (share, name)]
        assert seconds(REVIEWS[name]["detected"]) == 60 * minutes


def test_a_beat_that_is_down_fires_before_the_tasks_that_it_does_not_send():
    """A task can be due when beat ends, and have almost no grace."""
    detected = seconds(REVIEWS["CeleryBeatDown"]["detected"])
    assert detected < seconds(ALERTS["CeleryTaskOverdue"]["for"])


# -- inhibition ----------------------------------------------------------------------------------------


def labels_of(name):
    """Return the labels of an alert, as Prometheus sends them."""
    if name in OBJECTIVE_ALERTS:
        return {"job": "celery", "severity": "warning", "objective": "all", "sli": "success"}
    tests = itertools.chain.from_iterable(group["alert_rule_test"] for group in CASE_GROUPS)
    return next(
        test["exp_alerts"][0]["exp_labels"]
        for test in tests
        if test["alertname"] == name and test["exp_alerts"]
    )


def test_causes_are_those_that_mute_an_alert():
    causes = set(itertools.chain.from_iterable(row["muted_by"] for row in REVIEWS.values()))
    assert causes == set(CAUSES)
    assert causes <= set(REVIEWS)


def test_no_two_alerts_mute_each_other():
    """Alertmanager would notify about neither. It mutes an alert also if its cause is muted."""
    graph = {name: row["muted_by"] for name, row in REVIEWS.items()}
    assert len(list(TopologicalSorter(graph).static_order())) == len(REVIEWS)
    for name, row in REVIEWS.items():
        for cause in row["muted_by"]:
            inherited = set(REVIEWS[cause]["muted_by"]) & {"CeleryExporterBlind"}
            assert inherited <= set(row["muted_by"]), f"{name} notifies while {cause} is muted"


def test_alerts_have_the_labels_in_which_they_have_to_agree():
    """To Alertmanager, two missing labels are equal: without this, a cause would mute too much."""
    for name, row in REVIEWS.items():
        for cause in row["muted_by"]:
            for label in CAUSES[cause].get("equal", ()):
                assert label in labels_of(name), name
                assert label in labels_of(cause), cause


def test_notifications_wait_for_an_alert_on_their_cause():
    """Groups of rules are evaluated at different moments of an interval, so a consequence can fire first."""
    prometheus, alertmanager = (
        yaml.safe_load((ROOT / "deploy" / file).read_text())
        for file in ("prometheus/prometheus.yml", "alertmanager/alertmanager.yml")
    )
    route = alertmanager["route"]
    waits = [seconds(each["group_wait"]) for each in (route, *route["routes"]) if "group_wait" in each]
    assert min(waits) > seconds(prometheus["global"]["evaluation_interval"])


@pytest.fixture
def manager(tmp_path, running):
    with Webhook() as pager:
        yield running(ShippedAlertmanager(tmp_path, pager.url, factor=1))


def url(manager):
    return f"http://{manager.address}/api/v2/alerts"


def fire(manager, alerts):
    """Send alerts with these labels."""
    body = json.dumps([{"labels": labels} for labels in alerts]).encode()
    request = urllib.request.Request(url(manager), body, {"Content-Type": "application/json"})
    urllib.request.urlopen(request, timeout=ANSWER_TIMEOUT).close()


def muted(manager):
    """Return the job and the name of each alert that is muted."""
    with urllib.request.urlopen(url(manager), timeout=ANSWER_TIMEOUT) as response:
        labels = [alert["labels"] for alert in json.load(response) if alert["status"]["inhibitedBy"]]
    return {(each["job"], each["alertname"]) for each in labels}


def pair(cause, name):
    """Return the labels of both alerts in a cluster of their own."""
    first, second = labels_of(cause), labels_of(name)
    shared = {label: first[label] for label in CAUSES[cause].get("equal", ()) if label in second}
    alerts = {cause: first, name: {**second, **shared}}
    return [{**labels, "alertname": alert, "job": f"{cause} {name}"} for alert, labels in alerts.items()]


def test_causes_mute_their_consequences_and_nothing_else(manager):
    pairs = [(cause, name) for cause, name in itertools.product(CAUSES, REVIEWS) if cause != name]
    unrelated = [{"alertname": "Unrelated", "job": f"{cause} {name}"} for cause, name in pairs]
    fire(manager, [*itertools.chain.from_iterable(itertools.starmap(pair, pairs)), *unrelated])
    expected = {
        (f"{first} {second}", name)
        for first, second in pairs
        for cause, name in itertools.permutations((first, second))
        if cause in REVIEWS[name]["muted_by"]
    }
    until_equal(lambda: muted(manager), expected)


@pytest.mark.parametrize("label", ["job", "namespace", "queue_name"])
def test_a_cause_does_not_mute_alerts_with_another_label(manager, label):
    common = {"job": "celery", "namespace": "prod", "queue_name": "mail"}
    cause = {**common, "alertname": "CeleryQueueWithoutConsumers", "severity": "critical"}
    other = {**common, "alertname": "CeleryHighQueueDepth", "severity": "warning"}
    fire(
        manager,
        [cause, {**other, label: "other"}, {name: value for name, value in other.items() if name != label}],
    )
    assert muted(manager) == set()
    fire(manager, [other])
    until_equal(lambda: muted(manager), {("celery", "CeleryHighQueueDepth")})


def test_failures_do_not_mute_the_objective_of_another_task(manager):
    """A task that fails often and matters little would mute the page of each other one."""
    cause = {"alertname": "CeleryHighFailureRate", "job": "celery", "severity": "critical"}
    burns = [
        {**cause, "alertname": name, "objective": "payments", "sli": "success"} for name in OBJECTIVE_ALERTS
    ]
    muted_by_cause = {**cause, "alertname": "CeleryHighRetryRate", "severity": "warning"}
    fire(manager, [cause, burns[0], muted_by_cause, {**burns[1], "objective": "mail"}])
    until_equal(lambda: muted(manager), {("celery", "CeleryHighRetryRate")})


def test_a_shard_without_events_does_not_mute_what_other_shards_count(manager):
    cause = {"alertname": "CeleryExporterBlind", "severity": "critical", "instance": "a:9808"}
    other = {"alertname": "CeleryHighFailureRate", "severity": "critical"}
    fire(manager, [{**cause, "job": "shards", "shard": "0/2"}, {**other, "job": "shards"}])
    fire(manager, [{**cause, "job": "all"}, {**other, "job": "all"}])
    until_equal(lambda: muted(manager), {("all", "CeleryHighFailureRate")})
