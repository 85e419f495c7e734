"""How the report is printed."""

from __future__ import annotations

import re

import msgspec

from celery_exporter.cli.main import _command
from celery_exporter.doctor.report import as_json, printed
from celery_exporter.doctor.runner import Report
from celery_exporter.status.finding import Finding


def test_how_findings_are_written():
    finding = Finding("clock-skew", "critical", "message", "remedy")
    plain = re.sub(r"\x1b\[\d+m", "", printed(finding))
    assert plain.splitlines() == ["CRITICAL clock-skew                message", " " * 35 + "-> remedy"]
    report = Report(1, "redis://h", 1.5, 2, [finding])
    assert msgspec.json.decode(as_json(report), type=Report) == report


def test_the_help_says_what_exit_codes_mean():
    text = _command.commands["doctor"].help or ""
    assert "Exit code 0" in " ".join(text.split())
