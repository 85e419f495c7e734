"""Finds single tasks: those that the cluster has, and those of the history file."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import islice
from typing import TypeVar

from msgspec.structs import replace

from celery_exporter.core import task_search
from celery_exporter.core.task_info import OPEN_STATE_NAMES, TaskInfo
from celery_exporter.core.task_merge import merged
from celery_exporter.core.task_search import Cursor, Found, Page, Search, TaskFilter, is_wanted
from celery_exporter.history.file import HistoryFileError
from celery_exporter.history.store import HistoryStore
from celery_exporter.monitor.cluster_state import ClusterState

#: Characters of a UUID: no id of another length is looked for by its beginning.
WHOLE_LENGTH = 36
#: Tasks with ids that begin alike that are returned at most: a person takes more letters then.
MAX_ALIKE = 20
#: Tasks of one workflow that are returned at most.
MAX_RELATED = 500

_T = TypeVar("_T")
_NO_PAGE = Page([], None, is_complete=True)


class TaskFinder:
    """Finds tasks in the cluster, and in the history file if there is one.

    `started` (epoch seconds) is when this exporter started, None if no earlier one wrote the file. Without
    `arguments`, those that an earlier one wrote are not shown.
    """

    def __init__(
        self,
        state: ClusterState,
        history: HistoryStore | None,
        *,
        started: float | None = None,
        arguments: bool = False,
    ) -> None:
        self._state = state
        self._history = history
        self._started = started
        self._arguments = arguments

    def find(self, prefix: str, limit: int = MAX_ALIKE) -> Found:
        """Return up to so many tasks whose id begins with a text; with a whole id, that one."""
        exact = self._find([prefix])
        live = exact or (self._find(self._uuids(prefix, limit)) if len(prefix) < WHOLE_LENGTH else [])
        none: list[TaskInfo] = []
        stored, problem = self._ask(lambda history: history.find(prefix, limit), none)
        found = self._shown(self._together(live, stored))
        return Found(([task for task in found if task.uuid == prefix] or found)[:limit], problem)

    def _uuids(self, prefix: str, limit: int) -> list[str]:
        with self._state.lock:
            uuids = task_search.all_uuids(self._state.cluster.tasks)
        return [*islice((uuid for uuid in uuids if uuid.startswith(prefix)), limit)]

    def _find(self, uuids: Iterable[str]) -> list[TaskInfo]:
        with self._state.lock:
            return task_search.find(self._state.cluster.tasks, uuids)

    def search(self, wanted: TaskFilter, limit: int, before: Cursor | None = None) -> Page:
        """Return the newest tasks after a place, `limit` at most; a page may have fewer than the rest.

        A task of both has its state and its place in the list from the cluster, unless the file has its end.
        """
        search = Search(self._state.cluster.tasks, wanted, limit, before)
        self._state.run(search.steps())
        live = search.page()
        stored, problem = self._ask(lambda history: history.search(wanted, limit, before), _NO_PAGE)
        more: list[TaskInfo] = []
        if not problem:
            missing = {task.uuid for task in live.tasks} - {task.uuid for task in stored.tasks}
            more, problem = self._ask(lambda history: history.tasks([*missing]), more)
        both = self._both(live.tasks, [*stored.tasks, *more], wanted)
        end = max((page.next for page in (live, stored) if page.next is not None), default=None)
        tasks = [
            task
            for task in sorted(both, key=_place, reverse=True)
            if (end is None or _place(task) >= end) and (before is None or _place(task) < before)
        ]
        if len(tasks) > limit:
            end = _place(tasks[limit - 1])
        shown = self._shown(tasks[:limit])
        return Page(shown, end, live.is_complete and stored.is_complete, problem)

    def _shown(self, tasks: list[TaskInfo]) -> list[TaskInfo]:
        if self._arguments:
            return tasks
        return [replace(task, args=None, kwargs=None, result=None) for task in tasks]

    def _both(
        self, live: Sequence[TaskInfo], stored: Sequence[TaskInfo], wanted: TaskFilter
    ) -> list[TaskInfo]:
        """Return the tasks of two sources that are like the filter says, with all that is known of each.

        After a restart only the file knows where a task comes from, so it may find tasks of the cluster.
        """
        states = {task.uuid: task.state for task in live}
        current = self._find([task.uuid for task in stored if task.uuid not in states])
        both = self._together([*live, *current], stored)
        return [task for task in both if states.get(task.uuid) == task.state or is_wanted(task, wanted)]

    def workflow(self, task: TaskInfo) -> Page:
        """Return the tasks of the workflow of a task, itself included: all with its root, and that one.

        If there are too many, they are the newest, the root, and the task.
        """
        root = task.root_id or task.uuid
        page = self.search(TaskFilter(root_id=root), MAX_RELATED)
        roots = [] if any(member.uuid == root for member in page.tasks) else self.find(root, 1).tasks
        is_complete = page.is_complete and page.next is None
        return replace(page, tasks=self._together(page.tasks, [*roots, task]), is_complete=is_complete)

    def _together(self, newer: Sequence[TaskInfo], older: Sequence[TaskInfo]) -> list[TaskInfo]:
        """Return tasks of two sources, each once."""
        known = {task.uuid: task for task in older}
        both = [merged(task, known.pop(task.uuid)) if task.uuid in known else task for task in newer]
        with self._state.lock:
            unseen = {uuid for uuid in known if not task_search.has(self._state.cluster.tasks, uuid)}
        return [*both, *(self._marked(task) if task.uuid in unseen else task for task in known.values())]

    def _marked(self, task: TaskInfo) -> TaskInfo:
        """Return a task that the cluster does not have, marked if it is open: it was so before a restart."""
        is_open = task.state in OPEN_STATE_NAMES and task.reason is None
        return replace(task, unseen_since=self._started) if is_open else task

    def _ask(self, ask: Callable[[HistoryStore], _T], otherwise: _T) -> tuple[_T, str]:
        """Return what the history file answers, or why it does not."""
        if self._history is None:
            return otherwise, ""
        try:
            return ask(self._history), ""
        except HistoryFileError as error:
            return otherwise, str(error)


def _place(task: TaskInfo) -> Cursor:
    return Cursor(task.since, task.uuid)
