"""Checks with the thresholds of the alerts: of counts of the last minutes, and of current values."""

from __future__ import annotations

import pytest

from celery_exporter.core.aggregates import MAX_EXCEPTIONS, Aggregates
from celery_exporter.core.cluster import Limits
from celery_exporter.core.snapshot import QueueStats, Snapshot
from celery_exporter.status.checks import THRESHOLD_CHECKS, run_checks
from celery_exporter.status.finding import Finding
from celery_exporter.status.notifier import FindingNotifier
from celery_exporter.status.problems import FAILURES, RETRIES
from celery_exporter.status.recent import MIN_MEAN_SECONDS, SHORT_STEP_SECONDS, Growth, Recent
from celery_exporter.status.threshold_checks import MIN_SAMPLE_SECONDS, MIN_SAMPLE_TASKS
from celery_exporter.status.thresholds import BY_ALERT, LONG_WINDOW, POLLING_TASKS
from unit.core.cluster_driver import (
    T0,
    ClusterDriver,
    failed,
    heartbeat,
    received,
    retried,
    sent,
    started,
    succeeded,
)


def run(snapshot: Snapshot, growth: Growth) -> list[Finding]:
    return [finding for check in THRESHOLD_CHECKS if (finding := check(snapshot, growth))]


class SampledCluster:
    """A cluster with stored samples."""

    def __init__(self, driver: ClusterDriver | None = None) -> None:
        self.driver = driver or ClusterDriver()
        self.recent = Recent()
        self.add_sample()

    def add_sample(self, **around) -> None:
        self.recent.add(self.driver.shown(**around), self.driver.now)

    def shown(self, **around) -> tuple[Snapshot, Growth]:
        shown = self.driver.shown(at=T0 + self.driver.now, **around)
        return shown, self.recent.growth(shown, self.driver.now)

    def findings(self, **around) -> dict[str, Finding]:
        return {finding.check: finding for finding in run(*self.shown(**around))}


@pytest.fixture
def sampled() -> SampledCluster:
    return SampledCluster()


def life(
    number: int, end=succeeded, name: str = "add", runtime: float = 0.5, queued: float = 0.1
) -> list[dict]:
    uuid, begun = f"{name}-{end.__name__}-{number}", 2 + queued
    return [
        sent(uuid, at=1, name=name),
        received(uuid, at=1 + queued, name=name),
        started(uuid, at=1 + queued),
        end(uuid, at=begun + runtime, runtime=runtime),
    ]


def test_without_counts_there_are_no_findings(sampled):
    assert set(sampled.findings()) == {"series"}
    assert {finding.severity for finding in sampled.findings().values()} == {"ok"}


@pytest.mark.parametrize(("problem", "end"), [(FAILURES, failed), (RETRIES, retried)])
def test_a_share_of_the_tasks_up_to_the_threshold_is_well(sampled, problem, end):
    check, of_100 = problem.check, round(100 * BY_ALERT[problem.alert].limit)
    for number in range(100 - of_100):
        sampled.driver.apply(*life(number))
    for number in range(of_100):
        sampled.driver.apply(*life(number, end, "bad"))
    at_limit = sampled.findings()[check]
    assert (at_limit.severity, at_limit.alert, at_limit.remedy) == ("ok", "", at_limit.remedy)
    sampled.driver.apply(*life(of_100, end, "bad"))
    over = sampled.findings()[check]
    assert (over.severity, over.alert) == ("warning", problem.alert)
    assert over.message.startswith(f"{of_100 + 1} of 101 tasks ")
    assert over.message.endswith(f"%): bad {of_100 + 1}")
    assert over.remedy


def test_tasks_that_poll_are_no_retries(sampled):
    for number in range(5):
        sampled.driver.apply(*life(number, retried, next(iter(POLLING_TASKS))))
    assert "retries" not in sampled.findings()
    sampled.driver.apply(*life(1))
    assert sampled.findings()["retries"].severity == "ok"


def test_few_tasks_right_after_a_start_are_no_sample(sampled):
    for number in range(MIN_SAMPLE_TASKS - 1):
        sampled.driver.apply(*life(number, failed))
    assert sampled.findings()["failures"].severity == "ok"
    sampled.driver.apply(*life(MIN_SAMPLE_TASKS, failed))
    assert sampled.findings()["failures"].severity == "warning"


def test_what_failed_before_the_window_is_over(sampled):
    sampled.driver.apply(*life(1, failed))
    sampled.driver.now += MIN_SAMPLE_SECONDS
    assert sampled.findings()["failures"].severity == "warning"
    for _ in range(30):
        sampled.driver.now += SHORT_STEP_SECONDS
        sampled.add_sample()
    assert "failures" not in sampled.findings(), "no task ended"


def test_one_task_that_is_delivered_again_and_again(sampled):
    for number in range(9):
        sampled.driver.apply(*life(number))
    sampled.driver.apply(*(received("x", at=at, name="again", host=f"{at}@h") for at in (5, 9)))
    sampled.driver.wait(3)
    finding = sampled.findings()["redeliveries"]
    assert (finding.severity, finding.message) == (
        "warning",
        "redelivered, as a share of the tasks received in 3 s: again 50%",
    )


def test_a_mean_run_time_above_the_threshold(sampled):
    sampled.driver.apply(*life(1, runtime=100), *life(2, runtime=20), *life(1, name="slow", runtime=125))
    finding = sampled.findings()["slow-tasks"]
    assert (finding.severity, finding.message) == ("warning", "mean run time in 0 s: slow 2 minutes")


def test_a_task_that_was_started_and_does_not_end(sampled):
    sampled.driver.apply(heartbeat(), *life(1)[:3])
    sampled.driver.now += 3_500
    assert "stuck-tasks" not in sampled.findings(), "a task of an hour ago was not seen"
    sampled.driver.now += 100 + 4_000
    finding = sampled.findings(listening=7_600)["stuck-tasks"]
    assert (finding.severity, finding.message) == ("warning", "started, and not ended since: add 2 hours")


def test_tasks_without_a_worker_are_distinguished_from_late_events(sampled):
    """An average: a start may come a moment before the heartbeat that has it."""
    driver = sampled.driver
    driver.apply(heartbeat(active=1), *life(1)[:3])
    for _ in range(int(MIN_MEAN_SECONDS / SHORT_STEP_SECONDS)):
        sampled.add_sample()
        assert "orphaned-tasks" not in sampled.findings()
        driver.now += SHORT_STEP_SECONDS
    assert sampled.findings()["orphaned-tasks"].severity == "ok"
    driver.apply(*life(2)[:3])
    for _ in range(int(LONG_WINDOW / SHORT_STEP_SECONDS)):
        driver.now += SHORT_STEP_SECONDS
        sampled.add_sample()
    finding = sampled.findings()["orphaned-tasks"]
    assert (finding.severity, finding.message.partition(" ")[0]) == ("warning", "1.0")
    driver.apply(heartbeat("x@h", active=None))  # it does not say what it executes
    for _ in range(int(LONG_WINDOW / SHORT_STEP_SECONDS) + 1):
        driver.now += SHORT_STEP_SECONDS
        sampled.add_sample()
    assert "orphaned-tasks" not in sampled.findings()


def test_long_queues_and_old_messages(sampled):
    assert "queue-depth" not in sampled.findings()
    assert sampled.findings(queue_stats={"q": QueueStats(1_000)})["queue-depth"].severity == "ok"
    finding = sampled.findings(
        queue_stats={"q": QueueStats(1_001), "r": QueueStats(7_000), "s": QueueStats(3)}
    )["queue-depth"]
    assert (finding.severity, finding.message) == ("warning", "messages wait: r 7,000, q 1,001")
    sampled.driver.apply(sent("u9"))
    sampled.driver.now = 1_100
    finding = sampled.findings(queue_stats={"q": QueueStats(1, oldest_ids=("u9",))})["oldest-messages"]
    assert (finding.severity, finding.message) == (
        "warning",
        "the oldest message has waited for: q 18 minutes",
    )


def test_no_worker_consumes_a_queue_of_events(sampled):
    long = QueueStats(1_001)
    finding = sampled.findings(queue_stats={"celeryev.0-of-2": long})["queue-depth"]
    assert finding.message == "messages wait: celeryev.0-of-2 1,001"
    assert "relay" in finding.remedy
    assert "workers" not in finding.remedy
    finding = sampled.findings(queue_stats={"celeryev.0-of-2": long, "q": long})["queue-depth"]
    assert "add workers" in finding.remedy
    assert "relay" in finding.remedy


def test_waits_are_of_a_queue():
    bounds = (1.0, 100.0, 1_000.0)
    sampled = SampledCluster(ClusterDriver(aggregates=Aggregates(bounds, bounds)))
    sampled.driver.apply(*life(1, queued=0.5))
    assert sampled.findings()["queue-waits"].severity == "ok"
    for number in range(20):
        sampled.driver.apply(*life(number, name="late", queued=900))
    finding = sampled.findings()["queue-waits"]
    assert finding.severity == "warning"
    assert finding.message.startswith("5 % of the tasks started in 0 s had waited longer than: q 1")


def test_silent_workers_are_distinguished_from_stopped_ones():
    sampled = SampledCluster(ClusterDriver(Limits(worker_timeout=10, purge_offline_worker_metrics=10_000)))
    sampled.driver.apply(heartbeat("left@h", kind="offline"), heartbeat("dead@h"))
    sampled.driver.wait(60)
    finding = sampled.findings(listening=sampled.driver.now)["silent-workers"]
    assert (finding.severity, finding.message) == ("warning", "down without a worker-offline event: dead@h")
    sampled.driver.wait(LONG_WINDOW)
    assert sampled.findings(listening=sampled.driver.now)["silent-workers"].severity == "ok", "for long"


def test_tasks_that_workers_processed_and_of_which_no_event_came(sampled):
    """Eleven were processed after the first heartbeat, and of the last one there was a start."""
    first, *heartbeats = [heartbeat(at=2 + 2 * n, processed=count) for n, count in enumerate((0, 10, 10, 10))]
    sampled.driver.apply(started("u0", at=1), first)
    sampled.driver.now += 60
    sampled.add_sample()
    sampled.driver.apply(*heartbeats, started("u1", at=9))
    sampled.driver.apply(*(heartbeat(at=at, processed=11) for at in (10, 12)))
    finding = sampled.findings()["missed-events"]
    message = "no events for 10 of 11 tasks processed in 60 s: w@h"
    assert (finding.severity, finding.message) == ("warning", message)
    assert "--event-queue-durable" in finding.remedy
    sampled.add_sample()
    assert sampled.findings()["missed-events"].severity == "warning", "the window is longer"
    for _ in range(70):
        sampled.driver.now += SHORT_STEP_SECONDS
        sampled.add_sample()
    assert "missed-events" not in sampled.findings(), "it has processed nothing since"


def test_sums_beyond_a_limit_are_counted_as_other(sampled):
    for number in range(MAX_EXCEPTIONS + 2):
        *begun, ended = life(number, failed)
        sampled.driver.apply(*begun, {**ended, "exception": f"E{number}('')"})
    finding = sampled.findings()["series"]
    assert (finding.severity, "2 times" in finding.message) == ("warning", True)


@pytest.mark.parametrize(
    "around", [{"broker_up": False}, {"blocked": "low on memory"}, {"no_events": "kafka has no fan-out"}]
)
def test_without_a_subscription_only_queues_are_checked(sampled, around):
    sampled.driver.apply(heartbeat(), *life(1, failed))
    long = {"queue_stats": {"q": QueueStats(1_001)}}
    assert {"failures", "queue-depth"} <= {finding.check for finding in run_checks(*sampled.shown(**long))}
    checks = {finding.check for finding in run_checks(*sampled.shown(**long, **around))}
    assert ("failures" in checks, "queue-depth" in checks) == (False, True)


def test_messages_without_consumers_are_an_alert_also_if_they_do_not_grow(sampled):
    """All messages of a burst can have arrived before the first measurement."""
    sampled.driver.apply(heartbeat())
    state = {"listening": 60.0, "workers_known": True, "queue_stats": {"q": QueueStats(5, consumers=0)}}
    findings = {finding.check: finding for finding in run_checks(*sampled.shown(**state))}
    assert findings["unconsumed-messages"].alert == "CeleryQueueWithoutConsumers"


def test_a_single_failure_is_in_no_log(sampled):
    """It is in the window for less time than the alert is pending, whenever a sample is taken."""
    for offset in (0, 20, 40, 59):
        sampled, notifier = SampledCluster(), FindingNotifier()
        sampled.driver.now += offset
        sampled.driver.apply(*life(1, failed), *life(2))
        changes = []
        for _ in range(40):
            sampled.add_sample()
            changes += notifier.changes(sampled.findings().values(), sampled.driver.now)
            sampled.driver.now += SHORT_STEP_SECONDS
        assert [finding.check for finding in changes if finding.severity != "ok"] == []


def test_sums_that_move_to_other_are_no_growth():
    """Of two queues of a task one is idle: its failures are moved to `other`."""
    sampled = SampledCluster(ClusterDriver(Limits(series_ttl=100)))
    driver = sampled.driver
    for number in range(50):
        events = life(number, failed)
        driver.apply({**events[0], "queue": "idle"}, *events[1:])
    driver.wait(90)
    for number in range(50, 70):
        driver.apply(*life(number))
    sampled = SampledCluster(driver)
    driver.wait(30)
    driver.apply(*life(99))
    assert {label_set.task_name for label_set in driver.aggregates.snapshot()} == {"add", "other"}
    assert (sampled.findings()["failures"].severity, "0 of " in sampled.findings()["failures"].message) == (
        "ok",
        True,
    )
    assert "queue-waits" not in sampled.findings() or sampled.findings()["queue-waits"].severity == "ok"


def test_tasks_before_the_first_heartbeat_are_in_no_window(sampled):
    sampled.driver.apply(started("u0", at=1), heartbeat(at=2, processed=1_000_000))
    sampled.driver.now += 60
    sampled.add_sample()
    heartbeats = [
        heartbeat(at=4 + 2 * n, processed=1_000_000 + count) for n, count in enumerate((10, 20, 20, 20))
    ]
    sampled.driver.apply(*heartbeats, started("u1", at=11))
    sampled.driver.apply(*(heartbeat(at=at, processed=1_000_021) for at in (12, 14)))
    finding = sampled.findings()["missed-events"]
    assert (finding.severity, " of 21 tasks " in finding.message) == ("warning", True)
