"""Check of the state file: whether an exporter could use it. Nothing is written."""

from __future__ import annotations

from pathlib import Path

from celery_exporter.broker.source import ConfigSource
from celery_exporter.doctor.problems import STATE_FILE_REFUSED, STATE_FILE_UNUSED
from celery_exporter.monitor.checkpoint import probe
from celery_exporter.monitor.config import MonitorConfig
from celery_exporter.persistence.state_file import StateFileError, UnusablePathError
from celery_exporter.quoting import printable
from celery_exporter.status.finding import Finding


def run_state_check(path: Path, config: MonitorConfig) -> Finding:
    """Return whether the exporter of this config could use the file at a path."""
    shown = printable(str(path))
    try:
        exists = probe(path, config, ConfigSource(config.broker).identity())
    except UnusablePathError as error:
        return STATE_FILE_REFUSED.finding(error=printable(str(error)))
    except StateFileError as error:
        return STATE_FILE_UNUSED.finding(path=shown, error=printable(str(error)))
    is_own = "is that of this broker and shard" if config.shard is not None else "is that of this broker"
    return STATE_FILE_REFUSED.ok(f"state file {shown}: {is_own if exists else 'does not exist yet'}")
