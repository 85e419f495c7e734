"""Searching the tasks of a cluster, newest first, by what a person knows of them.

The newest is the task that entered its state last, by the clock of its sender. A page ends with a `Cursor`,
where the next one continues: a task that changes between two pages moves to the front and is not seen twice.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from heapq import nlargest
from itertools import islice

from msgspec import Struct

from celery_exporter.core.task_details import TaskDetails
from celery_exporter.core.task_info import (
    OPEN_STATE_NAMES,
    TaskInfo,
    is_shown,
    runtime_of,
    state_name,
    task_info,
)
from celery_exporter.core.tasks import Task, TaskTable
from celery_exporter.core.types import EXCLUDED, LabelSet

#: Tasks of one name, queue and state that are searched, the newest of them, and of all.
MAX_FILED, MAX_SEARCHED = 50_000, 200_000
#: Tasks that are searched under one hold of the lock: a millisecond.
CHUNK_TASKS = 1_000


class TaskFilter(Struct, frozen=True):
    """What tasks have to be like. None: anything. Times are epoch seconds of `TaskInfo.since`."""

    task_name: str | None = None
    queue_name: str | None = None
    states: frozenset[str] | None = None  # of `task_info.STATE_NAMES`
    worker: str | None = None
    exception: str | None = None
    root_id: str | None = None
    parent_id: str | None = None
    since: float | None = None
    until: float | None = None
    min_runtime: float | None = None


class Cursor(Struct, frozen=True, order=True):
    """The place of a task in a list."""

    since: float
    uuid: str


class Page(Struct, frozen=True):
    """The tasks found, newest first, and where the next page begins; None: this is the last one.

    `is_complete` is false if there are more tasks than were searched. `problem` says why a part of them was
    not searched at all; empty if all were.
    """

    tasks: list[TaskInfo]
    next: Cursor | None
    is_complete: bool
    problem: str = ""


class Found(Struct, frozen=True):
    """Tasks that were looked for by id; `problem` is that of a `Page`."""

    tasks: list[TaskInfo]
    problem: str = ""


class Search:
    """Searches the tasks of a cluster. Run `steps`, each under the lock of the cluster; then ask for `page`.

    `limit` is the number of tasks on a page. With `before`, the page begins after that place.
    """

    def __init__(
        self, tasks: TaskTable, filter_: TaskFilter, limit: int, before: Cursor | None = None
    ) -> None:
        self._tasks = tasks
        self._filter = filter_
        self._limit = limit
        self._before = before
        self._is_complete = True
        self._found: list[tuple[Cursor, Task]] = []
        self._page: list[TaskInfo] = []

    def steps(self) -> Iterator[None]:
        """Search `CHUNK_TASKS` tasks at a time."""
        left = MAX_SEARCHED
        for tasks in self._filed():
            newest = [*islice(reversed(tasks.values()), min(left, MAX_FILED))]
            self._is_complete = self._is_complete and len(newest) == len(tasks)
            left -= len(newest)
            for start in range(0, len(newest), CHUNK_TASKS):
                self._add(newest[start : start + CHUNK_TASKS])
                yield
        self._page = [task_info(task) for _, task in self._found]

    def page(self) -> Page:
        """Return what was found."""
        tasks = self._page[: self._limit]
        last = tasks[-1] if len(self._page) > self._limit else None
        return Page(tasks, Cursor(last.since, last.uuid) if last else None, self._is_complete)

    def _filed(self) -> list[dict[str, Task]]:
        """Return the tasks that may match, by the name, queue and state that they are filed under."""
        states, table = self._filter.states, self._tasks
        filed = [
            bucket.tasks
            for bucket in table.buckets()
            if bucket.tasks
            and (states is None or (bucket.state is not None and bucket.state.name in states))
            and _is_label_set_wanted(bucket.group.label_set, self._filter)
        ]
        if states is None or not states.issubset(OPEN_STATE_NAMES):
            filed += [table.finished, table.ended_silently]
        return [*filed, table.kept]

    def _add(self, tasks: Iterable[Task]) -> None:
        """Keep the newest of those found so far and of these."""
        found = (
            (place, task)
            for place, task in ((Cursor(task.since, task.uuid), task) for task in tasks)
            if matches(task, self._filter) and (self._before is None or place < self._before)
        )
        self._found = nlargest(self._limit + 1, [*self._found, *found], key=_place)


def find(tasks: TaskTable, uuids: Iterable[str]) -> list[TaskInfo]:
    """Return the tasks with these ids, as far as the cluster has them."""
    found = (_shown(tasks.get(uuid)) or _shown(tasks.kept.get(uuid)) for uuid in uuids)
    return [task_info(task) for task in found if task is not None]


def _shown(task: Task | None) -> Task | None:
    return None if task is None or not is_shown(task) else task


def has(tasks: TaskTable, uuid: str) -> bool:
    """Return whether the cluster has a task, also if it is not identified yet."""
    return tasks.get(uuid) is not None or uuid in tasks.kept


def all_uuids(tasks: TaskTable) -> list[str]:
    """Return the ids of all tasks, also of those that are kept after their end."""
    return [*tasks.uuids(), *(uuid for uuid in tasks.kept if tasks.get(uuid) is None)]


def matches(task: Task, filter_: TaskFilter) -> bool:
    """Return whether a task is like the filter says."""
    return (
        _is_label_set_wanted(task.bucket.group.label_set, filter_)
        and (filter_.states is None or state_name(task) in filter_.states)
        and (filter_.since is None or task.since >= filter_.since)
        and (filter_.until is None or task.since <= filter_.until)
        and (filter_.worker is None or filter_.worker == (task.current_worker() or task.ended_by()))
        and _are_details_wanted(task.details, filter_)
    )


def is_wanted(info: TaskInfo, filter_: TaskFilter) -> bool:
    """Return whether a description is like the filter says."""
    equal = ("task_name", "queue_name", "worker", "exception", "root_id", "parent_id")
    runtime = info.runtime_seconds
    return (
        all(getattr(filter_, name) in {None, getattr(info, name)} for name in equal)
        and (filter_.states is None or info.state in filter_.states)
        and (filter_.since is None or info.since >= filter_.since)
        and (filter_.until is None or info.since <= filter_.until)
        and (filter_.min_runtime is None or (runtime is not None and runtime >= filter_.min_runtime))
    )


def _are_details_wanted(details: TaskDetails | None, filter_: TaskFilter) -> bool:
    wanted = (filter_.exception, filter_.root_id, filter_.parent_id, filter_.min_runtime)
    if wanted == (None, None, None, None):
        return True
    if details is None:
        return False
    newest = details.attempts()[-1]
    runtime = runtime_of(newest)
    return (
        filter_.exception in {None, newest.exception}
        and filter_.root_id in {None, details.root}
        and filter_.parent_id in {None, details.parent}
        and (filter_.min_runtime is None or (runtime is not None and runtime >= filter_.min_runtime))
    )


def _is_label_set_wanted(label_set: LabelSet, filter_: TaskFilter) -> bool:
    return (
        label_set != EXCLUDED
        and filter_.task_name in {None, label_set.task_name}
        and filter_.queue_name in {None, label_set.queue_name}
    )


def _place(found: tuple[Cursor, Task]) -> Cursor:
    return found[0]
