"""The query of /tasks and of /api/v1/tasks → what to search for. Pure: the time comes in as an argument."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any

from msgspec import Struct

from celery_exporter.core.durations import seconds_of
from celery_exporter.core.task_info import STATE_NAMES
from celery_exporter.core.task_search import Cursor, TaskFilter

#: Tasks on a page, and the most that a request may ask for.
LIMIT, MAX_LIMIT = 50, 500
#: Characters of a value that are read. Names of events have 255, and a cursor has a number, too.
MAX_PARSED_LENGTH = 300
#: Larger times are milliseconds, or errors.
MAX_SECONDS = 1e11


class BadQueryError(Exception):
    """A parameter is unknown, or has a bad value. The text says which, and what it takes."""


class TaskQuery(Struct, frozen=True):
    """A search: what tasks have to be like, how many are wanted, and the place after which they begin."""

    wanted: TaskFilter
    limit: int
    before: Cursor | None


def parse_query(parameters: Mapping[str, str], now: float) -> TaskQuery:
    """Return the search that the parameters of a URL ask for; empty ones count as absent.

    `now` is epoch seconds. Raises BadQueryError.
    """
    given = {name: text for name, text in parameters.items() if text}
    for name in given:
        if name not in PARAMETERS:
            raise BadQueryError(
                f"{name[:MAX_PARSED_LENGTH]!r} is no parameter; it takes {', '.join(PARAMETERS)}"
            )
    values = {name: _value(name, text, now) for name, text in given.items()}
    return TaskQuery(
        TaskFilter(**{field: values.get(name) for name, field in _FIELDS.items()}),
        values.get("limit", LIMIT),
        values.get("cursor"),
    )


def cursor_text(cursor: Cursor) -> str:
    """Return a place as the value of the parameter `cursor`."""
    return f"{cursor.since!r}~{cursor.uuid}"


def _value(name: str, text: str, now: float) -> Any:
    parse, expects = PARAMETERS[name]
    try:
        return parse(text[:MAX_PARSED_LENGTH], now)
    except (ValueError, OverflowError):
        raise BadQueryError(f"{name}: got {text[:MAX_PARSED_LENGTH]!r}; it takes {expects}") from None


def _text(text: str, _: float) -> str:
    return text


def _states(text: str, _: float) -> frozenset[str]:
    states = frozenset(text.upper().split(","))
    if not states.issubset(STATE_NAMES):
        raise ValueError
    return states


def _time(text: str, now: float) -> float:
    """Return the epoch seconds of a time, or of a duration ago."""
    if (seconds := seconds_of(text)) is not None:
        return _bounded(now - seconds)
    try:
        return _bounded(float(text))
    except ValueError:
        at = datetime.fromisoformat(text)
        return (at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp()


def _seconds(text: str, _: float) -> float:
    seconds = seconds_of(text)
    return _bounded(float(text) if seconds is None else seconds)


def _bounded(number: float) -> float:
    """Return a number of seconds that a task can have: events have times up to the year 5138."""
    if not abs(number) < MAX_SECONDS:
        raise ValueError
    return number


def _limit(text: str, _: float) -> int:
    limit = int(text)
    if not 1 <= limit <= MAX_LIMIT:
        raise ValueError
    return limit


def _cursor(text: str, _: float) -> Cursor:
    since, separator, uuid = text.partition("~")
    if not separator:
        raise ValueError
    return Cursor(_bounded(float(since)), uuid)


_TIME = "a time such as 2026-11-30T15:04:05Z, epoch seconds, or how long ago, such as 90s, 15m, 2h or 3d"
#: Parameter → how its text becomes a value, and what it takes.
PARAMETERS: dict[str, tuple[Callable[[str, float], Any], str]] = {
    "name": (_text, "the name of a task"),
    "state": (_states, f"states with commas between them, of {', '.join(STATE_NAMES)}"),
    "queue": (_text, "the name of a queue"),
    "worker": (_text, "the node name of a worker"),
    "exception": (_text, "the class of an exception"),
    "since": (_time, _TIME),
    "until": (_time, _TIME),
    "min_runtime": (_seconds, "seconds, or a duration such as 500s, 15m or 2h"),
    "root": (_text, "the id of the first task of a workflow"),
    "parent": (_text, "the id of the task that sent others"),
    "limit": (_limit, f"a number from 1 to {MAX_LIMIT}"),
    "cursor": (_cursor, "what the answer before has as `next`"),
}
#: Parameter → its field of `TaskFilter`.
_FIELDS = {
    "name": "task_name",
    "state": "states",
    "queue": "queue_name",
    "worker": "worker",
    "exception": "exception",
    "since": "since",
    "until": "until",
    "min_runtime": "min_runtime",
    "root": "root_id",
    "parent": "parent_id",
}
