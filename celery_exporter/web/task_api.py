"""/api/v1/tasks and /api/v1/tasks/<uuid>: single tasks as JSON. Read-only: no request changes a task."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol, TypeVar

from starlette.requests import Request
from starlette.responses import Response

from celery_exporter.core.task_info import TaskInfo
from celery_exporter.core.task_search import Cursor, Found, TaskFilter
from celery_exporter.core.task_search import Page as FoundPage
from celery_exporter.core.trace_ids import trace_id
from celery_exporter.status.explain import NEVER_SEEN
from celery_exporter.status.workflow import in_tree_order
from celery_exporter.web.answers import Page, plain_json
from celery_exporter.web.task_answers import Problem, TaskAnswer, TaskList
from celery_exporter.web.task_query import BadQueryError, cursor_text, parse_query

#: What a trace's id replaces in --trace-url.
TRACE_ID = "{trace_id}"
#: Why a standby may not have a task, or its newest state.
STANDBY = "this exporter is a standby: ask the active one, too, which has the tasks since it took over"

_T = TypeVar("_T")


class TaskFinder(Protocol):
    """What finds tasks; see `monitor.task_finder`. It may wait for a lock and for a disk."""

    def find(self, prefix: str) -> Found:
        """Return the tasks whose id begins with a text."""

    def search(self, wanted: TaskFilter, limit: int, before: Cursor | None = None) -> FoundPage:
        """Return the newest tasks after a place."""

    def workflow(self, task: TaskInfo) -> FoundPage:
        """Return the tasks of the workflow of a task, the newest ones if there are too many."""


class Tasks:
    """Looks tasks up in a thread of its own, one request at a time.

    `trace_url` is that of a trace, with {trace_id} in it; None: there are no traces. `is_standby` returns
    whether another exporter receives the events.
    """

    def __init__(
        self,
        finder: TaskFinder,
        trace_url: str | None = None,
        is_standby: Callable[[], bool] = lambda: False,
    ) -> None:
        self._finder = finder
        self._trace_url = trace_url
        self._is_standby = is_standby
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="tasks")

    async def list(self, parameters: dict[str, str]) -> TaskList:
        """Return the tasks that the parameters of a URL ask for. Raises BadQueryError."""
        query = parse_query(parameters, time.time())
        page = await self._run(lambda: self._finder.search(query.wanted, query.limit, query.before))
        cursor = cursor_text(page.next) if page.next else None
        return TaskList(page.tasks, cursor, page.is_complete, "; ".join(self._problems(page.problem)))

    async def one(self, prefix: str) -> TaskAnswer | Problem:
        """Return the task whose id is, or begins with, a text."""
        return await self._run(lambda: self._one(prefix))

    def _one(self, prefix: str) -> TaskAnswer | Problem:
        found = self._finder.find(prefix)
        tasks, problems = found.tasks, self._problems(found.problem)
        if not tasks:
            return Problem(f"no task with the id {prefix} is known", [*problems, *NEVER_SEEN])
        if len(tasks) > 1:
            return Problem(f"several tasks begin with {prefix}", problems, [task.uuid for task in tasks])
        related = self._finder.workflow(tasks[0])
        return TaskAnswer(
            tasks[0],
            in_tree_order(related.tasks),
            self._trace(tasks[0]),
            "; ".join(self._problems(found.problem or related.problem)),
            related.is_complete,
        )

    def _problems(self, problem: str) -> Sequence[str]:
        """Return what was not searched: what the active exporter has, and `problem` of the history file."""
        return [text for text in (STANDBY if self._is_standby() else "", problem) if text]

    def _trace(self, task: TaskInfo) -> str | None:
        if self._trace_url is None:
            return None
        return self._trace_url.replace(TRACE_ID, trace_id(task.root_id or task.uuid).hex())

    async def _run(self, function: Callable[[], _T]) -> _T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, function)


def pages(tasks: Tasks) -> dict[str, Page]:
    """Return the pages by path."""

    async def listed(request: Request) -> Response:
        try:
            return plain_json(await tasks.list(dict(request.query_params)))
        except BadQueryError as error:
            return plain_json(Problem(str(error)), 400)

    async def one(request: Request) -> Response:
        answer = await tasks.one(request.path_params["uuid"])
        if isinstance(answer, TaskAnswer):
            return plain_json(answer)
        return plain_json(answer, 300 if answer.tasks else 404)

    return {"/api/v1/tasks": listed, "/api/v1/tasks/{uuid:path}": one}
