"""The invariants of the core, by their numbers in the design, and how a task may go."""

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

from celery_exporter.core import cluster, queues
from celery_exporter.core.cluster import MAX_PARKED, TOMBSTONE_SECONDS, Limits
from celery_exporter.core.events import decode
from celery_exporter.core.repeats import KEPT_SECONDS
from celery_exporter.core.tasks import TaskTable
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
    story = ClusterDriver()
    for index in order:
        story.tell(LIFE[index])
        story.wait(0.25)
    story.wait(3)
    assert story.counts() == LIFE_COUNTS
    assert story.gauges() == {}
    assert story.cluster.fallbacks.total() == 0


def test_invariant_1_waits_are_measured_although_worker_events_overtake_task_sent():
    story = ClusterDriver()
    story.tell(received(at=1), started(at=2), succeeded(at=3), sent(at=0))
    cell = story.cell()
    assert (cell.queue_wait.total, cell.prefetch_wait.total) == (2.0, 1.0)


def test_invariant_2_without_task_sent_the_worker_s_only_queue_is_the_fall_back():
    story = ClusterDriver()
    story.tell(heartbeat())
    story.cluster.learn({"w@h": WorkerInfo(queues=("mail",))}, story.moment())
    story.tell(received(), started(), succeeded())
    assert story.counts() == {}, "booked before the window has passed"
    story.wait(2.5)
    assert story.counts() == {("add", "mail", state): 1 for state in ("RECEIVED", "STARTED", "SUCCESS")}
    assert story.cluster.fallbacks["queue_name"] == 1


def test_invariant_2_the_only_queue_is_known_of_a_task_too_that_nobody_was_heard_to_receive():
    story = ClusterDriver()
    story.tell(heartbeat())
    story.cluster.learn({"w@h": WorkerInfo(queues=("mail",))}, story.moment())
    story.tell(started())
    story.wait(2.5)
    assert story.counts() == {("unknown", "mail", "STARTED"): 1}


def test_invariant_2_with_two_queues_it_is_unknown_never_a_guess():
    story = ClusterDriver()
    story.tell(heartbeat())
    story.cluster.learn({"w@h": WorkerInfo(queues=("mail", "celery"))}, story.moment())
    story.tell(received())
    story.wait(2.5)
    assert story.counts() == {("add", "unknown", "RECEIVED"): 1}


def test_invariant_2_a_task_nobody_introduced_is_unknown_and_counted():
    story = ClusterDriver()
    story.tell(started("u1"), succeeded("u1"), started("u2"), succeeded("u2"))
    story.wait(2.5)
    assert story.counts() == {("unknown", "unknown", state): 2 for state in ("STARTED", "SUCCESS")}
    assert story.cluster.fallbacks == {"task_name": 2, "queue_name": 2, "worker": 0}


def test_invariant_2_a_task_sent_that_comes_after_the_window_is_true_from_then_on():
    story = ClusterDriver()
    story.tell(received(), started())
    story.wait(2.5)
    story.tell(sent(), succeeded())
    assert story.counts() == {
        ("add", "unknown", "RECEIVED"): 1,
        ("add", "unknown", "STARTED"): 1,
        ("add", "q", "PENDING"): 1,
        ("add", "q", "SUCCESS"): 1,
    }
    assert story.cell().queue_wait.counts == [0, 1, 0, 0]


def test_invariant_3_a_late_event_of_a_finished_task_is_counted_and_opens_nothing():
    story = ClusterDriver()
    story.tell(*LIFE)
    assert len(story.cluster.tasks) == 0
    story.tell(task_event("received", host="other@h", name="add"))
    story.wait(2.5)
    assert story.by_state()["RECEIVED"] == 2
    assert story.gauges() == {}


def test_invariant_3_a_task_sent_that_comes_after_its_task_finished_opens_nothing_and_names_it():
    story = ClusterDriver()
    story.tell(received(), started())
    story.wait(2.5)
    story.tell(succeeded(), sent(at=7))  # the client's clock is ahead
    assert story.gauges() == {}
    story.tell(task_event("rejected", host="other@h", requeue=False))
    assert story.counts()["add", "q", "REJECTED"] == 1


def test_invariant_3_a_finished_task_that_its_worker_receives_anew_is_open_after_the_window():
    story = ClusterDriver()
    story.tell(*LIFE, received(at=0.25))
    story.wait(2.5)
    assert story.gauges() == {}
    story.tell(received(at=0.4))
    story.wait(2.5)
    assert story.gauges() == {"RECEIVED": 1}


def test_invariant_3_a_finished_task_that_is_received_anew_is_open_again():
    story = ClusterDriver()
    story.tell(*LIFE)
    story.wait(3)
    story.tell(task_event("received", host="other@h", name="add"))
    story.wait(2.5)
    assert story.gauges() == {"RECEIVED": 1}
    assert story.cell().redeliveries == 1


def test_invariant_3_tombstones_are_forgotten():
    story = ClusterDriver()
    story.tell(*LIFE)
    story.wait(TOMBSTONE_SECONDS + 2)
    assert story.cluster.tasks.get("u1") is None


def test_invariant_3_the_table_is_bounded_by_count_and_says_what_it_forgot():
    story = ClusterDriver(Limits(max_tasks=100))
    for index in range(250):
        story.tell(sent(f"u{index}"))
    assert len(story.cluster.tasks) <= 100
    assert story.cluster.tasks.evicted == 250 - len(story.cluster.tasks)
    assert story.gauges()["PENDING"] == len(story.cluster.tasks)
    assert story.by_state()["PENDING"] == 250


def test_invariant_3_the_table_is_bounded_by_age():
    story = ClusterDriver(Limits(task_ttl=10))
    story.tell(sent("old"))
    story.wait(8)
    story.tell(sent("young"))
    story.wait(5)
    assert story.gauges() == {"PENDING": 1}
    assert story.cluster.tasks.evicted == 1


def test_invariant_4_a_worker_is_down_when_we_listened_in_vain():
    story = ClusterDriver(Limits(worker_timeout=10, worker_purge=60))
    story.tell(heartbeat(at=-420))  # its clock is seven minutes behind
    story.wait(9)
    assert story.cluster.workers["w@h"].up
    story.wait(2)
    assert not story.cluster.workers["w@h"].up
    story.tell(heartbeat(at=-400))
    assert story.cluster.workers["w@h"].up
    assert story.cluster.workers["w@h"].clock_skew == pytest.approx(-420 - story.now, abs=30)


def test_invariant_4_a_worker_with_a_slow_heartbeat_has_three_of_them():
    story = ClusterDriver(Limits(worker_timeout=10))
    story.tell(heartbeat(freq=60))
    story.wait(170)
    assert story.cluster.workers["w@h"].up
    story.wait(15)
    assert not story.cluster.workers["w@h"].up


def test_invariant_4_a_worker_that_never_said_how_often_it_beats_has_the_timeout():
    story = ClusterDriver(Limits(worker_timeout=2))
    story.tell(started())
    story.wait(2)
    assert story.cluster.workers["w@h"].up
    story.wait(1)
    assert not story.cluster.workers["w@h"].up


def test_invariant_4_without_a_timeout_silence_proves_nothing_and_a_goodbye_all():
    story = ClusterDriver(Limits(worker_timeout=math.inf, worker_purge=60))
    story.tell(heartbeat())
    story.now += 1e6
    story.wait(1)
    assert story.cluster.workers["w@h"].up
    story.tell(heartbeat(kind="offline"))
    story.wait(62)
    assert story.cluster.workers == {}


def test_invariant_4_a_goodbye_is_believed_at_once_and_other_workers_of_the_host_stay():
    story = ClusterDriver()
    story.tell(heartbeat("a@h"), heartbeat("b@h"), heartbeat("a@h", kind="offline"))
    assert {name: worker.up for name, worker in story.cluster.workers.items()} == {"a@h": False, "b@h": True}
    story.tell(task_event("succeeded", host="a@h"))  # flushed by the one that leaves
    assert not story.cluster.workers["a@h"].up


def test_a_worker_that_leaves_before_it_was_heard_is_down():
    story = ClusterDriver()
    story.tell(heartbeat(kind="offline"))
    assert not story.cluster.workers["w@h"].up


def test_a_late_goodbye_brings_back_no_worker_that_was_forgotten_and_a_heartbeat_does():
    story = ClusterDriver(Limits(worker_timeout=10, worker_purge=10))
    story.tell(heartbeat())
    story.wait(30)
    story.tell(heartbeat(kind="offline"))
    assert story.cluster.workers == {}
    story.tell(heartbeat(), heartbeat(kind="offline"))
    assert not story.cluster.workers["w@h"].up


def test_so_many_workers_are_remembered_that_were_forgotten(monkeypatch):
    monkeypatch.setattr(cluster, "MAX_WORKERS", 2)
    story = ClusterDriver(Limits(worker_timeout=10, worker_purge=10))
    for name in ("a@h", "b@h", "c@h"):
        story.tell(heartbeat(name))
        story.wait(30)
    story.tell(*(heartbeat(name, kind="offline") for name in ("a@h", "b@h", "c@h")))
    assert list(story.cluster.workers) == ["a@h"]


def test_what_clients_on_a_host_sent_is_shown_until_its_last_worker_is_forgotten():
    story = ClusterDriver(Limits(worker_timeout=10, worker_purge=10), clients=True)
    story.tell(heartbeat("a@box"), heartbeat("b@box"), sent(hostname="c@box"), sent("u2", hostname="c@web"))
    for _ in range(30):
        story.wait(1)
        story.tell(heartbeat("b@box"))
    assert list(story.cluster.workers) == ["b@box"]
    assert story.cell().clients == {"box": 1, "web": 1}
    story.wait(30)
    assert story.cell().clients == {"web": 1}
    assert story.cell().transitions[State.PENDING] == 2


@pytest.mark.parametrize("purge", [60, None])
def test_invariant_4_a_silent_solo_worker_is_not_dead_for_ten_minutes_and_then_is(purge):
    story = ClusterDriver(Limits(worker_timeout=10, worker_purge=purge))
    story.tell(heartbeat())
    story.cluster.learn({"w@h": WorkerInfo(pool="solo")}, story.moment())
    story.wait(590)
    assert story.cluster.workers["w@h"].up
    story.wait(20)
    assert not story.cluster.workers["w@h"].up
    story.wait(60)
    assert ("w@h" in story.cluster.workers) is (purge is None)


def test_invariant_4_a_heartbeat_interval_of_years_is_not_believed():
    story = ClusterDriver(Limits(worker_timeout=10))
    story.tell(heartbeat(freq=9e8))
    story.now += 3 * 3600 - 2
    story.wait(1)
    assert story.cluster.workers["w@h"].up
    story.wait(20)
    assert not story.cluster.workers["w@h"].up


def test_an_id_that_is_used_again_is_a_new_task():
    story = ClusterDriver()
    story.tell(*LIFE)
    story.wait(5)
    story.tell(sent(at=10))
    assert story.gauges() == {"PENDING": 1}
    story.tell(received(at=11), started(at=12), succeeded(at=13))
    assert story.gauges() == {}
    assert story.cell().redeliveries == 0
    assert story.cell().queue_wait.total == pytest.approx(0.2 + 2)


def test_the_oldest_is_the_oldest_although_it_was_told_of_late():
    story = ClusterDriver()
    story.tell(received("late", at=11))
    story.wait(3)
    story.tell(sent("other", at=52), received("other", at=52), sent("late", at=1))
    since = {group.key.queue_name: group.since for group in story.cluster.tasks.in_states() if group.count}
    assert since == {"q": T0 + 11}


def test_registered_tasks_are_not_folded_for_want_of_room():
    story = ClusterDriver(Limits(max_series=16))
    profile = WorkerInfo(queues=("q",), registered=tuple(f"task{number}" for number in range(5)))
    for _ in range(3):
        story.cluster.learn({"w@h": profile}, story.moment())
    assert len(story.ledger.snapshot()) == 2
    assert story.cluster.keys.folded == 0


def test_invariant_5_what_a_vanished_worker_did_is_kept():
    story = ClusterDriver(Limits(worker_timeout=10, worker_purge=60), labels=("queue_name", "worker"))
    story.tell(heartbeat(), *LIFE)
    before = story.by_state()
    assert story.cell(worker="w@h").transitions[3] == 1
    story.wait(75)
    assert "w@h" not in story.cluster.workers
    assert story.by_state() == before
    assert story.cell(worker="").transitions[3] == 1
    assert LabelSet("add", "q", "w@h") not in story.ledger.snapshot()


def test_invariant_6_a_worker_that_was_forgotten_and_comes_back_is_counted_anew():
    story = ClusterDriver(Limits(worker_timeout=10, worker_purge=60), labels=("queue_name", "worker"))
    story.tell(*LIFE)
    story.wait(100)
    story.tell(sent("u2"), received("u2"), started("u2"), succeeded("u2"))
    assert {key.worker: cell.transitions[3] for key, cell in story.ledger.snapshot().items()} == {
        "": 1,
        "w@h": 1,
    }
    assert len(story.cluster.keys) == 2


def test_invariant_6_registered_tasks_start_at_zero_where_their_queue_is_certain():
    story = ClusterDriver()
    story.cluster.learn(
        {
            "a@h": WorkerInfo(queues=("mail",), registered=("send", "both")),
            "b@h": WorkerInfo(queues=("celery",), registered=("both",)),
            "c@h": WorkerInfo(registered=("nowhere",)),
        },
        story.moment(),
    )
    assert set(story.ledger.snapshot()) == {LabelSet("send", "mail")}
    assert story.cell("send", "mail").transitions == [0] * 8


def test_invariant_7_waits_count_from_the_eta_and_never_below_zero():
    story = ClusterDriver()
    eta = "2023-11-14T22:13:30+00:00"  # T0 + 10 s
    story.tell(sent("a", eta=eta), received("a", at=1, eta=eta), started("a", at=12))
    assert (story.cell().queue_wait.total, story.cell().prefetch_wait.total) == (2.0, 2.0)
    story.tell(sent("b", at=5, name="skewed"), received("b", at=1, name="skewed"), started("b", at=2))
    assert story.cell("skewed").queue_wait.total == 0.0
    assert story.ledger.negative_waits == 1


@pytest.mark.parametrize("eta", ["2023-11-14T22:13:30", "2023-11-14T22:13:30Z", "2023-11-15T00:13:30+02:00"])
def test_invariant_7_an_eta_is_an_instant_whatever_its_zone(eta):
    story = ClusterDriver()
    story.tell(sent(eta=eta), received(at=1), started(at=12))
    assert story.cell().queue_wait.total == 2.0


@pytest.mark.parametrize("eta", ["tomorrow", "", "9999-99-99", "0001-01-01T00:00:00+14:00"])
def test_invariant_7_an_eta_that_is_no_time_is_none(eta):
    story = ClusterDriver()
    story.tell(sent(eta=eta), received(at=1), started(at=2))
    assert story.cell().queue_wait.total == 2.0


def test_invariant_7_a_redelivered_task_waits_from_its_redelivery():
    story = ClusterDriver()
    story.tell(sent(), received(), started(), task_event("received", at=50, host="b@h", name="add"))
    story.tell(task_event("started", at=53, host="b@h"), task_event("succeeded", at=54, host="b@h"))
    story.wait(2.5)
    assert story.cell().redeliveries == 1
    assert story.cell().queue_wait.total == pytest.approx(0.2 + 3)
    assert story.gauges() == {}


def test_invariant_9_without_the_queue_label_sums_have_no_queue():
    story = ClusterDriver(labels=())
    story.tell(*LIFE)
    assert set(story.counts()) == {
        ("add", "", state) for state in ("PENDING", "RECEIVED", "STARTED", "SUCCESS")
    }
    assert story.cluster.fallbacks["queue_name"] == 0


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
def test_how_a_started_task_may_go_on(event, counted, gauges):
    story = ClusterDriver()
    story.tell(sent(), received(), started(), event)
    assert story.by_state()[counted] == 1
    assert story.gauges() == gauges


def test_an_expired_task_is_revoked_without_being_received_and_keeps_its_name():
    story = ClusterDriver()
    story.tell(sent(), task_event("revoked", terminated=False, signum=None, expired=True))
    assert story.counts() == {("add", "q", "PENDING"): 1, ("add", "q", "REVOKED"): 1}
    assert story.gauges() == {}


def test_an_unregistered_task_keeps_its_name_without_task_sent():
    story = ClusterDriver()
    story.tell(failed(exception="NotRegistered('shop.pay')"))
    story.wait(2.5)
    assert story.counts() == {("shop.pay", "unknown", "FAILURE"): 1}


def test_runtimes_come_from_the_event_or_from_the_worker_that_started_it():
    story = ClusterDriver()
    story.tell(sent("a"), received("a"), started("a", at=1), succeeded("a", at=9, runtime=0.5))
    story.tell(sent("b"), received("b"), started("b", at=1), failed("b", at=3))
    story.tell(sent("c"), received("c"), started("c", at=1), failed("c", at=3, host="other@h"))
    cell = story.cell()
    assert {state.name: histogram.total for state, histogram in cell.runtime.items()} == {
        "SUCCESS": 0.5,
        "FAILURE": 2.0,
    }
    assert sum(sum(histogram.counts) for histogram in cell.runtime.values()) == 2
    assert cell.exceptions == {"ValueError": 2}


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
def test_what_celery_wraps_is_taken_from_the_traceback(traceback, raised, wait):
    story = ClusterDriver()
    event = failed(exception="ExceptionWithTraceback()", name="add", queue="q", traceback=traceback)
    story.tell(*([] if wait else [sent()]), event)
    story.wait(wait)
    assert story.cell().exceptions == {raised: 1}


def test_the_traceback_of_another_exception_is_not_read():
    story = ClusterDriver()
    story.tell(sent(), failed(exception="KeyError('x')", traceback=LOST))
    assert story.cell().exceptions == {"KeyError": 1}


def test_no_traceback_is_kept():
    story = ClusterDriver()
    lost = failed("u2", exception="ExceptionWithTraceback()", traceback=LOST)
    story.tell(failed(traceback="x" * 100_000), lost)
    deferred = story.cluster.tasks.deferred.values()
    assert [event.traceback for events in deferred for event in events] == [None, None]


# As a real worker's events reach us: the pool process sends the retry before the worker tells the end.
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


def test_the_next_attempt_may_be_sent_and_received_before_the_last_one_s_end_is_told():
    story = ClusterDriver()
    story.tell(*RETRY_LIFE)
    assert story.by_state() == {"PENDING": 2, "RECEIVED": 2, "STARTED": 2, "RETRY": 1, "SUCCESS": 1}
    assert story.gauges() == {}
    cell = story.cell()
    assert cell.queue_wait.total == 2 + 3
    assert cell.prefetch_wait.total == 1 + 2
    assert {state.name: sum(histogram.counts) for state, histogram in cell.runtime.items()} == {
        "RETRY": 1,
        "SUCCESS": 1,
    }
    assert cell.redeliveries == 0
    assert story.ledger.negative_waits == 0


def test_a_retry_may_be_told_after_the_next_attempt_ended():
    story = ClusterDriver()
    story.tell(sent(), received(at=1), started(at=2), sent(at=3, retries=1), received(at=4, retries=1))
    story.tell(started(at=5), failed(at=7), retried(at=3))
    assert story.gauges() == {}
    assert {state.name: histogram.total for state, histogram in story.cell().runtime.items()} == {
        "FAILURE": 2.0,
        "RETRY": 1.0,
    }


def test_a_retry_on_another_worker_overtakes_the_end_of_the_first_attempt():
    story = ClusterDriver()
    story.tell(sent(), received(), started(), sent(at=3, retries=1))
    story.tell(task_event("received", at=4, host="b@h", name="add", retries=1))
    story.tell(retried(at=3))
    assert story.gauges() == {"RECEIVED": 1}
    story.tell(
        task_event("started", at=5, host="b@h"), task_event("succeeded", at=6, host="b@h", runtime=1.0)
    )
    assert story.gauges() == {}
    assert story.cell().queue_wait.total == pytest.approx(0.2 + 2)


def test_invariant_2_an_attempt_is_booked_under_the_queue_it_came_from_though_the_next_one_goes_elsewhere():
    story = ClusterDriver()
    story.tell(sent(), received(), started(), sent(at=0.25, retries=1, queue="right"), retried(at=0.3))
    story.tell(received(at=0.4, retries=1), started(at=0.5), failed(at=0.7))
    assert story.counts() == {
        **{("add", "q", state): 1 for state in ("PENDING", "RECEIVED", "STARTED", "RETRY")},
        **{("add", "right", state): 1 for state in ("PENDING", "RECEIVED", "STARTED", "FAILURE")},
    }
    assert story.cell().runtime[State.RETRY].total == pytest.approx(0.1)
    assert story.cell(queue="right").runtime[State.FAILURE].total == pytest.approx(0.2)
    assert story.cell(queue="right").queue_wait.total == pytest.approx(0.25)


def test_invariant_2_a_start_that_is_told_after_the_next_attempt_was_sent_elsewhere_is_booked_where_it_was():
    story = ClusterDriver()
    story.tell(sent(), received(), sent(at=0.25, retries=1, queue="right"), started(), retried(at=0.3))
    assert story.counts() == {
        **{("add", "q", state): 1 for state in ("PENDING", "RECEIVED", "STARTED", "RETRY")},
        ("add", "right", "PENDING"): 1,
    }
    assert story.cell().queue_wait.total == pytest.approx(0.2)


RIGHT = [
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
def test_invariant_1_a_retry_that_goes_elsewhere_may_be_overtaken_too(place):
    story = ClusterDriver()
    events = [event for index, event in enumerate(RIGHT) if index != 3]
    events.insert(place, RIGHT[3])
    for event in events:
        story.tell(event)
        story.wait(0.2)
    assert story.counts() == {
        **{("add", "q", state): 1 for state in ("PENDING", "RECEIVED", "STARTED", "RETRY")},
        **{("add", "right", state): 1 for state in ("PENDING", "RECEIVED", "STARTED", "SUCCESS")},
    }
    assert story.cell(queue="right").queue_wait.total == pytest.approx(0.2)
    assert story.gauges() == {}


def test_invariant_2_a_retry_nobody_sent_is_of_the_queue_of_the_task():
    story = ClusterDriver()
    story.tell(sent(), received(), started(), retried(), received(at=1, retries=1), started(at=1.1))
    assert story.gauges() == {"RETRY": 1}, "booked before the window has passed"
    story.wait(2.5)
    assert story.gauges() == {"STARTED": 1}
    story.tell(succeeded(at=2))
    assert story.by_state() == {"PENDING": 1, "RECEIVED": 2, "STARTED": 2, "RETRY": 1, "SUCCESS": 1}


def test_only_so_many_retries_wait_for_their_task_sent(monkeypatch):
    monkeypatch.setattr(cluster, "MAX_LIMBO", 100)
    story = ClusterDriver()
    for index in range(110):
        story.tell(sent(f"u{index}"), received(f"u{index}", retries=1))
    assert list(story.cluster.tasks.held) == [f"u{index}" for index in range(10, 110)]
    assert story.by_state()["RECEIVED"] == 10


def test_a_retry_of_a_finished_task_that_waits_is_counted_where_the_id_is_used_again():
    story = ClusterDriver()
    story.tell(*LIFE)
    story.wait(2.5)
    story.tell(received(at=1, retries=1))
    story.now += 2.5
    story.tell(sent(at=10))
    assert story.by_state() == {"PENDING": 2, "RECEIVED": 2, "STARTED": 1, "SUCCESS": 1}
    assert story.gauges() == {"PENDING": 1}


def test_a_retry_of_a_finished_task_that_waits_is_counted_where_there_are_too_many(monkeypatch):
    monkeypatch.setattr(cluster, "MAX_TOMBSTONES", 10)
    story = ClusterDriver()
    for index in range(50):
        name = f"u{index}"
        story.tell(
            sent(name), received(name), started(name), succeeded(name), received(name, at=1, retries=1)
        )
    assert len(story.cluster.tasks.finished) <= 10
    story.wait(2.5)
    assert story.by_state() == {"PENDING": 50, "RECEIVED": 100, "STARTED": 50, "SUCCESS": 50}
    assert story.cluster.tasks.held == {}


@pytest.mark.parametrize("limits", [Limits(max_tasks=100), Limits(task_ttl=1)], ids=["count", "age"])
def test_a_task_whose_retry_waits_may_be_forgotten(limits):
    story = ClusterDriver(limits)
    for index in range(300):
        story.tell(sent(f"u{index}"), received(f"u{index}", retries=1))
    story.wait(3)
    assert story.by_state() == {"PENDING": 300, "RECEIVED": 300}
    assert story.cluster.tasks.held == {}


def test_a_worker_that_was_killed_leaves_its_delivery_to_the_next_process_of_its_name():
    story = ClusterDriver()
    story.tell(sent(), received(at=1, pid=1), started(at=2, pid=1))
    story.tell(received(at=100, pid=2), started(at=101, pid=2), failed(at=103, pid=2))
    story.wait(2.5)
    assert story.gauges() == {}
    assert [histogram.total for histogram in story.cell().runtime.values()] == [2.0]


def test_a_task_that_runs_twice_is_open_until_its_newest_delivery_ends():
    story = ClusterDriver()
    story.tell(sent(), received(), started(), task_event("received", at=9, host="b@h", name="add"))
    story.tell(task_event("started", at=9.5, host="b@h"), succeeded(at=10))
    story.wait(2.5)
    assert story.gauges() == {"STARTED": 1}
    story.tell(task_event("succeeded", at=11, host="b@h"))
    assert story.gauges() == {}
    assert story.by_state()["SUCCESS"] == 2


def test_oldest_and_last_are_moments_of_the_tasks_themselves():
    story = ClusterDriver()
    story.tell(sent("a", at=1), sent("b", at=2), sent("c", at=3), received("a", at=4))
    (pending,) = [group for group in story.cluster.tasks.in_states() if group.state.name == "PENDING"]
    assert (pending.count, pending.since) == (2, T0 + 2)
    story.tell(started("a", at=5), succeeded("a", at=6))
    assert {state.name: at for state, at in story.cell().last.items()}["SUCCESS"] == T0 + 6


def test_a_moment_in_the_future_is_not_believed():
    story = ClusterDriver()
    story.tell(sent(), received(), started(), succeeded(at=1e9))
    assert max(story.cell().last.values()) == story.moment().wall


def test_hosts_of_clients_make_no_series_and_no_workers():
    story = ClusterDriver(labels=("queue_name", "worker"))
    story.tell(sent())
    assert story.cluster.workers == {}
    assert {key.worker for key in story.ledger.snapshot()} == {""}


def test_a_flood_of_hosts_is_refused_and_honest_workers_stay(monkeypatch):
    monkeypatch.setattr(cluster, "MAX_WORKERS", 100)
    story = ClusterDriver(labels=("queue_name", "worker"))
    story.tell(heartbeat("honest@h"))
    for index in range(110):
        story.tell(heartbeat(f"w{index}@h"))
    assert len(story.cluster.workers) == 100
    assert story.cluster.refused["worker"] == 11
    assert "honest@h" in story.cluster.workers
    story.tell(sent(), task_event("received", host="new@h", name="add"))
    assert story.cell(worker="other").transitions[1] == 1
    assert story.cluster.fallbacks["worker"] == 1
    story.tell(received("u2", name="mul", host="new@h"))  # which queues it consumes is not known
    story.wait(3)
    assert story.cell("mul", "unknown", "other").transitions[1] == 1
    assert story.cluster.fallbacks["worker"] == 2


def test_a_flood_of_queues_takes_no_place_of_honest_ones(monkeypatch):
    monkeypatch.setattr(queues, "MAX_QUEUES", 10)
    story = ClusterDriver()
    story.cluster.learn({"w@h": WorkerInfo(queues=("consumed",))}, story.moment())
    story.tell(sent(queue="declared"), sent("u2", queue=None))
    story.cluster.queues.declare({"declared": object()})
    story.tell(*(sent(f"a{number}", queue=f"q{number}") for number in range(12)))
    newest = {f"q{number}" for number in range(4, 12)}
    assert set(story.cluster.queues.names()) == {"consumed", "declared", *newest}
    assert story.cluster.refused["queue"] == 4


def test_queues_that_workers_consume_are_known_next_to_those_of_events():
    story = ClusterDriver()
    story.tell(sent(queue="mail"))
    story.cluster.learn({"a@h": WorkerInfo(queues=("mail", "celery")), "b@h": WorkerInfo()}, story.moment())
    assert set(story.cluster.queues.names()) == {"mail", "celery"}


def test_queues_expire_that_are_not_used_any_more():
    story = ClusterDriver()
    story.tell(heartbeat("w@h"), sent(queue="once"))
    story.cluster.learn({"w@h": WorkerInfo(queues=("consumed",))}, story.moment())
    for _ in range(2):
        story.now += queues.QUEUE_TTL_SECONDS / 2 + 60
        story.tell(sent("u2", queue="busy"), heartbeat("w@h"))
        story.cluster.expire(story.moment())
    assert set(story.cluster.queues.names()) == {"busy", "consumed"}
    story.tell(heartbeat("w@h", kind="offline"))
    story.now += queues.QUEUE_TTL_SECONDS + 60
    story.cluster.expire(story.moment())
    story.cluster.expire(story.moment())
    assert story.cluster.queues.names() == []


def test_a_flood_of_names_is_added_up_as_other_and_honest_series_stay():
    story = ClusterDriver(Limits(max_series=80))
    story.tell(sent("honest"))
    for index in range(50):
        story.tell(sent(f"u{index}", name=f"task{index}"), received(f"u{index}", name=f"task{index}"))
    story.tell(received("honest"))
    assert story.by_state() == {"PENDING": 1, "RECEIVED": 1}
    assert story.by_state("other") == {"PENDING": 41, "RECEIVED": 41}
    assert len(story.ledger.snapshot()) == 11
    assert story.cluster.keys.folded == 41
    assert story.gauges() == {"RECEIVED": 51}


@pytest.mark.parametrize("labels", [(), ("queue_name",), ("worker",), ("queue_name", "worker")], ids=str)
def test_other_has_values_for_the_labels_in_use_and_for_no_others(labels):
    story = ClusterDriver(Limits(max_series=8), labels)
    story.tell(sent("u1"), sent("u2", name="mul"), received("u2", name="mul"))
    queue = "other" if "queue_name" in labels else ""
    worker = "other" if "worker" in labels else ""
    assert {key for key in story.ledger.snapshot() if key.task_name == "other"} == {
        LabelSet("other", queue, ""),
        LabelSet("other", queue, worker),
    }


def test_only_so_many_tasks_wait_for_their_task_sent(monkeypatch):
    monkeypatch.setattr(cluster, "MAX_LIMBO", 100)
    story = ClusterDriver()
    for index in range(110):
        story.tell(received(f"u{index}"))
    assert list(story.cluster.tasks.unidentified.tasks) == [f"u{index}" for index in range(10, 110)]
    assert story.counts() == {("add", "unknown", "RECEIVED"): 10}


LATER = "2038-01-19T03:14:07+00:00"
RETRIED = [sent, received, started, partial(sent, retries=1), retried]
OPEN_LIVES = {
    "waits": ("PENDING", [sent]),
    "was received": ("RECEIVED", [sent, received]),
    "waits for its eta": ("RECEIVED", [partial(sent, eta=LATER), partial(received, eta=LATER)]),
    "nobody told of its sending": ("RECEIVED", [partial(received, eta=LATER)]),
    "runs": ("STARTED", [sent, received, started]),
    "will be retried": ("RETRY", RETRIED),
    "will be retried, which nobody told but the worker": ("RETRY", [received, started, retried]),
    "will be retried, by one who does not tell": ("RETRY", [sent, received, started, retried]),
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
    story = ClusterDriver(Limits(max_tasks=2_000_000, reorder_window=0.1))
    uuids = (str(uuid4()) for _ in range(tasks))
    lives = ([event(uuid) for event in events] for uuid in uuids)
    bodies = (json.dumps([each | {"pid": 4711 + each["pid"]} for each in life]).encode() for life in lives)
    story.tell(sent("first"))
    tracemalloc.start()
    try:
        for body in bodies:
            story.wait(0.001)  # so that no two share the object that says when they were heard of
            for event in decode(body):
                story.cluster.apply(event, story.moment())
        del body, event
        story.wait(KEPT_SECONDS + 1)  # ends are remembered for a moment, 20,000 at most
        used, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert story.gauges() == Counter({state: tasks}) + Counter({"PENDING": 1})
    print(f"{used / tasks:.0f} bytes each")
    assert used / tasks < 400, "what the help of --max-tasks says"


def test_a_room_that_is_left_takes_no_memory():
    story = ClusterDriver()
    for index in range(1_000):
        story.tell(sent(f"u{index}"), received(f"u{index}"))
    story.wait(2)
    rooms = story.cluster.tasks.rooms()
    assert {sys.getsizeof(room.tasks) for room in rooms if not room.tasks} == {sys.getsizeof({})}


def test_only_so_many_tombstones_are_kept():
    story = ClusterDriver()
    story.cluster.tasks = TaskTable(1000, tombstone_limit=100)
    for index in range(100):
        story.tell(task_event("revoked", f"a{index}"), sent(f"a{index}"))
    assert len(story.cluster.tasks.finished) == 100
    for index in range(250):
        story.tell(sent(f"u{index}"), received(f"u{index}"), started(f"u{index}"), succeeded(f"u{index}"))
    assert 90 < len(story.cluster.tasks.finished) <= 100
    assert len(story.cluster.tasks) == 0


def test_endless_events_of_one_unknown_task_are_not_kept():
    story = ClusterDriver()
    for _ in range(MAX_PARKED - 1):
        story.tell(started())
    assert story.counts() == {}
    story.tell(started())
    assert story.by_state("unknown")["STARTED"] == MAX_PARKED


def test_events_of_an_application_of_its_own_are_counted_as_other_and_do_nothing_else():
    story = ClusterDriver()
    story.tell({"type": "order-shipped"}, {"type": "task-sent-by-mail"}, sent())
    assert {kind: count for kind, count in story.cluster.events.items() if count} == {
        "other": 2,
        "task-sent": 1,
    }
    assert story.cluster.workers == {}


# -- whatever happens ---------------------------------------------------------------------------------

KINDS = ["sent", "received", "started", "succeeded", "failed", "retried", "revoked", "rejected", "cancelled"]
anything = st.builds(
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
@given(st.lists(st.tuples(anything, st.sampled_from([0.0, 0.5, 3.0, 70.0])), max_size=30))
def test_every_event_is_counted_once_and_every_task_is_in_one_room(events):
    story = ClusterDriver(Limits(max_tasks=100))
    for event, pause in events:
        story.tell(event)
        story.wait(pause)
    story.wait(3)
    assert sum(story.counts().values()) + story.cluster.repeated.total() == len(events)
    tasks = story.cluster.tasks
    in_rooms = sum(len(room.tasks) for room in tasks.rooms())
    assert in_rooms == len(tasks)
    assert in_rooms + len(tasks.finished) <= 2


@pytest.mark.parametrize("queue", ["q", "elsewhere"])
def test_invariant_1_holds_for_any_interleaving_of_a_client_a_pool_process_and_two_workers(queue):
    """The retry is sent by a pool process, and runs at another worker; each has a connection of its own."""
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

    def what_is_shown(order):
        waiting = [list(events) for events in connections]
        story = ClusterDriver(labels=("queue_name", "worker"))
        story.tell(*(waiting[connection].pop(0) for connection in order))
        story.wait(2.5)
        assert story.gauges() == {}
        return story.ledger.snapshot()

    sums = what_is_shown([0, 2, 2, 1, 2, 3, 3, 3])
    first, second = sums[LabelSet("add", "q", "a@h")], sums[LabelSet("add", queue, "b@h")]
    assert (first.queue_wait.total, first.prefetch_wait.total, first.runtime[State.RETRY].total) == (2, 1, 2)
    assert (second.queue_wait.total, second.prefetch_wait.total, second.runtime[State.SUCCESS].total) == (
        6,
        4,
        1,
    )
    assert (first.redeliveries, second.redeliveries) == (0, 0)
    for order in set(itertools.permutations([0, 1, 2, 2, 2, 3, 3, 3])):
        assert what_is_shown(order) == sums, order


def test_invariant_3_a_task_that_is_heard_of_without_moving_keeps_no_other_one():
    story = ClusterDriver(Limits(task_ttl=300))
    story.tell(*(sent(f"u{number}") for number in range(5)))
    for _ in range(3):
        story.wait(150)
        story.tell(sent("u0"))
    assert len(story.cluster.tasks) == 1
    assert story.cluster.tasks.evicted == 4


def test_invariant_3_a_finished_task_that_is_heard_of_again_keeps_no_other_one():
    story = ClusterDriver()
    for number in range(5):
        name = f"u{number}"
        story.tell(sent(name), received(name), started(name), succeeded(name))
    for _ in range(3):
        story.wait(TOMBSTONE_SECONDS - 20)
        story.tell(started("u0"))
    assert list(story.cluster.tasks.finished) == ["u0"]


def test_a_task_waits_for_its_next_attempt_in_whatever_order_its_sending_is_told():
    last = [sent(at=1, retries=1, queue="right"), retried()]
    for events in (last, last[::-1]):
        story = ClusterDriver()
        story.tell(sent(), received(), started(), *events)
        assert story.gauges() == {"RETRY": 1}


A, B = {"host": "a@h"}, {"host": "b@h"}
PUT_BACK = [received(**A), started(**A), rejected(requeue=True, **A)]
TAKEN = [received(at=1, **B), started(at=2, **B), succeeded(at=3, **B)]


@pytest.mark.parametrize("places", list(itertools.combinations(range(6), 3)))
def test_invariant_1_a_task_that_was_put_back_and_done_by_another_worker_is_over(places):
    waiting = {True: [*PUT_BACK], False: [*TAKEN]}
    story = ClusterDriver()
    story.tell(sent(), *(waiting[place in places].pop(0) for place in range(6)))
    story.wait(2.5)
    assert story.gauges() == {}
    assert story.cell().redeliveries == 1


def test_a_task_that_ends_twice_is_over_when_it_is_received_again_only_after_its_end():
    story = ClusterDriver()
    story.tell(sent(), received(**A), started(**A), received(at=1, **B), succeeded(at=2, **A))
    story.tell(started(at=2, **B))
    story.wait(2.5)
    assert story.gauges() == {"STARTED": 1}
    story.tell(received(at=3, host="c@h"), rejected(at=4, host="c@h", requeue=True))
    story.wait(2.5)
    assert story.gauges() == {"PENDING": 1}, "another delivery, which is not over"


@pytest.mark.parametrize("order", [(0, 0, 0, 1, 1, 1), (1, 1, 1, 0, 0, 0), (0, 1, 0, 1, 0, 1)])
def test_invariant_2_without_task_sent_each_attempt_is_of_the_only_queue_of_its_worker(order):
    workers = [
        [received(**A), started(**A), retried(**A)],
        [received(at=1, retries=1, **B), started(at=2, **B), succeeded(at=3, **B)],
    ]
    story = ClusterDriver()
    story.tell(heartbeat("a@h"), heartbeat("b@h"))
    profiles = {"a@h": WorkerInfo(queues=("q",)), "b@h": WorkerInfo(queues=("right",))}
    story.cluster.learn(profiles, story.moment())
    story.tell(*(workers[worker].pop(0) for worker in order))
    story.wait(2.5)
    assert story.counts() == {
        **{("add", "q", state): 1 for state in ("RECEIVED", "STARTED", "RETRY")},
        **{("add", "right", state): 1 for state in ("RECEIVED", "STARTED", "SUCCESS")},
    }


def test_invariant_2_a_retry_that_nobody_was_heard_to_send_is_of_the_only_queue_of_its_worker():
    story = ClusterDriver()
    story.tell(heartbeat("b@h"))
    story.cluster.learn({"b@h": WorkerInfo(queues=("right",))}, story.moment())
    story.tell(sent(), received(**A), started(**A), retried(**A))
    story.tell(received(at=1, retries=1, **B), started(at=2, **B), succeeded(at=3, **B))
    story.wait(2.5)
    assert story.counts() == {
        **{("add", "q", state): 1 for state in ("PENDING", "RECEIVED", "STARTED", "RETRY")},
        **{("add", "right", state): 1 for state in ("RECEIVED", "STARTED", "SUCCESS")},
    }


@pytest.mark.parametrize("pause", [0, 3], ids=["at once", "later"])
@pytest.mark.parametrize("eta", [None, "2023-11-14T22:15:00+00:00"], ids=["due", "not due yet"])
def test_what_a_container_had_received_that_comes_back_is_received_once_and_waits_from_then(pause, eta):
    """Its process has the same pid again."""
    story = ClusterDriver()
    story.tell(heartbeat(), sent(eta=eta), received(at=1, eta=eta), heartbeat(at=10, kind="online"))
    story.tell(received(at=11, eta=eta))
    story.wait(pause)
    assert story.gauges() == {"RECEIVED": 1}
    story.tell(started(at=112), succeeded(at=113))
    story.wait(3)
    assert story.gauges() == {}
    assert story.by_state() == {"PENDING": 1, "RECEIVED": 2, "STARTED": 1, "SUCCESS": 1}
    assert story.cell().redeliveries == 1


@pytest.mark.parametrize("processed", [0, 3])
@pytest.mark.parametrize("goodbye", [True, False])
def test_a_container_that_comes_back_with_another_queue_is_asked_before_its_tasks_are_counted(
    processed, goodbye
):
    """Its pid is the same, and it may not have processed anything before."""
    story = ClusterDriver()
    story.tell(heartbeat(kind="online"))
    story.cluster.learn({"w@h": WorkerInfo(queues=("old",))}, story.moment(), {"w@h": 0})
    story.tell(heartbeat(at=4, processed=processed))
    if goodbye:
        story.tell(heartbeat(at=5, kind="offline", processed=processed))
    story.wait(30)
    story.tell(heartbeat(at=34, kind="online"), received(at=34.1), started(at=34.2), succeeded(at=34.3))
    story.wait(3)
    starts = story.cluster.workers["w@h"].starts
    story.cluster.learn({"w@h": WorkerInfo(queues=("new",))}, story.moment(), {"w@h": starts})
    story.wait(12)
    assert {queue for _, queue, _ in story.counts()} == {"new"}


def test_what_a_worker_receives_twice_without_a_new_start_it_runs_twice():
    story = ClusterDriver()
    story.tell(heartbeat(kind="online"), sent(), received(at=1), received(at=10), started(at=11))
    story.tell(succeeded(at=12))
    story.wait(3)
    assert story.gauges() == {"RECEIVED": 1}
    story.tell(started(at=13), succeeded(at=14))
    assert story.gauges() == {}


def test_invariant_1_an_attempt_that_is_received_twice_is_redelivered_whatever_was_received_in_between():
    story = ClusterDriver()
    story.tell(sent(), sent(at=1, retries=1), received(at=2, retries=1, host="b@h"))
    story.tell(received(at=1, host="a@h"))
    assert story.cell().redeliveries == 0
    story.tell(received(at=3, host="c@h"))
    story.wait(2.5)
    assert story.cell().redeliveries == 1
    story.tell(received(at=4, retries=1, host="a@h"))
    story.wait(2.5)
    assert story.cell().redeliveries == 2


def test_an_exporter_that_started_late_takes_no_attempt_for_a_redelivery():
    story = ClusterDriver()
    story.tell(received(at=2, retries=40))
    story.wait(2.5)
    for attempt in (38, 32, 41, 39):
        story.tell(received(at=3, retries=attempt))
    assert story.cell(queue="unknown").redeliveries == 0
    story.tell(received(at=3, retries=31))
    assert story.cell(queue="unknown").redeliveries == 1, "too old to be remembered"


@pytest.mark.parametrize("places", list(itertools.combinations(range(8), 2)))
def test_invariant_1_holds_for_any_interleaving_of_two_connections(places):
    """A client's and a worker's events are each in order; between them there is none."""
    client = [event for event in RETRY_LIFE if event["type"] == "task-sent"]
    worker = [event for event in RETRY_LIFE if event["type"] != "task-sent"]
    story = ClusterDriver()
    story.tell(*[(client if place in places else worker).pop(0) for place in range(8)])
    assert story.by_state() == {"PENDING": 2, "RECEIVED": 2, "STARTED": 2, "RETRY": 1, "SUCCESS": 1}
    assert story.gauges() == {}

    assert sum(story.cell().queue_wait.counts) == 2
    assert sum(story.cell().prefetch_wait.counts) == 2


def test_invariant_4_a_worker_that_is_heard_to_work_is_up_though_it_sends_no_heartbeat():
    story = ClusterDriver(Limits(worker_timeout=60))
    for number in range(30):
        story.tell(received(f"u{number}"), started(f"u{number}"), succeeded(f"u{number}"))
        story.wait(5)
    assert story.cluster.workers["w@h"].up
    story.wait(70)
    assert not story.cluster.workers["w@h"].up


def test_finished_tasks_take_no_room_from_unfinished_ones():
    story = ClusterDriver(Limits(max_tasks=5))
    for index in range(20):
        story.tell(sent(f"u{index}"), received(f"u{index}"), started(f"u{index}"), succeeded(f"u{index}"))
    story.tell(*(sent(f"v{index}") for index in range(5)))
    assert (story.gauges(), story.cluster.tasks.evicted) == ({"PENDING": 5}, 0)
