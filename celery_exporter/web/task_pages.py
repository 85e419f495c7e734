"""The routes of the pages of single tasks. They look at the memory now: a person asks."""

from __future__ import annotations

from urllib.parse import parse_qsl

from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from celery_exporter.status.details import common, summary
from celery_exporter.status.model import Status
from celery_exporter.status.task_columns import FOUND
from celery_exporter.web.answers import SAFE, Page
from celery_exporter.web.pages import task, tasks
from celery_exporter.web.pages.cells import link
from celery_exporter.web.pages.query import Query, known_parameters
from celery_exporter.web.status_routes import Answers, html_response
from celery_exporter.web.task_answers import Problem, TaskAnswer
from celery_exporter.web.task_api import Tasks
from celery_exporter.web.task_query import PARAMETERS, BadQueryError

#: What a page shows with --no-history.
OFF = Problem("single tasks are not remembered", ("the exporter was started with --no-history",))


def pages(answers: Answers, finder: Tasks | None) -> dict[str, Page]:
    """Return the pages by path. Without a finder, they say why there are no tasks."""

    async def search(request: Request) -> Response:
        status = (await answers.status()).value
        if finder is None:
            return _problem(OFF, status, answers.query(request, (), FOUND.name))
        data, code = await _found(finder, status, request)
        chosen = answers.query(request, PARAMETERS, FOUND.name)
        text = await answers.worker.run(lambda: tasks.html(data, status, chosen))
        return html_response(text, code)

    async def one(request: Request) -> Response:
        status = (await answers.status()).value
        uuid: str = request.path_params["uuid"]
        chosen = answers.query(request, known_parameters(task.TABLES, task.MAIN), task.MAIN)
        answer = OFF if finder is None else await finder.one(uuid)
        if isinstance(answer, Problem):
            return _problem(answer, status, chosen)
        text = await answers.worker.run(lambda: task.html(_data(answer, status), chosen))
        return html_response(text)

    async def chosen_id(request: Request) -> Response:
        """Redirect from the form, which has the id in the query, to the page of the task."""
        uuid = dict(parse_qsl(request.url.query)).get("id", "").strip()
        return RedirectResponse(link("task/", uuid) or "tasks", 303, SAFE)

    return {"/tasks": search, "/task": chosen_id, "/task/{uuid:path}": one}


async def _found(finder: Tasks, status: Status, request: Request) -> tuple[tasks.TasksData, int]:
    parameters = {name: text for name, text in request.query_params.items() if name in PARAMETERS}
    try:
        answer = await finder.list(parameters)
    except BadQueryError as error:
        return tasks.TasksData(**common(status), error=str(error)), 400
    found = tasks.TasksData(
        **common(status), tasks=answer.tasks, next=answer.next, is_complete=answer.is_complete
    )
    return found, 200


def _data(answer: TaskAnswer, status: Status) -> task.TaskData:
    return task.TaskData(**common(status), task=answer.task, workflow=answer.workflow)


def _problem(problem: Problem, status: Status, chosen: Query) -> Response:
    return html_response(task.problem_html(problem, summary(status), chosen), 300 if problem.tasks else 404)
