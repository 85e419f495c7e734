"""Searches find what a plain loop over all tasks finds, in the same order, page by page."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from celery_exporter.core import task_search
from celery_exporter.core.limits import Limits
from celery_exporter.core.task_info import OPEN_STATE_NAMES, STATE_NAMES, TaskInfo
from celery_exporter.core.task_search import Page, Search, TaskFilter, all_uuids, find

from .cluster_driver import T0, ClusterDriver, failed, received, sent, started, succeeded
from .test_task_info import driver_with_details

NAMES, QUEUES, WORKERS, ROOTS = ("add", "mul"), ("q", "r"), ("w@h", "v@h"), ("r1", "r2")
KINDS = [received, started, succeeded, failed]
lives = st.tuples(
    st.sampled_from(NAMES),
    st.sampled_from(QUEUES),
    st.sampled_from(WORKERS),
    st.sampled_from([None, *ROOTS]),
    st.integers(0, 20),  # when it was sent
    st.integers(0, 4),  # how far it came
)
filters = st.builds(
    TaskFilter,
    task_name=st.sampled_from([None, "add", "none"]),
    queue_name=st.sampled_from([None, "q"]),
    states=st.one_of(st.none(), st.frozensets(st.sampled_from(STATE_NAMES), min_size=1)),
    worker=st.sampled_from([None, "v@h"]),
    exception=st.sampled_from([None, "ValueError"]),
    root_id=st.sampled_from([None, "r1"]),
    since=st.sampled_from([None, T0 + 5]),
    until=st.sampled_from([None, T0 + 15]),
    min_runtime=st.sampled_from([None, 0.5, 2.0]),
)


def driver_with(tasks: list[tuple]) -> ClusterDriver:
    driver = driver_with_details(kept_tasks=1_000)
    for number, (name, queue, worker, root, at, steps) in enumerate(tasks):
        uuid, ids = f"{number:03}", {"root_id": root}
        driver.apply(sent(uuid, at, name, queue, **ids))
        for step in range(1, min(steps, 3) + 1):
            event = KINDS[3 if step == 3 and steps == 4 else step - 1]
            names = {"name": name, **ids} if event is received else {}
            driver.apply(event(uuid, at=at + step, host=worker, **names))
    return driver


def search(driver: ClusterDriver, wanted: TaskFilter, limit: int = 1_000, before=None) -> Page:
    found = Search(driver.cluster.tasks, wanted, limit, before)
    for _ in found.steps():
        pass
    return found.page()


def is_wanted(info: TaskInfo, wanted: TaskFilter) -> bool:
    return all(
        [
            wanted.task_name in {None, info.task_name},
            wanted.queue_name in {None, info.queue_name},
            wanted.states is None or info.state in wanted.states,
            wanted.worker in {None, info.worker},
            wanted.exception in {None, info.exception},
            wanted.root_id in {None, info.root_id},
            wanted.since is None or info.since >= wanted.since,
            wanted.until is None or info.since <= wanted.until,
            wanted.min_runtime is None or (info.runtime_seconds or -1) >= wanted.min_runtime,
        ]
    )


@settings(max_examples=150)
@given(st.lists(lives, max_size=30), filters, st.booleans(), st.integers(1, 7))
def test_pages_of_a_search_are_what_a_loop_over_all_tasks_finds(tasks, wanted, is_late, limit):
    driver = driver_with(tasks)
    if is_late:
        driver.wait(70)  # finished tasks are kept, but no more in the table
    everything = find(driver.cluster.tasks, all_uuids(driver.cluster.tasks))
    assert len(everything) == len(tasks)
    matching = [info for info in everything if is_wanted(info, wanted)]
    expected = sorted(matching, key=lambda info: (info.since, info.uuid), reverse=True)
    found, cursor = [], None
    while True:
        page = search(driver, wanted, limit, cursor)
        assert page.is_complete
        found += page.tasks
        cursor = page.next
        if cursor is None:
            break
    assert found == expected


def test_a_kept_task_is_found_while_a_late_event_of_it_is_not_identified():
    driver = driver_with([("add", "q", "w@h", "r", 0, 4)])
    driver.wait(70)
    tasks = driver.cluster.tasks
    (before,) = find(tasks, ["000"])
    driver.apply(failed("000", at=1))
    for _ in range(2):
        assert find(tasks, ["000"]) == find(tasks, all_uuids(tasks)) == [before]
        assert search(driver, TaskFilter(task_name="add")).tasks == [before]
        driver.wait(0.9)
    driver.wait(1)
    (after,) = find(tasks, all_uuids(tasks))
    assert [attempt.state for attempt in after.attempts] == [before.state, "FAILURE"]
    assert (after.root_id, after.first_sent, len(tasks.kept)) == ("r", before.first_sent, 0)


def test_a_search_takes_the_lock_for_a_thousand_tasks_at_a_time():
    driver = driver_with([("add", "q", "w@h", None, 0, 1)] * 2_500)
    assert len([*Search(driver.cluster.tasks, TaskFilter(), 10).steps()]) == 3


@pytest.mark.parametrize("limit", ["MAX_FILED", "MAX_SEARCHED"])
def test_a_search_over_too_many_tasks_says_so(monkeypatch, limit):
    monkeypatch.setattr(task_search, limit, 5)
    driver = driver_with([("add", "q", "w@h", None, number, 0) for number in range(9)])
    page = search(driver, TaskFilter())
    assert not page.is_complete
    assert [info.uuid for info in page.tasks] == ["008", "007", "006", "005", "004"]


@pytest.mark.parametrize("states", [frozenset({"SUCCESS"}), frozenset(OPEN_STATE_NAMES)])
def test_a_task_that_was_forgotten_while_open_is_found_by_its_last_state(states):
    driver = driver_with_details(Limits(task_ttl=10))
    driver.apply(sent(), received(), started())
    driver.wait(20)
    found = [info.uuid for info in search(driver, TaskFilter(states=states)).tasks]
    assert found == (["u1"] if "STARTED" in states else [])
