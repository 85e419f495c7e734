"""Real causes, the shipped rules, a real Prometheus and Alertmanager: alerts reach a receiver.

The rules are a copy in which a minute is a second, in `for` and in windows. The tests run in order and share
one scene, from a cluster that works to one without an exporter.
"""

import re
from contextlib import ExitStack
from types import SimpleNamespace

import pytest
import yaml
from harness.exporter import Exporter
from harness.outcomes import RedisOutcomes
from harness.processes import side_by_side
from harness.servers import PROMETHEUSES, Alertmanager, RedisServer
from harness.waiting import eventually
from harness.webhook import Webhook
from harness.workers import Worker
from harness.workers import client as make_client

from .rulebook import ALERTS, RULES, seconds

JOB = "celery"
WITHOUT_EVENTS = "quiet"
#: Without events for three of Celery's heartbeats, the minimum, a worker is down.
WORKER_TIMEOUT_SECONDS = "6"
#: The default of 10 minutes, shortened like the rules.
PURGE_SECONDS = "10"


def shortened(rules):
    """Return the rules with each minute turned into a second; the shortest duration is 1 s."""

    def shorter(duration):
        return f"{max(1, round(seconds(duration) / 60))}s"

    for group in rules["groups"]:
        for rule in group["rules"]:
            # Not a class of characters, such as [.] in a matcher.
            rule["expr"] = re.sub(
                r"\[(\d[^\]]*)\]",
                lambda match: "[" + ":".join(map(shorter, match.group(1).split(":"))) + "]",
                rule["expr"],
            )
            if "for" in rule:
                rule["for"] = shorter(rule["for"])
    return rules


@pytest.fixture(scope="module", params=PROMETHEUSES, ids=lambda server: server.__name__)
def scene(request, tmp_path_factory):
    """Yield an exporter, Prometheus, Alertmanager and workers, one without task events."""
    folder = tmp_path_factory.mktemp("alerts")
    broker = RedisServer(folder / "redis")
    rules = folder / "rules.yml"
    rules.write_text(yaml.safe_dump(shortened(yaml.safe_load(RULES.read_text()))))
    with ExitStack() as stack:
        url = stack.enter_context(broker).url
        outcomes = RedisOutcomes(url.removesuffix("/0") + "/5")
        pager = stack.enter_context(Webhook())
        options = (
            "--worker-timeout",
            WORKER_TIMEOUT_SECONDS,
            "--purge-offline-worker-metrics",
            PURGE_SECONDS,
            "-Q",
            "flooded",
            "--retry-interval",
            "1",
        )
        exporter = Exporter(folder / "exporter", url, *options)
        manager = Alertmanager(folder / "alertmanager", pager.url)
        target = f"127.0.0.1:{exporter.port}"
        prometheus = request.param(
            folder / "prometheus", target, job=JOB, rules=rules, alertmanager=manager.address
        )
        workers = {
            name: Worker(
                folder / name,
                url,
                f"{name}@box",
                queues=name,
                outcomes=outcomes,
                events=name != WITHOUT_EVENTS,
            )
            for name in ("celery", "held", WITHOUT_EVENTS)
        }
        stack.enter_context(side_by_side(exporter, manager, prometheus, *workers.values()))
        exporter.connected()
        client = stack.enter_context(make_client(url))
        eventually(lambda: prometheus.query("celery_workers_online == 3"), 20)
        yield SimpleNamespace(
            broker=broker,
            pager=pager,
            exporter=exporter,
            prometheus=prometheus,
            workers=workers,
            client=client,
        )


def expect(scene, *, repeat=lambda: None, deadline=30, status="firing", **alerts):
    """Wait for these alerts with these labels, and call `repeat` before each check."""

    def have_arrived():
        repeat()
        for name, labels in alerts.items():
            expected = {"job": JOB, "severity": ALERTS[name]["labels"]["severity"], **labels}
            assert expected in scene.pager.labels(name, status), f"{name}: {scene.pager.labels(name, status)}"
        return True

    eventually(have_arrived, deadline, every=0.25)


def test_every_rule_is_evaluated_without_an_error(scene):
    rules = eventually(lambda: [rule for rule in scene.prometheus.rules() if rule["health"] != "unknown"])
    assert {rule["name"] for rule in rules} >= set(ALERTS)
    assert [(rule["name"], rule["lastError"]) for rule in rules if rule["health"] != "ok"] == []


def test_alerts_on_failures_retries_queues_and_workers(scene):
    send = scene.client.send_task
    for _ in range(4):  # two processes; two wait
        send("tasks.hold", ("gate",), queue="held")
    for _ in range(1_001):
        send("tasks.succeed", queue="flooded")

    def work():
        send("tasks.succeed", queue="celery")
        send("tasks.fail_with_value_error", queue="celery")
        send("tasks.retry_once", queue="celery")
        send("tasks.succeed", queue="quiet")
        send("tasks.succeed", queue="flooded")

    expect(
        scene,
        repeat=work,
        CeleryHighFailureRate={},
        CeleryHighRetryRate={},
        CeleryHighQueueDepth={"queue_name": "flooded"},
        CeleryQueueWithoutConsumers={"queue_name": "flooded"},
        CeleryWorkerPoolFull={"worker": "held@box"},
        CeleryTaskEventsDisabled={"worker": "quiet@box"},
    )


def test_delivered_alerts_have_texts_and_links(scene):
    for alert in scene.pager.alerts:
        annotations = alert["annotations"]
        assert annotations["runbook_url"].endswith("#" + alert["labels"]["alertname"].lower())
        assert f"var-job={JOB}" in annotations["dashboard_url"]
        assert "<" not in annotations["summary"] + annotations["description"]


def test_a_worker_that_dies_fires_and_one_that_stops_does_not(scene):
    stopped, dead, last = scene.workers.values()
    dead.kill()
    eventually(lambda: scene.exporter.total("celery_tasks_in_flight", queue_name="celery") == 0)
    assert stopped.stop() == 0  # idle: Celery can hang if it is stopped while a task runs
    eventually(lambda: scene.prometheus.query(f'celery_worker_up{{worker="{stopped.name}"}} == 0'))
    expect(scene, CeleryWorkerDown={"worker": dead.name, "hostname": "box"})
    assert [labels["worker"] for labels in scene.pager.labels("CeleryWorkerDown")] == [dead.name]
    assert scene.pager.labels("CeleryNoWorkersOnline") == []
    last.kill()
    expect(scene, CeleryNoWorkersOnline={}, CeleryTasksOrphaned={})


def test_alerts_resolve_when_their_cause_ends(scene):
    expect(scene, status="resolved", CeleryHighFailureRate={}, CeleryHighRetryRate={})


def test_an_exporter_without_a_broker_and_one_that_is_down(scene):
    target = {"instance": f"127.0.0.1:{scene.exporter.port}"}
    scene.broker.kill()
    expect(scene, CeleryExporterBlind=target)
    scene.broker.start().wait_ready()
    expect(scene, status="resolved", CeleryExporterBlind=target)
    scene.exporter.kill()
    expect(scene, CeleryExporterDown=target)
