"""How a task is remembered: in its own fields while it is a usual one, and in its story otherwise."""

from __future__ import annotations

import tracemalloc

import pytest
from hypothesis import given, settings

from celery_exporter.core.aggregates import Aggregates
from celery_exporter.core.cluster import Limits
from celery_exporter.core.tasks import Task, TaskTable
from celery_exporter.core.transitions import MAX_DELIVERIES
from celery_exporter.core.types import State
from unit.persistence.test_state import restarted, seen, tales

from .cluster_driver import ClusterDriver, received, retried, sent, started, succeeded, task_event
from .test_cluster import OPEN_LIVES

B = {"host": "b@h"}


class Teller(TaskTable):
    """A table in which each task has a story from the beginning, and for ever."""

    def new(self, uuid, heard, room, since=0.0) -> Task:
        task = self._tasks[uuid] = room.tasks[uuid] = Unforgettable(uuid, heard, room, since)
        task.unfold()
        return task


class Unforgettable(Task):
    def fold(self) -> None:
        pass


def told(events, **options) -> ClusterDriver:
    story = ClusterDriver(ledger=Aggregates((0.1, 1.0, 10.0), (0.1, 1.0, 10.0), exemplars=True), **options)
    story.tell(*events)
    return story


def teller() -> ClusterDriver:
    story = told([], labels=("queue_name", "worker"))
    story.cluster.tasks = Teller(1_000, 1_000)
    return story


@pytest.mark.parametrize("life", OPEN_LIVES)
def test_a_usual_task_has_no_story_after_a_restart_either(life):
    state, events = OPEN_LIVES[life]
    story = told([event() for event in events])
    story.wait(3)
    for each in (story, restarted(story)):
        assert each.cluster.tasks.get("u1").story is None
        assert each.gauges() == {state: 1}
    assert restarted(story).cluster.tasks.get("u1").tell() == story.cluster.tasks.get("u1").tell()


@settings(max_examples=300)
@given(tales)
def test_what_comes_out_is_the_same_with_stories_and_without(tale):
    usual, stories = told([], labels=("queue_name", "worker")), teller()
    for event, pause in tale:
        for story in (usual, stories):
            story.tell(event)
            story.wait(pause)
    for story in (usual, stories):
        story.wait(3)
    assert seen(usual) == seen(stories)


def test_a_task_whose_sending_nobody_told_waits_since_its_eta():
    story = told([received(eta="2023-11-14T22:13:25Z"), started(at=6)])
    story.wait(3)
    cell = story.cell(queue="unknown")
    assert (cell.queue_wait.total, cell.prefetch_wait.total) == (1, 1)


def test_its_retry_does_not_wait_for_a_task_sent_either():
    story = told([received(eta="2023-11-14T22:13:25Z")])
    story.wait(3)
    story.tell(started(at=6), retried(at=7), received(at=8, retries=1))
    assert story.gauges() == {"RECEIVED": 1}


def test_the_sending_that_is_told_after_the_end_is_that_of_the_wait():
    story = told([received(), started(at=2), succeeded(at=3)])
    story.wait(3)
    story.tell(sent(at=1))
    assert story.cell().queue_wait.total == 1


@pytest.mark.parametrize("end", [{}, {"pid": 2}, B], ids=["not started", "another process", "another worker"])
def test_an_end_that_is_not_that_of_the_start_is_counted_all_the_same(end):
    events = [sent(), received(), *([started()] if end else []), succeeded(**end)]
    story = told(events)
    assert story.by_state()["SUCCESS"] == 1
    assert story.cell().runtime[State.SUCCESS].total == 0.1
    assert story.gauges() == {}


def test_an_attempt_that_is_over_and_comes_again_is_a_redelivery_and_the_next_one_is_none():
    story = told([sent(), received(), started(), sent(at=1, retries=1), retried(at=2)])
    assert story.cluster.tasks.get("u1").story is None
    story.tell(received(at=3, **B))
    story.wait(3)
    assert story.cell().redeliveries == 1
    story.tell(received(at=9, retries=1))
    assert story.cell().redeliveries == 1


def test_a_task_of_a_worker_whose_clock_is_behind_is_where_it_is_however_late_its_sending_is_told():
    story = told([received(at=-60), sent()])
    assert story.gauges() == {"RECEIVED": 1}


def test_what_is_observed_of_a_task_that_was_delivered_twice_is_of_it():
    story = told([sent(), received(), received(at=1, **B), started(at=2, **B), succeeded(at=3, **B)])
    story.wait(2.5)
    cell = story.cell()
    for observed in (*cell.runtime.values(), cell.queue_wait, cell.prefetch_wait):
        assert [exemplar.uuid for exemplar in observed.exemplars.values()] == ["u1"]


def test_tasks_of_one_worker_process_share_what_says_so():
    story = told([event(uuid, pid=4711) for uuid in ("u1", "u2") for event in (sent, received)])
    one, other = map(story.cluster.tasks.get, ("u1", "u2"))
    assert one.worker is other.worker
    assert one.pid is other.pid


def test_an_attempt_that_is_over_and_comes_again_keeps_nobody_waiting():
    story = told([sent(), received(), started(), sent(at=1, retries=1), retried(at=2)])
    story.wait(3)
    story.tell(received(at=3, **B), received(at=4, retries=1), started(at=5), succeeded(at=6))
    assert story.by_state()["SUCCESS"] == 1


def test_a_sending_that_is_told_last_is_remembered_however_many_others_are():
    events = [sent(at=attempt, retries=attempt) for attempt in range(1, MAX_DELIVERIES + 1)]
    story = told([*events, sent(), received(at=1), started(at=2)])
    assert story.cell().queue_wait.total == 2


def test_label_sets_that_are_given_up_leave_nothing():
    story = ClusterDriver(Limits(series_ttl=120))

    def left_by(names: int) -> int:
        tracemalloc.start()
        for number in range(names):
            story.tell(sent("u", name=f"made at run time {number}"), task_event("revoked", "u"))
            story.wait(0.01)
        story.wait(400)
        assert len(story.cluster.keys) <= 2
        size, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return size

    left_by(10)
    assert left_by(500) < 500 * 300, "its tables are as large as they were, and empty"


def test_a_task_that_waits_for_longer_than_it_is_remembered_is_forgotten_and_no_harm_done():
    story = told([sent("u1"), sent("u2", name="mul")], limits=Limits(task_ttl=1.0, reorder_window=60.0))
    story.tell(received("u1", name="new", retries=1), received("u2", name="newer", retries=1))
    story.wait(3)
    assert story.gauges() == {}
