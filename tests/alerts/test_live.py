"""Real causes, the shipped rules, a real Prometheus and Alertmanager: the alert reaches who is on call.

The rules are a copy in which a minute is a second, in `for` and in windows; nothing else differs. Tests build
on each other's scene, from a cluster that works to one without an exporter.
"""

import re
from contextlib import ExitStack
from types import SimpleNamespace

import pytest
import yaml
from harness.exporter import Exporter
from harness.outcomes import RedisOutcomes
from harness.servers import PROMETHEUSES, Alertmanager, RedisServer
from harness.waiting import eventually
from harness.webhook import Webhook
from harness.workers import Worker
from harness.workers import client as make_client

from .rulebook import ALERTS, RULES, seconds

JOB = "celery"
SILENT = "quiet"
#: Seconds of silence after which a worker is down: three of Celery's heartbeats, and no less.
TIMEOUT = "6"
#: Seconds until it is forgotten: 10 minutes, hurried like the rules.
PURGE = "10"


def hurried(rules):
    """Return rules in which a minute is a second, and a second the least there is."""

    def sooner(duration):
        return f"{max(1, round(seconds(duration) / 60))}s"

    for group in rules["groups"]:
        for rule in group["rules"]:
            rule["expr"] = re.sub(
                r"\[([^\]]+)\]",
                lambda found: "[" + ":".join(map(sooner, found.group(1).split(":"))) + "]",
                rule["expr"],
            )
            if "for" in rule:
                rule["for"] = sooner(rule["for"])
    return rules


@pytest.fixture(scope="module", params=PROMETHEUSES, ids=lambda each: each.__name__)
def scene(request, tmp_path_factory):
    """Three workers, of which one sends no events; whoever watches; nothing to complain of yet."""
    folder = tmp_path_factory.mktemp("alerts")
    broker = RedisServer(folder / "redis")
    rules = folder / "rules.yml"
    rules.write_text(yaml.safe_dump(hurried(yaml.safe_load(RULES.read_text()))))
    with ExitStack() as stack:
        url = stack.enter_context(broker).url
        ledger = RedisOutcomes(url.removesuffix("/0") + "/5")
        pager = stack.enter_context(Webhook())
        options = (
            "--worker-timeout",
            TIMEOUT,
            "--purge-offline-worker-metrics",
            PURGE,
            "-Q",
            "flooded",
            "--retry-interval",
            "1",
        )
        exporter = Exporter(folder / "exporter", url, *options)
        manager = Alertmanager(folder / "alertmanager", pager.url)
        target = f"127.0.0.1:{exporter.port}"
        watch = request.param(
            folder / "prometheus", target, job=JOB, rules=rules, alertmanager=manager.address
        )
        workers = {
            name: Worker(
                folder / name, url, f"{name}@box", queues=name, outcomes=ledger, events=name != SILENT
            )
            for name in ("celery", "held", SILENT)
        }
        processes = (exporter, manager, watch, *workers.values())
        for process in processes:
            stack.callback(process.kill)
            process.start()
        for process in processes:
            process.wait_ready()
        exporter.connected()
        client = stack.enter_context(make_client(url))
        eventually(lambda: watch.query("celery_workers_online == 3"), 20)
        yield SimpleNamespace(
            broker=broker, pager=pager, exporter=exporter, prometheus=watch, workers=workers, client=client
        )


def expect(scene, *, doing=lambda: None, deadline=30, status="firing", **wanted):
    """Wait, doing something again and again, for these alerts with these labels."""

    def came():
        doing()
        for name, labels in wanted.items():
            full = {"job": JOB, "severity": ALERTS[name]["labels"]["severity"], **labels}
            assert full in scene.pager.labels(name, status), f"{name}: {scene.pager.labels(name, status)}"
        return True

    eventually(came, deadline, every=0.25)


def test_every_rule_is_evaluated_without_an_error(scene):
    rules = eventually(lambda: [rule for rule in scene.prometheus.rules() if rule["health"] != "unknown"])
    assert {rule["name"] for rule in rules} >= set(ALERTS)
    assert [(rule["name"], rule["lastError"]) for rule in rules if rule["health"] != "ok"] == []


def test_tasks_that_fail_a_queue_that_floods_a_pool_that_is_full(scene):
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
        doing=work,
        CeleryHighFailureRate={},
        CeleryHighRetryRate={},
        CeleryHighQueueDepth={"queue_name": "flooded"},
        CeleryQueueWithoutConsumers={"queue_name": "flooded"},
        CeleryWorkerPoolFull={"worker": "held@box"},
        CeleryTaskEventsDisabled={"worker": "quiet@box"},
    )


def test_what_was_sent_says_what_it_is_and_where_to_look(scene):
    for alert in scene.pager.alerts:
        notes = alert["annotations"]
        assert notes["runbook_url"].endswith("#" + alert["labels"]["alertname"].lower())
        assert f"var-job={JOB}" in notes["dashboard_url"]
        assert "<" not in notes["summary"] + notes["description"]


def test_a_worker_that_dies_is_missed_and_one_that_leaves_is_not(scene):
    left, dead, last = scene.workers.values()
    dead.kill()
    eventually(lambda: scene.exporter.total("celery_tasks_in_flight", queue_name="celery") == 0)
    assert left.stop() == 0  # idle: Celery can hang when told to end in the middle of a task
    eventually(lambda: scene.prometheus.query(f'celery_worker_up{{worker="{left.name}"}} == 0'))
    expect(scene, CeleryWorkerDown={"worker": dead.name, "hostname": "box"})
    assert [labels["worker"] for labels in scene.pager.labels("CeleryWorkerDown")] == [dead.name]
    assert scene.pager.labels("CeleryNoWorkersOnline") == []
    last.kill()
    expect(scene, CeleryNoWorkersOnline={}, CeleryTasksOrphaned={})


def test_an_alert_is_over_when_its_cause_is(scene):
    expect(scene, status="resolved", CeleryHighFailureRate={}, CeleryHighRetryRate={})


def test_an_exporter_that_hears_nothing_and_one_that_is_gone(scene):
    target = {"instance": f"127.0.0.1:{scene.exporter.port}"}
    scene.broker.kill()
    expect(scene, CeleryExporterBlind=target)
    scene.broker.start().wait_ready()
    expect(scene, status="resolved", CeleryExporterBlind=target)
    scene.exporter.kill()
    expect(scene, CeleryExporterDown=target)
