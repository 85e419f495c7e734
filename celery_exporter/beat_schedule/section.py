"""Entries → the text of the section `expected`."""

from __future__ import annotations

from collections.abc import Iterable

import yaml

from celery_exporter.beat_schedule.entries import Entry
from celery_exporter.core.durations import duration_text
from celery_exporter.core.schedules import Cron, Every
from celery_exporter.quoting import printable


def section(entries: Iterable[Entry]) -> str:
    """Return the section, with a comment for each entry: its name, or why it is not in the section."""
    lines = ["expected:"]
    first: dict[tuple[str, Every | Cron], str] = {}
    for entry in entries:
        name = printable(entry.name)
        if entry.schedule is None:
            lines.append(f"  # left out: {name} (task {printable(entry.task)}): {printable(entry.unfit)}")
        elif (same := first.setdefault((entry.task, entry.schedule), name)) != name:
            lines.append(f"  # left out: {name}: it has the task and the schedule of {same}")
        else:
            lines += [f"  # {name}", f"  - task: {_quoted(entry.task)}", *_schedule(entry.schedule)]
    return "\n".join(lines)


def _schedule(schedule: Every | Cron) -> list[str]:
    if isinstance(schedule, Every):
        return [f"    every: {duration_text(schedule.seconds)}"]
    return [f"    cron: {_quoted(schedule.expression)}", f"    timezone: {_quoted(schedule.timezone)}"]


def _quoted(text: str) -> str:
    """Return a text as a YAML scalar on one line, whatever is in it."""
    return yaml.safe_dump(text, default_style='"', width=float("inf")).rstrip("\n")
