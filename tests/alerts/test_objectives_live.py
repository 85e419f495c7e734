"""Objectives on a real Prometheus: an alert fires within the time on the page, and ends.

A minute is a second here: `1h` in the name of a record is a window of one minute.
"""

import json
from contextlib import ExitStack
from types import SimpleNamespace

import pytest
from harness.exporter import Exporter
from harness.objectives import SLIS, rules_of
from harness.outcomes import RedisOutcomes
from harness.processes import side_by_side
from harness.servers import PROMETHEUSES, Alertmanager, RedisServer
from harness.waiting import BUSY_FACTOR, eventually
from harness.webhook import Webhook
from harness.workers import Worker
from harness.workers import client as make_client

from .rulebook import OBJECTIVE_ALERTS, shortened

JOB = "celery"
FAST, _ = OBJECTIVE_ALERTS
OBJECTIVE = {
    "name": "work",
    "queue": "celery",
    "runtimeSeconds": 5,
    "queueWaitSeconds": 60,
    "objective": 0.99,
}
LEVEL = "job_objective_sli:celery_objective_"
#: 11 minutes on the page, and a second each for a scrape and an evaluation. The short history before the
#: failures makes it sooner. The slow alert fires, too, because it has no more history.
DETECTED_SECONDS = 11 + 2


@pytest.fixture(scope="module", params=PROMETHEUSES, ids=lambda server: server.__name__)
def scene(request, tmp_path_factory):
    """Yield an exporter, a worker, and a Prometheus with the rules of an objective."""
    folder = tmp_path_factory.mktemp("objectives")
    rules = folder / "rules.yml"
    rules.write_text(json.dumps(shortened(rules_of(OBJECTIVE))))
    with ExitStack() as stack:
        url = stack.enter_context(RedisServer(folder / "redis")).url
        pager = stack.enter_context(Webhook())
        exporter = Exporter(folder / "exporter", url)
        manager = Alertmanager(folder / "alertmanager", pager.url)
        prometheus = request.param(
            folder / "prometheus",
            f"127.0.0.1:{exporter.port}",
            job=JOB,
            rules=rules,
            alertmanager=manager.address,
        )
        outcomes = RedisOutcomes(url.removesuffix("/0") + "/5")
        worker = Worker(folder / "worker", url, "w@box", outcomes=outcomes)
        stack.enter_context(side_by_side(exporter, manager, prometheus, worker))
        exporter.connected()
        client = stack.enter_context(make_client(url))
        yield SimpleNamespace(pager=pager, prometheus=prometheus, send=client.send_task)


def slis(scene, promql):
    """Return the indicators that an expression has."""
    return {sample["metric"]["sli"] for sample in scene.prometheus.query(promql)}


def alerts(scene, status="firing"):
    """Return the indicators that the fast alert was sent for."""
    labels = scene.pager.labels(FAST, status)
    assert all((label["job"], label["objective"]) == (JOB, "work") for label in labels)
    return {label["sli"] for label in labels}


def first_second(scene, promql):
    """Return the time of the first sample that an expression has."""
    query = f"min(min_over_time(timestamp({promql})[5m:1s]))"
    (sample,) = eventually(lambda: scene.prometheus.query(query))
    return float(sample["value"][1])


def test_without_errors_each_indicator_has_a_ratio_of_zero_and_no_alert(scene):
    def work():
        scene.send("tasks.succeed", queue="celery")
        return slis(scene, f"{LEVEL}errors:ratio_rate3d == 0 and {LEVEL}tasks:rate5m > 0") == SLIS

    eventually(work, 30, every=0.25)
    assert slis(scene, f"{LEVEL}error_budget:ratio") == SLIS
    assert [rule["lastError"] for rule in scene.prometheus.rules() if rule["health"] == "err"] == []
    assert alerts(scene) == set()


def test_failures_are_detected_within_the_time_on_the_page(scene):
    def work():
        scene.send("tasks.fail_with_value_error", queue="celery")
        return "success" in alerts(scene)

    eventually(work, 30, every=0.25)
    assert alerts(scene) == {"success"}
    begin = first_second(scene, 'celery_tasks_total{state="FAILURE"} > 0')
    fired = first_second(scene, f'ALERTS{{alertname="{FAST}",alertstate="firing"}}')
    assert fired - begin < BUSY_FACTOR * DETECTED_SECONDS


def test_the_alert_ends_after_the_failures(scene):
    def work():
        scene.send("tasks.succeed", queue="celery")
        return "success" in alerts(scene, "resolved")

    eventually(work, 30, every=0.25)
    assert slis(scene, f"{LEVEL}errors:ratio_rate1h > 0.144") == {"success"}
