"""The section `expected` of --config.file: which tasks have to run, and when.

expected:
- {task: shop.tasks.sync, every: 1h}
- {task: reports.nightly, cron: "0 3 * * *", timezone: Europe/Berlin, grace: 30m}
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any
from zoneinfo import available_timezones

from celery_exporter.config.suggestions import suggestion
from celery_exporter.core.durations import seconds_of
from celery_exporter.core.expected import DEFAULT_GRACE_SECONDS, MAX_EXPECTED, ExpectedTask
from celery_exporter.core.schedules import (
    MAX_EVERY_SECONDS,
    MIN_EVERY_SECONDS,
    Cron,
    Every,
    check_cron,
    time_zone,
)
from celery_exporter.core.task_names import ShownAs, clipped

#: Keys of an entry, with what they take.
ENTRY_KEYS = {
    "task": "Name of the task, as Celery or as metrics have it.",
    "every": "Longest time from one sending (or success) to the next: a duration such as 90s, 15m, 2h or 7d.",
    "cron": "Due times: minute, hour, day of the month, month, day of the week. Both days must match.",
    "timezone": "Time zone of `cron`, such as Europe/Berlin. UTC without it.",
    "grace": "Duration from the due time until the task is overdue. 5m without it.",
}
_DURATION = "a duration of a second to a year, such as 90s, 15m, 2h or 7d"


class BadEntryError(Exception):
    """An entry cannot be used. The text begins with its number in brackets, or a colon, and is one line."""


def expected_tasks(tree: Any) -> Sequence[ExpectedTask]:
    """Return the entries of a section. Raises BadEntryError."""
    if not isinstance(tree, list) or not tree:
        raise BadEntryError(": expected a list, such as - {task: name, every: 1h}")
    if len(tree) > MAX_EXPECTED:
        raise BadEntryError(f": got {len(tree)} entries; it takes up to {MAX_EXPECTED}")
    tasks: list[ExpectedTask] = []
    for number, entry in enumerate(tree, 1):
        try:
            task = _task(entry)
            _check_new(task, tasks)
        except BadEntryError as error:
            raise BadEntryError(f"[{number}]{error}") from None
        tasks.append(task)
    return tasks


def as_shown(tasks: Iterable[ExpectedTask], show: ShownAs) -> tuple[ExpectedTask, ...]:
    """Return the tasks by the names that metrics show. Raises BadEntryError for one that is excluded."""
    shown = []
    for number, task in enumerate(tasks, 1):
        name = clipped(show(task.name))
        if not name:
            raise BadEntryError(
                f"[{number}]: got task {task.name!r}, which --task-include or --task-exclude excludes"
            )
        shown.append(ExpectedTask(name, task.schedule, task.grace))
    return tuple(shown)


def _check_new(task: ExpectedTask, others: Sequence[ExpectedTask]) -> None:
    for number, other in enumerate(others, 1):
        if (other.name, other.schedule) == (task.name, task.schedule):
            raise BadEntryError(f": task {task.name!r} has the schedule of entry {number}; remove one")


def _task(entry: Any) -> ExpectedTask:
    if not isinstance(entry, dict):
        raise BadEntryError(": expected a mapping, such as {task: name, every: 1h}")
    for key, value in entry.items():
        if key not in ENTRY_KEYS:
            raise BadEntryError(f".{key}: unknown key{suggestion(key, ENTRY_KEYS)}")
        if not isinstance(value, str):
            raise BadEntryError(f".{key}: expected a single value, not a mapping or a list")
    name = str(entry.get("task", "")).strip()
    if not name:
        raise BadEntryError(": task is missing; give the name of a task")
    grace = _seconds(entry, "grace") if "grace" in entry else DEFAULT_GRACE_SECONDS
    return ExpectedTask(name, _schedule(entry, name), grace)


def _schedule(entry: Mapping[str, str], name: str) -> Every | Cron:
    given = [key for key in ("every", "cron") if key in entry]
    if len(given) != 1:
        got = "got every and cron" if given else "every or cron is missing"
        raise BadEntryError(f": task {name!r}: {got}; give one of them")
    if given == ["cron"]:
        return _cron(entry)
    if "timezone" in entry:
        raise BadEntryError(f".timezone: got {entry['timezone']!r}, which only cron has; remove it")
    return Every(_seconds(entry, "every"))


def _cron(entry: Mapping[str, str]) -> Cron:
    expression, zone = " ".join(entry["cron"].split()), entry.get("timezone", "UTC")
    try:
        check_cron(expression)
    except ValueError as error:
        raise BadEntryError(
            f".cron: got {entry['cron']!r}: {error}; it takes an expression such as 0 3 * * *"
        ) from None
    try:
        time_zone(zone)
    except ValueError:
        # Abbreviations are like others that mean another time: CEST, EST.
        similar = suggestion(zone, available_timezones(), cutoff=0.8) if "/" in zone else ""
        raise BadEntryError(
            f".timezone: got {zone!r}; it takes an IANA name such as Europe/Berlin{similar}"
        ) from None
    return Cron(expression, str(zone))


def _seconds(entry: Mapping[str, str], key: str) -> float:
    try:
        seconds = seconds_of(entry[key]) or float(entry[key])
    except ValueError:
        seconds = math.nan
    if not MIN_EVERY_SECONDS <= seconds <= MAX_EVERY_SECONDS:
        raise BadEntryError(f".{key}: got {entry[key]!r}; it takes {_DURATION}")
    return seconds
