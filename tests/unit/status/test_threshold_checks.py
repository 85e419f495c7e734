"""What is too much by the thresholds of the alerts: of the last minutes, and of what is there now."""

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


class Watched:
    """A cluster, and what is remembered of it since it was looked at first."""

    def __init__(self, driver: ClusterDriver | None = None) -> None:
        self.driver = driver or ClusterDriver()
        self.recent = Recent()
        self.look()

    def look(self, **around) -> None:
        self.recent.add(self.driver.shown(**around), self.driver.now)

    def shown(self, **around) -> tuple[Snapshot, Growth]:
        shown = self.driver.shown(at=T0 + self.driver.now, **around)
        return shown, self.recent.growth(shown, self.driver.now)

    def findings(self, **around) -> dict[str, Finding]:
        return {finding.check: finding for finding in run(*self.shown(**around))}


@pytest.fixture
def watched() -> Watched:
    return Watched()


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


def test_without_counts_there_are_no_findings(watched):
    assert set(watched.findings()) == {"series"}
    assert {each.severity for each in watched.findings().values()} == {"ok"}


@pytest.mark.parametrize(("problem", "end"), [(FAILURES, failed), (RETRIES, retried)])
def test_a_share_of_the_tasks_up_to_the_threshold_is_well(watched, problem, end):
    check, of_100 = problem.check, round(100 * BY_ALERT[problem.alert].limit)
    for number in range(100 - of_100):
        watched.driver.apply(*life(number))
    for number in range(of_100):
        watched.driver.apply(*life(number, end, "bad"))
    at_limit = watched.findings()[check]
    assert (at_limit.severity, at_limit.alert, at_limit.remedy) == ("ok", "", at_limit.remedy)
    watched.driver.apply(*life(of_100, end, "bad"))
    over = watched.findings()[check]
    assert (over.severity, over.alert) == ("warning", problem.alert)
    assert over.message.startswith(f"{of_100 + 1} of 101 tasks ")
    assert over.message.endswith(f"%): bad {of_100 + 1}")
    assert over.remedy


def test_tasks_that_poll_are_no_retries(watched):
    for number in range(5):
        watched.driver.apply(*life(number, retried, next(iter(POLLING_TASKS))))
    assert "retries" not in watched.findings()
    watched.driver.apply(*life(1))
    assert watched.findings()["retries"].severity == "ok"


def test_few_tasks_right_after_a_start_are_no_sample(watched):
    for number in range(MIN_SAMPLE_TASKS - 1):
        watched.driver.apply(*life(number, failed))
    assert watched.findings()["failures"].severity == "ok"
    watched.driver.apply(*life(MIN_SAMPLE_TASKS, failed))
    assert watched.findings()["failures"].severity == "warning"


def test_what_failed_before_the_window_is_over(watched):
    watched.driver.apply(*life(1, failed))
    watched.driver.now += MIN_SAMPLE_SECONDS
    assert watched.findings()["failures"].severity == "warning"
    for _ in range(30):
        watched.driver.now += SHORT_STEP_SECONDS
        watched.look()
    assert "failures" not in watched.findings(), "no task ended"


def test_one_task_that_is_delivered_again_and_again(watched):
    for number in range(9):
        watched.driver.apply(*life(number))
    watched.driver.apply(*(received("x", at=at, name="again", host=f"{at}@h") for at in (5, 9)))
    watched.driver.wait(3)
    finding = watched.findings()["redeliveries"]
    assert (finding.severity, finding.message) == (
        "warning",
        "redelivered, as a share of the tasks received in 3 s: again 50%",
    )


def test_a_mean_run_time_above_the_threshold(watched):
    watched.driver.apply(*life(1, runtime=100), *life(2, runtime=20), *life(1, name="slow", runtime=125))
    finding = watched.findings()["slow-tasks"]
    assert (finding.severity, finding.message) == ("warning", "mean run time in 0 s: slow 2 minutes")


def test_a_task_that_was_started_and_does_not_end(watched):
    watched.driver.apply(heartbeat(), *life(1)[:3])
    watched.driver.now += 3_500
    assert "stuck-tasks" not in watched.findings(), "a task of an hour ago was not seen"
    watched.driver.now += 100 + 4_000
    finding = watched.findings(listening=7_600)["stuck-tasks"]
    assert (finding.severity, finding.message) == ("warning", "started, and not ended since: add 2 hours")


def test_tasks_without_a_worker_are_distinguished_from_late_events(watched):
    """An average: a start may come a moment before the heartbeat that has it."""
    driver = watched.driver
    driver.apply(heartbeat(active=1), *life(1)[:3])
    for _ in range(int(MIN_MEAN_SECONDS / SHORT_STEP_SECONDS)):
        watched.look()
        assert "orphaned-tasks" not in watched.findings()
        driver.now += SHORT_STEP_SECONDS
    assert watched.findings()["orphaned-tasks"].severity == "ok"
    driver.apply(*life(2)[:3])
    for _ in range(int(LONG_WINDOW / SHORT_STEP_SECONDS)):
        driver.now += SHORT_STEP_SECONDS
        watched.look()
    finding = watched.findings()["orphaned-tasks"]
    assert (finding.severity, finding.message.partition(" ")[0]) == ("warning", "1.0")
    driver.apply(heartbeat("x@h", active=None))  # it does not say what it executes
    for _ in range(int(LONG_WINDOW / SHORT_STEP_SECONDS) + 1):
        driver.now += SHORT_STEP_SECONDS
        watched.look()
    assert "orphaned-tasks" not in watched.findings()


def test_long_queues_and_old_messages(watched):
    assert "queue-depth" not in watched.findings()
    assert watched.findings(queue_stats={"q": QueueStats(1_000)})["queue-depth"].severity == "ok"
    finding = watched.findings(
        queue_stats={"q": QueueStats(1_001), "r": QueueStats(7_000), "s": QueueStats(3)}
    )["queue-depth"]
    assert (finding.severity, finding.message) == ("warning", "messages wait: r 7,000, q 1,001")
    watched.driver.apply(sent("u9"))
    watched.driver.now = 1_100
    finding = watched.findings(queue_stats={"q": QueueStats(1, oldest_ids=("u9",))})["oldest-messages"]
    assert (finding.severity, finding.message) == (
        "warning",
        "the oldest message has waited for: q 18 minutes",
    )


def test_waits_are_of_a_queue():
    bounds = (1.0, 100.0, 1_000.0)
    watched = Watched(ClusterDriver(aggregates=Aggregates(bounds, bounds)))
    watched.driver.apply(*life(1, queued=0.5))
    assert watched.findings()["queue-waits"].severity == "ok"
    for number in range(20):
        watched.driver.apply(*life(number, name="late", queued=900))
    finding = watched.findings()["queue-waits"]
    assert finding.severity == "warning"
    assert finding.message.startswith("5 % of the tasks started in 0 s had waited longer than: q 1")


def test_silent_workers_are_distinguished_from_stopped_ones():
    watched = Watched(ClusterDriver(Limits(worker_timeout=10, purge_offline_worker_metrics=10_000)))
    watched.driver.apply(heartbeat("left@h", kind="offline"), heartbeat("dead@h"))
    watched.driver.wait(60)
    finding = watched.findings(listening=watched.driver.now)["silent-workers"]
    assert (finding.severity, finding.message) == ("warning", "down without a worker-offline event: dead@h")
    watched.driver.wait(LONG_WINDOW)
    assert watched.findings(listening=watched.driver.now)["silent-workers"].severity == "ok", "for long"


def test_tasks_that_workers_processed_and_of_which_no_event_came(watched):
    """Ten were processed after the first heartbeat, and of one there was a start."""
    first, *beats = [heartbeat(at=2 + 2 * n, processed=count) for n, count in enumerate((0, 10, 10, 10))]
    watched.driver.apply(started("u0", at=1), first)
    watched.driver.now += 60
    watched.look()
    watched.driver.apply(*beats)
    finding = watched.findings()["missed-events"]
    message = "no events for 10 of 10 tasks processed in 60 s: w@h"
    assert (finding.severity, finding.message) == ("warning", message)
    assert "--event-queue-durable" in finding.remedy
    watched.look()
    assert watched.findings()["missed-events"].severity == "warning", "the window is longer"
    for _ in range(70):
        watched.driver.now += SHORT_STEP_SECONDS
        watched.look()
    assert "missed-events" not in watched.findings(), "it has processed nothing since"


def test_what_was_counted_as_other_for_want_of_room(watched):
    for number in range(MAX_EXCEPTIONS + 2):
        *begun, ended = life(number, failed)
        watched.driver.apply(*begun, {**ended, "exception": f"E{number}('')"})
    finding = watched.findings()["series"]
    assert (finding.severity, "2 times" in finding.message) == ("warning", True)


@pytest.mark.parametrize(
    "around", [{"broker_up": False}, {"blocked": "low on memory"}, {"no_events": "kafka has no fan-out"}]
)
def test_while_no_event_can_come_only_queues_are_judged(watched, around):
    watched.driver.apply(heartbeat(), *life(1, failed))
    long = {"queue_stats": {"q": QueueStats(1_001)}}
    assert {"failures", "queue-depth"} <= {each.check for each in run_checks(*watched.shown(**long))}
    checks = {each.check for each in run_checks(*watched.shown(**long, **around))}
    assert ("failures" in checks, "queue-depth" in checks) == (False, True)


def test_queues_without_consumers_are_an_alert_when_they_grow(watched):
    watched.driver.apply(heartbeat())
    known = {"listening": 60.0, "workers_known": True}
    for length, alert in ((5, ""), (5, ""), (6, "CeleryQueueWithoutConsumers")):
        queue_stats = {"q": QueueStats(length, consumers=0)}
        findings = {each.check: each for each in run_checks(*watched.shown(queue_stats=queue_stats, **known))}
        assert findings["unconsumed-messages"].alert == alert
        watched.look(at=T0 + watched.driver.now, queue_stats=queue_stats)
        watched.driver.now += SHORT_STEP_SECONDS


def test_a_single_failure_is_in_no_log(watched):
    """It is in the window for less time than the alert is pending, whenever the exporter looks."""
    for offset in (0, 20, 40, 59):
        watched, watch = Watched(), FindingNotifier()
        watched.driver.now += offset
        watched.driver.apply(*life(1, failed), *life(2))
        changes = []
        for _ in range(40):
            watched.look()
            changes += watch.changes(watched.findings().values(), watched.driver.now)
            watched.driver.now += SHORT_STEP_SECONDS
        assert [each.check for each in changes if each.severity != "ok"] == []


def test_what_is_given_up_is_no_news_under_its_new_name():
    """Of two queues of a task one is idle: its failures go over to `other`."""
    watched = Watched(ClusterDriver(Limits(series_ttl=100)))
    driver = watched.driver
    for number in range(50):
        life_ = life(number, failed)
        driver.apply({**life_[0], "queue": "idle"}, *life_[1:])
    driver.wait(90)
    for number in range(50, 70):
        driver.apply(*life(number))
    watched = Watched(driver)
    driver.wait(30)
    driver.apply(*life(99))
    assert {key.task_name for key in driver.aggregates.snapshot()} == {"add", "other"}
    assert (watched.findings()["failures"].severity, "0 of " in watched.findings()["failures"].message) == (
        "ok",
        True,
    )
    assert "queue-waits" not in watched.findings() or watched.findings()["queue-waits"].severity == "ok"


def test_what_a_worker_processed_before_it_was_seen_is_of_no_window(watched):
    watched.driver.apply(started("u0", at=1), heartbeat(at=2, processed=1_000_000))
    watched.driver.now += 60
    watched.look()
    beats = [heartbeat(at=4 + 2 * n, processed=1_000_000 + count) for n, count in enumerate((10, 20, 20, 20))]
    watched.driver.apply(*beats)
    finding = watched.findings()["missed-events"]
    assert (finding.severity, " of 20 tasks " in finding.message) == ("warning", True)
