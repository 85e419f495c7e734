"""How a task is remembered: in its own fields while it is a usual one, and in its story otherwise."""

from __future__ import annotations

import tracemalloc

import pytest
from hypothesis import given, settings

from celery_exporter.core import task_lifecycle
from celery_exporter.core.aggregates import Aggregates
from celery_exporter.core.limits import Limits
from celery_exporter.core.tasks import Task, TaskTable
from celery_exporter.core.transitions import MAX_DELIVERIES
from celery_exporter.core.types import State
from unit.persistence.test_state import restarted, seen, tales

from .cluster_driver import ClusterDriver, received, retried, sent, started, succeeded, task_event
from .test_cluster import OPEN_LIVES

B = {"host": "b@h"}


class Teller(TaskTable):
    """A table in which each task has a story from the beginning, and for ever."""

    def new(self, uuid, last_seen, bucket, since=0.0) -> Task:
        task = self._tasks[uuid] = bucket.tasks[uuid] = Unforgettable(uuid, last_seen, bucket, since)
        task.expand()
        return task


class Unforgettable(Task):
    def compact(self) -> None:
        pass


def told(events, **options) -> ClusterDriver:
    driver = ClusterDriver(ledger=Aggregates((0.1, 1.0, 10.0), (0.1, 1.0, 10.0), exemplars=True), **options)
    driver.apply(*events)
    return driver


def teller() -> ClusterDriver:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(task_lifecycle, "TaskTable", Teller)
        return told([], labels=("queue_name", "worker"))


@pytest.mark.parametrize("life", OPEN_LIVES)
def test_a_usual_task_has_no_story_after_a_restart_either(life):
    state, events = OPEN_LIVES[life]
    driver = told([event() for event in events])
    driver.wait(3)
    for each in (driver, restarted(driver)):
        assert each.cluster.tasks.get("u1").expanded is None
        assert each.gauges() == {state: 1}
    assert restarted(driver).cluster.tasks.get("u1").history() == driver.cluster.tasks.get("u1").history()


@settings(max_examples=300)
@given(tales)
def test_what_comes_out_is_the_same_with_stories_and_without(tale):
    usual, stories = told([], labels=("queue_name", "worker")), teller()
    for event, pause in tale:
        for driver in (usual, stories):
            driver.apply(event)
            driver.wait(pause)
    for driver in (usual, stories):
        driver.wait(3)
    assert seen(usual) == seen(stories)


def test_a_task_whose_sending_nobody_told_waits_since_its_eta():
    driver = told([received(eta="2023-11-14T22:13:25Z"), started(at=6)])
    driver.wait(3)
    aggregate = driver.aggregate(queue="unknown")
    assert (aggregate.queue_wait.total, aggregate.prefetch_wait.total) == (1, 1)


def test_its_retry_does_not_wait_for_a_task_sent_either():
    driver = told([received(eta="2023-11-14T22:13:25Z")])
    driver.wait(3)
    driver.apply(started(at=6), retried(at=7), received(at=8, retries=1))
    assert driver.gauges() == {"RECEIVED": 1}


def test_the_sending_that_is_told_after_the_end_is_that_of_the_wait():
    driver = told([received(), started(at=2), succeeded(at=3)])
    driver.wait(3)
    driver.apply(sent(at=1))
    assert driver.aggregate().queue_wait.total == 1


@pytest.mark.parametrize("end", [{}, {"pid": 2}, B], ids=["not started", "another process", "another worker"])
def test_an_end_that_is_not_that_of_the_start_is_counted_all_the_same(end):
    events = [sent(), received(), *([started()] if end else []), succeeded(**end)]
    driver = told(events)
    assert driver.by_state()["SUCCESS"] == 1
    assert driver.aggregate().runtime[State.SUCCESS].total == 0.1
    assert driver.gauges() == {}


def test_an_attempt_that_is_over_and_comes_again_is_a_redelivery_and_the_next_one_is_none():
    driver = told([sent(), received(), started(), sent(at=1, retries=1), retried(at=2)])
    assert driver.cluster.tasks.get("u1").expanded is None
    driver.apply(received(at=3, **B))
    driver.wait(3)
    assert driver.aggregate().redeliveries == 1
    driver.apply(received(at=9, retries=1))
    assert driver.aggregate().redeliveries == 1


def test_a_task_of_a_worker_whose_clock_is_behind_is_where_it_is_however_late_its_sending_is_told():
    driver = told([received(at=-60), sent()])
    assert driver.gauges() == {"RECEIVED": 1}


def test_what_is_observed_of_a_task_that_was_delivered_twice_is_of_it():
    driver = told([sent(), received(), received(at=1, **B), started(at=2, **B), succeeded(at=3, **B)])
    driver.wait(2.5)
    aggregate = driver.aggregate()
    for observed in (*aggregate.runtime.values(), aggregate.queue_wait, aggregate.prefetch_wait):
        assert [exemplar.uuid for exemplar in observed.exemplars.values()] == ["u1"]


def test_tasks_of_one_worker_process_share_what_says_so():
    driver = told([event(uuid, pid=4711) for uuid in ("u1", "u2") for event in (sent, received)])
    one, other = map(driver.cluster.tasks.get, ("u1", "u2"))
    assert one.worker is other.worker
    assert one.pid is other.pid


def test_an_attempt_that_is_over_and_comes_again_keeps_nobody_waiting():
    driver = told([sent(), received(), started(), sent(at=1, retries=1), retried(at=2)])
    driver.wait(3)
    driver.apply(received(at=3, **B), received(at=4, retries=1), started(at=5), succeeded(at=6))
    assert driver.by_state()["SUCCESS"] == 1


def test_a_sending_that_is_told_last_is_remembered_however_many_others_are():
    events = [sent(at=attempt, retries=attempt) for attempt in range(1, MAX_DELIVERIES + 1)]
    driver = told([*events, sent(), received(at=1), started(at=2)])
    assert driver.aggregate().queue_wait.total == 2


def test_label_sets_that_are_given_up_leave_nothing():
    driver = ClusterDriver(Limits(series_ttl=120))

    def left_by(names: int) -> int:
        tracemalloc.start()
        for number in range(names):
            driver.apply(sent("u", name=f"made at run time {number}"), task_event("revoked", "u"))
            driver.wait(0.01)
        driver.wait(400)
        assert len(driver.cluster.label_sets) <= 2
        size, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return size

    left_by(10)
    assert left_by(500) < 500 * 300, "its tables are as large as they were, and empty"


def test_a_task_that_waits_for_longer_than_it_is_remembered_is_forgotten_and_no_harm_done():
    driver = told([sent("u1"), sent("u2", name="mul")], limits=Limits(task_ttl=1.0, reorder_window=60.0))
    driver.apply(received("u1", name="new", retries=1), received("u2", name="newer", retries=1))
    driver.wait(3)
    assert driver.gauges() == {}
