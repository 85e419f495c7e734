"""Findings as people and programs read them."""

from __future__ import annotations

import click
import msgspec

from celery_exporter.doctor import Report
from celery_exporter.findings import Finding
from celery_exporter.quoting import printable, printable_json

#: How a level is written, in which colour (where there is a terminal).
_LEVELS = {"ok": ("ok", "green"), "warn": ("warn", "yellow"), "fail": ("FAIL", "red")}
#: Columns of the level and of the check: the longest has 24 letters.
_LEVEL, _CHECK = 6, 26


def printed(finding: Finding) -> str:
    """Return a line, and one under it that says what mends it."""
    word, colour = _LEVELS[finding.level]
    line = f"{click.style(f'{word:{_LEVEL}}', fg=colour)}{finding.check:{_CHECK}}{printable(finding.found)}"
    return f"{line}\n{'':{_LEVEL + _CHECK}}-> {printable(finding.mend)}" if finding.mend else line


def as_json(report: Report) -> str:
    """Return the report as one JSON document."""
    return printable_json(msgspec.json.format(msgspec.json.encode(report), indent=2).decode())
