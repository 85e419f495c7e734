"""What a snapshot says is wrong, and what mends it; and which of it is news."""

from __future__ import annotations

import re

import pytest

from celery_exporter.core import queues
from celery_exporter.core.snapshot import JobView, QueueStats, Snapshot
from celery_exporter.core.task_names import shown_as
from celery_exporter.core.workers import WorkerInfo
from celery_exporter.status.checks import (
    CHURN,
    LONGEST_INTERVAL,
    NOBODY_ANSWERED,
    PATIENCE,
    RECENT,
    is_decided,
    run_checks,
)
from celery_exporter.status.finding import Finding
from celery_exporter.status.notifier import HOLD_SECONDS as HOLD
from celery_exporter.status.notifier import FindingNotifier
from celery_exporter.status.recent import Recent
from unit.core.cluster_driver import T0, ClusterDriver, heartbeat, received, sent, started

ANSWERED = WorkerInfo(queues=("q",), registered=(), pool="prefork", pool_size=4)
WELL = [JobView("queues", True, 0.1, T0), JobView("workers", True, 0.1, T0)]
TASK = (sent(), received(), started())


def beats(host: str = "w@h", processed: tuple[int, ...] = (0,), **fields) -> list[dict]:
    return [heartbeat(host, 100 + 2 * n, processed=count, **fields) for n, count in enumerate(processed)]


def findings(*events: dict, profiles: dict[str, WorkerInfo] | None = None, **around) -> dict[str, Finding]:
    """Tell events, let workers answer, and return what is found after a while, by check."""
    driver = ClusterDriver()
    driver.apply(*events)
    if profiles is None:
        profiles = dict.fromkeys(driver.cluster.workers, ANSWERED)
    driver.cluster.record_inspection(profiles, driver.moment())
    told = {"listening": PATIENCE, "jobs": WELL, "last_event": T0, **around}
    return {finding.check: finding for finding in said(driver.shown(**told))}


def said(shown: Snapshot) -> list[Finding]:
    """Return what is found where nothing was counted in the last minutes."""
    return run_checks(shown, Recent().growth(shown, 0.0))


def levels(found: dict[str, Finding]) -> set[str]:
    return {finding.severity for finding in found.values()}


def test_a_cluster_that_is_well_has_nothing_to_mend():
    found = findings(*beats(), *TASK, queue_stats={"q": QueueStats(3)})
    assert levels(found) == {"ok"}
    assert {finding.remedy for finding in found.values()} == {""}
    assert list(found) == [
        "subscription",
        "workers",
        "heartbeats",
        "remote-control",
        "serializer",
        "task-events",
        "task-sent-events",
        "clock-skew",
        "worker-names",
        "duplicate-node-names",
        "queue-lengths",
        "queue-names",
        "queues-without-consumers",
        "unconsumed-messages",
        "queue-depth",
        "series",
    ]


@pytest.mark.parametrize("listening", [0.0, PATIENCE - 0.1])
def test_nothing_is_wrong_that_had_no_time_to_be_known(listening):
    """At the start: no worker, no heartbeat, no answer, no task-sent, no consumer was seen by then."""
    collectors = [JobView("queues", None, None, None), JobView("workers", None, None, None)]
    quiet = {"listening": listening, "jobs": collectors, "last_event": None}
    assert levels(findings(**quiet)) == {"ok"}
    assert levels(findings(received(), profiles={}, queue_stats={"q": QueueStats(3, 0)}, **quiet)) == {"ok"}


def test_a_broker_that_is_down_is_the_only_thing_that_is_found():
    driver = ClusterDriver()
    driver.apply(*beats("quiet@h", (0, 5, 9, 12)))
    down = {"broker_up": False, "jobs": WELL, "listening": 100.0}
    assert said(driver.shown(started=T0 + driver.now, at=T0 + driver.now, **down)) == []
    (only,) = said(driver.shown(**down))
    assert (only.check, only.severity) == ("subscription", "critical")


def test_while_publishers_are_blocked_nobody_is_judged():
    gone = heartbeat("w@h", kind="offline")
    found = findings(gone, blocked="low on memory & disk", queue_stats={"q": QueueStats(3, 0)})
    assert {check: each.severity for check, each in found.items()} == {
        "subscription": "ok",
        "publishers": "critical",
        "queue-lengths": "ok",
        "queue-depth": "ok",
    }
    for word in ("rabbitmq-diagnostics alarms", "vm_memory_high_watermark", "disk_free_limit"):
        assert word in found["publishers"].remedy
    assert "vm_memory_high_watermark" not in findings(gone, blocked="low on disk")["publishers"].remedy
    assert findings(*beats(), blocked="")["publishers"].severity == "ok"
    assert "publishers" not in findings(*beats(), blocked=None)


def test_where_no_event_can_arrive_nothing_else_is_wrong():
    found = findings(no_events="no fan-out", broker_up=False, queue_stats={"q": QueueStats(3)})
    assert [(check, each.severity) for check, each in found.items()] == [
        ("transport", "critical"),
        ("queue-lengths", "ok"),
        ("queue-depth", "ok"),
    ]


@pytest.mark.parametrize("blocked", [None, "", "low on memory"])
def test_all_is_decided_once_each_check_that_applies_has_found_something(blocked):
    driver = ClusterDriver()
    driver.apply(*beats(), *TASK)
    driver.cluster.record_inspection({"w@h": ANSWERED}, driver.moment())
    well = {"listening": PATIENCE, "jobs": WELL, "last_event": T0, "queue_stats": {"q": QueueStats(3)}}
    assert is_decided(driver.shown(blocked=blocked, **well))
    assert not is_decided(driver.shown(blocked=blocked, **{**well, "jobs": []}))


def test_answers_in_a_serialiser_that_is_not_accepted():
    failed = [WELL[0], JobView("workers", False, 0.1, None, "workers answer in pickle")]
    found = findings(*beats(), profiles={}, jobs=failed, refused_answers=["pickle"])["remote-control"]
    assert (found.severity, "pickle" in found.message, "--accept-content" in found.remedy) == (
        "warning",
        True,
        True,
    )


def test_no_worker_at_all_and_none_any_more():
    assert findings()["workers"].severity == "critical"
    assert "event_exchange" in findings()["workers"].remedy
    gone = findings(heartbeat("w@h", kind="offline"))["workers"]
    assert (gone.severity, gone.message) == ("critical", "all workers are down: w@h"), (
        "work may wait: nobody measures"
    )
    for depth, unacked, level in ((0, None, "warning"), (1, None, "critical"), (0, 1, "critical")):
        told = {"queue_stats": {"q": QueueStats(depth)}, "unacked": unacked}
        assert findings(heartbeat("w@h", kind="offline"), **told)["workers"].severity == level
    some = findings(heartbeat("w@h", kind="offline"), *beats("x@h"))["workers"]
    assert (some.severity, some.message) == ("ok", "1 worker heard: x@h, 1 went down")


def test_a_worker_that_answers_without_a_heartbeat():
    found = findings(profiles={"w@h": ANSWERED})["heartbeats"]
    assert (found.severity, found.message) == ("warning", "no heartbeat from w@h")
    assert "-E and without --without-heartbeat" in found.remedy
    long = findings(profiles={"w@h": ANSWERED}, listening=LONGEST_INTERVAL + 1)["heartbeats"]
    assert long.severity == "critical", "no interval is as long"
    assert findings(*beats(), profiles={"w@h": ANSWERED, "x@h": ANSWERED})["heartbeats"].severity == "warning"


def test_a_worker_that_does_not_answer():
    found = findings(*beats("w@h"), *beats("x@h"), profiles={"x@h": ANSWERED})["remote-control"]
    assert (found.severity, found.message.partition(",")[0]) == ("warning", "no answer from w@h")
    assert "worker_enable_remote_control = True" in found.remedy


def test_a_worker_of_before_celery_5_3_answers_without_the_kind_of_its_pool():
    old = WorkerInfo(queues=("q",), registered=(), pool_size=2)
    assert findings(*beats(), profiles={"w@h": old})["remote-control"].severity == "ok"


def test_workers_that_could_not_be_asked():
    """Nothing is said of them then."""
    full = [WELL[0], JobView("workers", False, 0.1, None, "used memory > 'maxmemory'")]
    found = findings(*beats(), jobs=full)["remote-control"]
    assert (found.severity, "maxmemory" in found.message) == ("warning", True), "though each answered before"
    failed = [WELL[0], JobView("workers", False, 0.1, None, "NOPERM")]
    found = findings(*beats(), profiles={}, jobs=failed)["remote-control"]
    assert (found.severity, found.message) == ("warning", "workers could not be asked: NOPERM")
    nobody = [WELL[0], JobView("workers", False, 0.1, None, NOBODY_ANSWERED)]
    assert "no answer from w@h" in findings(*beats(), profiles={}, jobs=nobody)["remote-control"].message


def test_workers_that_run_tasks_without_a_word():
    """Their `processed` grows; each is named, and so is the command."""
    found = findings(*beats("a@h", (0, 5, 9, 12)), *beats("b@h", (0, 5, 9, 12)), *beats("c@h"), *TASK)
    assert found["task-events"] == Finding(
        "task-events",
        "warning",  # of another one they come
        "no task events from workers a@h, b@h",
        "start workers with -E, or now: celery -A yourapp control enable_events",
        "CeleryTaskEventsDisabled",
    )


def test_whether_idle_workers_send_task_events_is_not_known():
    found = findings(*beats("a@h"))["task-events"]
    assert found.severity == "ok"
    assert "not known" in found.message


def test_tasks_of_which_no_client_said_that_it_sent_them():
    found = findings(*beats(), received())["task-sent-events"]
    assert (found.severity, "task_send_sent_event = True" in found.remedy) == ("warning", True)
    assert "task-sent-events" not in findings(*beats())


@pytest.mark.parametrize(("offset", "level"), [(0, "ok"), (-4, "ok"), (60, "warning"), (-3600, "warning")])
def test_a_clock_that_is_wrong(offset, level):
    found = findings(*beats(), heartbeat("x@h", 100 + offset))["clock-skew"]
    assert found.severity == level
    if level == "warning":
        assert f"x@h by {offset:+d} s" in found.message
        assert found.remedy == "set the clock of their host: timedatectl set-ntp true"


def test_clocks_that_are_wrong_in_two_directions_are_not_that_of_here():
    assert "their host" in findings(heartbeat("w@h", 400), heartbeat("w@i", -200))["clock-skew"].remedy


def test_the_clock_that_is_wrong_may_be_the_one_here():
    assert "this host" in findings(heartbeat("w@h", 400), heartbeat("x@i", 400))["clock-skew"].remedy


def test_queues_that_nobody_consumes():
    queue_stats = {
        "empty": QueueStats(0),
        "q": QueueStats(5),
        "some": QueueStats(7),
        "most; ls": QueueStats(1200),
        "said": QueueStats(4, 1),
    }
    told = findings(*beats(), queue_stats={**queue_stats, "some": QueueStats(7, 0)})["unconsumed-messages"]
    assert told.severity == "critical", "the broker itself says that it has no consumer"
    found = findings(*beats(), queue_stats=queue_stats)
    assert found["queues-without-consumers"] == Finding(
        "queues-without-consumers",
        "warning",
        "nobody consumes empty (empty by now)",
        "if somebody should: celery -A yourapp worker -E -Q empty",
    )
    assert found["unconsumed-messages"] == Finding(
        "unconsumed-messages",
        "warning",  # a worker that is busy in the solo pool may not have answered
        "messages wait in queues that nobody consumes: most; ls (1,200), some (7)",
        "celery -A yourapp worker -E -Q 'most; ls,some'",
    )


def test_a_command_names_the_queues_that_its_option_can_name():
    found = findings(*beats(), queue_stats={"a,b": QueueStats(9), "c\x1bd": QueueStats(7)})
    others = "a worker whose task_queues have a,b, which -Q cannot name"
    command = "celery -A yourapp worker -E -Q"
    assert found["unconsumed-messages"].remedy == f"{others}, and for the others: {command} $'c\\x1bd'"
    found = findings(*beats(), queue_stats={f"q{number:02}": QueueStats(1) for number in range(22)})
    named = ",".join(f"q{number:02}" for number in range(20))
    assert found["unconsumed-messages"].remedy == f"for 20 of 22: {command} {named}"
    found = findings(*beats(), queue_stats={"a,b": QueueStats(9)})
    assert found["unconsumed-messages"].remedy == others


def test_a_state_that_cannot_be_saved_is_told_whatever_else_is_known():
    for failed, level in ((False, "ok"), (True, "warning")):
        saving = JobView("state", not failed, 0.1, None, "cannot write" if failed else "")
        for around in ({}, {"broker_up": False}, {"blocked": "disk"}, {"no_events": "none"}):
            found = findings(*beats(), jobs=[*WELL, saving], **around)
            assert found["state"].severity == level
    assert "state" not in findings(*beats())


def test_each_queue_without_a_consumer_is_told_by_the_name_that_a_worker_can_consume():
    rules = [(re.compile("customer-[0-9]+"), "customer-*")]
    driver = ClusterDriver(show_queue=shown_as(None, None, rules))
    driver.apply(*beats())
    driver.cluster.record_inspection({"w@h": WorkerInfo(queues=("customer-1",))}, driver.moment())
    queue_stats = {"customer-1": QueueStats(0), "customer-2": QueueStats(2), "customer-3": QueueStats(0)}
    shown = driver.shown(listening=PATIENCE, jobs=WELL, last_event=T0, queue_stats=queue_stats)
    found = {finding.check: finding for finding in said(shown)}
    assert found["unconsumed-messages"].remedy == "celery -A yourapp worker -E -Q customer-2"
    assert "customer-3" in found["queues-without-consumers"].remedy


def test_a_queue_that_was_asked_for_may_be_empty_without_a_consumer():
    """Until there is work, where workers are scaled from zero."""
    driver = ClusterDriver()
    driver.cluster.queues.request(["from-zero"])
    driver.apply(*beats())
    driver.cluster.record_inspection({"w@h": ANSWERED}, driver.moment())
    for length, level in ((0, "ok"), (3, "warning")):
        told = {"q": QueueStats(0), "from-zero": QueueStats(length)}
        shown = driver.shown(listening=PATIENCE, jobs=WELL, last_event=T0, queue_stats=told)
        found = {finding.check: finding.severity for finding in said(shown)}
        assert found["queues-without-consumers"] == "ok"
        assert found["unconsumed-messages"] == level


def test_a_queue_whose_length_is_not_known_is_not_called_empty():
    found = findings(*beats(), sent(queue="dark"), queue_stats={"q": QueueStats(0)})
    assert found["queues-without-consumers"].severity == "ok"
    said = found["unconsumed-messages"]
    assert (said.severity, said.message) == (
        "ok",
        "no message waits for nobody in 2 queues that are known, but how many wait in dark is not known",
    )


def test_queues_whose_consumers_are_not_known_are_no_finding():
    found = findings(*beats(), profiles={}, queue_stats={"q": QueueStats(5)}, workers_known=False)
    assert not {"queues-without-consumers", "unconsumed-messages"} & found.keys()


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
    assert findings(*(beat for name in names for beat in beats(name)))["worker-names"].severity == level


def test_names_that_each_restart_makes_anew():
    gone = [heartbeat(f"w@{number:012x}", kind="offline") for number in range(CHURN)]
    found = findings(*gone, *beats("w@abc"))["worker-names"]
    assert (found.severity, "--purge-offline-worker-metrics" in found.remedy) == ("warning", True)
    assert findings(*gone[1:], *beats("w@abc"))["worker-names"].severity == "ok"


def test_events_in_a_serialiser_that_is_not_accepted():
    driver = ClusterDriver()
    now = T0 + driver.now
    refused = findings(last_refused=now - 1, last_event=None)["serializer"]
    assert (refused.severity, "--accept-content" in refused.remedy) == ("critical", True)
    assert findings(last_refused=now - RECENT)["serializer"].severity == "ok"


def test_queues_that_cannot_be_measured():
    failed = [JobView("queues", False, 0.1, None, "max number of clients\nreached")]
    found = findings(jobs=failed)["queue-lengths"]
    assert found.severity == "warning"
    assert found.message == "queues could not be measured: max number of clients?reached"


def test_queues_that_workers_consume_and_the_broker_does_not_tell_of():
    found = findings(*beats(), unmeasured={"q"})["queue-lengths"]
    assert (found.severity, "workers consume q, whose" in found.message) == ("warning", True)


def test_more_queues_than_are_measured(monkeypatch):
    monkeypatch.setattr(queues, "MAX_QUEUES", 3)
    events = [sent(f"u{number}", queue=f"q{number}") for number in range(3)]
    assert findings(*beats(), *events[:1])["queue-names"].severity == "ok"
    found = findings(*beats(), *events)["queue-names"]
    assert (found.severity, "3 queue names" in found.message) == ("warning", True)
    assert all(option in found.remedy for option in ("--queue-exclude", "-Q"))


def test_queues_that_need_no_consumer_are_not_told_of():
    passing = {"bcast.1": QueueStats(5, 0), "w@h.dq2": QueueStats(0, 0), "auto": QueueStats(1, 0)}
    profiles = {"w@h": WorkerInfo(queues=("q", "auto"), auto_delete=("auto",), pool="prefork", pool_size=4)}
    found = findings(*beats(), profiles=profiles, queue_stats={"q": QueueStats(0, 1), **passing})
    checks = ("queues-without-consumers", "unconsumed-messages")
    assert {found[check].severity for check in checks} == {"ok"}


def test_long_lists_are_cut_and_odd_names_are_one_line():
    names = [f"w{number}\n\x1b[2J@h" for number in range(8)]
    found = findings(*(beat for name in names for beat in beats(name)))
    assert found["workers"].message.startswith("8 workers heard: w0??[2J@h, ")
    assert found["workers"].message.endswith(" and 3 more")
    assert all(finding.message.isprintable() and finding.remedy.isprintable() for finding in found.values())


# -- news ------------------------------------------------------------------------------------------------

OK, WARN, FAIL = (Finding("clock-skew", level, level) for level in ("ok", "warning", "critical"))


def told(*looks: tuple[float, list[Finding]]) -> list[str]:
    """Return the levels that were news, look after look."""
    watch = FindingNotifier()
    return [finding.severity for now, found in looks for finding in watch.changes(found, now)]


def test_a_finding_is_news_once_when_it_has_stood_and_when_it_is_over():
    assert told((0, [WARN]), (HOLD - 1, [WARN])) == []
    assert told((0, [WARN]), (HOLD, [WARN]), (HOLD + 1, [WARN]), (HOLD + 2, [OK]), (99, [OK])) == [
        "warning",
        "ok",
    ]


def test_what_comes_and_goes_is_no_news():
    assert told((0, [WARN]), (HOLD - 1, [OK]), (HOLD, [WARN]), (HOLD + 1, [])) == []


def test_what_became_worse_is_news_and_what_became_less_bad_is_not():
    assert told((0, [WARN]), (HOLD, [WARN]), (HOLD + 1, [FAIL])) == ["warning", "critical"]
    assert told((0, [FAIL]), (HOLD, [FAIL]), (HOLD + 1, [WARN]), (99, [OK])) == [
        "critical",
        "ok",
    ]


def test_silence_is_not_the_end_of_a_finding():
    """While the broker is away no check but one says anything."""
    assert told((0, [WARN]), (HOLD, [WARN]), (HOLD + 1, []), (60, [WARN]), (99, [WARN])) == ["warning"]


def test_what_the_log_says_anyhow_is_not_said_twice():
    assert (
        told((0, [Finding("subscription", "critical", "")]), (99, [Finding("subscription", "critical", "")]))
        == []
    )
