"""The routes of the pages of single tasks. They look at the memory now: a person asks."""

from __future__ import annotations

from collections.abc import Callable
from urllib.parse import parse_qsl

from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from celery_exporter.status.columns import TASK_LINK
from celery_exporter.status.details import common, summary
from celery_exporter.status.explanation import Explanation
from celery_exporter.status.model import Status
from celery_exporter.status.task_columns import FOUND
from celery_exporter.web.answers import SAFE, Page
from celery_exporter.web.explain_api import explained
from celery_exporter.web.pages import explanation, task, tasks
from celery_exporter.web.pages.cells import link
from celery_exporter.web.pages.query import Query, known_parameters
from celery_exporter.web.status_routes import Answers, html_response
from celery_exporter.web.task_answers import Problem, TaskAnswer
from celery_exporter.web.task_api import Tasks
from celery_exporter.web.task_query import PARAMETERS, BadQueryError

#: What a page shows with --no-history.
OFF = Problem("single tasks are not remembered", ("the exporter was started with --no-history",))


def pages(
    answers: Answers, finder: Tasks | None, explain: Callable[[str], Explanation] | None = None
) -> dict[str, Page]:
    """Return the pages by path.

    Without a finder, they say why there are no tasks. `explain` looks at the broker, only when a person asks.
    """

    async def search(request: Request) -> Response:
        status = (await answers.status()).value
        if finder is None:
            return _problem(OFF, status, answers.query(request, (), FOUND.name))
        data, code = await _found(finder, status, request)
        chosen = answers.query(request, (*PARAMETERS, tasks.ROWS), FOUND.name)
        text = await answers.worker.run(lambda: tasks.html(data, status, chosen))
        return html_response(text, code)

    async def one(request: Request) -> Response:
        status = (await answers.status()).value
        uuid: str = request.path_params["uuid"]
        chosen = answers.query(request, known_parameters(task.TABLES, task.MAIN), task.MAIN)
        answer = OFF if finder is None else await finder.one(uuid)
        section = await _explanation(
            explain, answer, uuid, is_asked=explanation.PARAMETER in request.query_params
        )
        if isinstance(answer, Problem):
            return _problem(answer, status, chosen, section)
        text = await answers.worker.run(lambda: task.html(_data(answer, status), chosen, section))
        return html_response(text)

    async def chosen_id(request: Request) -> Response:
        """Redirect from the form, which has the id in the query, to the page of the task."""
        uuid = dict(parse_qsl(request.url.query)).get("id", "").strip()
        return RedirectResponse(link(TASK_LINK, uuid) or "tasks", 303, SAFE)

    return {"/tasks": search, "/task": chosen_id, "/task/{uuid:path}": one}


async def _explanation(
    explain: Callable[[str], Explanation] | None, answer: TaskAnswer | Problem, uuid: str, *, is_asked: bool
) -> str:
    """Return the section about where a task is, as HTML; "" if several tasks are meant."""
    if explain is None or (isinstance(answer, Problem) and answer.tasks):
        return ""
    whole = answer.task.uuid if isinstance(answer, TaskAnswer) else uuid
    return explanation.html((await explained(explain, whole))[0] if is_asked else None)


async def _found(finder: Tasks, status: Status, request: Request) -> tuple[tasks.TasksData, int]:
    parameters = {name: text for name, text in request.query_params.items() if name in PARAMETERS}
    try:
        answer = await finder.list(parameters)
    except BadQueryError as error:
        return tasks.TasksData(**common(status), error=str(error)), 400
    found = tasks.TasksData(
        **common(status),
        tasks=answer.tasks,
        next=answer.next,
        is_complete=answer.is_complete,
        problem=answer.problem,
    )
    return found, 200


def _data(answer: TaskAnswer, status: Status) -> task.TaskData:
    return task.TaskData(
        **common(status),
        task=answer.task,
        workflow=answer.workflow,
        trace_url=answer.trace_url,
        problem=answer.problem,
        is_complete=answer.is_complete,
    )


def _problem(problem: Problem, status: Status, chosen: Query, section: str = "") -> Response:
    text = task.problem_html(problem, summary(status), chosen, section)
    return html_response(text, 300 if problem.tasks else 404)
