"""The history file: what was written is found, merged, searched and removed."""

from __future__ import annotations

import itertools
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from celery_exporter.core.task_info import STATE_NAMES, TaskInfo
from celery_exporter.core.task_merge import merged
from celery_exporter.core.task_search import Cursor, TaskFilter
from celery_exporter.history import store as store_module
from celery_exporter.history.store import MARKS, HistoryStore
from unit.history.task_infos import IDS, NOW, TEXTS, infos, listed, plain, texts

LIMIT = 100


@pytest.fixture
def store(tmp_path):
    opened = HistoryStore(tmp_path / "history")
    opened.open()
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def shared():
    """A store that many examples use, one after the other."""
    with TemporaryDirectory() as folder:
        opened = HistoryStore(Path(folder) / "history")
        opened.open()
        yield opened
        opened.close()


def emptied(store: HistoryStore) -> HistoryStore:
    while store.prune(NOW, 0, 0):
        pass
    store._next_mark = 0
    assert store.count == 0
    return store


def everything(store: HistoryStore) -> list[TaskInfo]:
    return store.search(TaskFilter(), 10_000).tasks


@given(infos())
@settings(max_examples=80)
def test_any_task_is_read_as_it_was_written(shared, info):
    store = emptied(shared)
    store.write([info])
    assert store.find(info.uuid, LIMIT) == [info]
    assert everything(store) == [info]


@given(st.lists(st.lists(infos(st.sampled_from(IDS)), max_size=5), max_size=4))
@settings(max_examples=40)
def test_a_later_description_is_merged_with_the_one_before(shared, batches):
    store, expected = emptied(shared), {}
    for batch in batches:
        store.write(batch)
        for info in batch:
            expected[info.uuid] = merged(info, expected[info.uuid]) if info.uuid in expected else info
    assert_alike({info.uuid: info for info in everything(store)}, expected)
    assert store.count == len(expected)


def assert_alike(found: dict[str, TaskInfo], expected: dict[str, TaskInfo]) -> None:
    """Compare tasks; a runtime that follows from times is stored to the microsecond."""
    assert {uuid: without_runtimes(info) for uuid, info in found.items()} == {
        uuid: without_runtimes(info) for uuid, info in expected.items()
    }
    for uuid, info in found.items():
        for one, other in zip(runtimes(info), runtimes(expected[uuid]), strict=True):
            assert (one is None) == (other is None)
            assert abs((one or 0.0) - (other or 0.0)) <= 1e-6


def without_runtimes(info: TaskInfo) -> TaskInfo:
    attempts = [replace(attempt, runtime_seconds=None) for attempt in info.attempts]
    return replace(info, runtime_seconds=None, attempts=attempts)


def runtimes(info: TaskInfo) -> list[float | None]:
    return [info.runtime_seconds, *(attempt.runtime_seconds for attempt in info.attempts)]


# -- searches ----------------------------------------------------------------------------------------------

filters = st.builds(
    TaskFilter,
    task_name=st.none() | st.sampled_from((*TEXTS, "unknown")),
    queue_name=st.none() | st.sampled_from((*TEXTS, "unknown")),
    states=st.none() | st.frozensets(st.sampled_from(STATE_NAMES)),
    worker=st.none() | st.sampled_from(TEXTS),
    exception=st.none() | st.sampled_from(TEXTS),
    root_id=st.none() | st.sampled_from(IDS),
    parent_id=st.none() | st.sampled_from(IDS),
    since=st.none() | st.integers(-1, 6).map(lambda number: NOW + number),
    until=st.none() | st.integers(-1, 6).map(lambda number: NOW + number),
    min_runtime=st.none() | st.integers(0, 4).map(float),
)


def is_like(info: TaskInfo, filter_: TaskFilter) -> bool:
    equal = ("task_name", "queue_name", "worker", "exception", "root_id", "parent_id")
    return (
        all(getattr(filter_, name) in {None, getattr(info, name)} for name in equal)
        and (filter_.states is None or info.state in filter_.states)
        and (filter_.since is None or info.since >= filter_.since)
        and (filter_.until is None or info.since <= filter_.until)
        and (
            filter_.min_runtime is None
            or (info.runtime_seconds is not None and info.runtime_seconds >= filter_.min_runtime)
        )
    )


@given(st.lists(listed(), max_size=12), filters, st.integers(1, 4))
@settings(max_examples=150)
def test_pages_together_are_what_a_plain_filter_finds(shared, tasks, filter_, limit):
    store = emptied(shared)
    store.write(tasks)
    written = everything(store)
    expected = [info for info in written if is_like(info, filter_)]
    expected.sort(key=lambda info: (info.since, info.uuid), reverse=True)
    found, before = [], None
    while True:
        page = store.search(filter_, limit, before)
        assert page.is_complete
        found += page.tasks
        if page.next is None:
            break
        before = page.next
        assert (before, len(page.tasks)) == (Cursor(found[-1].since, found[-1].uuid), limit)
    assert found == expected


@pytest.mark.parametrize(
    "filter_",
    [
        TaskFilter(root_id="r"),
        TaskFilter(parent_id="r"),
        TaskFilter(parent_id="p"),
        TaskFilter("a", root_id="r"),
    ],
)
def test_a_page_of_a_large_workflow_takes_no_more_steps_than_it_has_tasks(store, monkeypatch, filter_):
    parents = itertools.cycle(("r", "p"))
    store.write(
        [plain(f"u{n}", NOW + n, task_name="a", root_id="r", parent_id=next(parents)) for n in range(4_000)]
    )
    monkeypatch.setattr(store_module, "READ_SECONDS", -1.0)
    monkeypatch.setattr(store_module, "_STEPS", 20_000)
    for before in (None, Cursor(NOW + 2_000, "")):
        assert len(store.search(filter_, 20, before).tasks) == 20


@given(st.sets(st.sampled_from(IDS)), st.sampled_from(IDS), st.integers(0, 36))
@settings(max_examples=80)
def test_tasks_are_found_by_the_beginning_of_their_id(shared, uuids, uuid, length):
    store, prefix = emptied(shared), uuid[:length]
    store.write([plain(uuid) for uuid in uuids])
    expected = {prefix} if prefix in uuids else {uuid for uuid in uuids if uuid.startswith(prefix)}
    assert {info.uuid for info in store.find(prefix, LIMIT)} == expected
    assert len(store.find(prefix, 1)) == min(1, len(expected))


@given(st.uuids().map(str), st.integers(0, 36), texts())
@settings(max_examples=40)
def test_any_beginning_finds_its_id_and_no_other(shared, uuid, length, text):
    store = emptied(shared)
    store.write([plain(uuid)])
    assert [info.uuid for info in store.find(uuid[:length], LIMIT)] == [uuid]
    assert [info.uuid for info in store.find(text, LIMIT)] == ([uuid] if uuid.startswith(text) else [])


# -- removal -----------------------------------------------------------------------------------------------


YEAR = 365 * 86_400.0


def uuids(store: HistoryStore) -> list[str]:
    return sorted(info.uuid for info in everything(store))


def test_tasks_are_removed_by_the_clock_of_the_exporter(store):
    """That of a sender may be a year ahead, or behind: what it sent stays as long as other tasks."""
    store.write([plain("right", NOW), plain("ahead", NOW + YEAR), plain("behind", NOW - YEAR)])
    assert store.prune(NOW, 100.0, 1_000) == 0
    store.write([plain("later", NOW - YEAR)])
    assert store.prune(NOW + 99, 100.0, 1_000) == 0
    assert store.prune(NOW + 101, 100.0, 1_000) == 3
    assert (uuids(store), store.count) == (["later"], 1)
    assert store.prune(NOW + 199 + 100 / MARKS, 100.0, 1_000) == 1
    assert store.count == 0


def test_a_task_stays_for_the_retention_after_its_last_change(tmp_path):
    """It gets a new id then, also after a restart; it is there once, with all that is known of it."""
    store = HistoryStore(tmp_path / "history")
    store.open()
    store.write([plain("old", state="STARTED"), plain("changed", state="STARTED", client="client")])
    store.prune(NOW, 100.0, 1_000)
    store.close()
    store.open()
    store.write([plain("changed", state="SUCCESS", client=None, first_sent=None), plain("new")])
    assert (uuids(store), store.count) == (["changed", "new", "old"], 3)
    store.prune(NOW + 60, 100.0, 1_000)
    assert store.prune(NOW + 101, 100.0, 1_000) == 1
    assert (uuids(store), store.count) == (["changed", "new"], 2)
    (changed,) = store.find("changed", 1)
    assert (changed.state, changed.client) == ("SUCCESS", "client")
    assert store.prune(NOW + 161, 100.0, 1_000) == 2
    store.close()


def test_the_tasks_that_changed_first_are_removed_beyond_the_maximum(store):
    store.write([plain(f"task-{number}", NOW - number) for number in range(10)])
    store.prune(NOW, 1e9, 10)
    store.write([plain("task-0")])
    assert store.prune(NOW, 1e9, 4) == 6
    assert store.prune(NOW, 1e9, 4) == 0
    assert (uuids(store), store.count) == (["task-0", "task-7", "task-8", "task-9"], 4)


def test_a_clock_that_goes_back_removes_nothing_too_early(store):
    for number, now in enumerate((NOW, NOW + 90, 0.0, NOW + 95)):
        store.write([plain(f"task-{number}")])
        assert store.prune(now, 100.0, 1_000) == 0
    assert store.prune(NOW + 101, 100.0, 1_000) == 1
    assert store.prune(NOW + 191, 100.0, 1_000) == 1
    assert store.prune(NOW + 196, 100.0, 1_000) == 2


def test_ids_may_begin_with_1_again_after_all_tasks_were_removed(store):
    store.write([plain("first"), plain("second")])
    store.prune(NOW, 100.0, 1_000)
    assert store.prune(NOW + 101, 100.0, 1_000) == 2
    store.write([plain("third")])
    assert store.prune(NOW + 150, 100.0, 1_000) == 0
    assert store.prune(NOW + 200, 100.0, 1_000) == 0
    assert store.prune(NOW + 251, 100.0, 1_000) == 1


@given(st.lists(infos(), min_size=1, max_size=8), st.lists(infos(), max_size=8))
@settings(max_examples=40)
def test_a_text_stays_while_a_task_refers_to_it(shared, tasks, later):
    store = emptied(shared)
    store.write(tasks)
    store.prune(NOW, 10.0, 100)
    store.write(later)
    store._next_text_prune = 0.0
    store.prune(NOW + 11, 10.0, 100)
    written: dict[str, TaskInfo] = {}
    for info in (*tasks, *later):
        written[info.uuid] = merged(info, written[info.uuid]) if info.uuid in written else info
    kept = {info.uuid: written[info.uuid] for info in later}
    assert_alike({info.uuid: info for info in everything(store)}, kept)


def test_texts_that_no_task_has_are_removed(store):
    store.write([plain("old", NOW, client="client-of-old")])
    store.prune(NOW, 60.0, 100)
    store.write([plain("new", NOW + 10_000)])
    assert store.prune(NOW + 10_000, 60.0, 100) == 1
    left = {text for (text,) in store._writer.execute("SELECT text FROM text")}
    assert left == {"app.add", "celery", "w@box", "web@box"}
    store.write([plain("newer", NOW + 10_001, client="client-of-old")])
    assert store.find("newer", 1)[0].client == "client-of-old"
