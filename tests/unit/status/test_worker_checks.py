"""Checks of workers: up, heartbeats, replies, events, clocks, names."""

from __future__ import annotations

import pytest

from celery_exporter.core.beats import MAX_UNANSWERED
from celery_exporter.core.snapshot import JobView, QueueStats
from celery_exporter.core.workers import WorkerInfo
from celery_exporter.status.finding import Finding
from celery_exporter.status.recent import Recent
from celery_exporter.status.thresholds import LONG_WINDOW
from celery_exporter.status.worker_checks import (
    LONGEST_HEARTBEAT_INTERVAL_SECONDS,
    MIN_CHANGED_HOSTS,
    NO_REPLY,
    beat,
    task_sent_events,
)
from unit.core.cluster_driver import ClusterDriver, heartbeat, received
from unit.status.scenario import HEALTHY, REPLIED, TASK, findings, heartbeats


def test_replies_in_a_serializer_that_is_not_accepted():
    failed = [HEALTHY[0], JobView("workers", False, 0.1, None, "workers reply in pickle")]
    finding = findings(*heartbeats(), profiles={}, jobs=failed, refused_replies=["pickle"])["remote-control"]
    assert (finding.severity, "pickle" in finding.message, "--accept-content" in finding.remedy) == (
        "warning",
        True,
        True,
    )


def beat_finding(*pings: list[str]) -> Finding | None:
    """Return the finding after pings, a minute each, with the names of the beats that replied."""
    driver = ClusterDriver()
    for replied in pings:
        driver.wait(60)
        driver.cluster.beats.record_replies(replied, driver.timestamp())
    snapshot = driver.shown(at=driver.timestamp().wall)
    return beat(snapshot, Recent().growth(snapshot, 0.0))


def test_beats_that_reply_and_that_do_not():
    assert beat_finding([]) is None, "it is unknown whether there is one"
    ok = beat_finding(["celerybeat@a", "celerybeat@b"], *[["celerybeat@b"]] * MAX_UNANSWERED)
    assert ok is not None
    assert (ok.severity, ok.message) == ("ok", "1 beat up: celerybeat@b; 1 down")
    down = beat_finding(["celerybeat@a"], *[[]] * 5)
    assert down is not None
    assert (down.severity, down.alert) == ("critical", "CeleryBeatDown")
    assert down.message == "no beat replies, so no periodic task is sent: celerybeat@a for 5 minutes"


def test_no_worker_and_workers_that_are_down():
    assert findings()["workers"].severity == "critical"
    assert "event_exchange" in findings()["workers"].remedy
    gone = findings(heartbeat("w@h", kind="offline"))["workers"]
    assert (gone.severity, gone.message) == ("critical", "all workers are down: w@h"), (
        "work may wait: no queue is measured"
    )
    for depth, unacked, level in ((0, None, "warning"), (1, None, "critical"), (0, 1, "critical")):
        values = {"queue_stats": {"q": QueueStats(depth)}, "unacked": unacked}
        assert findings(heartbeat("w@h", kind="offline"), **values)["workers"].severity == level
    some = findings(heartbeat("w@h", kind="offline"), *heartbeats("x@h"))["workers"]
    assert (some.severity, some.message) == ("ok", "1 worker up: x@h; 1 down")


def test_a_worker_that_replies_without_a_heartbeat():
    finding = findings(profiles={"w@h": REPLIED})["heartbeats"]
    assert (finding.severity, finding.message) == ("warning", "no heartbeat from w@h")
    assert "-E and without --without-heartbeat" in finding.remedy
    long = findings(profiles={"w@h": REPLIED}, listening=LONGEST_HEARTBEAT_INTERVAL_SECONDS + 1)["heartbeats"]
    assert long.severity == "critical", "no interval is as long"
    assert (
        findings(*heartbeats(), profiles={"w@h": REPLIED, "x@h": REPLIED})["heartbeats"].severity == "warning"
    )


def test_a_worker_that_does_not_reply():
    finding = findings(*heartbeats("w@h"), *heartbeats("x@h"), profiles={"x@h": REPLIED})["remote-control"]
    assert (finding.severity, finding.message.partition(",")[0]) == ("warning", "no reply from w@h")
    assert "worker_enable_remote_control = True" in finding.remedy


def test_a_worker_before_celery_5_3_replies_without_the_kind_of_its_pool():
    old = WorkerInfo(queues=("q",), registered=(), pool_size=2)
    assert findings(*heartbeats(), profiles={"w@h": old})["remote-control"].severity == "ok"


def test_workers_that_could_not_be_inspected():
    """There is no finding then."""
    full = [HEALTHY[0], JobView("workers", False, 0.1, None, "used memory > 'maxmemory'")]
    finding = findings(*heartbeats(), jobs=full)["remote-control"]
    assert (finding.severity, "maxmemory" in finding.message) == ("warning", True), (
        "though each replied before"
    )
    failed = [HEALTHY[0], JobView("workers", False, 0.1, None, "NOPERM")]
    finding = findings(*heartbeats(), profiles={}, jobs=failed)["remote-control"]
    assert (finding.severity, finding.message) == ("warning", "workers could not be inspected: NOPERM")
    jobs = [HEALTHY[0], JobView("workers", False, 0.1, None, NO_REPLY)]
    assert "no reply from w@h" in findings(*heartbeats(), profiles={}, jobs=jobs)["remote-control"].message


def test_workers_that_run_tasks_without_task_events():
    """Their `processed` grows; each is named, and so is the command."""
    by_check = findings(
        *heartbeats("a@h", (0, 5, 9, 12)), *heartbeats("b@h", (0, 5, 9, 12)), *heartbeats("c@h"), *TASK
    )
    assert by_check["task-events"] == Finding(
        "task-events",
        "warning",  # of another one they come
        "no task events from workers a@h, b@h",
        "start workers with -E, or now: celery -A yourapp control enable_events",
        "CeleryTaskEventsDisabled",
    )


def test_it_is_unknown_whether_idle_workers_send_task_events():
    finding = findings(*heartbeats("a@h"))["task-events"]
    assert finding.severity == "ok"
    assert "unknown" in finding.message


def test_tasks_without_task_sent_events():
    """The message says what was seen, and never that no task was sent."""
    finding = findings(*heartbeats(), received())["task-sent-events"]
    assert (finding.severity, "task_send_sent_event = True" in finding.remedy) == ("warning", True)
    assert finding.message.startswith("workers received 1 task; no client publishes task-sent: waiting times")
    assert "task-sent-events" not in findings(*heartbeats())
    assert findings(*heartbeats(), *TASK)["task-sent-events"].severity == "ok"


@pytest.mark.parametrize(("count", "text"), [(480, "8 tasks a second"), (3, "3 tasks a minute")])
def test_tasks_without_task_sent_events_have_a_rate(count, text):
    driver, recent = ClusterDriver(), Recent()
    driver.apply(*heartbeats())
    recent.add(driver.shown(), driver.now)
    driver.apply(*(received(f"u{number}", at=101) for number in range(count)))
    driver.wait(60)
    snapshot = driver.shown(listening=60.0)
    finding = task_sent_events(snapshot, recent.growth(snapshot, driver.now))
    assert finding.message.startswith(f"workers received {text}; no client publishes task-sent: ")


def test_a_backlog_may_have_been_sent_before_the_exporter_listened():
    backlog = {"queue_stats": {"q": QueueStats(500)}, "listening": 15.0}
    finding = findings(*heartbeats(), received(), **backlog)["task-sent-events"]
    assert (finding.severity, "no client publishes" in finding.message) == ("warning", False)
    assert "no task-sent event arrived in 15 s; messages wait" in finding.message
    backlog["listening"] = LONG_WINDOW
    finding = findings(*heartbeats(), received(), **backlog)["task-sent-events"]
    assert "no client publishes task-sent" in finding.message


@pytest.mark.parametrize(("offset", "level"), [(0, "ok"), (-4, "ok"), (60, "warning"), (-3600, "warning")])
def test_a_clock_that_is_wrong(offset, level):
    finding = findings(*heartbeats(), heartbeat("x@h", 100 + offset))["clock-skew"]
    assert finding.severity == level
    if level == "warning":
        assert f"x@h by {offset:+d} s" in finding.message
        assert finding.remedy == "set the clock of their host: timedatectl set-ntp true"


def test_clocks_that_are_wrong_in_two_directions_are_those_of_workers():
    assert "their host" in findings(heartbeat("w@h", 400), heartbeat("w@i", -200))["clock-skew"].remedy


def test_the_clock_that_is_wrong_may_be_the_one_here():
    assert "this host" in findings(heartbeat("w@h", 400), heartbeat("x@i", 400))["clock-skew"].remedy


@pytest.mark.parametrize(
    ("names", "level"),
    [
        (["w@box", "w@box.example.org"], "warning"),
        (["w@Box", "w@box"], "warning"),
        (["w@box", "x@box.example.org"], "ok"),
        (["w@box", "w@bix"], "ok"),
        (["w@10.0.0.1", "w@10.0.0.2"], "ok"),
        (["w@web1.us.example.org", "w@web1.eu.example.org"], "ok"),
        (["w@web1.us", "w@web1.us.example.org"], "warning"),
    ],
)
def test_one_worker_under_two_names(names, level):
    """The name is what a worker is known by: two spellings of one host make two of it."""
    assert findings(*(beat for name in names for beat in heartbeats(name)))["worker-names"].severity == level


def test_names_that_change_with_each_restart():
    gone = [heartbeat(f"w@{number:012x}", kind="offline") for number in range(MIN_CHANGED_HOSTS)]
    finding = findings(*gone, *heartbeats("w@abc"))["worker-names"]
    assert (finding.severity, "--purge-offline-worker-metrics" in finding.remedy) == ("warning", True)
    assert findings(*gone[1:], *heartbeats("w@abc"))["worker-names"].severity == "ok"
