"""Renders results as Markdown for docs/reference/compatibility.md."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from compatibility.celery_versions import BROKERS, NOT_IN_VERSION, SINCE, Result
from compatibility.wheel_tests import Counts

FAILED_SHOWN = 5
CHECKS: Mapping[str, str] = {
    "tasks": "counts of tasks by name, queue and state, with retries and a revoked task",
    "exceptions": "failures by exception",
    "times": "run times and waits",
    "worker up": "worker up, its version, and what it has processed",
    "inspection": "pool size, consumed queues and memory, by inspection",
    "beat": "beat up",
    "worker down": "worker down after it stops",
    "queue length": "queue lengths",
}


class Row(NamedTuple):
    """Tests of the wheel in one environment, or why there is none."""

    title: str
    versions: str = ""
    unit: Counts | None = None
    integration: Counts | None = None
    problem: str = ""

    @property
    def is_good(self) -> bool:
        return bool(self.unit and self.integration and self.unit.is_good and self.integration.is_good)


def of_rows(headings: Sequence[str], rows: Iterable[Row]) -> str:
    """Return a table of tests of the wheel, and the names of those that failed."""
    rows = list(rows)
    lines = [
        [row.title, row.versions, *((row.problem, "") if row.problem else (row.unit, row.integration))]
        for row in rows
    ]
    failed = [
        f"- {row.title}: {', '.join(f'`{name}`' for name in names[:FAILED_SHOWN])}"
        + (f" and {len(names) - FAILED_SHOWN} more" if len(names) > FAILED_SHOWN else "")
        for row in rows
        for names in [[name for counts in (row.unit, row.integration) if counts for name in counts.failed]]
        if names
    ]
    parts = [table([*headings, "unit tests", "on Redis and RabbitMQ"], lines)]
    return "\n\n".join([*parts, *(["Failed:\n\n" + "\n".join(failed)] if failed else [])])


class Column(NamedTuple):
    """The packages of a version of Celery, and by broker the result of each check."""

    versions: Mapping[str, str]
    results: Mapping[str, Mapping[str, Result]]


def of_celery(matrix: Mapping[str, Column]) -> str:
    """Return a table with a column for each version of Celery, and its notes."""
    columns = matrix.values()
    lines = [
        [title, *(column.versions.get(name, "") for column in columns)]
        for name, title in {"kombu": "kombu", "redis": "redis-py"}.items()
    ]
    for check, title in CHECKS.items():
        note = " [1]" if check in SINCE else ""
        lines.append([title + note, *(_cell(column, check) for column in columns)])
    headings = ["", *(f"Celery {column.versions['celery']}" for column in columns)]
    notes = [f"[1] {note}" for _, note in SINCE.values()]
    return "\n\n".join([table(headings, lines), *notes, *_different(matrix)])


def _different(matrix: Mapping[str, Column]) -> list[str]:
    items = [
        f"- Celery {version}, {broker}, {CHECKS[check]}: {result}"
        for version, column in matrix.items()
        for broker, checks in column.results.items()
        for check, result in checks.items()
        if result not in {None, NOT_IN_VERSION}
    ]
    return ["\n".join(items)] if items else []


def _cell(column: Column, check: str) -> str:
    """Return "yes" or "no", or the brokers on which the check passed."""
    passed = [broker for broker in BROKERS if column.results[broker][check] is None]
    if len(passed) == len(BROKERS):
        return "yes"
    return f"{' and '.join(passed)} only" if passed else "no"


def table(headings: Sequence[object], rows: Iterable[Sequence[object]]) -> str:
    """Return a Markdown table."""
    lines = [headings, ["---"] * len(headings), *rows]
    return "\n".join(
        f"| {' | '.join(str(cell).replace('|', chr(92) + '|') for cell in line)} |" for line in lines
    )
