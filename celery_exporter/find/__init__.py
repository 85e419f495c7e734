"""The command `find`: what became of a task, or which tasks are like this. It asks a running exporter."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from urllib.parse import quote

import click
import msgspec

from celery_exporter.find.text import explanation_text, problem_text, task_list_text, task_text
from celery_exporter.quoting import encodable, printable, printable_json
from celery_exporter.status.explanation import Explanation
from celery_exporter.web.client import API, Exporter, NoAnswerError
from celery_exporter.web.task_answers import Problem, TaskAnswer, TaskList

#: Where single tasks are.
PATH = f"{API}tasks"


def find(  # noqa: PLR0913  what is asked, and how it is printed
    exporter: Exporter,
    uuid: str | None,
    query: Mapping[str, str],
    *,
    why: bool = False,
    as_json: bool,
    is_remote: bool,
) -> int:
    """Print a task, or those that a query finds; return the exit code: 0, or 1 if nothing is found.

    `why` asks where the message of the task is, which makes the exporter look at the broker. `is_remote` says
    that the exporter is the one at --url.
    """
    try:
        if uuid is not None and why:
            explanation = exporter.get(f"{API}explain/{quote(uuid, safe='')}", Explanation)
            _print(explanation, as_json, explanation_text(explanation))
            return 0
        if uuid is not None:
            task = exporter.get(f"{PATH}/{quote(uuid, safe='')}", TaskAnswer)
            _print(task, as_json, task_text(task, time.time()))
            return 0
        tasks = exporter.get(PATH, TaskList, query)
    except NoAnswerError as error:
        click.echo(f"find: {_reason(error)}", err=True)
        return 1
    _print(tasks, as_json, task_list_text(tasks, query, time.time(), exporter.url if is_remote else None))
    return 0 if tasks.tasks else 1


def _reason(error: NoAnswerError) -> str:
    """Return what the exporter says about why it has no such answer, or else why there is no answer."""
    try:
        return problem_text(msgspec.json.decode(error.body, type=Problem))
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return printable(str(error))


def _print(answer: TaskAnswer | TaskList | Explanation, as_json: bool, text: str) -> None:
    if as_json:
        document = msgspec.json.format(msgspec.json.encode(answer), indent=2).decode()
        click.echo(printable_json(document))
        return
    click.echo(encodable(text, sys.stdout.encoding))
