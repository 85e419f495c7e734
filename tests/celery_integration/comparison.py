"""Compares the records of the tasks, the published events, and the metrics of the exporter. Pure."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from harness.exporter import Samples

#: States in their usual order. Celery publishes no event for IGNORED, the end of a replaced task.
STATES = ("PENDING", "RECEIVED", "STARTED", "SUCCESS", "FAILURE", "RETRY", "REVOKED", "REJECTED")
#: Not a state: a message that the broker delivered again.
REDELIVERED = "redelivered"
EVENTS = {
    "task-sent": "PENDING",
    "task-received": "RECEIVED",
    "task-started": "STARTED",
    "task-succeeded": "SUCCESS",
    "task-failed": "FAILURE",
    "task-retried": "RETRY",
    "task-revoked": "REVOKED",
    "task-rejected": "REJECTED",
}

Sums = Counter[tuple[str, str]]  # by task name, and state or REDELIVERED


@dataclass
class Records:
    """The records of Celery's test process and its pool."""

    by_id: dict[str, Sums] = field(default_factory=lambda: defaultdict(Counter))
    outcomes: dict[str, str] = field(default_factory=dict)  # test → passed, failed or skipped
    reruns: int = 0
    finished: bool = False
    _tests: dict[str, str] = field(default_factory=dict)
    _roots: dict[str, str] = field(default_factory=dict)

    def add(self, line: Mapping[str, Any]) -> None:
        """Add a line of the file."""
        {"task": self._add_task, "result": self._add_result, "finished": self._finish}[line["kind"]](line)

    def sums(self) -> Sums:
        """Return the sums over all tasks."""
        total: Sums = Counter()
        for sums in self.by_id.values():
            total.update(sums)
        return +total

    def test_of(self, task_id: str) -> str:
        """Return the test that sent a task or the root of its tree."""
        return self._tests.get(task_id) or self._tests.get(self._roots.get(task_id, ""), "")

    def _add_task(self, line: Mapping[str, Any]) -> None:
        task_id, name, state = line["id"], line["name"], line["state"]
        if state in STATES:
            self.by_id[task_id][name, state] += 1
        if line.get("redelivered"):
            self.by_id[task_id][name, REDELIVERED] += 1
        if line.get("root_id"):
            self._roots.setdefault(task_id, line["root_id"])
        if line.get("test"):
            self._tests.setdefault(task_id, line["test"])

    def _add_result(self, line: Mapping[str, Any]) -> None:
        test, outcome = line["test"], line["outcome"]
        if outcome == "rerun":
            self.reruns += 1
            self.outcomes.pop(test, None)
        elif self.outcomes.get(test) != "failed":
            self.outcomes[test] = outcome

    def _finish(self, _: Mapping[str, Any]) -> None:
        self.finished = True


def read_records(lines: Iterable[str]) -> Records:
    """Return the records in these lines."""
    records = Records()
    for line in lines:
        records.add(json.loads(line))
    for sums in records.by_id.values():
        for name in {name for name, _ in sums}:
            sums[name, REDELIVERED] = max(sums[name, REDELIVERED], _received_unsent(name, sums))
    return records


def _received_unsent(name: str, sums: Sums) -> int:
    """Return how often a task was received without being sent: duplicates without the broker's flag."""
    return sums[name, "RECEIVED"] - sums[name, "PENDING"]


def read_events(file: Path) -> list[dict[str, Any]]:
    """Return the events in a file, without an incomplete last line."""
    return [json.loads(line) for line in file.read_text().splitlines(keepends=True) if line[-1] == "\n"]


def transitions(events: Iterable[Mapping[str, Any]]) -> dict[str, Counter[str]]:
    """Return how often each task id entered each state, by the published events."""
    by_id: dict[str, Counter[str]] = defaultdict(Counter)
    for event in events:
        state = EVENTS.get(event["type"])
        if state:
            by_id[event["uuid"]][state] += 1
    return by_id


class Unpublished(NamedTuple):
    """State changes of a task with fewer published events than records."""

    test: str
    task_id: str
    task: str
    state: str
    recorded: int
    published: int

    @property
    def missing(self) -> int:
        """Return the number of missing events."""
        return self.recorded - self.published


def unpublished(records: Records, events: Iterable[Mapping[str, Any]]) -> list[Unpublished]:
    """Return the recorded state changes without an event, which no exporter can count.

    A surplus event changes nothing: one change has to be counted once.
    """
    published = transitions(events)
    rows = []
    for task_id, sums in records.by_id.items():
        for state in STATES:
            names = [name for name, own in sums if own == state and sums[name, own]]
            count = sum(sums[name, state] for name in names)
            published_count = published[task_id][state]
            if count > published_count:
                test = records.test_of(task_id)
                rows.append(Unpublished(test, task_id, names[-1], state, count, published_count))
    return rows


def exposed_sums(samples: Samples) -> Sums:
    """Return the sums of a scrape, without zeros."""
    sums: Sums = Counter()
    for (name, state), count in samples.by("celery_tasks_total", "task_name", "state").items():
        sums[name, state] += int(count)
    for (name,), count in samples.by("celery_task_redeliveries_total", "task_name").items():
        sums[name, REDELIVERED] += int(count)
    return +sums


def in_flight(samples: Samples) -> dict[tuple[str, str], int]:
    """Return the unfinished tasks of a scrape: {(task name, state): count}."""
    gauges = samples.by("celery_tasks_in_flight", "task_name", "state")
    return {(name, state): int(count) for (name, state), count in sorted(gauges.items()) if count}


class Difference(NamedTuple):
    """A sum of the exporter that differs from the published one."""

    task: str
    state: str
    recorded: int
    published: int
    exposed: int


def published(sums: Sums, gaps: Iterable[Unpublished]) -> Sums:
    """Return the recorded sums without the state changes that have no event."""
    remaining = Counter(sums)
    for gap in gaps:
        remaining[gap.task, gap.state] -= gap.missing
    return remaining


def differences(sums: Sums, gaps: Iterable[Unpublished], exposed: Sums) -> list[Difference]:
    """Return the sums, by name and state, in which the exporter and the published events differ."""
    expected = published(sums, gaps)
    keys = sorted(expected.keys() | exposed.keys())
    return [
        Difference(*key, sums[key], expected[key], exposed[key])
        for key in keys
        if expected[key] != exposed[key]
    ]
