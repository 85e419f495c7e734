"""The demo without problems has no findings and alerts; with problems, all views report the same ones."""

from __future__ import annotations

import json
import re

import pytest
from alerts.rulebook import RULES
from harness.demo import JOB, running_demo
from harness.exporter import Exporter, run_cli
from harness.processes import side_by_side
from harness.servers import PROMETHEUSES, Prometheus
from harness.waiting import eventually, until_equal

from celery_exporter.status.thresholds import TABLE

#: Tasks after which the rates of failures and retries are close to those of the demo.
MIN_TASKS = 600
DEADLINE = 120.0
#: The alerts of the demo with problems.
PROBLEMS = {"CeleryHighFailureRate", "CeleryHighRetryRate"}
#: The queues of the demo, by the records that autoscalers read.
FOR_AUTOSCALERS = {
    f"job_queue_name:{name}": {"emails", "reports"}
    for name in (
        "celery_queue_tasks_per_slot:ratio",
        "celery_queue_drain_seconds:ratio",
        "celery_tasks_sent:rate5m",
        "celery_tasks_received:rate5m",
        "celery_tasks_ended:rate5m",
    )
}
#: Seconds for which these alerts are pending.
PENDING_SECONDS = max(row.pending for row in TABLE if row.alert in PROBLEMS)


@pytest.fixture
def scene(redis_server, tmp_path):
    """Yield an exporter, each Prometheus with the shipped rules, and the URL of the broker."""
    url = redis_server.clean()
    app = Exporter(tmp_path / "exporter", url)
    target = f"127.0.0.1:{app.port}"
    servers = [kind(tmp_path / kind.__name__, target, job=JOB, rules=RULES) for kind in PROMETHEUSES]
    with side_by_side(app, *servers):
        yield app.connected(), servers, url


def alerts(servers: list[Prometheus], states: str) -> list[set[str]]:
    """Return the alerts in one of these states for each server, except those of severity info."""
    query = f'ALERTS{{alertstate=~"{states}",severity!="info"}}'
    return [{sample["metric"]["alertname"] for sample in server.query(query)} for server in servers]


def queues(servers: list[Prometheus]) -> list[dict[str, set[str]]]:
    """Return the queues that have a value of each record for autoscalers, for each server."""
    query = f'{{__name__=~"{"|".join(FOR_AUTOSCALERS)}"}} >= 0'
    answers = [[sample["metric"] for sample in server.query(query)] for server in servers]
    return [
        {
            name: {each["queue_name"] for each in answer if each["__name__"] == name}
            for name in FOR_AUTOSCALERS
        }
        for answer in answers
    ]


def problems(findings: list[dict[str, str]]) -> set[str]:
    """Return the alerts of findings with problems, or the checks of those without an alert."""
    bad = [finding for finding in findings if finding["severity"] != "ok"]
    return {finding["alert"] or finding["check"] for finding in bad}


def on_page(app: Exporter) -> set[str]:
    return problems(json.loads(app.get("/api/v1/status").body)["findings"])


def by_doctor(url: str) -> set[str]:
    done = run_cli("doctor", "--broker-url", url, "--seconds", "30", "--json", deadline=60)
    return problems(json.loads(done.stdout)["findings"])


def in_log(app: Exporter) -> set[str]:
    return set(re.findall(r"\(alert (\w+)\)", app.text()))


def test_a_demo_without_problems_has_none_on_the_page_in_the_log_in_doctor_and_in_alerts(scene, tmp_path):
    app, servers, url = scene
    with running_demo(tmp_path, url, with_problems=False):
        eventually(lambda: app.total("celery_tasks_total", state="SUCCESS") > MIN_TASKS, DEADLINE)
        measured = app.samples().by("celery_task_measurement_sum", "task_name", "field")
        assert measured.keys() == {("report.build", "pages"), ("report.build", "render_seconds")}
        assert all(measured.values())
        until_equal(lambda: queues(servers), [FOR_AUTOSCALERS, FOR_AUTOSCALERS], DEADLINE)
        until_equal(lambda: alerts(servers, "pending|firing"), [set(), set()], DEADLINE)
        until_equal(lambda: on_page(app), set(), DEADLINE)
        until_equal(lambda: by_doctor(url), set(), DEADLINE)
        assert in_log(app) == set()


def test_a_demo_with_problems_has_the_same_on_the_page_in_the_log_in_doctor_and_in_alerts(scene, tmp_path):
    app, servers, url = scene
    with running_demo(tmp_path, url, with_problems=True):
        until_equal(lambda: alerts(servers, "pending|firing"), [PROBLEMS, PROBLEMS], DEADLINE)
        until_equal(lambda: on_page(app), PROBLEMS, DEADLINE)
        until_equal(lambda: by_doctor(url), PROBLEMS, DEADLINE)
        until_equal(lambda: alerts(servers, "firing"), [PROBLEMS, PROBLEMS], PENDING_SECONDS + DEADLINE)
        until_equal(lambda: in_log(app), PROBLEMS, DEADLINE)
