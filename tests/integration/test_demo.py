"""The demo is a cluster that is well, or with problems one that is not: by whoever looks at it."""

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

#: So many tasks that the shares are near what they are meant to be: a few in a hundred, or more than ten.
ENOUGH = 600
DEADLINE = 120.0
#: Of a demo with problems; nothing else is wrong with it.
PROBLEMS = {"CeleryHighFailureRate", "CeleryHighRetryRate"}
#: Seconds for which these are pending.
PENDING = max(row.pending for row in TABLE if row.alert in PROBLEMS)


@pytest.fixture
def watched(redis_server, tmp_path):
    """Yield an exporter, each Prometheus with the shipped rules, and the URL of the broker."""
    url = redis_server.clean()
    app = Exporter(tmp_path / "exporter", url)
    target = f"127.0.0.1:{app.port}"
    servers = [each(tmp_path / each.__name__, target, job=JOB, rules=RULES) for each in PROMETHEUSES]
    with side_by_side(app, *servers):
        yield app.connected(), servers, url


def alerts(servers: list[Prometheus], states: str) -> list[set[str]]:
    """Return the alerts in one of these states, by server; one whose severity is info is no problem."""
    query = f'ALERTS{{alertstate=~"{states}",severity!="info"}}'
    return [{each["metric"]["alertname"] for each in server.query(query)} for server in servers]


def on_page(app: Exporter) -> set[str]:
    """Return the alerts whose conditions the status page shows, and anything else that it complains of."""
    findings = json.loads(app.get("/api/v1/status").body)["findings"]
    return {each["alert"] or each["check"] for each in findings if each["severity"] != "ok"}


def by_doctor(url: str) -> set[str]:
    done = run_cli("doctor", "--broker-url", url, "--seconds", "30", "--json", deadline=60)
    findings = json.loads(done.stdout)["findings"]
    return {each["alert"] or each["check"] for each in findings if each["severity"] != "ok"}


def in_log(app: Exporter) -> set[str]:
    return set(re.findall(r"\(alert (\w+)\)", app.text()))


def test_a_demo_that_is_well_is_well_by_page_log_doctor_and_alerts(watched, tmp_path):
    app, servers, url = watched
    with running_demo(tmp_path, url, with_problems=False):
        eventually(lambda: app.total("celery_tasks_total", state="SUCCESS") > ENOUGH, DEADLINE)
        until_equal(lambda: alerts(servers, "pending|firing"), [set(), set()], DEADLINE)
        until_equal(lambda: on_page(app), set(), DEADLINE)
        until_equal(lambda: by_doctor(url), set(), DEADLINE)
        assert in_log(app) == set()


def test_page_log_doctor_and_alerts_have_the_same_problems(watched, tmp_path):
    app, servers, url = watched
    with running_demo(tmp_path, url, with_problems=True):
        until_equal(lambda: alerts(servers, "pending|firing"), [PROBLEMS, PROBLEMS], DEADLINE)
        until_equal(lambda: on_page(app), PROBLEMS, DEADLINE)
        until_equal(lambda: by_doctor(url), PROBLEMS, DEADLINE)
        until_equal(lambda: alerts(servers, "firing"), [PROBLEMS, PROBLEMS], PENDING + DEADLINE)
        until_equal(lambda: in_log(app), PROBLEMS, DEADLINE)
