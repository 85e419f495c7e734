"""The fields of a usual task, and the expanded history of any other one."""

from __future__ import annotations

import json
import sys
import tracemalloc
from collections import Counter
from functools import partial
from uuid import uuid4

import pytest
from hypothesis import example, given, settings

from celery_exporter.core import task_lifecycle
from celery_exporter.core.aggregates import Aggregates
from celery_exporter.core.duplicates import RETENTION_SECONDS
from celery_exporter.core.events import decode
from celery_exporter.core.limits import Limits
from celery_exporter.core.tasks import Task, TaskTable
from celery_exporter.core.transitions import MAX_DELIVERIES
from celery_exporter.core.types import LabelSet, State
from celery_exporter.core.workers import WorkerInfo
from unit.persistence.test_state import event_sequences, restarted, results

from .cluster_driver import (
    T0,
    ClusterDriver,
    heartbeat,
    received,
    rejected,
    retried,
    sent,
    started,
    succeeded,
    task_event,
)

B = {"host": "b@h"}
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


class ExpandedTable(TaskTable):
    """A table in which each task always has an expanded history."""

    def new(self, uuid, last_seen, bucket, since=0.0) -> Task:
        task = self._tasks[uuid] = bucket.tasks[uuid] = ExpandedTask(uuid, last_seen, bucket, since)
        task.expand()
        return task


class ExpandedTask(Task):
    def compact(self) -> None:
        pass


def driver_after(events, **options) -> ClusterDriver:
    driver = ClusterDriver(
        aggregates=Aggregates((0.1, 1.0, 10.0), (0.1, 1.0, 10.0), exemplars=True), **options
    )
    driver.apply(*events)
    return driver


def expanded_driver() -> ClusterDriver:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(task_lifecycle, "TaskTable", ExpandedTable)
        return driver_after([], labels=("queue_name", "worker"))


@pytest.mark.parametrize("life", OPEN_LIVES)
def test_a_usual_task_has_no_expanded_history_after_a_restart(life):
    state, events = OPEN_LIVES[life]
    driver = driver_after([event() for event in events])
    driver.wait(3)
    for current in (driver, restarted(driver)):
        assert current.cluster.tasks.get("u1").expanded is None
        assert current.gauges() == {state: 1}
    assert restarted(driver).cluster.tasks.get("u1").history() == driver.cluster.tasks.get("u1").history()


#: An attempt that ended without an event is received again after the next one, which has another label set.
RECEIVED_AGAIN = [
    sent(name=None),
    received(at=1, host="b@h", pid=2),
    received(at=1, host="b@h", pid=1, retries=1),
    received(at=1, host="a@h", pid=1),
]


@settings(max_examples=300)
@given(event_sequences)
@example([(event, 0.0) for event in RECEIVED_AGAIN])
def test_usual_transitions_and_those_with_history_give_the_same_results(events):
    usual, expanded = driver_after([], labels=("queue_name", "worker")), expanded_driver()
    for event, pause in events:
        for driver in (usual, expanded):
            driver.apply(event)
            driver.wait(pause)
    for driver in (usual, expanded):
        driver.wait(3)
    assert results(usual) == results(expanded)


def test_a_task_without_task_sent_waits_since_its_eta():
    driver = driver_after([received(eta="2023-11-14T22:13:25Z"), started(at=6)])
    driver.wait(3)
    aggregate = driver.aggregate(queue="unknown")
    assert (aggregate.queue_wait.total, aggregate.prefetch_wait.total) == (1, 1)


def test_a_retry_of_a_task_without_task_sent_does_not_await_one():
    driver = driver_after([received(eta="2023-11-14T22:13:25Z")])
    driver.wait(3)
    driver.apply(started(at=6), retried(at=7), received(at=8, retries=1))
    assert driver.gauges() == {"RECEIVED": 1}


def test_a_task_sent_after_the_end_determines_the_wait():
    driver = driver_after([received(), started(at=2), succeeded(at=3)])
    driver.wait(3)
    driver.apply(sent(at=1))
    assert driver.aggregate().queue_wait.total == 1


@pytest.mark.parametrize("end", [{}, {"pid": 2}, B], ids=["not started", "another process", "another worker"])
def test_an_end_that_does_not_match_the_start_is_counted(end):
    events = [sent(), received(), *([started()] if end else []), succeeded(**end)]
    driver = driver_after(events)
    assert driver.by_state()["SUCCESS"] == 1
    assert driver.aggregate().runtime[State.SUCCESS].total == 0.1
    assert driver.gauges() == {}


def test_an_ended_attempt_that_is_received_again_is_a_redelivery_and_the_next_attempt_is_none():
    driver = driver_after([sent(), received(), started(), sent(at=1, retries=1), retried(at=2)])
    assert driver.cluster.tasks.get("u1").expanded is None
    driver.apply(received(at=3, **B))
    driver.wait(3)
    assert driver.aggregate().redeliveries == 1
    driver.apply(received(at=9, retries=1))
    assert driver.aggregate().redeliveries == 1


def test_a_late_task_sent_does_not_change_the_state_if_the_clock_of_the_worker_is_behind():
    driver = driver_after([received(at=-60), sent()])
    assert driver.gauges() == {"RECEIVED": 1}


def test_every_observation_of_a_task_that_was_delivered_twice_has_its_id():
    driver = driver_after([sent(), received(), received(at=1, **B), started(at=2, **B), succeeded(at=3, **B)])
    driver.wait(2.5)
    aggregate = driver.aggregate()
    for histogram in (*aggregate.runtime.values(), aggregate.queue_wait, aggregate.prefetch_wait):
        assert [exemplar.uuid for exemplar in histogram.exemplars.values()] == ["u1"]


def test_tasks_of_one_worker_process_share_its_name_and_pid():
    driver = driver_after([event(uuid, pid=4711) for uuid in ("u1", "u2") for event in (sent, received)])
    first, second = map(driver.cluster.tasks.get, ("u1", "u2"))
    assert first.worker is second.worker
    assert first.pid is second.pid


def test_an_ended_attempt_that_is_received_again_does_not_defer_the_next_one():
    driver = driver_after([sent(), received(), started(), sent(at=1, retries=1), retried(at=2)])
    driver.wait(3)
    driver.apply(received(at=3, **B), received(at=4, retries=1), started(at=5), succeeded(at=6))
    assert driver.by_state()["SUCCESS"] == 1


def test_the_latest_task_sent_is_kept_however_many_others_are():
    events = [sent(at=attempt, retries=attempt) for attempt in range(1, MAX_DELIVERIES + 1)]
    driver = driver_after([*events, sent(), received(at=1), started(at=2)])
    assert driver.aggregate().queue_wait.total == 2


def test_removed_label_sets_take_no_memory():
    driver = ClusterDriver(Limits(series_ttl=120))

    def bytes_after(names: int) -> int:
        tracemalloc.start()
        for number in range(names):
            driver.apply(sent("u", name=f"generated {number}"), task_event("revoked", "u"))
            driver.wait(0.01)
        driver.wait(400)
        assert len(driver.cluster.label_sets) <= 2
        size, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return size

    bytes_after(10)
    assert bytes_after(500) < 500 * 300, "only the empty tables stay"


def test_a_task_whose_wait_exceeds_the_task_ttl_is_removed():
    driver = driver_after(
        [sent("u1"), sent("u2", name="mul")], limits=Limits(task_ttl=1.0, reorder_window=60.0)
    )
    driver.apply(received("u1", name="new", retries=1), received("u2", name="newer", retries=1))
    driver.wait(3)
    assert driver.gauges() == {}


def test_invariant_3_the_table_is_bounded_by_count_and_counts_evictions():
    driver = ClusterDriver(Limits(max_tasks=100))
    for index in range(250):
        driver.apply(sent(f"u{index}"))
    assert len(driver.cluster.tasks) <= 100
    assert driver.cluster.tasks.evicted == 250 - len(driver.cluster.tasks)
    assert driver.gauges()["PENDING"] == len(driver.cluster.tasks)
    assert driver.by_state()["PENDING"] == 250


def test_the_oldest_task_is_known_although_its_event_is_late():
    driver = ClusterDriver()
    driver.apply(received("late", at=11))
    driver.wait(3)
    driver.apply(sent("other", at=52), received("other", at=52), sent("late", at=1))
    since = {
        group.label_set.queue_name: group.since for group in driver.cluster.tasks.in_states() if group.count
    }
    assert since == {"q": T0 + 11}


def test_oldest_and_last_are_timestamps_of_events():
    driver = ClusterDriver()
    driver.apply(sent("a", at=1), sent("b", at=2), sent("c", at=3), received("a", at=4))
    (pending,) = [group for group in driver.cluster.tasks.in_states() if group.state.name == "PENDING"]
    assert (pending.count, pending.since) == (2, T0 + 2)
    driver.apply(started("a", at=5), succeeded("a", at=6))
    assert {state.name: at for state, at in driver.aggregate().last.items()}["SUCCESS"] == T0 + 6


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


def test_finished_tasks_do_not_count_towards_the_limit_of_tasks():
    driver = ClusterDriver(Limits(max_tasks=5))
    for index in range(20):
        driver.apply(sent(f"u{index}"), received(f"u{index}"), started(f"u{index}"), succeeded(f"u{index}"))
    driver.apply(*(sent(f"v{index}") for index in range(5)))
    assert (driver.gauges(), driver.cluster.tasks.evicted) == ({"PENDING": 5}, 0)


# -- what changed, for the state file ------------------------------------------------------------------------


def changes(driver: ClusterDriver) -> set[str] | None:
    """Return the ids of the tasks that changed since the last call."""
    changed, driver.cluster.tasks.changed = driver.cluster.tasks.changed, set()
    return changed


def test_each_change_of_a_task_is_recorded_under_its_id():
    driver = ClusterDriver()
    changes(driver)
    for event in (sent(), received(), started(), succeeded(), started(at=5)):
        driver.apply(sent("u2"), event)
        assert changes(driver) >= {"u1"}, event
    driver.wait(120)
    assert changes(driver) == {"u1"}, "removed"


def test_a_task_whose_events_are_deferred_and_released_has_changed():
    driver = ClusterDriver()
    changes(driver)
    driver.apply(received())
    assert changes(driver) == {"u1"}
    driver.apply(started())
    assert changes(driver) == {"u1"}
    driver.wait(2.5)
    assert changes(driver) == {"u1"}


@pytest.mark.parametrize("tasks", [3, 4])
def test_changes_are_recorded_no_longer_when_they_are_too_many(tasks, monkeypatch):
    monkeypatch.setattr("celery_exporter.core.tasks.MAX_CHANGED", 3)
    driver = ClusterDriver()
    changes(driver)
    driver.apply(*(sent(f"u{number}") for number in range(tasks)))
    driver.wait(60)
    assert (changes(driver) is None) is (tasks > 3)


def test_a_redelivery_that_awaits_the_reply_of_its_worker_waits_from_its_receipt():
    """Its worker restarted, and has not replied since. The task is in an unknown queue."""
    driver = ClusterDriver()
    driver.apply(heartbeat())
    driver.cluster.record_inspection({"w@h": WorkerInfo(queues=("q", "right"))}, driver.timestamp())
    driver.apply(received())
    driver.wait(2.5)
    driver.apply(heartbeat(at=4, kind="online"), received(at=5))
    changes(driver)
    driver.wait(5)
    assert driver.by_state() == {"RECEIVED": 1}, "counted before the worker has replied"
    assert changes(driver) == {"u1"}
    starts = driver.cluster.workers["w@h"].starts
    driver.cluster.record_inspection(
        {"w@h": WorkerInfo(queues=("right",))}, driver.timestamp(), {"w@h": starts}
    )
    driver.wait(2.5)
    assert driver.counts() == {("add", "unknown", "RECEIVED"): 1, ("add", "right", "RECEIVED"): 1}
    assert driver.gauges() == {"RECEIVED": 1}


# -- one task ------------------------------------------------------------------------------------------------


def test_a_task_that_was_received_is_due_at_its_eta():
    driver = ClusterDriver()
    driver.apply(received(eta="2023-11-14T23:13:20+00:00"))  # an hour after T0
    driver.wait(2.5)
    (task,) = (driver.cluster.tasks.get(uuid) for uuid in driver.cluster.tasks.uuids())
    assert task.is_due_after(T0 + 3599)
    assert not task.is_due_after(T0 + 3600)
    driver.apply(started(at=3601))
    assert not task.is_due_after(T0 + 3602)


def test_a_task_of_which_only_the_end_was_seen_is_due():
    driver = ClusterDriver()
    driver.apply(rejected(requeue=True))
    driver.wait(2.5)
    (task,) = (driver.cluster.tasks.get(uuid) for uuid in driver.cluster.tasks.uuids())
    assert not task.is_due_after(T0)
    assert task.current_worker() == ""


def test_a_task_that_ended_silently_is_not_open():
    driver = ClusterDriver()
    driver.apply(sent(), sent("u2"))
    task = driver.cluster.tasks.get("u1")
    driver.cluster.end_silently(task, "message_gone", driver.timestamp())
    assert len(driver.cluster.tasks) == 1


def test_a_removed_task_takes_its_expiry_along():
    table = TaskTable(10, 10)
    table.expires = {"u1": 1.0, "u2": 2.0}
    bucket = table.group(LabelSet("add", "q")).buckets[State.PENDING]
    for uuid in ("u1", "u2", "without either"):
        table.new(uuid, 0.0, bucket)
    for uuid in ("u1", "without either"):
        table.remove(table.get(uuid))
    assert (list(table.expires), table.uuids()) == (["u2"], ["u2"])
