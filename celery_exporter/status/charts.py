"""The charts of the pages: which series each one shows, and their values in a range of time. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Annotated

from msgspec import Meta, Struct

from celery_exporter.status.chart_history import ChartHistory, Mark
from celery_exporter.status.finding import names
from celery_exporter.status.rings import POINTS, RANGES, Key

DEFAULT_RANGE = "15m"
#: Queues with a line of their own in the chart of all queues.
MAX_QUEUE_LINES = 4


class LineView(Struct, frozen=True):
    """One line of a chart."""

    title: Annotated[str, Meta(description="What the line shows; for a queue, its name.")]
    style: Annotated[str, Meta(description="Its colour: good, bad, warn, mark, quiet, or extra0 to extra3.")]
    values: Annotated[
        Sequence[float | None], Meta(description="Values, the oldest first. Null: unknown, a gap.")
    ]


class ChartView(Struct, frozen=True):
    """One chart."""

    name: Annotated[str, Meta(description="Name of the chart.")]
    title: Annotated[str, Meta(description="Title of the chart.")]
    unit: Annotated[str, Meta(description="Unit of the values; a share is a number from 0 to 1.")]
    kind: Annotated[str, Meta(description="Format of the values: decimal, count, share or seconds.")]
    lines: Annotated[Sequence[LineView], Meta(description="Its lines.")]


class MarkView(Struct, frozen=True):
    """What happened to workers in one step."""

    index: Annotated[int, Meta(description="Index of the step in `values`.")]
    at: Annotated[float, Meta(description="When it was noticed first in this step.")]
    kind: Annotated[str, Meta(description="`restart`, or `version` for a change of it.")]
    text: Annotated[str, Meta(description="One line for people.")]


class Charts(Struct, frozen=True):
    """The charts of one page in a range of time. Times are Unix times in seconds."""

    range: Annotated[str, Meta(description="15m, 1h, 6h or 24h.")]
    at: Annotated[float, Meta(description="Time of the last value.")]
    step: Annotated[float, Meta(description="Seconds between two values.")]
    charts: Annotated[Sequence[ChartView], Meta(description="The charts.")]
    marks: Annotated[Sequence[MarkView], Meta(description="Restarts and new versions of workers.")]


class _Line(Struct, frozen=True):
    title: str
    style: str
    key: Key


class _Chart(Struct, frozen=True):
    name: str
    title: str
    unit: str
    kind: str
    lines: Sequence[_Line]


THROUGHPUT = _Chart(
    "throughput",
    "Throughput by outcome",
    "tasks/s",
    "decimal",
    (
        _Line("succeeded", "good", ("rate", "SUCCESS")),
        _Line("failed", "bad", ("rate", "FAILURE")),
        _Line("retried", "warn", ("rate", "RETRY")),
        _Line("revoked", "mark", ("rate", "REVOKED")),
        _Line("rejected", "quiet", ("rate", "REJECTED")),
    ),
)
FAILURES = _Chart(
    "failures",
    "Failure share",
    "% of ended",
    "share",
    (_Line("failed", "bad", ("total", "failure share")),),
)
RUNTIME = _Chart(
    "runtime",
    "Run time",
    "s",
    "seconds",
    (_Line("p50", "mark", ("runtime", "p50")), _Line("p95", "warn", ("runtime", "p95"))),
)
WAIT = _Chart(
    "wait",
    "Wait until started",
    "s",
    "seconds",
    (_Line("p50", "mark", ("wait", "p50")), _Line("p95", "warn", ("wait", "p95"))),
)
LENGTH = _Chart(
    "length", "Queue length", "messages", "count", (_Line("all queues", "mark", ("total", "length")),)
)
BUSY = _Chart(
    "busy",
    "Busy workers",
    "processes",
    "count",
    (_Line("busy", "mark", ("total", "active")), _Line("all", "quiet", ("total", "processes"))),
)
WORKERS_UP = _Chart("workers", "Workers up", "workers", "count", (_Line("up", "good", ("total", "workers")),))
QUEUE_LENGTH = _Chart(
    "length", "Queue length", "messages", "count", (_Line("waiting", "mark", ("queue", "")),)
)
WORKER_BUSY = _Chart("busy", "Busy processes", "processes", "count", (_Line("busy", "mark", ("worker", "")),))
WORKER_RATE = _Chart(
    "accepted", "Accepted tasks", "tasks/s", "decimal", (_Line("accepted", "good", ("worker rate", "")),)
)
#: Page → its charts.
PAGES = {
    "overview": (THROUGHPUT, FAILURES, RUNTIME, WAIT, LENGTH, BUSY),
    "workers": (BUSY, WORKERS_UP),
    "queues": (LENGTH, WAIT),
    "failures": (THROUGHPUT, FAILURES),
    "queue": (QUEUE_LENGTH,),
    "worker": (WORKER_BUSY, WORKER_RATE),
}
#: Pages of one queue or worker: its name replaces the empty ones in the keys.
DETAIL_PAGES = frozenset({"queue", "worker"})


class ChartQuery(Struct, frozen=True):
    """Which charts: those of a page, of the queue or worker `name` if the page shows one, in a range."""

    page: str
    name: str = ""
    range: str = DEFAULT_RANGE

    def is_valid(self) -> bool:
        """Return whether there are such charts."""
        return self.page in PAGES and self.range in RANGES and bool(self.name) == (self.page in DETAIL_PAGES)


def charts_of(query: ChartQuery, history: ChartHistory, now: float, at: float) -> Charts:
    """Return the charts of a valid query at monotonic seconds `now`, which are `at` in epoch seconds."""
    views = [
        ChartView(
            chart.name,
            chart.title,
            chart.unit,
            chart.kind,
            [LineView(line.title, line.style, _values(line, query, history, now)) for line in lines],
        )
        for chart in PAGES[query.page]
        for lines in [[*chart.lines, *(_queue_lines(history, query) if chart is LENGTH else ())]]
    ]
    step = RANGES[query.range] / POINTS
    marks = history.marks(query.range, now)
    shown = [mark for mark in marks if query.page != "worker" or mark.worker == query.name]
    return Charts(query.range, at, step, views, list(_marks(shown, step, now, at)))


def _values(line: _Line, query: ChartQuery, history: ChartHistory, now: float) -> list[float | None]:
    kind, name = line.key
    return history.values(query.range, (kind, name or query.name), now)


def _queue_lines(history: ChartHistory, query: ChartQuery) -> Iterable[_Line]:
    """Yield a line for each of the longest queues."""
    longest = history.names("queue", query.range)[:MAX_QUEUE_LINES]
    return (_Line(name, f"extra{index}", ("queue", name)) for index, name in enumerate(longest))


def _marks(marks: Iterable[Mark], step: float, now: float, at: float) -> Iterable[MarkView]:
    """Yield one mark for each step and kind: a deployment restarts many workers at a time."""
    groups: dict[tuple[int, str, str], list[Mark]] = {}
    for mark in marks:
        index = POINTS - 1 - int(now // step - mark.now // step)
        groups.setdefault((index, mark.kind, mark.change), []).append(mark)
    for (index, kind, change), group in groups.items():
        if index < 0:  # of the step before the first one
            continue
        workers = {mark.worker for mark in group}
        subject = names(workers) if len(workers) == 1 else f"{len(workers)} workers: {names(workers)}"
        text = f"restart of {subject}" if kind == "restart" else f"Celery {change} on {subject}"
        yield MarkView(index, at - (now - group[0].now), kind, text)
