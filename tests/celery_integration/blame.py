"""Finds the tests that cause a difference, by a replay of the events of each task id through the core.

The core identifies a task by its id. If the events of one id alone give wrong sums or leave a gauge above 0,
they are a small example of the error. After a change of the core, a run can be evaluated again in seconds:

    PYTHONPATH=tests .venv/bin/python -m celery_integration.blame .cache/celery-integration/runs/TIME/redis
"""

from __future__ import annotations

import json
import sys
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from harness.exporter import Samples
from prometheus_client.parser import text_string_to_metric_families
from unit.test_golden_replay import replay

from celery_exporter.metrics.exposition.text import Exposition
from celery_exporter.metrics.model import MetricOptions
from celery_exporter.metrics.registry import select
from celery_integration import comparison
from celery_integration.comparison import Difference, Records, Sums, Unpublished

Event = Mapping[str, Any]


class Example(NamedTuple):
    """A task id with wrong metrics even if its events are the only ones."""

    test: str
    task_id: str
    differences: list[Difference]
    in_flight: dict[tuple[str, str], int]
    events: Sequence[Event]

    def names(self) -> set[str]:
        """Return the task names with wrong metrics."""
        return {row.task for row in self.differences} | {name for name, _ in self.in_flight}

    def text(self) -> str:
        """Return the test, the sums, and the events with their times of arrival as text."""
        begin = self.events[0]["arrived"] if self.events else 0.0
        lines = [f"{self.test}  {self.task_id}"]
        lines += [
            f"  {row.task} {row.state}: published {row.published}, shown {row.exposed}"
            for row in self.differences
        ]
        lines += [f"  {name} {state}: {count} in flight" for (name, state), count in self.in_flight.items()]
        lines += [f"  {event['arrived'] - begin:8.3f}  {_format(event)}" for event in self.events]
        return "\n".join(lines)


def examples(
    records: Records, events: Iterable[Event], gaps: Iterable[Unpublished], names: Collection[str]
) -> list[Example]:
    """Return the task ids with one of these names whose own events give wrong metrics.

    Of thousands of ids with the same kind of events, only the first one is replayed.
    """
    by_id: dict[str, list[Event]] = defaultdict(list)
    for event in events:
        by_id[event.get("uuid") or ""].append(event)
    gaps_by_id: dict[str, list[Unpublished]] = defaultdict(list)
    for gap in gaps:
        gaps_by_id[gap.task_id].append(gap)
    correct_forms: set[object] = set()
    wrong = []
    for task_id, sums in records.by_id.items():
        if not any(name in names for name, _ in sums):
            continue
        form = _form(sums, by_id[task_id])
        if form in correct_forms:
            continue
        example = _example(records.test_of(task_id), task_id, sums, by_id[task_id], gaps_by_id[task_id])
        if example.differences or example.in_flight:
            wrong.append(example)
        else:
            correct_forms.add(form)
    return wrong


def _form(sums: Sums, events: Iterable[Event]) -> object:
    """Return a value that is equal for tasks with the same sums and the same sequence of events."""
    fields = ("type", "name", "retries", "pid", "requeue")
    return frozenset(sums.items()), tuple(tuple(event.get(field) for field in fields) for event in events)


def report(wrong: Iterable[Example]) -> str:
    """Return the first example of each form as text, with the number of examples of that form."""
    groups: dict[object, list[Example]] = defaultdict(list)
    for example in wrong:
        groups[example.test, _form(Counter(example.in_flight), example.events)].append(example)
    return "\n\n".join(f"{len(group)} x {group[0].text()}" for group in groups.values())


def blamed(wrong: Iterable[Example]) -> dict[str, set[str]]:
    """Return the tests that cause wrong metrics, by task name."""
    tests: dict[str, set[str]] = defaultdict(set)
    for example in wrong:
        for name in example.names():
            tests[name].add(example.test)
    return dict(tests)


def _example(
    test: str, task_id: str, sums: Sums, events: Sequence[Event], gaps: Iterable[Unpublished]
) -> Example:
    samples = replayed_samples(events) if events else Samples()
    differences = comparison.differences(Counter(sums), gaps, comparison.exposed_sums(samples))
    return Example(test, task_id, differences, comparison.in_flight(samples), events)


def replayed_samples(events: Sequence[Event]) -> Samples:
    """Return the metrics of the exporter after these events only."""
    begin = events[0]["arrived"]
    snapshot = replay((event["arrived"] - begin, json.dumps([event]).encode()) for event in events)
    text = Exposition(select(("native",), MetricOptions()).rows).render(snapshot).decode()
    return Samples.of(text_string_to_metric_families(text))


def _format(event: Event) -> str:
    fields = ("hostname", "pid", "name", "retries", "eta", "requeue", "expired", "terminated")
    return " ".join(
        [event["type"], *(f"{name}={event[name]}" for name in fields if event.get(name) is not None)]
    )


def main(*folders: Path) -> int:
    """Evaluate the runs in these folders again, print the examples, and return the exit code."""
    wrong = [example for folder in folders for example in recorded_examples(folder)]
    print(report(wrong) or "no task has wrong metrics after its own events")
    return 1 if wrong else 0


def recorded_examples(folder: Path) -> list[Example]:
    """Return the examples of a recorded run."""
    records = comparison.read_records((folder / "tests/outcomes.jsonl").read_text().splitlines())
    events = comparison.read_events(folder / "recorder/events.jsonl")
    names = {name for name, _ in records.sums()}
    return examples(records, events, comparison.unpublished(records, events), names)


if __name__ == "__main__":
    sys.exit(main(*map(Path, sys.argv[1:])))
