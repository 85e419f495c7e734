"""Renders the result as Markdown for docs/explanation/accuracy.md."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence

from celery_integration.comparison import REDELIVERED, STATES
from celery_integration.run import Outcome

#: The rows of the summary: title, and a function that returns the value of a broker.
SUMMARY: tuple[tuple[str, Callable[[Outcome], int]], ...] = (
    ("duration in seconds", lambda outcome: round(outcome.seconds)),
    ("tests passed", lambda outcome: outcome.tests["passed"]),
    ("tests failed", lambda outcome: outcome.tests["failed"]),
    ("tests skipped by Celery", lambda outcome: outcome.tests["skipped"]),
    ("attempts of flaky tests repeated", lambda outcome: outcome.reruns),
    ("state changes written by the tasks", lambda outcome: _total(outcome.recorded, STATES)),
    ("state changes without an event", lambda outcome: sum(gap.missing for gap in outcome.unpublished)),
    ("sums by name and state", lambda outcome: len(outcome.recorded)),
    ("sums that differ", lambda outcome: len(outcome.differences)),
    ("tasks in flight at the end, by the gauges", lambda outcome: sum(outcome.in_flight.values())),
)


def markdown(heading: str, outcomes: Sequence[Outcome], deselected: Mapping[str, str]) -> str:
    """Return all tables that have rows."""
    brokers = [outcome.broker for outcome in outcomes]
    parts = [
        heading,
        table(
            ["", *brokers],
            [[name, *(f"{read(outcome):,}" for outcome in outcomes)] for name, read in SUMMARY],
        ),
        "Sums over all task names; written by the tasks, published as events, shown by the exporter:",
        table(["state", *_columns(brokers)], [[state, *_by_state(state, outcomes)] for state in _states()]),
        *_optional("Sums that differ from what was published:", *_differences(outcomes)),
        *_optional("Tasks that the gauges still count at the end:", *_in_flight(outcomes)),
        *_optional("State changes that Celery published no event for:", *_unpublished(outcomes)),
        *_optional(
            "Tests of Celery's that failed, which is no finding about the exporter:", *_failed(outcomes)
        ),
        *_optional("Deselected tests:", ["test", "reason"], [[*item] for item in deselected.items()]),
    ]
    return "\n\n".join(parts)


def table(headings: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Return a Markdown table."""
    lines = [headings, ["---"] * len(headings), *rows]
    return "\n".join(f"| {' | '.join(_cell(cell) for cell in line)} |" for line in lines)


def _cell(cell: object) -> str:
    return str(cell).replace("|", "\\|")


def _optional(title: str, headings: Sequence[str], rows: Sequence[Sequence[object]]) -> list[str]:
    return [title, table(headings, rows)] if rows else []


def _states() -> tuple[str, ...]:
    return (*STATES, REDELIVERED)


def _columns(brokers: Sequence[str]) -> list[str]:
    return [f"{broker}: {column}" for broker in brokers for column in ("written", "published", "shown")]


def _by_state(state: str, outcomes: Sequence[Outcome]) -> list[str]:
    sums = [sums for outcome in outcomes for sums in (outcome.recorded, outcome.published, outcome.exposed)]
    return [f"{_total(counts, [state]):,}" for counts in sums]


def _total(sums: Counter[tuple[str, str]], states: Sequence[str]) -> int:
    return sum(count for (_, state), count in sums.items() if state in states)


def _differences(outcomes: Sequence[Outcome]) -> tuple[list[str], list[list[object]]]:
    headings = ["broker", "task", "state", "written", "published", "shown", "tests"]
    rows = [
        [outcome.broker, *row, _tests(outcome, row.task)]
        for outcome in outcomes
        for row in outcome.differences
    ]
    return headings, rows


def _in_flight(outcomes: Sequence[Outcome]) -> tuple[list[str], list[list[object]]]:
    headings = ["broker", "task", "state", "tasks", "tests"]
    rows = [
        [outcome.broker, task, state, count, _tests(outcome, task)]
        for outcome in outcomes
        for (task, state), count in outcome.in_flight.items()
    ]
    return headings, rows


def _tests(outcome: Outcome, task: str) -> str:
    """Return the tests whose tasks of this name have wrong metrics after their own events."""
    return ", ".join(sorted({test.rpartition("::")[2] for test in outcome.blamed.get(task, ())}))


def _unpublished(outcomes: Sequence[Outcome]) -> tuple[list[str], list[list[object]]]:
    """Return a row for each task name and state of a test, with the sum over its tasks."""
    sums: Counter[tuple[str, str, str, str]] = Counter()
    for outcome in outcomes:
        for gap in outcome.unpublished:
            sums[outcome.broker, gap.test.rpartition("::")[2], gap.task, gap.state] += gap.missing
    rows: list[list[object]] = [[*key, count] for key, count in sorted(sums.items())]
    return ["broker", "test", "task", "state", "missing"], rows


def _failed(outcomes: Sequence[Outcome]) -> tuple[list[str], list[list[object]]]:
    return ["broker", "test"], [[outcome.broker, test] for outcome in outcomes for test in outcome.failed]
