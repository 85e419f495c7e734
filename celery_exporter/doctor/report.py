"""Findings as text for people, and as JSON for programs."""

from __future__ import annotations

import click
import msgspec

from celery_exporter.doctor.runner import Report
from celery_exporter.quoting import printable, printable_json
from celery_exporter.status.finding import Finding

#: Word and colour of each severity; the colour is for terminals.
_SEVERITIES = {"ok": ("ok", "green"), "warning": ("warning", "yellow"), "critical": ("CRITICAL", "red")}
#: Width of the columns of severity and check, in characters; the longest name has 24.
_SEVERITY_WIDTH, _CHECK_WIDTH = 9, 26


def printed(finding: Finding) -> str:
    """Return the finding as one line, and its remedy as a second one."""
    word, colour = _SEVERITIES[finding.severity]
    severity = click.style(f"{word:{_SEVERITY_WIDTH}}", fg=colour)
    line = f"{severity}{finding.check:{_CHECK_WIDTH}}{printable(finding.message)}"
    if not finding.remedy:
        return line
    return f"{line}\n{'':{_SEVERITY_WIDTH + _CHECK_WIDTH}}-> {printable(finding.remedy)}"


def as_json(report: Report) -> str:
    """Return the report as one JSON document."""
    return printable_json(msgspec.json.format(msgspec.json.encode(report), indent=2).decode())
