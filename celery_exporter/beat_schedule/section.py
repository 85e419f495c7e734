"""Entries → the text of the section `expected`."""

from __future__ import annotations

from collections.abc import Iterable

import yaml

from celery_exporter.beat_schedule.entries import Entry
from celery_exporter.core.durations import duration_text
from celery_exporter.core.expected import MAX_EXPECTED
from celery_exporter.core.schedules import Cron, Every
from celery_exporter.quoting import printable


def section(entries: Iterable[Entry]) -> str:
    """Return the section, with a comment for each entry: its name, or why it is not in the section.

    If all are left out, return only the comments.
    """
    lines: list[str] = []
    first: dict[tuple[str, Every | Cron], str] = {}
    for entry in entries:
        name = printable(entry.name)
        if entry.schedule is None:
            task = f" (task {printable(entry.task)})" if entry.task else ""
            lines.append(f"  # left out: {name}{task}: {printable(entry.unfit)}")
        elif (same := first.get(key := (entry.task.strip(), entry.schedule))) is not None:
            lines.append(f"  # left out: {name}: it has the task and the schedule of {same}")
        elif len(first) >= MAX_EXPECTED:
            lines.append(f"  # left out: {name}: a broker takes up to {MAX_EXPECTED} entries")
        else:
            first[key] = name
            lines += [f"  # {name}", f"  - task: {_quoted(entry.task)}", *_schedule(entry.schedule)]
    return "\n".join(["expected:", *lines] if first else lines)


def _schedule(schedule: Every | Cron) -> list[str]:
    if isinstance(schedule, Every):
        return [f"    every: {duration_text(schedule.seconds)}"]
    return [f"    cron: {_quoted(schedule.expression)}", f"    timezone: {_quoted(schedule.timezone)}"]


def _quoted(text: str) -> str:
    """Return a text as a YAML scalar on one line, whatever is in it."""
    return yaml.safe_dump(text, default_style='"', width=float("inf")).rstrip("\n")
