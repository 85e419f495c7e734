"""Checks of queues: lengths, names, consumers."""

from __future__ import annotations

import re

from celery_exporter.core import queues
from celery_exporter.core.snapshot import JobView, QueueStats
from celery_exporter.core.task_names import shown_as
from celery_exporter.core.workers import WorkerInfo
from celery_exporter.status.facts import DISCOVERY_SECONDS
from celery_exporter.status.finding import Finding
from unit.core.cluster_driver import T0, ClusterDriver, sent
from unit.status.scenario import HEALTHY, REPLIED, findings, heartbeats, run


def test_queues_without_consumers():
    queue_stats = {
        "empty": QueueStats(0),
        "q": QueueStats(5),
        "some": QueueStats(7),
        "most; ls": QueueStats(1200),
        "counted": QueueStats(4, 1),
    }
    finding = findings(*heartbeats(), queue_stats={**queue_stats, "some": QueueStats(7, 0)})[
        "unconsumed-messages"
    ]
    assert finding.severity == "critical", "the broker itself says that it has no consumer"
    by_check = findings(*heartbeats(), queue_stats=queue_stats)
    assert by_check["queues-without-consumers"] == Finding(
        "queues-without-consumers",
        "warning",
        "empty queues without consumers: empty",
        "if they need one: celery -A yourapp worker -E -Q empty",
    )
    assert by_check["unconsumed-messages"] == Finding(
        "unconsumed-messages",
        "warning",  # a worker that is busy in the solo pool may not have replied
        "messages wait in queues without consumers: most; ls (1,200), some (7)",
        "celery -A yourapp worker -E -Q 'most; ls,some'",
        "CeleryQueueWithoutConsumers",
    )


def test_a_command_names_the_queues_that_its_option_can_name():
    by_check = findings(*heartbeats(), queue_stats={"a,b": QueueStats(9), "c\x1bd": QueueStats(7)})
    others = "a worker whose task_queues have a,b, which -Q cannot name"
    command = "celery -A yourapp worker -E -Q"
    assert by_check["unconsumed-messages"].remedy == f"{others}, and for the others: {command} $'c\\x1bd'"
    by_check = findings(*heartbeats(), queue_stats={f"q{number:02}": QueueStats(1) for number in range(22)})
    named = ",".join(f"q{number:02}" for number in range(20))
    assert by_check["unconsumed-messages"].remedy == f"for 20 of 22: {command} {named}"
    by_check = findings(*heartbeats(), queue_stats={"a,b": QueueStats(9)})
    assert by_check["unconsumed-messages"].remedy == others


def test_a_queue_without_consumers_has_the_name_that_a_worker_can_consume():
    rules = [(re.compile("customer-[0-9]+"), "customer-*")]
    driver = ClusterDriver(show_queue=shown_as(None, None, rules))
    driver.apply(*heartbeats())
    driver.cluster.record_inspection({"w@h": WorkerInfo(queues=("customer-1",))}, driver.timestamp())
    queue_stats = {"customer-1": QueueStats(0), "customer-2": QueueStats(2), "customer-3": QueueStats(0)}
    shown = driver.shown(listening=DISCOVERY_SECONDS, jobs=HEALTHY, last_event=T0, queue_stats=queue_stats)
    by_check = {finding.check: finding for finding in run(shown)}
    assert by_check["unconsumed-messages"].remedy == "celery -A yourapp worker -E -Q customer-2"
    assert "customer-3" in by_check["queues-without-consumers"].remedy


def test_a_requested_queue_may_be_empty_without_a_consumer():
    """Until there is work, where workers are scaled from zero."""
    driver = ClusterDriver()
    driver.cluster.queues.request(["from-zero"])
    driver.apply(*heartbeats())
    driver.cluster.record_inspection({"w@h": REPLIED}, driver.timestamp())
    for length, level in ((0, "ok"), (3, "warning")):
        values = {"q": QueueStats(0), "from-zero": QueueStats(length)}
        shown = driver.shown(listening=DISCOVERY_SECONDS, jobs=HEALTHY, last_event=T0, queue_stats=values)
        by_check = {finding.check: finding.severity for finding in run(shown)}
        assert by_check["queues-without-consumers"] == "ok"
        assert by_check["unconsumed-messages"] == level


def test_a_queue_of_unknown_length_is_not_empty():
    by_check = findings(*heartbeats(), sent(queue="dark"), queue_stats={"q": QueueStats(0)})
    assert by_check["queues-without-consumers"].severity == "ok"
    finding = by_check["unconsumed-messages"]
    assert (finding.severity, finding.message) == (
        "ok",
        "no messages in queues without consumers (2 queues checked); the length of dark is unknown",
    )


def test_queues_with_unknown_consumers_are_no_finding():
    by_check = findings(*heartbeats(), profiles={}, queue_stats={"q": QueueStats(5)}, workers_known=False)
    assert not {"queues-without-consumers", "unconsumed-messages"} & by_check.keys()


def test_queues_that_cannot_be_measured():
    failed = [JobView("queues", False, 0.1, None, "max number of clients\nreached")]
    finding = findings(jobs=failed)["queue-lengths"]
    assert finding.severity == "warning"
    assert finding.message == "queue lengths could not be read: max number of clients?reached"


def test_queues_whose_length_the_broker_does_not_report():
    finding = findings(*heartbeats(), unmeasured={"q"})["queue-lengths"]
    assert (finding.severity, finding.message.startswith("workers consume q, but")) == ("warning", True)


def test_more_queues_than_are_measured(monkeypatch):
    monkeypatch.setattr(queues, "MAX_QUEUES", 3)
    events = [sent(f"u{number}", queue=f"q{number}") for number in range(3)]
    assert findings(*heartbeats(), *events[:1])["queue-names"].severity == "ok"
    finding = findings(*heartbeats(), *events)["queue-names"]
    assert (finding.severity, "3 queue names" in finding.message) == ("warning", True)
    assert all(option in finding.remedy for option in ("--queue-exclude", "-Q"))


def test_queues_that_need_no_consumer_are_ignored():
    passing = {"bcast.1": QueueStats(5, 0), "w@h.dq2": QueueStats(0, 0), "auto": QueueStats(1, 0)}
    profiles = {"w@h": WorkerInfo(queues=("q", "auto"), auto_delete=("auto",), pool="prefork", pool_size=4)}
    by_check = findings(*heartbeats(), profiles=profiles, queue_stats={"q": QueueStats(0, 1), **passing})
    checks = ("queues-without-consumers", "unconsumed-messages")
    assert {by_check[check].severity for check in checks} == {"ok"}
