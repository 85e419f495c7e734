"""Which tests a difference comes from: the events of each task id, replayed alone through the core.

A task id is all that the core needs to follow a task, so an id whose events alone give the wrong sums or
leave a gauge up is an example of what goes wrong, small enough to read. After a change of the core, a
run can be judged again in seconds:

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
from celery_integration.comparison import Difference, Sums, Unpublished, Written

Event = Mapping[str, Any]


class Example(NamedTuple):
    """A task id that is shown wrongly even if its events are all that there are."""

    test: str
    task_id: str
    differences: list[Difference]
    in_flight: dict[tuple[str, str], int]
    events: Sequence[Event]

    def names(self) -> set[str]:
        return {row.task for row in self.differences} | {name for name, _ in self.in_flight}

    def text(self) -> str:
        """Return the example for people: test, sums, and the events with their seconds of arrival."""
        begin = self.events[0]["arrived"] if self.events else 0.0
        lines = [f"{self.test}  {self.task_id}"]
        lines += [
            f"  {row.task} {row.state}: published {row.published}, shown {row.shown}"
            for row in self.differences
        ]
        lines += [f"  {name} {state}: {count} in flight" for (name, state), count in self.in_flight.items()]
        lines += [f"  {event['arrived'] - begin:8.3f}  {_told(event)}" for event in self.events]
        return "\n".join(lines)


def examples(
    written: Written, events: Iterable[Event], gaps: Iterable[Unpublished], names: Collection[str]
) -> list[Example]:
    """Return the ids that are shown wrongly alone, of those that ran under one of these names.

    Thousands of ids have events of the same form, of which the first one speaks for all.
    """
    by_id: dict[str, list[Event]] = defaultdict(list)
    for event in events:
        by_id[event.get("uuid") or ""].append(event)
    gaps_by_id: dict[str, list[Unpublished]] = defaultdict(list)
    for gap in gaps:
        gaps_by_id[gap.task_id].append(gap)
    good: set[object] = set()
    found = []
    for task_id, sums in written.by_id.items():
        if not any(name in names for name, _ in sums):
            continue
        form = _form(sums, by_id[task_id])
        if form in good:
            continue
        example = _example(written.test_of(task_id), task_id, sums, by_id[task_id], gaps_by_id[task_id])
        if example.differences or example.in_flight:
            found.append(example)
        else:
            good.add(form)
    return found


def _form(sums: Sums, events: Iterable[Event]) -> object:
    """Return what is alike of tasks to which the same happened, whenever that was."""
    fields = ("type", "name", "retries", "pid", "requeue")
    return frozenset(sums.items()), tuple(tuple(event.get(field) for field in fields) for event in events)


def report(found: Iterable[Example]) -> str:
    """Return a text for people: of examples that are alike the first one, and how many there are."""
    alike: dict[object, list[Example]] = defaultdict(list)
    for example in found:
        alike[example.test, _form(Counter(example.in_flight), example.events)].append(example)
    return "\n\n".join(f"{len(group)} x {group[0].text()}" for group in alike.values())


def blamed(found: Iterable[Example]) -> dict[str, set[str]]:
    """Return the tests by the names of the tasks that they get shown wrongly."""
    tests: dict[str, set[str]] = defaultdict(set)
    for example in found:
        for name in example.names():
            tests[name].add(example.test)
    return dict(tests)


def _example(
    test: str, task_id: str, sums: Sums, events: Sequence[Event], gaps: Iterable[Unpublished]
) -> Example:
    samples = shown_alone(events) if events else Samples()
    wrong = comparison.differences(Counter(sums), gaps, comparison.shown(samples))
    return Example(test, task_id, wrong, comparison.in_flight(samples), events)


def shown_alone(events: Sequence[Event]) -> Samples:
    """Return what the exporter would show if nothing else had happened."""
    begin = events[0]["arrived"]
    snapshot = replay((event["arrived"] - begin, json.dumps([event]).encode()) for event in events)
    text = Exposition(select(("native",), MetricOptions()).rows).render(snapshot).decode()
    return Samples.of(text_string_to_metric_families(text))


def _told(event: Event) -> str:
    fields = ("hostname", "pid", "name", "retries", "eta", "requeue", "expired", "terminated")
    return " ".join(
        [event["type"], *(f"{name}={event[name]}" for name in fields if event.get(name) is not None)]
    )


def main(*folders: Path) -> int:
    """Judge runs again, by their folders; print the examples."""
    found = [example for folder in folders for example in judged_again(folder)]
    print(report(found) or "no task is shown wrongly by its own events")
    return 1 if found else 0


def judged_again(folder: Path) -> list[Example]:
    """Return the examples in the files of a run."""
    written = comparison.read_written((folder / "tests/ledger.jsonl").read_text().splitlines())
    events = comparison.read_events(folder / "recorder/events.jsonl")
    names = {name for name, _ in written.sums()}
    return examples(written, events, comparison.unpublished(written, events), names)


if __name__ == "__main__":
    sys.exit(main(*map(Path, sys.argv[1:])))
