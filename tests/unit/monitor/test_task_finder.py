"""Tasks of the cluster and of a history file together: each once, in one order, with all that is known."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from celery_exporter.config.loader import load
from celery_exporter.core.task_info import STATE_NAMES, TaskInfo
from celery_exporter.core.task_search import TaskFilter, is_wanted
from celery_exporter.history.store import HistoryStore
from celery_exporter.monitor.cluster_state import ClusterState
from celery_exporter.monitor.task_finder import TaskFinder
from unit.core.cluster_driver import T0, ClusterDriver, failed, received, retried, sent, started, succeeded
from unit.core.test_task_info import driver_with_details
from unit.history.task_infos import plain

CONFIG = load({"broker_url": "redis://"}, {}).monitor
LIMIT = 1_000
#: Ends with runtimes that the file has exactly.
ENDINGS = (partial(succeeded, runtime=0.125), failed)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[HistoryStore]:
    opened = HistoryStore(tmp_path / "history")
    opened.open()
    yield opened
    opened.close()


def finder(driver: ClusterDriver, store: HistoryStore | None, started: float | None = None) -> TaskFinder:
    return TaskFinder(ClusterState(driver.cluster, CONFIG), store, started=started)


def all_pages(tasks: TaskFinder, wanted: TaskFilter, limit: int) -> list[TaskInfo]:
    """Return the tasks of all pages; no page has more than `limit`."""
    found, before = [], None
    while True:
        page = tasks.search(wanted, limit, before)
        assert len(page.tasks) <= limit
        assert (page.is_complete, page.problem) == (True, "")
        found += page.tasks
        if page.next is None:
            return found
        assert before is None or page.next < before
        before = page.next


def in_order(tasks: list[TaskInfo]) -> list[TaskInfo]:
    return sorted(tasks, key=lambda task: (task.since, task.uuid), reverse=True)


def life(uuid: str, name: str, root: str | None, at: int, ending: Callable[..., dict]) -> list[dict]:
    """Return the events of a task."""
    ids = {"name": name, "root_id": root}
    return [
        sent(uuid, at, queue="q", **ids),
        received(uuid, at + 1, **ids),
        started(uuid, at + 2),
        ending(uuid, at + 3),
    ]


class Split(NamedTuple):
    """The first events of a task that the file knows, and those that the cluster knows."""

    in_file: list[dict]
    in_cluster: list[dict]


@st.composite
def splits(draw: st.DrawFn) -> list[Split]:
    tasks = []
    for number in range(draw(st.integers(0, 12))):
        name, root = draw(st.sampled_from(["add", "mul"])), draw(st.sampled_from([None, "r1", "r2"]))
        at, ending = draw(st.integers(0, 6)), draw(st.sampled_from(ENDINGS))
        events = life(f"{number:03}", name, root, at, ending)
        known = draw(st.integers(1, len(events)))  # to the cluster, which is never behind the file
        stored = draw(st.integers(0, known))
        is_in_cluster = stored == 0 or draw(st.booleans())
        tasks.append(Split(events[:stored], events[:known] if is_in_cluster else []))
    return tasks


filters = st.builds(
    TaskFilter,
    task_name=st.sampled_from([None, "add"]),
    states=st.none() | st.frozensets(st.sampled_from(STATE_NAMES), min_size=1),
    worker=st.sampled_from([None, "w@h"]),
    exception=st.sampled_from([None, "ValueError"]),
    root_id=st.sampled_from([None, "r1"]),
    since=st.sampled_from([None, T0 + 3]),
    until=st.sampled_from([None, T0 + 6]),
    min_runtime=st.sampled_from([None, 0.5]),
)


@settings(max_examples=150)
@given(splits(), filters, st.integers(1, 5))
def test_pages_are_those_of_one_list_however_tasks_are_split_between_cluster_and_file(tasks, wanted, limit):
    before, cluster, union = (driver_with_details() for _ in range(3))
    for task in tasks:
        before.apply(*task.in_file)
        cluster.apply(*task.in_cluster)
        union.apply(*(task.in_cluster or task.in_file))
    with TemporaryDirectory() as folder:
        store = HistoryStore(Path(folder) / "history")
        store.open()
        store.write(all_pages(finder(before, None), TaskFilter(), LIMIT))
        both = finder(cluster, store)
        expected = all_pages(finder(union, None), TaskFilter(), LIMIT)
        assert all_pages(both, TaskFilter(), limit) == expected
        assert all_pages(both, wanted, limit) == [task for task in expected if is_wanted(task, wanted)]
        for task in expected:
            assert both.find(task.uuid).tasks == [task]
        store.close()


def restarted(store: HistoryStore) -> ClusterDriver:
    """Return a cluster after a restart: it has a task of a workflow that is in the file, without details."""
    former = driver_with_details()
    former.apply(*life("r1", "add", "r1", 0, succeeded), *life("u1", "add", "r1", 1, retried)[:-1])
    former.apply(retried("u1", at=4), sent("u1", at=5, retries=1, root_id="r1"))
    former.wait(2.5)
    store.write(all_pages(finder(former, None), TaskFilter(), LIMIT))
    driver = driver_with_details()
    driver.apply(sent("u1"), received("u1"), started("u1"), retried("u1", at=4))
    driver.cluster.tasks.get("u1").details = None
    return driver


def test_a_task_in_both_is_there_once_with_the_state_of_the_cluster(store):
    driver = restarted(store)
    driver.apply(received("u1", at=9, retries=1, name="add", root_id=None), started("u1", at=10))
    driver.wait(2.5)
    tasks = finder(driver, store)
    listed = tasks.search(TaskFilter(), LIMIT).tasks
    assert [(task.uuid, task.state, task.since - T0) for task in listed] == [
        ("u1", "STARTED", 10),
        ("r1", "SUCCESS", 3),
    ]
    for task in (listed[0], *tasks.find("u1").tasks):
        assert (task.root_id, task.first_sent, task.client) == ("r1", T0 + 1, "client@h")
        assert [(each.retries, each.state) for each in task.attempts] == [(0, "RETRY"), (1, "STARTED")]
        assert task.attempts[1].sent == T0 + 5


def test_after_a_restart_the_file_knows_the_workflow_of_an_open_task(store):
    tasks = finder(restarted(store), store)
    (task,) = tasks.find("u1").tasks
    assert {member.uuid: member.state for member in tasks.workflow(task).tasks} == {
        "r1": "SUCCESS",
        "u1": "RETRY",
    }
    members = tasks.search(TaskFilter(root_id="r1"), LIMIT).tasks
    assert [(member.uuid, member.state) for member in members] == [("u1", "RETRY"), ("r1", "SUCCESS")]
    assert tasks.search(TaskFilter(root_id="r1", states=frozenset({"PENDING"})), LIMIT).tasks == []


def test_a_task_that_ended_without_an_event_after_a_restart_is_lost_in_the_file_too(store):
    driver = restarted(store)
    driver.cluster.note_changes()
    driver.cluster.end_silently(driver.cluster.tasks.get("u1"), "not_running", driver.timestamp())
    changed, _ = driver.cluster.take_changed(10)
    store.write(changed)
    (task,) = store.find("u1", 1)
    assert (task.state, task.reason) == ("LOST", "not_running")
    assert [(each.retries, each.state, each.reason) for each in task.attempts] == [
        (0, "RETRY", None),
        (1, "LOST", "not_running"),
    ]
    assert finder(driver, store).find("u1").tasks == [task]


@pytest.mark.parametrize("is_lost", [False, True])
def test_a_task_that_ended_after_the_state_was_saved_last_is_over(store, is_lost):
    """The state file has it as it was up to a second before a kill."""
    former, driver = driver_with_details(), driver_with_details()
    events = life("u1", "add", "u1", 0, partial(succeeded, runtime=0.125))
    former.apply(*events)
    store.write(all_pages(finder(former, None), TaskFilter(), LIMIT))
    driver.apply(*events[:-1])
    task = driver.cluster.tasks.get("u1")
    task.details = None
    if is_lost:
        driver.cluster.end_silently(task, "not_running", driver.timestamp())
    tasks, expected = finder(driver, store), store.find("u1", 1)
    assert expected[0].state == "SUCCESS"
    assert tasks.find("u1").tasks == all_pages(tasks, TaskFilter(), 1) == expected
    assert all_pages(tasks, TaskFilter(states=frozenset({"SUCCESS"})), 1) == expected
    assert all_pages(tasks, TaskFilter(states=frozenset({"LOST", "STARTED"})), 1) == []


def test_a_task_that_was_open_before_a_restart_is_unseen_until_an_event_of_it_comes(store):
    store.write(
        [plain("open", state="STARTED"), plain("over"), plain("left", state="STARTED", reason="forgotten")]
    )
    driver, start = driver_with_details(), T0 + 500
    tasks = finder(driver, store, start)

    def unseen() -> dict[str, float | None]:
        found = [*tasks.find("open").tasks, *tasks.search(TaskFilter(), LIMIT).tasks]
        found += tasks.workflow(tasks.find("open").tasks[0]).tasks
        return {task.uuid: task.unseen_since for task in found}

    assert unseen() == {"open": start, "over": None, "left": None}
    driver.apply(succeeded("open", at=1_000))
    assert tasks.find("open").tasks[0].state == "STARTED", "until the reorder window has passed"
    assert unseen() == {"open": None, "over": None, "left": None}
    driver.wait(2.5)
    assert tasks.find("open").tasks[0].state == "SUCCESS"
    assert unseen() == {"open": None, "over": None, "left": None}


@pytest.mark.parametrize("prefix", ["0", "01", "012"])
def test_an_id_is_found_by_its_beginning_in_both(store, prefix):
    driver = driver_with_details()
    driver.apply(*life("0123", "add", None, 0, succeeded), *life("1", "add", None, 0, succeeded))
    store.write([plain("0124"), plain("2")])
    assert {task.uuid for task in finder(driver, store).find(prefix).tasks} == {"0123", "0124"}
    assert len(finder(driver, store).find(prefix, 1).tasks) == 1


def test_a_whole_id_is_found_although_it_is_the_beginning_of_others(store):
    driver = driver_with_details()
    driver.apply(*life("01", "add", None, 0, succeeded))
    store.write([plain("012"), plain("0")])
    assert [task.uuid for task in finder(driver, store).find("01").tasks] == ["01"]
    assert [task.uuid for task in finder(driver, store).find("0").tasks] == ["0"]


def test_the_problem_of_the_file_is_passed_on_with_what_the_cluster_has(store):
    driver = driver_with_details()
    driver.apply(*life("u1", "add", "u1", 0, succeeded))
    store.close("its disk is full")
    tasks = finder(driver, store)
    problem = "the history file cannot be read: its disk is full"
    found, page = tasks.find("u1"), tasks.search(TaskFilter(), LIMIT)
    assert ([task.uuid for task in found.tasks], found.problem) == (["u1"], problem)
    assert ([task.uuid for task in page.tasks], page.problem) == (["u1"], problem)
    assert [task.uuid for task in tasks.workflow(found.tasks[0]).tasks] == ["u1"]
    assert (tasks.find("u2").tasks, tasks.find("u2").problem) == ([], problem)


def test_without_a_file_there_is_no_problem():
    driver = driver_with_details()
    driver.apply(*life("u1", "add", None, 0, succeeded))
    page = finder(driver, None).search(TaskFilter(), LIMIT)
    assert ([task.uuid for task in page.tasks], page.next, page.problem) == (["u1"], None, "")


@pytest.mark.parametrize("arguments", [False, True])
def test_arguments_of_an_earlier_exporter_are_shown_only_if_arguments_are_recorded(tmp_path, arguments):
    store = HistoryStore(tmp_path / "history")
    store.open()
    store.write([TaskInfo("u1", "add", "q", "SUCCESS", T0, args="('hunter2',)", kwargs="{}", result="1")])
    finder = TaskFinder(ClusterState(driver_with_details().cluster, CONFIG), store, arguments=arguments)
    found = [*finder.find("u1").tasks, *finder.search(TaskFilter(), 10).tasks]
    expected = ("('hunter2',)", "{}", "1") if arguments else (None, None, None)
    assert [(task.args, task.kwargs, task.result) for task in found] == [expected] * 2
    store.close()
