"""Finds single tasks: those that the cluster has, and those of the history file."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import islice
from typing import Protocol

from celery_exporter.core import task_search
from celery_exporter.core.task_info import TaskInfo
from celery_exporter.core.task_merge import merged
from celery_exporter.core.task_search import Cursor, Page, Search, TaskFilter
from celery_exporter.monitor.cluster_state import ClusterState

#: Characters of a UUID: no id of another length is looked for by its beginning.
WHOLE_LENGTH = 36
#: Tasks with ids that begin alike that are returned at most: a person takes more letters then.
MAX_ALIKE = 20
#: Tasks of one workflow that are returned at most.
MAX_RELATED = 500


class History(Protocol):
    """What a history file answers; see `TaskFinder`, which has the same methods."""

    def find(self, prefix: str, limit: int) -> list[TaskInfo]:
        """Return up to so many tasks whose id begins with a text."""

    def search(self, wanted: TaskFilter, limit: int, before: Cursor | None) -> Page:
        """Return the newest tasks after a place."""


class TaskFinder:
    """Finds tasks in the cluster and in the history file, if there is one; its errors are passed on."""

    def __init__(self, state: ClusterState, history: Callable[[], History | None]) -> None:
        self._state = state
        self._history = history

    def find(self, prefix: str, limit: int = MAX_ALIKE) -> list[TaskInfo]:
        """Return up to so many tasks whose id begins with a text; with a whole id, that one."""
        exact = self._find([prefix])
        live = exact or (self._find(self._uuids(prefix, limit)) if len(prefix) < WHOLE_LENGTH else [])
        history = self._history()
        stored = [] if history is None else history.find(prefix, limit)
        found = _together(live, stored)
        return ([task for task in found if task.uuid == prefix] or found)[:limit]

    def _uuids(self, prefix: str, limit: int) -> list[str]:
        with self._state.lock:
            uuids = task_search.all_uuids(self._state.cluster.tasks)
        return [*islice((uuid for uuid in uuids if uuid.startswith(prefix)), limit)]

    def _find(self, uuids: Iterable[str]) -> list[TaskInfo]:
        with self._state.lock:
            return task_search.find(self._state.cluster.tasks, uuids)

    def search(self, wanted: TaskFilter, limit: int, before: Cursor | None = None) -> Page:
        """Return the newest tasks after a place, `limit` at most."""
        search = Search(self._state.cluster.tasks, wanted, limit, before)
        self._state.run(search.steps())
        live, history = search.page(), self._history()
        if history is None:
            return live
        stored = history.search(wanted, limit, before)
        current = {task.uuid for task in self._find([task.uuid for task in stored.tasks])}  # and may differ
        tasks = _together(live.tasks, [task for task in stored.tasks if task.uuid not in current])
        tasks.sort(key=_place, reverse=True)
        is_last = len(tasks) <= limit and live.next is None and stored.next is None
        return Page(tasks[:limit], None if is_last else Cursor(*_place(tasks[:limit][-1])), live.is_complete)

    def workflow(self, task: TaskInfo) -> Sequence[TaskInfo]:
        """Return the tasks of the workflow of a task, itself included: all with its root, and that one."""
        root = task.root_id or task.uuid
        members = self.search(TaskFilter(root_id=root), MAX_RELATED).tasks
        roots = [] if any(member.uuid == root for member in members) else self.find(root, 1)
        return _together(members, [*roots, task])


def _together(newer: Sequence[TaskInfo], older: Sequence[TaskInfo]) -> list[TaskInfo]:
    """Return tasks of two sources, each once."""
    known = {task.uuid: task for task in older}
    both = [merged(task, known.pop(task.uuid)) if task.uuid in known else task for task in newer]
    return [*both, *known.values()]


def _place(task: TaskInfo) -> tuple[float, str]:
    return task.since, task.uuid
