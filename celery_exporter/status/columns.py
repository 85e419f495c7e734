"""The tables that the pages and `top` show of a `Status`, and the format of their values.

web/static/format.js formats the same kinds of values. A test compares the two.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any

from msgspec import Struct

from celery_exporter.core.task_info import OPEN_STATE_NAMES
from celery_exporter.status.facts import NO_ANSWER
from celery_exporter.status.finding import problems
from celery_exporter.status.model import Status
from celery_exporter.status.thresholds import LONG_WINDOW

#: Characters of the beginning of an id: as many as a person needs to find the task.
SHORT_LENGTH = 8
#: The text for an unknown value.
UNKNOWN = "–"  # noqa: RUF001  a dash


class Column(Struct, frozen=True):
    """A column: its title, its field ("a.b" is b of a), its kind (see `KINDS`), its tooltip, and its unit.

    `total_field` is the field with the total of which this one is a part. `unit` is that of the numbers,
    unless each has its own. `link` is the URL of the value, relative to the start page, and `tasks` that of
    the list of its tasks: {} is the value in it, and {a.b} is another field of the row.
    """

    title: str
    field: str
    kind: str
    meaning: str = ""
    total_field: str = ""
    link: str = ""
    unit: str = ""
    tasks: str = ""


class Table(Struct, frozen=True):
    """A table: its field of `Status`, its title, the text for no rows, and its columns.

    At most `max_rows` rows are shown, since a browser needs long to draw more. `key` is the field that
    identifies a row.
    """

    name: str
    title: str
    empty: str
    columns: Sequence[Column]
    max_rows: int = 200
    key: str = "name"


_RATE = "Per second, over the last 5 minutes."
#: URLs of pages: a name leads to its own page if it has one, and otherwise to the list of its tasks.
WORKER_LINK, QUEUE_LINK, TASK_LINK = "workers/{}", "queues/{}", "task/{}"
NAME_LINK, EXCEPTION_LINK = "tasks?name={}", "tasks?exception={}"
#: URLs of the tasks of a worker or queue, beside the link to its page.
WORKER_TASKS, QUEUE_TASKS = "tasks?worker={}", "tasks?queue={}"
_OPEN = ",".join(OPEN_STATE_NAMES)

#: Fields of the broker and of the exporter. The first two are emphasised.
BROKER = (
    Column("Broker", "broker.url", "text"),
    Column("Event subscription", "broker.up", "open", "Without it, no events arrive."),
    Column("Events", "broker.events_per_second", "decimal", "Over the last 5 minutes.", unit="/s"),
    Column("Event lag", "broker.event_lag", "seconds", "Age of the newest event, by its sender's clock."),
    Column("Reconnects", "broker.reconnects", "count", "Times the subscription was reopened."),
    Column("Unacknowledged", "broker.unacked", "count", "Messages that workers hold (Redis only)."),
    Column("Uptime", "started", "ago", "Of the exporter."),
)
#: What a standby shows.
STANDBY = "Standby: another exporter receives the events. The counts are from when this one was active."
#: When the status was made.
AT = Column("", "at", "clock")
#: When the event subscription was lost.
DOWN_SINCE = Column("", "broker.down_since", "clock")

FINDINGS = Table(
    "findings",
    "What to look at",
    "No problems found.",
    (Column("Message and remedy", "message", "finding"),),
    key="check",
)
#: The table whose rows are filtered by name.
FILTERED = "tasks"

WORKERS = Table(
    "workers",
    "Workers",
    "No worker has been seen yet.",
    (
        Column("Worker", "name", "text", link=WORKER_LINK, tasks=WORKER_TASKS),
        Column("State", "up", "up", "Down: stopped, or without events for --worker-timeout."),
        Column(
            "Busy", "active", "part", "Running tasks, and the size of the pool.", "pool_size",
            "tasks?worker={name}&state=STARTED",
        ),
        Column("Processed", "processed", "count", "Tasks that the pool accepted, across restarts."),
        Column("Load", "load", "decimal", "Load average of the host over one minute."),
        Column("Clock", "clock_skew", "skew", "Clock of the worker minus clock of the exporter."),
        Column("Task events", "task_events", "yes", "Whether the worker sends them (-E)."),
        Column("Heartbeat", "heartbeat", "ago", "Time since the worker was last seen."),
        Column("Celery", "version", "text"),
    ),
)  # fmt: skip
QUEUES = Table(
    "queues",
    "Queues",
    "No queue yet. Queues come from events, workers and --queues.",
    (
        Column("Queue", "name", "text", link=QUEUE_LINK, tasks=QUEUE_TASKS),
        Column("Length", "length", "count", "Waiting messages."),
        Column("Oldest", "oldest", "ago", "Time since the oldest message was sent."),
        Column("Consumers", "consumers", "count", "Workers that consume the queue."),
        Column("Processes", "processes", "count", "Tasks that these workers can run at once."),
        Column("Last 15 minutes", "lengths", "line", "Length of the queue."),
    ),
)
TASKS = Table(
    "tasks",
    "Tasks",
    "No task has been seen yet.",
    (
        Column("Task", "name", "text", link=NAME_LINK),
        Column("Sent", "rates.PENDING", "decimal", _RATE, unit="/s"),
        Column("Received", "rates.RECEIVED", "decimal", _RATE, unit="/s"),
        Column("Started", "rates.STARTED", "decimal", _RATE, unit="/s"),
        Column("Succeeded", "rates.SUCCESS", "decimal", _RATE, unit="/s"),
        Column("Failed", "rates.FAILURE", "decimal", _RATE, unit="/s"),
        Column("Retried", "rates.RETRY", "decimal", _RATE, unit="/s"),
        Column("Revoked", "rates.REVOKED", "decimal", _RATE, unit="/s"),
        Column("Rejected", "rates.REJECTED", "decimal", _RATE, unit="/s"),
        Column("Failures", "failure_share", "share", "Of the tasks that ended in SUCCESS or FAILURE."),
        Column("Run p50", "runtime_p50", "seconds", "Median of the run time."),
        Column("Run p95", "runtime_p95", "seconds", "95th percentile of the run time."),
        Column("Wait p50", "wait_p50", "seconds", "Median of the time from sent (or eta) to started."),
        Column("Wait p95", "wait_p95", "seconds", "95th percentile from sent (or eta) to started."),
        Column(
            "Open", "open", "sum", "Tasks that are sent, received, started or due for a retry.",
            link=f"tasks?name={{name}}&state={_OPEN}",
        ),
        Column("Oldest", "oldest", "ago", "Longest time that an open task has been in its state."),
    ),
)  # fmt: skip
FAILURES = Table(
    "failures",
    "Recent failures",
    "No failure since the exporter started.",
    (
        Column("Time", "at", "clock", "By the worker's clock.", unit="UTC"),
        Column("Task", "task", "text", link=NAME_LINK),
        Column("Worker", "worker", "text", link=WORKER_LINK, tasks=WORKER_TASKS),
        Column("Exception", "exception", "text", link=EXCEPTION_LINK),
        Column("Id", "uuid", "text", link=TASK_LINK),
    ),
    max_rows=50,
    key="uuid",
)
#: What `top` shows, and the overview.
TABLES = (WORKERS, QUEUES, TASKS, FAILURES)

FAILURE_GROUPS = Table(
    "failure_groups",
    "Failures by exception and task",
    "No failure since the counters began.",
    (
        Column("Exception", "exception", "text", link=EXCEPTION_LINK),
        Column("Task", "task", "text", link=NAME_LINK),
        Column(
            "Failures", "total", "count", "Since the counters began.",
            link="tasks?exception={exception}&name={task}",
        ),
        Column("Recent", "recent", "count", "Of the newest 50 failures of all tasks."),
        Column("Last", "last", "ago", "Time since the newest one."),
        Column("Worker of the last", "worker", "text", link=WORKER_LINK, tasks=WORKER_TASKS),
        Column("Id of the last", "uuid", "text", link=TASK_LINK),
    ),
)  # fmt: skip

#: Fields of one worker and of one queue.
WORKER_FACTS = (
    Column("Worker", "worker.name", "text"),
    Column("State", "worker.up", "up", "Down: stopped, or without events for --worker-timeout."),
    Column("Busy", "worker.active", "part", "Running tasks, and the size of the pool.", "worker.pool_size"),
    Column("Processed", "worker.processed", "count", "Tasks that the pool accepted, across restarts."),
    Column("Restarts", "worker.restarts", "count", "Since the exporter knows the worker."),
    Column("Heartbeat", "worker.heartbeat", "ago", "Time since the worker was last seen."),
    Column("Pool", "worker.pool", "text"),
    Column("Prefetch", "worker.prefetch", "count", "Tasks that it takes from the broker at once."),
    Column("Memory", "worker.max_resident_bytes", "bytes", "Largest memory of its main process."),
    Column("Load", "worker.load", "decimal", "Load average of the host over one minute."),
    Column("Clock", "worker.clock_skew", "skew", "Clock of the worker minus clock of the exporter."),
    Column("Task events", "worker.task_events", "yes", "Whether the worker sends them (-E)."),
    Column("Celery", "worker.version", "text"),
)
QUEUE_FACTS = (
    Column("Queue", "queue.name", "text"),
    Column("Length", "queue.length", "count", "Waiting messages."),
    Column("Oldest", "queue.oldest", "ago", "Time since the oldest message was sent."),
    Column("Consumers", "queue.consumers", "count", "Workers that consume the queue."),
    Column("Processes", "queue.processes", "count", "Tasks that these workers can run at once."),
)

#: Fields that a narrow terminal shows after all others, in this order.
DETAILS = (
    *("clock_skew", "task_events", "version", "processes", "rates.PENDING", "rates.STARTED", "runtime_p50"),
    *("wait_p50", "rates.RETRY", "rates.RECEIVED", "rates.REVOKED", "rates.REJECTED"),
)


def get(row: Any, field: str) -> Any:
    """Return a field of a row; None if it is unknown."""
    for name in field.split("."):
        row = row.get(name) if isinstance(row, dict) else getattr(row, name, None)
    return row


def text(column: Column, row: Any, now: float) -> str:
    """Return the text of a cell; `now` is the time of the row in epoch seconds."""
    value = get(row, column.field)
    if column.total_field:
        whole = get(row, column.total_field)
        return UNKNOWN if value is None else f"{value:,} / {UNKNOWN if whole is None else format(whole, ',')}"
    try:
        return UNKNOWN if value is None else KINDS[column.kind](value, now)
    except (ValueError, OverflowError, OSError):  # not a time, or too large
        return UNKNOWN


def rows_of(status: Status, table: Table, sort: str = "", contains: str = "") -> Sequence[Any]:
    """Return the problems, or the rows of another table; of tasks, those whose name contains a text.

    The text may be in any case. `sort` is as in `ordered`, or "" for the order of the status.
    """
    rows: Sequence[Any] = getattr(status, table.name)
    if table is FINDINGS:
        return problems(rows)
    if table.name == FILTERED:
        rows = [row for row in rows if contains.lower() in row.name.lower()]
    return ordered(rows, sort) if sort else rows


def first_sort(column: Column) -> str:
    """Return the order that a column is sorted in first: texts ascending, numbers and times descending."""
    return column.field if column.kind == "text" else f"-{column.field}"


def reversed_sort(sort: str) -> str:
    """Return the opposite order."""
    return sort.removeprefix("-") if sort.startswith("-") else f"-{sort}"


def ordered(rows: Sequence[Any], sort: str) -> list[Any]:
    """Return rows sorted by a field, descending with "-" before it; unknown values last.

    Times sort by their age, since the age is shown.
    """
    field = sort.removeprefix("-")
    ranked = [row for row in rows if _rank(row, field) is not None]
    unknown = [row for row in rows if _rank(row, field) is None]
    return sorted(ranked, key=lambda row: _rank(row, field), reverse=sort.startswith("-")) + unknown


def matches(table: Table, row: Any, contains: str) -> bool:
    """Return whether a text of a row contains another one, in any case."""
    sought = contains.lower()
    return not sought or any(
        sought in str(get(row, column.field) or "").lower()
        for column in table.columns
        if column.kind == "text"
    )


def _rank(row: Any, field: str) -> Any:
    value = get(row, field)
    if isinstance(value, dict):
        return sum(value.values())
    return -value if field in _TIMES and value is not None else value


_TIMES = {
    column.field for table in (*TABLES, FAILURE_GROUPS) for column in table.columns if column.kind == "ago"
}


def outage(status: Status) -> str:
    """Return why no events arrive: the broker's error, or that this is a standby; empty if they do."""
    if status.broker.down_since is None:
        return STANDBY if status.broker.active is False else ""
    since = text(DOWN_SINCE, status, status.at)
    return f"Not open since {since} UTC: {status.broker.error or NO_ANSWER}"


# -- formats of values ---------------------------------------------------------------------------------


def fixed(value: float, digits: int) -> str:
    """Return a number with this many decimals; halves are rounded up, as by JavaScript's Math.round."""
    scale = 10**digits
    return f"{math.floor(value * scale + 0.5) / scale:,.{digits}f}"


def seconds(value: float) -> str:
    """Return a duration in a unit that fits its size."""
    for limit, unit, name in _UNITS:
        if value < limit:
            return f"{fixed(value / unit, 0 if name == 'ms' else 1)} {name}"
    return f"{fixed(value / 86_400, 1)} d"


#: Upper limit of a duration in seconds, seconds of its unit, name of the unit. A duration at the limit would
#: be rounded up to 1 of the next unit.
_UNITS = ((0.9995, 0.001, "ms"), (59.95, 1.0, "s"), (3_597.0, 60.0, "min"), (86_220.0, 3_600.0, "h"))


def _ago(value: float) -> str:
    return f"{math.floor(value)} s" if value < 60 else seconds(value)


def _clock(value: float, _: float) -> str:
    return datetime.fromtimestamp(value, UTC).strftime("%m-%d %H:%M:%S")


def _sparkline(points: Sequence[tuple[float, int | None]], now: float) -> str:
    lengths = [length for _, length in points if length is not None]
    return f"{sparkline(points, now)} max {max(lengths):,}" if lengths else UNKNOWN


def sparkline(points: Sequence[tuple[float, int | None]], now: float) -> str:
    """Return the highest length in each minute of `LONG_WINDOW`, blank where unknown.

    `points` are pairs of epoch seconds and length.
    """
    lengths: list[int | None] = [None] * SPARKLINE_CHARACTERS
    for at, length in points:
        age = max(0, math.floor((now - at) * SPARKLINE_CHARACTERS / LONG_WINDOW))
        if length is not None and age < SPARKLINE_CHARACTERS:
            lengths[-1 - age] = max(length, lengths[-1 - age] or 0)
    scale = (len(_BLOCKS) - 1) / max(filter(None, lengths), default=1)
    return "".join(" " if length is None else _BLOCKS[math.ceil(scale * length)] for length in lengths)


SPARKLINE_CHARACTERS, _BLOCKS = 15, "▁▂▃▄▅▆▇█"


def _minute(value: float, _: float) -> str:
    return datetime.fromtimestamp(value, UTC).strftime("%H:%M")


def _time(value: float, _: float) -> str:
    return utc(value)[11:]


def _precise(value: float, _: float) -> str:
    return utc(value)[5:]


def utc(value: float) -> str:
    """Return a time in UTC with milliseconds."""
    at = datetime.fromtimestamp(value, UTC)
    return at.replace(tzinfo=None).isoformat(" ", "milliseconds")


def _skew(value: float, _: float) -> str:
    size = fixed(abs(value), 1)
    return f"{'' if size == '0.0' else '+' if value > 0 else '-'}{size} s"


#: Kind of a column → its format, a function of the value and of the time of the row in epoch seconds.
KINDS: dict[str, Callable[[Any, float], str]] = {
    "text": lambda value, _: value or UNKNOWN,
    "up": lambda value, _: "up" if value else "down",
    "open": lambda value, _: "open" if value else "not open",
    "yes": lambda value, _: "yes" if value else "no",
    "count": lambda value, _: f"{value:,}",
    "decimal": lambda value, _: fixed(value, 2),
    "share": lambda value, _: f"{fixed(100 * value, 1)} %",
    "seconds": lambda value, _: seconds(max(0.0, value)),
    "ago": lambda value, now: _ago(max(0.0, now - value)),
    "skew": _skew,
    "clock": _clock,
    "minute": _minute,
    "time": _time,
    "precise": _precise,
    "short": lambda value, _: value[:SHORT_LENGTH],
    "state": lambda value, _: value,
    "long": lambda value, _: value,
    "bytes": lambda value, _: f"{fixed(value / 1e6, 1)} MB",
    "sum": lambda value, _: f"{sum(value.values()):,}",
    "line": _sparkline,
    "finding": lambda value, _: value,
}
