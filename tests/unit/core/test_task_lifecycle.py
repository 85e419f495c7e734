"""The order of events, and when a task begins, ends, reopens and expires.

Numbers of invariants are those of docs/explanation/architecture.md.
"""

from __future__ import annotations

import itertools

import pytest

from celery_exporter.core import task_lifecycle
from celery_exporter.core.limits import Limits
from celery_exporter.core.task_lifecycle import MAX_DEFERRED_EVENTS, TOMBSTONE_SECONDS
from celery_exporter.core.types import LabelSet, State
from celery_exporter.core.workers import WorkerInfo

from .cluster_driver import (
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
from .lives import LIFE, RETRY_ELSEWHERE, RETRY_LIFE

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


def test_invariant_3_the_table_is_bounded_by_age():
    driver = ClusterDriver(Limits(task_ttl=10))
    driver.apply(sent("old"))
    driver.wait(8)
    driver.apply(sent("young"))
    driver.wait(5)
    assert driver.gauges() == {"PENDING": 1}
    assert driver.cluster.tasks.evicted == 1


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


def test_unidentified_tasks_are_bounded(monkeypatch):
    monkeypatch.setattr(task_lifecycle, "MAX_UNIDENTIFIED", 100)
    driver = ClusterDriver()
    for index in range(110):
        driver.apply(received(f"u{index}"))
    assert list(driver.cluster.tasks.unidentified.tasks) == [f"u{index}" for index in range(10, 110)]
    assert driver.counts() == {("add", "unknown", "RECEIVED"): 10}


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


def test_a_worker_that_receives_a_task_twice_without_a_restart_runs_it_twice():
    driver = ClusterDriver()
    driver.apply(heartbeat(kind="online"), sent(), received(at=1), received(at=10), started(at=11))
    driver.apply(succeeded(at=12))
    driver.wait(3)
    assert driver.gauges() == {"RECEIVED": 1}
    driver.apply(started(at=13), succeeded(at=14))
    assert driver.gauges() == {}


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


# -- workers whose queues are known, or awaited --------------------------------------------------------------


def inspected(**queues: tuple[str, ...]) -> ClusterDriver:
    """Return a driver whose workers, by host, have replied that they consume these queues."""
    driver = ClusterDriver()
    for host, names in queues.items():
        driver.apply(heartbeat(f"{host}@h"))
        infos = {f"{host}@h": WorkerInfo(queues=names)}
        driver.cluster.record_inspection(infos, driver.timestamp())
    return driver


def test_a_task_that_was_sent_to_an_unknown_queue_is_counted_when_a_worker_with_one_queue_receives_it():
    driver = inspected(a=("right",))
    driver.apply(sent(queue=None))
    assert driver.counts() == {}
    driver.apply(received(**A))
    assert driver.counts() == {("add", "right", "PENDING"): 1, ("add", "right", "RECEIVED"): 1}


def test_a_task_that_was_sent_to_an_unknown_queue_waits_for_the_receipt_of_a_worker_that_replied():
    driver = inspected(a=("right",))
    driver.apply(sent(queue=None), received(**B))
    assert driver.counts() == {}, "counted although the queues of the worker are unknown"
    driver.wait(2.5)
    assert driver.counts() == {("add", "unknown", "PENDING"): 1, ("add", "unknown", "RECEIVED"): 1}


def test_a_late_task_sent_without_a_queue_is_counted_at_once_if_the_worker_has_one_queue():
    driver = inspected(a=("right",))
    driver.apply(received(**A), sent(queue=None))
    assert driver.counts() == {("add", "right", "PENDING"): 1, ("add", "right", "RECEIVED"): 1}


def test_a_late_task_sent_without_a_queue_waits_if_the_queues_of_the_worker_are_unknown():
    driver = inspected(a=("right",))
    driver.apply(received(**B), sent(queue=None))
    assert driver.counts() == {}
    driver.wait(2.5)
    assert driver.counts() == {("add", "unknown", "PENDING"): 1, ("add", "unknown", "RECEIVED"): 1}


def test_a_task_that_two_workers_received_without_task_sent_has_the_queue_of_the_first():
    driver = inspected(b=("right",))
    driver.apply(received(**A), received(at=1, **B))
    driver.wait(2.5)
    assert driver.counts()["add", "unknown", "RECEIVED"] == 1
    driver = inspected(a=("left",), b=("right",))
    driver.apply(received(**B), received(at=1, **A))
    driver.wait(2.5)
    assert driver.gauges() == {"RECEIVED": 1}
    assert driver.counts() == {("add", "right", "RECEIVED"): 1, ("add", "left", "RECEIVED"): 1}


def test_only_the_tasks_of_a_restarted_worker_await_its_reply():
    driver = inspected(a=("left",), b=("right",))
    driver.apply(heartbeat("b@h", at=1, kind="online"), received(**A), received("u2", **B))
    driver.wait(2.5)
    assert driver.counts() == {("add", "left", "RECEIVED"): 1}


# -- tasks beyond the task TTL -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("active", "events", "gauges"),
    [
        (1, [sent(), received(), started()], {"STARTED": 1}),
        (0, [sent(), received(), started()], {}),
        (None, [sent(), received(), started()], {}),
        (5, [sent(), received()], {}),
    ],
    ids=["it runs", "nothing runs", "the worker does not say", "it is only received"],
)
def test_a_task_outlives_its_ttl_while_its_worker_reports_that_it_runs_one(active, events, gauges):
    driver = ClusterDriver(Limits(task_ttl=60))
    driver.apply(heartbeat(active=active), *events)
    for at in range(10, 100, 10):
        driver.wait(10)
        driver.apply(heartbeat(at=at, active=active))
    assert driver.gauges() == gauges
