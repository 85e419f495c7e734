"""What checks return: a finding, made from a row of a table of problems. No checks, no I/O."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Annotated, Literal

from msgspec import Meta, Struct

from celery_exporter.core.snapshot import WorkerView
from celery_exporter.quoting import printable

Severity = Literal["ok", "warning", "critical"]

#: Severities of problems, the worst first.
SEVERITIES: Sequence[Severity] = ("critical", "warning")
#: Names listed in one message or command.
MAX_NAMES = 5


class Finding(Struct, frozen=True):
    """The result of one health check."""

    check: Annotated[str, Meta(description="Name of the check.")]
    severity: Annotated[Severity, Meta(description="`ok` if there is no problem.")]
    message: Annotated[str, Meta(description="One line for people. Its wording may change.")]
    remedy: Annotated[str, Meta(description="What helps: a command or a setting. Empty if `ok`.")] = ""
    alert: Annotated[
        str,
        Meta(description="The shipped alert with the same condition; /runbooks describes it. May be empty."),
    ] = ""


class Problem(Struct, frozen=True):
    """One thing that can be wrong. `message` and `remedy` are templates of `str.format`."""

    check: str
    severity: Severity  # the highest that it can have
    message: str
    remedy: str
    alert: str = ""

    def finding(self, **values: object) -> Finding:
        """Return a finding of this problem; raise KeyError if a template has a field without a value."""
        message, remedy = self.message.format(**values), self.remedy.format(**values)
        return Finding(self.check, self.severity, message, remedy, self.alert)

    def ok(self, message: str) -> Finding:
        """Return the finding that the check of this problem did not find it."""
        return Finding(self.check, "ok", message)


def problems(findings: Iterable[Finding]) -> list[Finding]:
    """Return the findings that are not ok: the critical ones first, else in their order."""
    return sorted(
        (finding for finding in findings if finding.severity in SEVERITIES),
        key=lambda finding: SEVERITIES.index(finding.severity),
    )


def names(workers: Iterable[WorkerView | str]) -> str:
    """Return the first names in one printable line; they may come from the wire."""
    return first_of(sorted(printable(item if isinstance(item, str) else item.name) for item in workers))


def first_of(texts: list[str]) -> str:
    """Return the first `MAX_NAMES` texts in one line, and how many more there are."""
    more = len(texts) - MAX_NAMES
    return ", ".join(texts[:MAX_NAMES]) + (f" and {more:,} more" if more > 0 else "")


def count(number: int, noun: str) -> str:
    """Return a number with its noun, in the plural unless the number is 1."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def rate(number: int, seconds: float, noun: str) -> str:
    """Return a number within some seconds as one a second, or a minute if there is less than one a second."""
    per_second = number / seconds
    value, unit = (per_second, "second") if per_second >= 0.95 else (60 * per_second, "minute")
    text = f"{value:,.0f}" if value >= 9.95 else f"{value:.1f}".removesuffix(".0")
    return f"{text} {noun}{'' if text == '1' else 's'} a {unit}"


def duration(seconds: float) -> str:
    """Return a duration in the largest unit of which there are at least two."""
    for unit_seconds, unit in ((86_400, "days"), (3_600, "hours"), (60, "minutes")):
        if seconds >= 2 * unit_seconds:
            return f"{seconds / unit_seconds:.0f} {unit}"
    return f"{seconds:.0f} s"
