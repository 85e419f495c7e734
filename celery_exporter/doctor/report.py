"""Findings as people and programs read them."""

from __future__ import annotations

import click
import msgspec

from celery_exporter.doctor.runner import Report
from celery_exporter.quoting import printable, printable_json
from celery_exporter.status.finding import Finding

#: How a severity is written, in which colour (where there is a terminal).
_SEVERITIES = {"ok": ("ok", "green"), "warning": ("warning", "yellow"), "critical": ("CRITICAL", "red")}
#: Columns of the severity and of the check: the longest has 24 letters.
_SEVERITY, _CHECK = 9, 26


def printed(finding: Finding) -> str:
    """Return a line, and one under it that says what mends it."""
    word, colour = _SEVERITIES[finding.severity]
    line = (
        f"{click.style(f'{word:{_SEVERITY}}', fg=colour)}{finding.check:{_CHECK}}{printable(finding.message)}"
    )
    return f"{line}\n{'':{_SEVERITY + _CHECK}}-> {printable(finding.remedy)}" if finding.remedy else line


def as_json(report: Report) -> str:
    """Return the report as one JSON document."""
    return printable_json(msgspec.json.format(msgspec.json.encode(report), indent=2).decode())
