"""Descriptions of tasks for tests: any that can be, and plain ones."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st
from msgspec.structs import replace

from celery_exporter.core.task_info import STATE_NAMES, AttemptInfo, TaskInfo, completed
from celery_exporter.history.schema import UNITS

NOW = 1_790_000_000.0

#: Few, so that searches find several tasks: ids as Celery writes them, and those of applications.
IDS = (
    "01234567-89ab-cdef-0123-456789abcdef",
    "01234567-89ab-cdef-0123-456789abcdee",
    "01234567-0000-4000-8000-000000000000",
    "ffffffff-ffff-ffff-ffff-ffffffffffff",
    "00000000-0000-0000-0000-000000000000",
    "01234567-89AB-cdef-0123-456789abcdef",
    "0123456789abcdef0123456789abcdef",
    "import-2026-09-21",
    "import-2026-09-22",
    "01234567-89ab-cdef-0123-456789abcdef:again",
    "sixteen letters!",
    "é\0ü",
    "\U0010ffff",
)
TEXTS = ("a", "b", "celery", "naïve", "with\0null", "'\"")


def times(first: float = 1_104_537_600.0, last: float = 2**31 - 1) -> st.SearchStrategy[float]:
    """Return times of events; a double has more digits before 2004."""
    return st.integers(int(first) * UNITS, int(last) * UNITS).map(lambda number: number / UNITS)


durations = st.integers(0, 10**15).map(lambda number: number / 1_000_000)


def texts() -> st.SearchStrategy[str]:
    any_text = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=255)
    return st.sampled_from(TEXTS) | any_text


def ids() -> st.SearchStrategy[str]:
    return st.sampled_from(IDS) | st.uuids().map(str) | texts()


@st.composite
def attempts(draw: st.DrawFn) -> AttemptInfo:
    time = st.none() | times()
    return completed(
        AttemptInfo(
            state=draw(st.sampled_from(STATE_NAMES)),
            retries=draw(st.none() | st.integers(0, 2**31 - 1)),
            generation=draw(st.integers(0, 2**31)),
            queue_name=draw(st.none() | texts()),
            worker=draw(st.none() | texts()),
            sent=draw(time),
            eta=draw(time | times(-1e9, 1e11)),
            received=draw(time),
            started=draw(time),
            ended=draw(time),
            runtime_seconds=draw(st.none() | durations),
            exception=draw(st.none() | texts()),
            reason=draw(st.none() | texts()),
        )
    )


@st.composite
def infos(draw: st.DrawFn, uuids: st.SearchStrategy[str] | None = None) -> TaskInfo:
    optional, own = st.none() | texts(), draw(ids() if uuids is None else uuids)
    root = draw(st.none() | st.just(own) | ids())
    # Both come from one event: what is merged depends on it.
    client, first_sent = draw(st.just((None, None)) | st.tuples(texts(), times()))
    return TaskInfo(
        uuid=own,
        task_name=draw(optional),
        queue_name=draw(optional),
        state=draw(st.sampled_from(STATE_NAMES)),
        since=draw(times()),
        worker=draw(optional),
        client=client,
        root_id=root,
        parent_id=draw(st.just(root) | st.none() | ids()),
        first_sent=first_sent,
        runtime_seconds=draw(st.none() | durations),
        exception=draw(optional),
        reason=draw(optional),
        attempts=draw(st.lists(attempts(), max_size=4)),
        args=draw(optional),
        kwargs=draw(optional),
        result=draw(optional),
    )


def listed() -> st.SearchStrategy[TaskInfo]:
    """Return tasks that differ in what tasks are searched by, and often agree in it."""
    some = st.none() | st.sampled_from(TEXTS)
    own = st.sampled_from(IDS)
    return st.builds(
        TaskInfo,
        uuid=own,
        task_name=st.sampled_from(TEXTS),
        queue_name=some,
        state=st.sampled_from(STATE_NAMES),
        since=st.integers(0, 5).map(lambda number: NOW + number),
        worker=some,
        root_id=st.none() | own,
        parent_id=st.none() | own,
        runtime_seconds=st.none() | st.integers(0, 4).map(float),
        exception=some,
    )


def plain(uuid: str = IDS[0], since: float = NOW, **fields: Any) -> TaskInfo:
    """Return a task that succeeded."""
    attempt = completed(
        AttemptInfo("SUCCESS", 0, 0, "celery", "w@box", since - 3, None, since - 2, since - 1, since)
    )
    info = TaskInfo(
        uuid, "app.add", "celery", "SUCCESS", since, "w@box", "web@box", uuid, None, since - 3, 1.0
    )
    return replace(replace(info, attempts=[attempt]), **fields)
