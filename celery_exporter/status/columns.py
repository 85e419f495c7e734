"""What people are shown of a `Status`, on the page and in the terminal: tables, and how a value is written.

A column is a row here. The page's script has the same few kinds of texts (web/static/status.js), and a test
that compares the two.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from datetime import datetime, timezone
from typing import Any

from msgspec import Struct

#: What stands where nothing is known.
UNKNOWN = "–"  # noqa: RUF001  a dash


class Column(Struct, frozen=True):
    """One column: its title, the field it shows ("a.b" is b of a), of which `KINDS`, and what it means.

    `of` is the field that is the whole of which this one is a part.
    """

    title: str
    field: str
    kind: str
    meaning: str = ""
    of: str = ""


class Table(Struct, frozen=True):
    """One table: its place in a `Status`, its title, what stands there when it has no rows, its columns.

    `most` rows are shown: more would take a browser a while, every time.
    """

    name: str
    title: str
    empty: str
    columns: Sequence[Column]
    most: int = 200


_RATE = "A second, over the last 5 minutes."

#: What is said of the event path and of this exporter: fields of a `Status` itself. The first two stand out.
BROKER = (
    Column("Broker", "broker.url", "text"),
    Column("Event subscription", "broker.up", "open", "Without it nothing is heard."),
    Column("Events/s", "broker.events_per_second", "decimal", "Over the last 5 minutes."),
    Column("Late by", "broker.event_lag", "seconds", "The newest event, by its sender's clock."),
    Column("Reconnects", "broker.reconnects", "count", "Times the subscription was opened again."),
    Column("Held by workers", "broker.unacked", "count", "Messages that are not acknowledged yet (Redis)."),
    Column("Up for", "started", "ago", "This exporter."),
)

TABLES = (
    Table(
        "workers",
        "Workers",
        "No worker was heard yet.",
        (
            Column("Worker", "name", "text"),
            Column("State", "up", "up", "Down is who said goodbye, or was not heard for --worker-timeout."),
            Column(
                "Busy",
                "active",
                "part",
                "Tasks it executes now, of those it can execute at once, as its pool is now.",
                "pool_size",
            ),
            Column(
                "Processed", "processed", "count", "Tasks its pool accepted, over restarts that were seen."
            ),
            Column("Load", "load", "decimal", "Of its host, over a minute."),
            Column("Clock", "clock_skew", "skew", "Its clock minus this exporter's."),
            Column("Task events", "task_events", "yes", "Whether it sends them (-E)."),
            Column("Heartbeat", "heartbeat", "ago", "Since it was last heard."),
            Column("Celery", "version", "text"),
        ),
    ),
    Table(
        "queues",
        "Queues",
        "No queue is known yet: none was named by an event, a worker or --queues.",
        (
            Column("Queue", "name", "text"),
            Column("Length", "length", "count", "Messages that wait in it."),
            Column("Oldest", "oldest", "ago", "Since its oldest message was sent."),
            Column("Consumers", "consumers", "count", "Workers that take from it."),
            Column("Processes", "processes", "count", "Tasks that these can execute at once."),
            Column("Last 15 minutes", "lengths", "line", "Its length."),
        ),
    ),
    Table(
        "tasks",
        "Tasks",
        "No task was heard of yet.",
        (
            Column("Task", "name", "text"),
            Column("Sent", "rates.PENDING", "decimal", _RATE),
            Column("Received", "rates.RECEIVED", "decimal", _RATE),
            Column("Started", "rates.STARTED", "decimal", _RATE),
            Column("Succeeded", "rates.SUCCESS", "decimal", _RATE),
            Column("Failed", "rates.FAILURE", "decimal", _RATE),
            Column("Retried", "rates.RETRY", "decimal", _RATE),
            Column("Revoked", "rates.REVOKED", "decimal", _RATE),
            Column("Rejected", "rates.REJECTED", "decimal", _RATE),
            Column("Failures", "failure_share", "share", "Of what ended in SUCCESS or FAILURE."),
            Column("Run p50", "runtime_p50", "seconds", "Half of the executions took less."),
            Column("Run p95", "runtime_p95", "seconds", "Nearly all (95 %) took less."),
            Column("Wait p50", "wait_p50", "seconds", "From sent (or eta) to started: half waited less."),
            Column(
                "Wait p95", "wait_p95", "seconds", "From sent (or eta) to started: nearly all waited less."
            ),
            Column("Open", "open", "sum", "Tasks that are sent, received, started or to be retried."),
            Column("Oldest", "oldest", "ago", "Since the one that is longest in its state entered it."),
        ),
    ),
    Table(
        "failures",
        "Recent failures",
        "None was seen since this exporter started.",
        (
            Column("Time (UTC)", "at", "clock", "By the worker's clock."),
            Column("Task", "task", "text"),
            Column("Worker", "worker", "text"),
            Column("Exception", "exception", "text"),
            Column("Id", "uuid", "text"),
        ),
        most=15,
    ),
)


def get(row: Any, field: str) -> Any:
    """Return a field of a row; None where it is not known."""
    for name in field.split("."):
        row = row.get(name) if isinstance(row, dict) else getattr(row, name, None)
    return row


def text(column: Column, row: Any, now: float) -> str:
    """Return what stands in a cell; `now` is the epoch second that the row is of."""
    value = get(row, column.field)
    if column.of:
        whole = get(row, column.of)
        return UNKNOWN if value is None else f"{value:,} / {UNKNOWN if whole is None else format(whole, ',')}"
    return UNKNOWN if value is None else KINDS[column.kind](value, now)


def ordered(rows: Sequence[Any], sort: str) -> list[Any]:
    """Return rows by a field, from the largest on where its name has a "-" before it; unknown ones last.

    Of a moment the largest is the one that is longest ago, for how long ago it is, is what is shown.
    """
    field = sort.removeprefix("-")
    known = [row for row in rows if _rank(row, field) is not None]
    unknown = [row for row in rows if _rank(row, field) is None]
    return sorted(known, key=lambda row: _rank(row, field), reverse=sort.startswith("-")) + unknown


def _rank(row: Any, field: str) -> Any:
    value = get(row, field)
    if isinstance(value, dict):
        return sum(value.values())
    return -value if field in _MOMENTS and value is not None else value


_MOMENTS = {column.field for table in TABLES for column in table.columns if column.kind == "ago"}


# -- how values are written ----------------------------------------------------------------------------


def fixed(value: float, digits: int) -> str:
    """Return a number with so many digits after the point, halves rounded up, as JavaScript's Math.round."""
    scale = 10**digits
    return f"{math.floor(value * scale + 0.5) / scale:,.{digits}f}"


def seconds(value: float) -> str:
    """Return a duration in the unit that people would use."""
    for below, unit, name in _UNITS:
        if value < below:
            return f"{fixed(value / unit, 0 if name == 'ms' else 1)} {name}"
    return f"{fixed(value / 86_400, 1)} d"


#: Durations below so many seconds are written in a unit of so many seconds. From there on they would be
#: rounded up to a whole one of the next.
_UNITS = ((0.9995, 0.001, "ms"), (59.95, 1.0, "s"), (3_597.0, 60.0, "min"), (86_220.0, 3_600.0, "h"))


def _ago(value: float) -> str:
    return f"{math.floor(value)} s" if value < 60 else seconds(value)


def _clock(value: float, _: float) -> str:
    return datetime.fromtimestamp(value, timezone.utc).strftime("%m-%d %H:%M:%S")


def _skew(value: float, _: float) -> str:
    size = fixed(abs(value), 1)
    return f"{'' if size == '0.0' else '+' if value > 0 else '-'}{size} s"


#: Kind of a column → how its values are written, given the value and the epoch second they are of.
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
    "sum": lambda value, _: f"{sum(value.values()):,}",
    "line": lambda value, _: f"{len(value)} points",
}
