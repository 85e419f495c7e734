"""The command `find`: what became of a task, or which tasks are like this. It asks a running exporter."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from urllib.parse import quote

import click
import msgspec
from msgspec import Struct
from msgspec.structs import replace

from celery_exporter.find.text import explanation_text, problem_text, task_list_text, task_text
from celery_exporter.quoting import encodable, printable, printable_json
from celery_exporter.status.explanation import UNSEEN, Explanation
from celery_exporter.web.client import API, Exporter, NoAnswerError
from celery_exporter.web.task_answers import Problem, TaskAnswer, TaskList

#: Where single tasks are.
PATH = f"{API}tasks"


class _Named(Struct):
    """A broker in /api/v1/brokers."""

    name: str | None
    path: str


class _BrokerList(Struct):
    brokers: list[_Named]


def exporters_of(exporters: Sequence[Exporter]) -> dict[str, Exporter]:
    """Return the exporters that are asked, by what tells them apart; see `find`."""
    if len(exporters) == 1:
        return _by_broker(exporters[0])
    every = [one for exporter in exporters for one in _by_broker(exporter).values()]
    return {exporter.url: exporter for exporter in every}


def _by_broker(exporter: Exporter) -> dict[str, Exporter]:
    """Return the exporter of each broker by its name, which is empty if the exporter has only one."""
    try:
        brokers = exporter.get(f"{API}brokers", _BrokerList).brokers
    except NoAnswerError:  # an older exporter, or the URL is that of one broker
        brokers = []
    if len(brokers) < 2:
        return {"": exporter}
    return {
        broker.name or "": replace(exporter, url=exporter.url + broker.path.rstrip("/")) for broker in brokers
    }


def find(  # noqa: PLR0913  what is asked, and how it is printed
    exporters: Mapping[str, Exporter],
    uuid: str | None,
    query: Mapping[str, str],
    *,
    why: bool = False,
    as_json: bool,
    is_remote: bool,
) -> int:
    """Print a task, or those that a query finds; return the exit code: 0, or 1 if nothing is found.

    `exporters` are by the name of their broker or by their URL, and all are asked; the only one has an empty
    name. `why` asks where the message of the task is,
    which makes the exporter look at the broker. `is_remote` says that the exporter is the one at --url.
    """
    asked = {name: _asked(exporter, uuid, query, why=why) for name, exporter in exporters.items()}
    answers = {name: answer for name, answer in asked.items() if not isinstance(answer, NoAnswerError)}
    found = {name: answer for name, answer in answers.items() if _is_found(answer)}
    for name, error in asked.items() if not found else ():
        if isinstance(error, NoAnswerError):
            click.echo(f"find: {_headed(name, _reason(error))}", err=True)
    shown = found or answers
    if as_json and shown:
        _print_json(shown[""] if "" in exporters else shown)
        return 0 if found else 1
    for name, answer in shown.items():
        text = _text(answer, query, exporters[name].url if is_remote or name else None)
        click.echo(encodable(_headed(name, text, "\n"), sys.stdout.encoding))
    return 0 if found else 1


_Answer = TaskAnswer | TaskList | Explanation


def _asked(
    exporter: Exporter, uuid: str | None, query: Mapping[str, str], *, why: bool
) -> _Answer | NoAnswerError:
    try:
        return _ask(exporter, uuid, query, why=why)
    except NoAnswerError as error:
        return error


def _ask(exporter: Exporter, uuid: str | None, query: Mapping[str, str], *, why: bool) -> _Answer:
    """Return the answer of an exporter. Raises NoAnswerError."""
    if uuid is None:
        return exporter.get(PATH, TaskList, query)
    if why:
        return exporter.get(f"{API}explain/{quote(uuid, safe='')}", Explanation)
    return exporter.get(f"{PATH}/{quote(uuid, safe='')}", TaskAnswer)


def _is_found(answer: _Answer) -> bool:
    """Return whether an answer is about a task that the exporter or its broker knows."""
    if isinstance(answer, TaskList):
        return bool(answer.tasks)
    return not isinstance(answer, Explanation) or answer.diagnosis != UNSEEN


def _text(answer: _Answer, query: Mapping[str, str], url: str | None) -> str:
    if isinstance(answer, TaskList):
        return task_list_text(answer, query, time.time(), url)
    if isinstance(answer, Explanation):
        return explanation_text(answer)
    return task_text(answer, time.time())


def _headed(name: str, text: str, separator: str = " ") -> str:
    """Return a text with the broker or the URL that it comes from before it, if there are several."""
    if not name:
        return text
    return f"{name if '://' in name else f'broker {name}'}:{separator}{text}"


def _reason(error: NoAnswerError) -> str:
    """Return what the exporter says about why it has no such answer, or else why there is no answer."""
    try:
        return problem_text(msgspec.json.decode(error.body, type=Problem))
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return printable(str(error))


def _print_json(answer: object) -> None:
    click.echo(printable_json(msgspec.json.format(msgspec.json.encode(answer), indent=2).decode()))
