"""What checks return: a finding each, in words for people. No checks, no I/O."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

from msgspec import Struct

from celery_exporter.core.snapshot import WorkerView
from celery_exporter.quoting import printable

Severity = Literal["ok", "warning", "critical"]

#: Names in one line.
MOST_NAMES = 5


class Finding(Struct, frozen=True):
    """What one check found, in one line, and the command or setting that mends it."""

    check: str  # its name
    severity: Severity
    message: str  # for people: its words may change
    remedy: str = ""  # empty where all is well
    alert: str = ""  # of alerts/, whose condition this is; /runbooks has a chapter on it


def names(some_: Iterable[WorkerView | str]) -> str:
    """Return names of workers, or others that came from the wire, in one line that can be printed."""
    return some(sorted(printable(each if isinstance(each, str) else each.name) for each in some_))


def some(texts: list[str]) -> str:
    """Return the first of these texts in one line, and how many more there are."""
    more = len(texts) - MOST_NAMES
    return ", ".join(texts[:MOST_NAMES]) + (f" and {more:,} more" if more > 0 else "")


def count(number: int, what: str) -> str:
    """Return a number with its noun, in the plural where it is not 1."""
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def lasting(seconds: float) -> str:
    """Return a duration for people, in the largest unit of which there are two."""
    for unit, name in ((86_400, "days"), (3_600, "hours"), (60, "minutes")):
        if seconds >= 2 * unit:
            return f"{seconds / unit:.0f} {name}"
    return f"{seconds:.0f} s"
