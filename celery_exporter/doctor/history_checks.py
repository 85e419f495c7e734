"""Check of the history file: whether an exporter could use it. Nothing is written."""

from __future__ import annotations

from pathlib import Path

from celery_exporter.doctor.problems import HISTORY_UNUSABLE
from celery_exporter.history.file import HistoryFileError, probe
from celery_exporter.quoting import printable
from celery_exporter.status.finding import Finding


def run_history_check(path: Path) -> Finding:
    """Return whether an exporter could use the file at a path."""
    try:
        is_in_use = probe(path)
    except HistoryFileError as error:
        return HISTORY_UNUSABLE.finding(error=printable(str(error)))
    use = "an exporter uses it" if is_in_use else "can be used"
    return HISTORY_UNUSABLE.ok(f"history file {printable(str(path))}: {use}")
