"""The invariants of the core, by their numbers in docs/explanation/architecture.md, and courses of tasks."""

from __future__ import annotations

import itertools
import json
import math
import sys
import tracemalloc
from collections import Counter
from functools import partial
from uuid import uuid4

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from celery_exporter.core import queues, task_lifecycle, worker_registry
from celery_exporter.core.duplicates import RETENTION_SECONDS
from celery_exporter.core.events import decode
from celery_exporter.core.limits import Limits
from celery_exporter.core.task_lifecycle import MAX_DEFERRED_EVENTS, TOMBSTONE_SECONDS
from celery_exporter.core.types import LabelSet, State
from celery_exporter.core.workers import WorkerInfo

from .cluster_driver import (
    T0,
    ClusterDriver,
    failed,
    heartbeat,
    received,
    rejected,
    retried,
    sent,
    started,
    succeeded,
    task_event,
)

LIFE = [sent(), received(), started(), succeeded()]
LIFE_COUNTS = {("add", "q", state): 1 for state in ("PENDING", "RECEIVED", "STARTED", "SUCCESS")}


@pytest.mark.parametrize("order", list(itertools.permutations(range(4))))
def test_invariant_1_sums_do_not_depend_on_the_order_within_the_window(order):
    driver = ClusterDriver()
    for index in order:
        driver.apply(LIFE[index])
        driver.wait(0.25)
    driver.wait(3)
    assert driver.counts() == LIFE_COUNTS
    assert driver.gauges() == {}
    assert driver.cluster.fallbacks.total() == 0


def test_invariant_1_waits_are_measured_although_worker_events_overtake_task_sent():
    driver = ClusterDriver()
    driver.apply(received(at=1), started(at=2), succeeded(at=3), sent(at=0))
    aggregate = driver.aggregate()
    assert (aggregate.queue_wait.total, aggregate.prefetch_wait.total) == (2.0, 1.0)


def test_invariant_2_without_task_sent_the_only_queue_of_the_worker_is_the_fallback():
    driver = ClusterDriver()
    driver.apply(heartbeat())
    driver.cluster.record_inspection({"w@h": WorkerInfo(queues=("mail",))}, driver.timestamp())
    driver.apply(received(), started(), succeeded())
    assert driver.counts() == {}, "counted before the window has passed"
    driver.wait(2.5)
    assert driver.counts() == {("add", "mail", state): 1 for state in ("RECEIVED", "STARTED", "SUCCESS")}
    assert driver.cluster.fallbacks["queue_name"] == 1


def test_invariant_2_the_only_queue_is_the_fallback_without_task_received_too():
    driver = ClusterDriver()
    driver.apply(heartbeat())
    driver.cluster.record_inspection({"w@h": WorkerInfo(queues=("mail",))}, driver.timestamp())
    driver.apply(started())
    driver.wait(2.5)
    assert driver.counts() == {("unknown", "mail", "STARTED"): 1}


def test_invariant_2_a_worker_with_two_queues_leaves_the_queue_unknown():
    driver = ClusterDriver()
    driver.apply(heartbeat())
    driver.cluster.record_inspection({"w@h": WorkerInfo(queues=("mail", "celery"))}, driver.timestamp())
    driver.apply(received())
    driver.wait(2.5)
    assert driver.counts() == {("add", "unknown", "RECEIVED"): 1}


def test_invariant_2_a_task_without_a_name_is_unknown_and_counted():
    driver = ClusterDriver()
    driver.apply(started("u1"), succeeded("u1"), started("u2"), succeeded("u2"))
    driver.wait(2.5)
    assert driver.counts() == {("unknown", "unknown", state): 2 for state in ("STARTED", "SUCCESS")}
    assert driver.cluster.fallbacks == {"task_name": 2, "queue_name": 2, "worker": 0}


def test_invariant_2_a_task_sent_after_the_window_names_later_transitions():
    driver = ClusterDriver()
    driver.apply(received(), started())
    driver.wait(2.5)
    driver.apply(sent(), succeeded())
    assert driver.counts() == {
        ("add", "unknown", "RECEIVED"): 1,
        ("add", "unknown", "STARTED"): 1,
        ("add", "q", "PENDING"): 1,
        ("add", "q", "SUCCESS"): 1,
    }
    assert driver.aggregate().queue_wait.counts == [0, 1, 0, 0]


def test_invariant_3_a_late_event_of_a_finished_task_is_counted_and_does_not_reopen_it():
    driver = ClusterDriver()
    driver.apply(*LIFE)
    assert len(driver.cluster.tasks) == 0
    driver.apply(task_event("received", host="other@h", name="add"))
    driver.wait(2.5)
    assert driver.by_state()["RECEIVED"] == 2
    assert driver.gauges() == {}


def test_invariant_3_a_task_sent_after_the_end_names_the_task_and_does_not_reopen_it():
    driver = ClusterDriver()
    driver.apply(received(), started())
    driver.wait(2.5)
    driver.apply(succeeded(), sent(at=7))  # the client's clock is ahead
    assert driver.gauges() == {}
    driver.apply(task_event("rejected", host="other@h", requeue=False))
    assert driver.counts()["add", "q", "REJECTED"] == 1


def test_invariant_3_a_finished_task_that_its_worker_receives_again_reopens_after_the_window():
    driver = ClusterDriver()
    driver.apply(*LIFE, received(at=0.25))
    driver.wait(2.5)
    assert driver.gauges() == {}
    driver.apply(received(at=0.4))
    driver.wait(2.5)
    assert driver.gauges() == {"RECEIVED": 1}


def test_invariant_3_a_finished_task_that_is_received_again_reopens():
    driver = ClusterDriver()
    driver.apply(*LIFE)
    driver.wait(3)
    driver.apply(task_event("received", host="other@h", name="add"))
    driver.wait(2.5)
    assert driver.gauges() == {"RECEIVED": 1}
    assert driver.aggregate().redeliveries == 1


def test_invariant_3_tombstones_expire():
    driver = ClusterDriver()
    driver.apply(*LIFE)
    driver.wait(TOMBSTONE_SECONDS + 2)
    assert driver.cluster.tasks.get("u1") is None


def test_invariant_3_the_table_is_bounded_by_count_and_counts_evictions():
    driver = ClusterDriver(Limits(max_tasks=100))
    for index in range(250):
        driver.apply(sent(f"u{index}"))
    assert len(driver.cluster.tasks) <= 100
    assert driver.cluster.tasks.evicted == 250 - len(driver.cluster.tasks)
    assert driver.gauges()["PENDING"] == len(driver.cluster.tasks)
    assert driver.by_state()["PENDING"] == 250


def test_invariant_3_the_table_is_bounded_by_age():
    driver = ClusterDriver(Limits(task_ttl=10))
    driver.apply(sent("old"))
    driver.wait(8)
    driver.apply(sent("young"))
    driver.wait(5)
    assert driver.gauges() == {"PENDING": 1}
    assert driver.cluster.tasks.evicted == 1


def test_invariant_4_a_worker_is_down_after_a_time_of_listening_without_its_events():
    driver = ClusterDriver(Limits(worker_timeout=10, purge_offline_worker_metrics=60))
    driver.apply(heartbeat(at=-420))  # its clock is seven minutes behind
    driver.wait(9)
    assert driver.cluster.workers["w@h"].up
    driver.wait(2)
    assert not driver.cluster.workers["w@h"].up
    driver.apply(heartbeat(at=-400))
    assert driver.cluster.workers["w@h"].up
    assert driver.cluster.workers["w@h"].clock_skew == pytest.approx(-420 - driver.now, abs=30)


def test_invariant_4_a_worker_with_a_slow_heartbeat_is_down_after_three_intervals():
    driver = ClusterDriver(Limits(worker_timeout=10))
    driver.apply(heartbeat(freq=60))
    driver.wait(170)
    assert driver.cluster.workers["w@h"].up
    driver.wait(15)
    assert not driver.cluster.workers["w@h"].up


def test_invariant_4_a_worker_without_a_heartbeat_interval_is_down_after_the_timeout():
    driver = ClusterDriver(Limits(worker_timeout=2))
    driver.apply(started())
    driver.wait(2)
    assert driver.cluster.workers["w@h"].up
    driver.wait(1)
    assert not driver.cluster.workers["w@h"].up


def test_invariant_4_without_a_timeout_only_worker_offline_takes_a_worker_down():
    driver = ClusterDriver(Limits(worker_timeout=math.inf, purge_offline_worker_metrics=60))
    driver.apply(heartbeat())
    driver.now += 1e6
    driver.wait(1)
    assert driver.cluster.workers["w@h"].up
    driver.apply(heartbeat(kind="offline"))
    driver.wait(62)
    assert driver.cluster.workers == {}


def test_invariant_4_worker_offline_takes_effect_at_once_and_only_for_its_sender():
    driver = ClusterDriver()
    driver.apply(heartbeat("a@h"), heartbeat("b@h"), heartbeat("a@h", kind="offline"))
    assert {name: worker.up for name, worker in driver.cluster.workers.items()} == {"a@h": False, "b@h": True}
    driver.apply(task_event("succeeded", host="a@h"))  # from its buffer of events
    assert not driver.cluster.workers["a@h"].up


def test_a_worker_whose_first_event_is_worker_offline_is_down():
    driver = ClusterDriver()
    driver.apply(heartbeat(kind="offline"))
    assert not driver.cluster.workers["w@h"].up


def test_a_late_worker_offline_does_not_restore_a_removed_worker_but_a_heartbeat_does():
    driver = ClusterDriver(Limits(worker_timeout=10, purge_offline_worker_metrics=10))
    driver.apply(heartbeat())
    driver.wait(30)
    driver.apply(heartbeat(kind="offline"))
    assert driver.cluster.workers == {}
    driver.apply(heartbeat(), heartbeat(kind="offline"))
    assert not driver.cluster.workers["w@h"].up


def test_names_of_removed_workers_are_bounded(monkeypatch):
    monkeypatch.setattr(worker_registry, "MAX_WORKERS", 2)
    driver = ClusterDriver(Limits(worker_timeout=10, purge_offline_worker_metrics=10))
    for name in ("a@h", "b@h", "c@h"):
        driver.apply(heartbeat(name))
        driver.wait(30)
    driver.apply(*(heartbeat(name, kind="offline") for name in ("a@h", "b@h", "c@h")))
    assert list(driver.cluster.workers) == ["a@h"]


def test_sums_of_clients_on_a_host_are_shown_until_its_last_worker_is_removed():
    driver = ClusterDriver(Limits(worker_timeout=10, purge_offline_worker_metrics=10), clients=True)
    driver.apply(heartbeat("a@box"), heartbeat("b@box"), sent(hostname="c@box"), sent("u2", hostname="c@web"))
    for _ in range(30):
        driver.wait(1)
        driver.apply(heartbeat("b@box"))
    assert list(driver.cluster.workers) == ["b@box"]
    assert driver.aggregate().clients == {"box": 1, "web": 1}
    driver.wait(30)
    assert driver.aggregate().clients == {"web": 1}
    assert driver.aggregate().transitions[State.PENDING] == 2


@pytest.mark.parametrize("purge", [60, None])
def test_invariant_4_a_silent_solo_worker_is_down_after_ten_minutes(purge):
    driver = ClusterDriver(Limits(worker_timeout=10, purge_offline_worker_metrics=purge))
    driver.apply(heartbeat())
    driver.cluster.record_inspection({"w@h": WorkerInfo(pool="solo")}, driver.timestamp())
    driver.wait(590)
    assert driver.cluster.workers["w@h"].up
    driver.wait(20)
    assert not driver.cluster.workers["w@h"].up
    driver.wait(60)
    assert ("w@h" in driver.cluster.workers) is (purge is None)


def test_invariant_4_a_heartbeat_interval_of_years_is_limited():
    driver = ClusterDriver(Limits(worker_timeout=10))
    driver.apply(heartbeat(freq=9e8))
    driver.now += 3 * 3600 - 2
    driver.wait(1)
    assert driver.cluster.workers["w@h"].up
    driver.wait(20)
    assert not driver.cluster.workers["w@h"].up


def test_a_reused_id_is_a_new_task():
    driver = ClusterDriver()
    driver.apply(*LIFE)
    driver.wait(5)
    driver.apply(sent(at=10))
    assert driver.gauges() == {"PENDING": 1}
    driver.apply(received(at=11), started(at=12), succeeded(at=13))
    assert driver.gauges() == {}
    assert driver.aggregate().redeliveries == 0
    assert driver.aggregate().queue_wait.total == pytest.approx(0.2 + 2)


def test_the_oldest_task_is_known_although_its_event_is_late():
    driver = ClusterDriver()
    driver.apply(received("late", at=11))
    driver.wait(3)
    driver.apply(sent("other", at=52), received("other", at=52), sent("late", at=1))
    since = {
        group.label_set.queue_name: group.since for group in driver.cluster.tasks.in_states() if group.count
    }
    assert since == {"q": T0 + 11}


def test_registered_tasks_do_not_overflow():
    driver = ClusterDriver(Limits(max_series=16))
    info = WorkerInfo(queues=("q",), registered=tuple(f"task{number}" for number in range(5)))
    for _ in range(3):
        driver.cluster.record_inspection({"w@h": info}, driver.timestamp())
    assert len(driver.aggregates.snapshot()) == 2
    assert driver.cluster.label_sets.overflowed == 0


def test_invariant_5_sums_of_a_removed_worker_stay():
    driver = ClusterDriver(
        Limits(worker_timeout=10, purge_offline_worker_metrics=60), labels=("queue_name", "worker")
    )
    driver.apply(heartbeat(), *LIFE)
    before = driver.by_state()
    assert driver.aggregate(worker="w@h").transitions[3] == 1
    driver.wait(75)
    assert "w@h" not in driver.cluster.workers
    assert driver.by_state() == before
    assert driver.aggregate(worker="").transitions[3] == 1
    assert LabelSet("add", "q", "w@h") not in driver.aggregates.snapshot()


def test_invariant_6_a_worker_that_returns_after_its_removal_starts_new_sums():
    driver = ClusterDriver(
        Limits(worker_timeout=10, purge_offline_worker_metrics=60), labels=("queue_name", "worker")
    )
    driver.apply(*LIFE)
    driver.wait(100)
    driver.apply(sent("u2"), received("u2"), started("u2"), succeeded("u2"))
    assert {
        label_set.worker: aggregate.transitions[3]
        for label_set, aggregate in driver.aggregates.snapshot().items()
    } == {
        "": 1,
        "w@h": 1,
    }
    assert len(driver.cluster.label_sets) == 2


def test_invariant_6_registered_tasks_start_at_zero_if_their_queue_is_certain():
    driver = ClusterDriver()
    driver.cluster.record_inspection(
        {
            "a@h": WorkerInfo(queues=("mail",), registered=("send", "both")),
            "b@h": WorkerInfo(queues=("celery",), registered=("both",)),
            "c@h": WorkerInfo(registered=("nowhere",)),
        },
        driver.timestamp(),
    )
    assert set(driver.aggregates.snapshot()) == {LabelSet("send", "mail")}
    assert driver.aggregate("send", "mail").transitions == [0] * 8


def test_invariant_7_waits_count_from_the_eta_and_never_below_zero():
    driver = ClusterDriver()
    eta = "2023-11-14T22:13:30+00:00"  # T0 + 10 s
    driver.apply(sent("a", eta=eta), received("a", at=1, eta=eta), started("a", at=12))
    assert (driver.aggregate().queue_wait.total, driver.aggregate().prefetch_wait.total) == (2.0, 2.0)
    driver.apply(sent("b", at=5, name="skewed"), received("b", at=1, name="skewed"), started("b", at=2))
    assert driver.aggregate("skewed").queue_wait.total == 0.0
    assert driver.aggregates.negative_waits == 1


@pytest.mark.parametrize("eta", ["2023-11-14T22:13:30", "2023-11-14T22:13:30Z", "2023-11-15T00:13:30+02:00"])
def test_invariant_7_an_eta_may_have_any_time_zone(eta):
    driver = ClusterDriver()
    driver.apply(sent(eta=eta), received(at=1), started(at=12))
    assert driver.aggregate().queue_wait.total == 2.0


@pytest.mark.parametrize("eta", ["tomorrow", "", "9999-99-99", "0001-01-01T00:00:00+14:00"])
def test_invariant_7_an_invalid_eta_is_ignored(eta):
    driver = ClusterDriver()
    driver.apply(sent(eta=eta), received(at=1), started(at=2))
    assert driver.aggregate().queue_wait.total == 2.0


def test_invariant_7_a_redelivered_task_waits_from_its_redelivery():
    driver = ClusterDriver()
    driver.apply(sent(), received(), started(), task_event("received", at=50, host="b@h", name="add"))
    driver.apply(task_event("started", at=53, host="b@h"), task_event("succeeded", at=54, host="b@h"))
    driver.wait(2.5)
    assert driver.aggregate().redeliveries == 1
    assert driver.aggregate().queue_wait.total == pytest.approx(0.2 + 3)
    assert driver.gauges() == {}


def test_invariant_9_without_the_queue_label_sums_have_no_queue():
    driver = ClusterDriver(labels=())
    driver.apply(*LIFE)
    assert set(driver.counts()) == {
        ("add", "", state) for state in ("PENDING", "RECEIVED", "STARTED", "SUCCESS")
    }
    assert driver.cluster.fallbacks["queue_name"] == 0


@pytest.mark.parametrize(
    ("event", "counted", "gauges"),
    [
        (failed(), "FAILURE", {}),
        (retried(), "RETRY", {"RETRY": 1}),
        (task_event("revoked", terminated=True, signum=15, expired=False), "REVOKED", {}),
        (task_event("rejected", requeue=False), "REJECTED", {}),
        (task_event("rejected", requeue=True), "REJECTED", {"PENDING": 1}),
        (task_event("cancelled"), "RETRY", {"RETRY": 1}),
    ],
)
def test_events_that_may_follow_a_start(event, counted, gauges):
    driver = ClusterDriver()
    driver.apply(sent(), received(), started(), event)
    assert driver.by_state()[counted] == 1
    assert driver.gauges() == gauges


def test_an_expired_task_is_revoked_without_being_received_and_keeps_its_name():
    driver = ClusterDriver()
    driver.apply(sent(), task_event("revoked", terminated=False, signum=None, expired=True))
    assert driver.counts() == {("add", "q", "PENDING"): 1, ("add", "q", "REVOKED"): 1}
    assert driver.gauges() == {}


def test_an_unregistered_task_keeps_its_name_without_task_sent():
    driver = ClusterDriver()
    driver.apply(failed(exception="NotRegistered('shop.pay')"))
    driver.wait(2.5)
    assert driver.counts() == {("shop.pay", "unknown", "FAILURE"): 1}


def test_a_runtime_is_that_of_the_event_or_the_time_since_the_start():
    driver = ClusterDriver()
    driver.apply(sent("a"), received("a"), started("a", at=1), succeeded("a", at=9, runtime=0.5))
    driver.apply(sent("b"), received("b"), started("b", at=1), failed("b", at=3))
    driver.apply(sent("c"), received("c"), started("c", at=1), failed("c", at=3, host="other@h"))
    aggregate = driver.aggregate()
    assert {state.name: histogram.total for state, histogram in aggregate.runtime.items()} == {
        "SUCCESS": 0.5,
        "FAILURE": 2.0,
    }
    assert sum(sum(histogram.counts) for histogram in aggregate.runtime.values()) == 2
    assert aggregate.exceptions == {"ValueError": 2}


HEAD = "Traceback (most recent call last):\n"
LOST = HEAD + '  File "x.py", line 1, in f\n    f()\n    ^^^\nbilliard.exceptions.WorkerLostError: exited\n'


@pytest.mark.parametrize(
    ("traceback", "raised"),
    [
        (LOST, "WorkerLostError"),
        (HEAD + "  File\nbilliard.exceptions.TimeLimitExceeded", "TimeLimitExceeded"),
        (HEAD + "  File\nValueError: two\nKeyError: lines", "ValueError"),
        (
            LOST + "\nDuring handling of the above exception, another exception occurred:\n\n" + LOST,
            "unknown",
        ),
        (HEAD + "  File\n", "unknown"),
        (HEAD + "  File", "unknown"),
        (HEAD + "ValueError: x", "unknown"),
        ("", "unknown"),
        (None, "unknown"),
        ("billiard.exceptions.WorkerLostError", "unknown"),
    ],
)
@pytest.mark.parametrize("wait", [0, 3])
def test_a_wrapped_exception_is_read_from_the_traceback(traceback, raised, wait):
    driver = ClusterDriver()
    event = failed(exception="ExceptionWithTraceback()", name="add", queue="q", traceback=traceback)
    driver.apply(*([] if wait else [sent()]), event)
    driver.wait(wait)
    assert driver.aggregate().exceptions == {raised: 1}


def test_the_traceback_of_another_exception_is_not_read():
    driver = ClusterDriver()
    driver.apply(sent(), failed(exception="KeyError('x')", traceback=LOST))
    assert driver.aggregate().exceptions == {"KeyError": 1}


def test_tracebacks_are_not_kept():
    driver = ClusterDriver()
    lost = failed("u2", exception="ExceptionWithTraceback()", traceback=LOST)
    driver.apply(failed(traceback="x" * 100_000), lost)
    deferred = driver.cluster.tasks.deferred.values()
    assert [event.traceback for events in deferred for event in events] == [None, None]


# The order of events of a real worker: the pool process sends the retry before the worker reports the end.
RETRY_LIFE = [
    sent(at=0),
    received(at=1),
    sent(at=3, retries=1),
    received(at=4, retries=1),
    started(at=2),
    retried(at=3),
    started(at=6),
    succeeded(at=7),
]


def test_the_next_attempt_may_be_sent_and_received_before_the_end_of_the_last_one():
    driver = ClusterDriver()
    driver.apply(*RETRY_LIFE)
    assert driver.by_state() == {"PENDING": 2, "RECEIVED": 2, "STARTED": 2, "RETRY": 1, "SUCCESS": 1}
    assert driver.gauges() == {}
    aggregate = driver.aggregate()
    assert aggregate.queue_wait.total == 2 + 3
    assert aggregate.prefetch_wait.total == 1 + 2
    assert {state.name: sum(histogram.counts) for state, histogram in aggregate.runtime.items()} == {
        "RETRY": 1,
        "SUCCESS": 1,
    }
    assert aggregate.redeliveries == 0
    assert driver.aggregates.negative_waits == 0


def test_task_retried_may_come_after_the_end_of_the_next_attempt():
    driver = ClusterDriver()
    driver.apply(sent(), received(at=1), started(at=2), sent(at=3, retries=1), received(at=4, retries=1))
    driver.apply(started(at=5), failed(at=7), retried(at=3))
    assert driver.gauges() == {}
    assert {state.name: histogram.total for state, histogram in driver.aggregate().runtime.items()} == {
        "FAILURE": 2.0,
        "RETRY": 1.0,
    }


def test_a_retry_on_another_worker_overtakes_the_end_of_the_first_attempt():
    driver = ClusterDriver()
    driver.apply(sent(), received(), started(), sent(at=3, retries=1))
    driver.apply(task_event("received", at=4, host="b@h", name="add", retries=1))
    driver.apply(retried(at=3))
    assert driver.gauges() == {"RECEIVED": 1}
    driver.apply(
        task_event("started", at=5, host="b@h"), task_event("succeeded", at=6, host="b@h", runtime=1.0)
    )
    assert driver.gauges() == {}
    assert driver.aggregate().queue_wait.total == pytest.approx(0.2 + 2)


def test_invariant_2_each_attempt_is_counted_under_its_own_queue():
    driver = ClusterDriver()
    driver.apply(sent(), received(), started(), sent(at=0.25, retries=1, queue="right"), retried(at=0.3))
    driver.apply(received(at=0.4, retries=1), started(at=0.5), failed(at=0.7))
    assert driver.counts() == {
        **{("add", "q", state): 1 for state in ("PENDING", "RECEIVED", "STARTED", "RETRY")},
        **{("add", "right", state): 1 for state in ("PENDING", "RECEIVED", "STARTED", "FAILURE")},
    }
    assert driver.aggregate().runtime[State.RETRY].total == pytest.approx(0.1)
    assert driver.aggregate(queue="right").runtime[State.FAILURE].total == pytest.approx(0.2)
    assert driver.aggregate(queue="right").queue_wait.total == pytest.approx(0.25)


def test_invariant_2_a_late_start_is_counted_under_the_queue_of_its_attempt():
    driver = ClusterDriver()
    driver.apply(sent(), received(), sent(at=0.25, retries=1, queue="right"), started(), retried(at=0.3))
    assert driver.counts() == {
        **{("add", "q", state): 1 for state in ("PENDING", "RECEIVED", "STARTED", "RETRY")},
        ("add", "right", "PENDING"): 1,
    }
    assert driver.aggregate().queue_wait.total == pytest.approx(0.2)


RETRY_ELSEWHERE = [
    sent(),
    received(),
    started(),
    sent(at=0.9, retries=1, queue="right"),
    retried(at=1.0),
    task_event("received", at=1.0, host="r@h", name="add", retries=1),
    task_event("started", at=1.1, host="r@h"),
    task_event("succeeded", at=1.2, host="r@h", runtime=0.1),
]


@pytest.mark.parametrize("place", range(3, 9))
def test_invariant_1_the_task_sent_of_a_retry_to_another_queue_may_come_late(place):
    driver = ClusterDriver()
    events = [event for index, event in enumerate(RETRY_ELSEWHERE) if index != 3]
    events.insert(place, RETRY_ELSEWHERE[3])
    for event in events:
        driver.apply(event)
        driver.wait(0.2)
    assert driver.counts() == {
        **{("add", "q", state): 1 for state in ("PENDING", "RECEIVED", "STARTED", "RETRY")},
        **{("add", "right", state): 1 for state in ("PENDING", "RECEIVED", "STARTED", "SUCCESS")},
    }
    assert driver.aggregate(queue="right").queue_wait.total == pytest.approx(0.2)
    assert driver.gauges() == {}


def test_invariant_2_a_retry_without_task_sent_has_the_queue_of_the_task():
    driver = ClusterDriver()
    driver.apply(sent(), received(), started(), retried(), received(at=1, retries=1), started(at=1.1))
    assert driver.gauges() == {"RETRY": 1}, "counted before the window has passed"
    driver.wait(2.5)
    assert driver.gauges() == {"STARTED": 1}
    driver.apply(succeeded(at=2))
    assert driver.by_state() == {"PENDING": 1, "RECEIVED": 2, "STARTED": 2, "RETRY": 1, "SUCCESS": 1}


def test_retries_that_await_their_task_sent_are_bounded(monkeypatch):
    monkeypatch.setattr(task_lifecycle, "MAX_UNIDENTIFIED", 100)
    driver = ClusterDriver()
    for index in range(110):
        driver.apply(sent(f"u{index}"), received(f"u{index}", retries=1))
    assert list(driver.cluster.tasks.awaiting_sent) == [f"u{index}" for index in range(10, 110)]
    assert driver.by_state()["RECEIVED"] == 10


def test_a_waiting_retry_of_a_finished_task_is_counted_when_its_id_is_reused():
    driver = ClusterDriver()
    driver.apply(*LIFE)
    driver.wait(2.5)
    driver.apply(received(at=1, retries=1))
    driver.now += 2.5
    driver.apply(sent(at=10))
    assert driver.by_state() == {"PENDING": 2, "RECEIVED": 2, "STARTED": 1, "SUCCESS": 1}
    assert driver.gauges() == {"PENDING": 1}


def test_a_waiting_retry_of_a_finished_task_is_counted_when_its_tombstone_is_evicted(monkeypatch):
    monkeypatch.setattr(task_lifecycle, "MAX_TOMBSTONES", 10)
    driver = ClusterDriver()
    for index in range(50):
        name = f"u{index}"
        driver.apply(
            sent(name), received(name), started(name), succeeded(name), received(name, at=1, retries=1)
        )
    assert len(driver.cluster.tasks.finished) <= 10
    driver.wait(2.5)
    assert driver.by_state() == {"PENDING": 50, "RECEIVED": 100, "STARTED": 50, "SUCCESS": 50}
    assert driver.cluster.tasks.awaiting_sent == {}


@pytest.mark.parametrize("limits", [Limits(max_tasks=100), Limits(task_ttl=1)], ids=["count", "age"])
def test_a_task_whose_retry_waits_may_be_evicted(limits):
    driver = ClusterDriver(limits)
    for index in range(300):
        driver.apply(sent(f"u{index}"), received(f"u{index}", retries=1))
    driver.wait(3)
    assert driver.by_state() == {"PENDING": 300, "RECEIVED": 300}
    assert driver.cluster.tasks.awaiting_sent == {}


def test_the_delivery_of_a_killed_worker_ends_when_its_next_process_receives_the_task():
    driver = ClusterDriver()
    driver.apply(sent(), received(at=1, pid=1), started(at=2, pid=1))
    driver.apply(received(at=100, pid=2), started(at=101, pid=2), failed(at=103, pid=2))
    driver.wait(2.5)
    assert driver.gauges() == {}
    assert [histogram.total for histogram in driver.aggregate().runtime.values()] == [2.0]


def test_a_task_that_runs_twice_is_open_until_its_newest_delivery_ends():
    driver = ClusterDriver()
    driver.apply(sent(), received(), started(), task_event("received", at=9, host="b@h", name="add"))
    driver.apply(task_event("started", at=9.5, host="b@h"), succeeded(at=10))
    driver.wait(2.5)
    assert driver.gauges() == {"STARTED": 1}
    driver.apply(task_event("succeeded", at=11, host="b@h"))
    assert driver.gauges() == {}
    assert driver.by_state()["SUCCESS"] == 2


def test_oldest_and_last_are_timestamps_of_events():
    driver = ClusterDriver()
    driver.apply(sent("a", at=1), sent("b", at=2), sent("c", at=3), received("a", at=4))
    (pending,) = [group for group in driver.cluster.tasks.in_states() if group.state.name == "PENDING"]
    assert (pending.count, pending.since) == (2, T0 + 2)
    driver.apply(started("a", at=5), succeeded("a", at=6))
    assert {state.name: at for state, at in driver.aggregate().last.items()}["SUCCESS"] == T0 + 6


def test_a_timestamp_in_the_future_is_limited_to_now():
    driver = ClusterDriver()
    driver.apply(sent(), received(), started(), succeeded(at=1e9))
    assert max(driver.aggregate().last.values()) == driver.timestamp().wall


def test_hosts_of_clients_create_no_series_and_no_workers():
    driver = ClusterDriver(labels=("queue_name", "worker"))
    driver.apply(sent())
    assert driver.cluster.workers == {}
    assert {label_set.worker for label_set in driver.aggregates.snapshot()} == {""}


def test_workers_beyond_the_limit_are_rejected_and_existing_ones_stay(monkeypatch):
    monkeypatch.setattr(worker_registry, "MAX_WORKERS", 100)
    driver = ClusterDriver(labels=("queue_name", "worker"))
    driver.apply(heartbeat("existing@h"))
    for index in range(110):
        driver.apply(heartbeat(f"w{index}@h"))
    assert len(driver.cluster.workers) == 100
    assert driver.cluster.limit_rejections["worker"] == 11
    assert "existing@h" in driver.cluster.workers
    driver.apply(sent(), task_event("received", host="new@h", name="add"))
    assert driver.aggregate(worker="other").transitions[1] == 1
    assert driver.cluster.fallbacks["worker"] == 1
    driver.apply(received("u2", name="mul", host="new@h"))  # its queues are unknown
    driver.wait(3)
    assert driver.aggregate("mul", "unknown", "other").transitions[1] == 1
    assert driver.cluster.fallbacks["worker"] == 2


def test_queues_beyond_the_limit_do_not_replace_consumed_and_declared_ones(monkeypatch):
    monkeypatch.setattr(queues, "MAX_QUEUES", 10)
    driver = ClusterDriver()
    driver.cluster.record_inspection({"w@h": WorkerInfo(queues=("consumed",))}, driver.timestamp())
    driver.apply(sent(queue="declared"), sent("u2", queue=None))
    driver.cluster.queues.declare({"declared": object()})
    driver.apply(*(sent(f"a{number}", queue=f"q{number}") for number in range(12)))
    newest = {f"q{number}" for number in range(4, 12)}
    assert set(driver.cluster.queues.names()) == {"consumed", "declared", *newest}
    assert driver.cluster.limit_rejections["queue"] == 4


def test_queues_come_from_events_and_from_workers():
    driver = ClusterDriver()
    driver.apply(sent(queue="mail"))
    driver.cluster.record_inspection(
        {"a@h": WorkerInfo(queues=("mail", "celery")), "b@h": WorkerInfo()}, driver.timestamp()
    )
    assert set(driver.cluster.queues.names()) == {"mail", "celery"}


def test_unused_queues_expire():
    driver = ClusterDriver()
    driver.apply(heartbeat("w@h"), sent(queue="once"))
    driver.cluster.record_inspection({"w@h": WorkerInfo(queues=("consumed",))}, driver.timestamp())
    for _ in range(2):
        driver.now += queues.QUEUE_TTL_SECONDS / 2 + 60
        driver.apply(sent("u2", queue="busy"), heartbeat("w@h"))
        driver.cluster.expire(driver.timestamp())
    assert set(driver.cluster.queues.names()) == {"busy", "consumed"}
    driver.apply(heartbeat("w@h", kind="offline"))
    driver.now += queues.QUEUE_TTL_SECONDS + 60
    driver.cluster.expire(driver.timestamp())
    driver.cluster.expire(driver.timestamp())
    assert driver.cluster.queues.names() == []


def test_task_names_beyond_the_limit_are_counted_as_other_and_existing_series_stay():
    driver = ClusterDriver(Limits(max_series=80))
    driver.apply(sent("existing"))
    for index in range(50):
        driver.apply(sent(f"u{index}", name=f"task{index}"), received(f"u{index}", name=f"task{index}"))
    driver.apply(received("existing"))
    assert driver.by_state() == {"PENDING": 1, "RECEIVED": 1}
    assert driver.by_state("other") == {"PENDING": 41, "RECEIVED": 41}
    assert len(driver.aggregates.snapshot()) == 11
    assert driver.cluster.label_sets.overflowed == 41
    assert driver.gauges() == {"RECEIVED": 51}


@pytest.mark.parametrize("labels", [(), ("queue_name",), ("worker",), ("queue_name", "worker")], ids=str)
def test_other_has_values_for_exactly_the_labels_in_use(labels):
    driver = ClusterDriver(Limits(max_series=8), labels)
    driver.apply(sent("u1"), sent("u2", name="mul"), received("u2", name="mul"))
    queue = "other" if "queue_name" in labels else ""
    worker = "other" if "worker" in labels else ""
    assert {label_set for label_set in driver.aggregates.snapshot() if label_set.task_name == "other"} == {
        LabelSet("other", queue, ""),
        LabelSet("other", queue, worker),
    }


def test_unidentified_tasks_are_bounded(monkeypatch):
    monkeypatch.setattr(task_lifecycle, "MAX_UNIDENTIFIED", 100)
    driver = ClusterDriver()
    for index in range(110):
        driver.apply(received(f"u{index}"))
    assert list(driver.cluster.tasks.unidentified.tasks) == [f"u{index}" for index in range(10, 110)]
    assert driver.counts() == {("add", "unknown", "RECEIVED"): 10}


LATER = "2038-01-19T03:14:07+00:00"
RETRIED = [sent, received, started, partial(sent, retries=1), retried]
OPEN_LIVES = {
    "waits": ("PENDING", [sent]),
    "was received": ("RECEIVED", [sent, received]),
    "waits for its eta": ("RECEIVED", [partial(sent, eta=LATER), partial(received, eta=LATER)]),
    "without task-sent": ("RECEIVED", [partial(received, eta=LATER)]),
    "runs": ("STARTED", [sent, received, started]),
    "will be retried": ("RETRY", RETRIED),
    "will be retried, without any task-sent": ("RETRY", [received, started, retried]),
    "will be retried, without the task-sent of the retry": ("RETRY", [sent, received, started, retried]),
    "will be retried, from another queue": (
        "RETRY",
        [sent, received, started, partial(sent, retries=1, queue="elsewhere"), retried],
    ),
    "was given back": ("PENDING", [sent, received, partial(rejected, requeue=True)]),
    "was given back, and received again": (
        "RECEIVED",
        [sent, received, partial(rejected, requeue=True), partial(received, at=2)],
    ),
    "was received by the worker's next process": ("RECEIVED", [sent, received, partial(received, pid=2)]),
    "runs again, in the worker's next process": (
        "STARTED",
        [sent, received, started, partial(received, pid=2), partial(started, pid=2)],
    ),
    "was received for its first retry": ("RECEIVED", [*RETRIED, partial(received, retries=1)]),
    "runs, for the first retry": ("STARTED", [*RETRIED, partial(received, retries=1), started]),
}


@pytest.mark.parametrize("tasks", [3_000, pytest.param(1_000_000, marks=pytest.mark.long)])
@pytest.mark.parametrize("life", OPEN_LIVES)
@pytest.mark.timeout(1800)
def test_a_task_in_flight_costs_less_than_400_bytes(life, tasks):
    state, events = OPEN_LIVES[life]
    driver = ClusterDriver(Limits(max_tasks=2_000_000, reorder_window=0.1))
    uuids = (str(uuid4()) for _ in range(tasks))
    lives = ([event(uuid) for event in events] for uuid in uuids)
    bodies = (json.dumps([event | {"pid": 4711 + event["pid"]} for event in life]).encode() for life in lives)
    driver.apply(sent("first"))
    tracemalloc.start()
    try:
        for body in bodies:
            driver.wait(0.001)  # so that no two tasks share the object of `last_seen`
            for event in decode(body):
                driver.cluster.apply(event, driver.timestamp())
        del body, event
        driver.wait(RETENTION_SECONDS + 1)  # recent ends expire after it
        used, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert driver.gauges() == Counter({state: tasks}) + Counter({"PENDING": 1})
    print(f"{used / tasks:.0f} bytes a task")
    assert used / tasks < 400, "the help of --max-tasks says 400"


def test_an_emptied_bucket_takes_no_memory():
    driver = ClusterDriver()
    for index in range(1_000):
        driver.apply(sent(f"u{index}"), received(f"u{index}"))
    driver.wait(2)
    buckets = driver.cluster.tasks.buckets()
    assert {sys.getsizeof(bucket.tasks) for bucket in buckets if not bucket.tasks} == {sys.getsizeof({})}


def test_tombstones_are_bounded(monkeypatch):
    monkeypatch.setattr(task_lifecycle, "MAX_TOMBSTONES", 100)
    driver = ClusterDriver()
    for index in range(100):
        driver.apply(task_event("revoked", f"a{index}"), sent(f"a{index}"))
    assert len(driver.cluster.tasks.finished) == 100
    for index in range(250):
        driver.apply(sent(f"u{index}"), received(f"u{index}"), started(f"u{index}"), succeeded(f"u{index}"))
    assert 90 < len(driver.cluster.tasks.finished) <= 100
    assert len(driver.cluster.tasks) == 0


def test_deferred_events_of_a_task_are_bounded():
    driver = ClusterDriver()
    for _ in range(MAX_DEFERRED_EVENTS - 1):
        driver.apply(started())
    assert driver.counts() == {}
    driver.apply(started())
    assert driver.by_state("unknown")["STARTED"] == MAX_DEFERRED_EVENTS


def test_custom_events_are_counted_as_other_and_change_nothing_else():
    driver = ClusterDriver()
    driver.apply({"type": "order-shipped"}, {"type": "task-sent-by-mail"}, sent())
    assert {kind: count for kind, count in driver.cluster.events.items() if count} == {
        "other": 2,
        "task-sent": 1,
    }
    assert driver.cluster.workers == {}


# -- any events --------------------------------------------------------------------------------------

KINDS = ["sent", "received", "started", "succeeded", "failed", "retried", "revoked", "rejected", "cancelled"]
any_task_event = st.builds(
    task_event,
    st.sampled_from(KINDS),
    st.sampled_from(["u1", "u2"]),
    st.floats(-1e3, 1e3),
    st.sampled_from(["a@h", "b@h"]),
    name=st.sampled_from(["add", "mul", None]),
    queue=st.sampled_from(["q", "r", None]),
    retries=st.integers(0, 3) | st.none(),
    pid=st.integers(1, 2),
    requeue=st.booleans() | st.none(),
)


@settings(max_examples=200)
@given(st.lists(st.tuples(any_task_event, st.sampled_from([0.0, 0.5, 3.0, 70.0])), max_size=30))
def test_every_event_is_counted_once_and_every_task_is_in_one_bucket(events):
    driver = ClusterDriver(Limits(max_tasks=100))
    for event, pause in events:
        driver.apply(event)
        driver.wait(pause)
    driver.wait(3)
    assert sum(driver.counts().values()) + driver.cluster.repeated.total() == len(events)
    tasks = driver.cluster.tasks
    in_buckets = sum(len(bucket.tasks) for bucket in tasks.buckets())
    assert in_buckets == len(tasks)
    assert in_buckets + len(tasks.finished) <= 2


@pytest.mark.parametrize("queue", ["q", "elsewhere"])
def test_invariant_1_holds_for_any_interleaving_of_a_client_a_pool_process_and_two_workers(queue):
    """A pool process sends the retry, and another worker runs it. Each has a connection of its own."""
    connections = [
        [sent(at=0)],
        [sent(at=3, retries=1, queue=queue)],
        [received(at=1, host="a@h"), started(at=2, host="a@h"), retried(at=4, host="a@h")],
        [
            received(at=5, retries=1, host="b@h"),
            started(at=9, host="b@h"),
            succeeded(at=10, host="b@h", runtime=1),
        ],
    ]

    def sums_after(order):
        waiting = [list(events) for events in connections]
        driver = ClusterDriver(labels=("queue_name", "worker"))
        driver.apply(*(waiting[connection].pop(0) for connection in order))
        driver.wait(2.5)
        assert driver.gauges() == {}
        return driver.aggregates.snapshot()

    sums = sums_after([0, 2, 2, 1, 2, 3, 3, 3])
    first, second = sums[LabelSet("add", "q", "a@h")], sums[LabelSet("add", queue, "b@h")]
    assert (first.queue_wait.total, first.prefetch_wait.total, first.runtime[State.RETRY].total) == (2, 1, 2)
    assert (second.queue_wait.total, second.prefetch_wait.total, second.runtime[State.SUCCESS].total) == (
        6,
        4,
        1,
    )
    assert (first.redeliveries, second.redeliveries) == (0, 0)
    for order in set(itertools.permutations([0, 1, 2, 2, 2, 3, 3, 3])):
        assert sums_after(order) == sums, order


def test_invariant_3_an_event_that_leaves_the_state_unchanged_keeps_only_its_own_task():
    driver = ClusterDriver(Limits(task_ttl=300))
    driver.apply(*(sent(f"u{number}") for number in range(5)))
    for _ in range(3):
        driver.wait(150)
        driver.apply(sent("u0"))
    assert len(driver.cluster.tasks) == 1
    assert driver.cluster.tasks.evicted == 4


def test_invariant_3_a_late_event_keeps_only_its_own_tombstone():
    driver = ClusterDriver()
    for number in range(5):
        name = f"u{number}"
        driver.apply(sent(name), received(name), started(name), succeeded(name))
    for _ in range(3):
        driver.wait(TOMBSTONE_SECONDS - 20)
        driver.apply(started("u0"))
    assert list(driver.cluster.tasks.finished) == ["u0"]


def test_task_sent_and_task_retried_of_a_retry_come_in_any_order():
    last = [sent(at=1, retries=1, queue="right"), retried()]
    for events in (last, last[::-1]):
        driver = ClusterDriver()
        driver.apply(sent(), received(), started(), *events)
        assert driver.gauges() == {"RETRY": 1}


A, B = {"host": "a@h"}, {"host": "b@h"}
REQUEUED = [received(**A), started(**A), rejected(requeue=True, **A)]
RUN_BY_OTHER = [received(at=1, **B), started(at=2, **B), succeeded(at=3, **B)]


@pytest.mark.parametrize("places", list(itertools.combinations(range(6), 3)))
def test_invariant_1_a_requeued_task_that_another_worker_ended_is_finished(places):
    waiting = {True: [*REQUEUED], False: [*RUN_BY_OTHER]}
    driver = ClusterDriver()
    driver.apply(sent(), *(waiting[place in places].pop(0) for place in range(6)))
    driver.wait(2.5)
    assert driver.gauges() == {}
    assert driver.aggregate().redeliveries == 1


def test_a_task_that_ends_twice_stays_open_if_it_is_received_again_before_its_end():
    driver = ClusterDriver()
    driver.apply(sent(), received(**A), started(**A), received(at=1, **B), succeeded(at=2, **A))
    driver.apply(started(at=2, **B))
    driver.wait(2.5)
    assert driver.gauges() == {"STARTED": 1}
    driver.apply(received(at=3, host="c@h"), rejected(at=4, host="c@h", requeue=True))
    driver.wait(2.5)
    assert driver.gauges() == {"PENDING": 1}, "another delivery is open"


@pytest.mark.parametrize("order", [(0, 0, 0, 1, 1, 1), (1, 1, 1, 0, 0, 0), (0, 1, 0, 1, 0, 1)])
def test_invariant_2_without_task_sent_each_attempt_has_the_only_queue_of_its_worker(order):
    workers = [
        [received(**A), started(**A), retried(**A)],
        [received(at=1, retries=1, **B), started(at=2, **B), succeeded(at=3, **B)],
    ]
    driver = ClusterDriver()
    driver.apply(heartbeat("a@h"), heartbeat("b@h"))
    infos = {"a@h": WorkerInfo(queues=("q",)), "b@h": WorkerInfo(queues=("right",))}
    driver.cluster.record_inspection(infos, driver.timestamp())
    driver.apply(*(workers[worker].pop(0) for worker in order))
    driver.wait(2.5)
    assert driver.counts() == {
        **{("add", "q", state): 1 for state in ("RECEIVED", "STARTED", "RETRY")},
        **{("add", "right", state): 1 for state in ("RECEIVED", "STARTED", "SUCCESS")},
    }


def test_invariant_2_a_retry_without_task_sent_has_the_only_queue_of_its_worker():
    driver = ClusterDriver()
    driver.apply(heartbeat("b@h"))
    driver.cluster.record_inspection({"b@h": WorkerInfo(queues=("right",))}, driver.timestamp())
    driver.apply(sent(), received(**A), started(**A), retried(**A))
    driver.apply(received(at=1, retries=1, **B), started(at=2, **B), succeeded(at=3, **B))
    driver.wait(2.5)
    assert driver.counts() == {
        **{("add", "q", state): 1 for state in ("PENDING", "RECEIVED", "STARTED", "RETRY")},
        **{("add", "right", state): 1 for state in ("RECEIVED", "STARTED", "SUCCESS")},
    }


@pytest.mark.parametrize("pause", [0, 3], ids=["at once", "later"])
@pytest.mark.parametrize("eta", [None, "2023-11-14T22:15:00+00:00"], ids=["due", "not due yet"])
def test_tasks_of_a_container_that_restarted_are_received_again_and_wait_from_then(pause, eta):
    """Its process has the same pid again."""
    driver = ClusterDriver()
    driver.apply(heartbeat(), sent(eta=eta), received(at=1, eta=eta), heartbeat(at=10, kind="online"))
    driver.apply(received(at=11, eta=eta))
    driver.wait(pause)
    assert driver.gauges() == {"RECEIVED": 1}
    driver.apply(started(at=112), succeeded(at=113))
    driver.wait(3)
    assert driver.gauges() == {}
    assert driver.by_state() == {"PENDING": 1, "RECEIVED": 2, "STARTED": 1, "SUCCESS": 1}
    assert driver.aggregate().redeliveries == 1


@pytest.mark.parametrize("processed", [0, 3])
@pytest.mark.parametrize("offline", [True, False])
def test_a_container_that_restarted_with_another_queue_is_inspected_before_its_tasks_are_counted(
    processed, offline
):
    """Its pid is the same, and it may have processed nothing before."""
    driver = ClusterDriver()
    driver.apply(heartbeat(kind="online"))
    driver.cluster.record_inspection({"w@h": WorkerInfo(queues=("old",))}, driver.timestamp(), {"w@h": 0})
    driver.apply(heartbeat(at=4, processed=processed))
    if offline:
        driver.apply(heartbeat(at=5, kind="offline", processed=processed))
    driver.wait(30)
    driver.apply(heartbeat(at=34, kind="online"), received(at=34.1), started(at=34.2), succeeded(at=34.3))
    driver.wait(3)
    starts = driver.cluster.workers["w@h"].starts
    driver.cluster.record_inspection(
        {"w@h": WorkerInfo(queues=("new",))}, driver.timestamp(), {"w@h": starts}
    )
    driver.wait(12)
    assert {queue for _, queue, _ in driver.counts()} == {"new"}


def test_a_worker_that_receives_a_task_twice_without_a_restart_runs_it_twice():
    driver = ClusterDriver()
    driver.apply(heartbeat(kind="online"), sent(), received(at=1), received(at=10), started(at=11))
    driver.apply(succeeded(at=12))
    driver.wait(3)
    assert driver.gauges() == {"RECEIVED": 1}
    driver.apply(started(at=13), succeeded(at=14))
    assert driver.gauges() == {}


def test_invariant_1_an_attempt_that_is_received_twice_is_redelivered_after_other_receipts_too():
    driver = ClusterDriver()
    driver.apply(sent(), sent(at=1, retries=1), received(at=2, retries=1, host="b@h"))
    driver.apply(received(at=1, host="a@h"))
    assert driver.aggregate().redeliveries == 0
    driver.apply(received(at=3, host="c@h"))
    driver.wait(2.5)
    assert driver.aggregate().redeliveries == 1
    driver.apply(received(at=4, retries=1, host="a@h"))
    driver.wait(2.5)
    assert driver.aggregate().redeliveries == 2


def test_an_exporter_that_started_late_counts_no_late_receipt_as_a_redelivery():
    driver = ClusterDriver()
    driver.apply(received(at=2, retries=40))
    driver.wait(2.5)
    for attempt in (38, 32, 41, 39):
        driver.apply(received(at=3, retries=attempt))
    assert driver.aggregate(queue="unknown").redeliveries == 0
    driver.apply(received(at=3, retries=31))
    assert driver.aggregate(queue="unknown").redeliveries == 1, "too old for the skipped attempts"


@pytest.mark.parametrize("places", list(itertools.combinations(range(8), 2)))
def test_invariant_1_holds_for_any_interleaving_of_two_connections(places):
    """Only the events of one connection are in order."""
    client = [event for event in RETRY_LIFE if event["type"] == "task-sent"]
    worker = [event for event in RETRY_LIFE if event["type"] != "task-sent"]
    driver = ClusterDriver()
    driver.apply(*[(client if place in places else worker).pop(0) for place in range(8)])
    assert driver.by_state() == {"PENDING": 2, "RECEIVED": 2, "STARTED": 2, "RETRY": 1, "SUCCESS": 1}
    assert driver.gauges() == {}

    assert sum(driver.aggregate().queue_wait.counts) == 2
    assert sum(driver.aggregate().prefetch_wait.counts) == 2


def test_invariant_4_a_worker_with_task_events_is_up_without_heartbeats():
    driver = ClusterDriver(Limits(worker_timeout=60))
    for number in range(30):
        driver.apply(received(f"u{number}"), started(f"u{number}"), succeeded(f"u{number}"))
        driver.wait(5)
    assert driver.cluster.workers["w@h"].up
    driver.wait(70)
    assert not driver.cluster.workers["w@h"].up


def test_finished_tasks_do_not_count_towards_the_limit_of_tasks():
    driver = ClusterDriver(Limits(max_tasks=5))
    for index in range(20):
        driver.apply(sent(f"u{index}"), received(f"u{index}"), started(f"u{index}"), succeeded(f"u{index}"))
    driver.apply(*(sent(f"v{index}") for index in range(5)))
    assert (driver.gauges(), driver.cluster.tasks.evicted) == ({"PENDING": 5}, 0)
