"""Which checks run on a snapshot, in which order."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from celery_exporter.core.cluster import Limits
from celery_exporter.core.snapshot import JobView, QueueStats
from celery_exporter.status.checks import (
    BY_CAUSE,
    CHECKS,
    QUEUE_THRESHOLD_CHECKS,
    THRESHOLD_CHECKS,
    is_decided,
)
from celery_exporter.status.facts import DISCOVERY_SECONDS
from celery_exporter.status.finding import problems
from celery_exporter.status.recent import Recent
from unit.core.cluster_driver import T0, ClusterDriver, heartbeat, received
from unit.status.scenario import HEALTHY, REPLIED, TASK, findings, heartbeats, run, severities


def test_a_healthy_cluster_has_no_problem():
    by_check = findings(*heartbeats(), *TASK, queue_stats={"q": QueueStats(3)})
    assert severities(by_check) == {"ok"}
    assert {finding.remedy for finding in by_check.values()} == {""}
    assert list(by_check) == [
        "subscription",
        "serializer",
        "duplicate-node-names",
        "workers",
        "heartbeats",
        "task-events",
        "task-sent-events",
        "remote-control",
        "clock-skew",
        "worker-names",
        "queue-lengths",
        "queue-names",
        "queues-without-consumers",
        "unconsumed-messages",
        "queue-depth",
        "series",
    ]


def test_what_explains_other_problems_is_above_them():
    """A worker that went down is the cause; messages without a consumer are the consequence."""
    driver = ClusterDriver(Limits(worker_timeout=10, purge_offline_worker_metrics=10_000))
    driver.apply(heartbeat("dead@h"))
    driver.wait(60)
    driver.apply(heartbeat("up@h", at=driver.now))
    driver.cluster.record_inspection({"up@h": replace(REPLIED, queues=("other",))}, driver.timestamp())
    around = {"listening": 60.0, "jobs": HEALTHY, "queue_stats": {"q": QueueStats(3)}}
    order = [finding.check for finding in problems(run(driver.shown(at=T0 + driver.now, **around)))]
    assert order == ["silent-workers", "unconsumed-messages"]


def test_all_checks_have_a_place_in_the_order():
    assert len(BY_CAUSE) == len(set(BY_CAUSE))
    assert set(BY_CAUSE) >= CHECKS | THRESHOLD_CHECKS | QUEUE_THRESHOLD_CHECKS


@pytest.mark.parametrize("listening", [0.0, DISCOVERY_SECONDS - 0.1])
def test_there_is_no_problem_before_discovery(listening):
    """At the start: no worker, no heartbeat, no reply, no task-sent, no consumer was seen by then."""
    jobs = [JobView("queues", None, None, None), JobView("workers", None, None, None)]
    quiet = {"listening": listening, "jobs": jobs, "last_event": None}
    assert severities(findings(**quiet)) == {"ok"}
    assert severities(findings(received(), profiles={}, queue_stats={"q": QueueStats(3, 0)}, **quiet)) == {
        "ok"
    }


def test_without_a_subscription_there_is_no_other_finding():
    driver = ClusterDriver()
    driver.apply(*heartbeats("quiet@h", (0, 5, 9, 12)))
    down = {"broker_up": False, "jobs": HEALTHY, "listening": 100.0}
    (starting,) = run(driver.shown(started=T0 + driver.now, at=T0 + driver.now, **down))
    assert (starting.check, starting.severity) == ("subscription", "warning")
    (only,) = run(driver.shown(**down))
    assert (only.check, only.severity) == ("subscription", "critical")


def test_while_publishers_are_blocked_workers_are_not_checked():
    gone = heartbeat("w@h", kind="offline")
    by_check = findings(gone, blocked="low on memory & disk", queue_stats={"q": QueueStats(3, 0)})
    assert {check: finding.severity for check, finding in by_check.items()} == {
        "subscription": "ok",
        "publishers": "critical",
        "queue-lengths": "ok",
        "queue-depth": "ok",
    }
    for word in ("rabbitmq-diagnostics alarms", "vm_memory_high_watermark", "disk_free_limit"):
        assert word in by_check["publishers"].remedy
    assert "vm_memory_high_watermark" not in findings(gone, blocked="low on disk")["publishers"].remedy
    assert findings(*heartbeats(), blocked="")["publishers"].severity == "ok"
    assert "publishers" not in findings(*heartbeats(), blocked=None)


def test_on_a_transport_without_events_workers_are_not_checked():
    by_check = findings(no_events="no fan-out", broker_up=False, queue_stats={"q": QueueStats(3)})
    assert [(check, finding.severity) for check, finding in by_check.items()] == [
        ("transport", "critical"),
        ("queue-lengths", "ok"),
        ("queue-depth", "ok"),
    ]


@pytest.mark.parametrize("blocked", [None, "", "low on memory"])
def test_all_is_decided_once_each_check_that_applies_has_a_finding(blocked):
    driver = ClusterDriver()
    driver.apply(*heartbeats(), *TASK)
    driver.cluster.record_inspection({"w@h": REPLIED}, driver.timestamp())
    well = {
        "listening": DISCOVERY_SECONDS,
        "jobs": HEALTHY,
        "last_event": T0,
        "queue_stats": {"q": QueueStats(3)},
    }
    snapshot = driver.shown(blocked=blocked, **well)
    assert is_decided(snapshot, Recent().growth(snapshot, 0.0))
    snapshot = driver.shown(blocked=blocked, **{**well, "jobs": []})
    assert not is_decided(snapshot, Recent().growth(snapshot, 0.0))


def test_long_lists_are_shortened_and_names_are_printable():
    names = [f"w{number}\n\x1b[2J@h" for number in range(8)]
    by_check = findings(*(beat for name in names for beat in heartbeats(name)))
    assert by_check["workers"].message.startswith("8 workers up: w0??[2J@h, ")
    assert by_check["workers"].message.endswith(" and 3 more")
    assert all(
        finding.message.isprintable() and finding.remedy.isprintable() for finding in by_check.values()
    )
