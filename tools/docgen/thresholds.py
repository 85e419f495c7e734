"""The thresholds of alerts and checks: as the mixin has them, and as a table for people."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from celery_exporter.status.thresholds import LONG_WINDOW, POLLING_TASKS, TABLE, WINDOW
from tools.docgen.layers import PACKAGE

PATH = Path(__file__).resolve().parents[2] / "alerts" / "thresholds.libsonnet"
_HEAD = f"// Made from {PACKAGE.name}/thresholds.py by make alerts: set _config of the mixin instead."


def libsonnet() -> str:
    """Return what the mixin's _config begins with, laid out as jsonnetfmt does."""
    lines = [f"  {row.setting}: {row.limit:g}," for row in TABLE if row.setting]
    lines += [f"  window: '{_duration(WINDOW)}',", f"  longWindow: '{_duration(LONG_WINDOW)}',"]
    polling = "|".join(sorted(name.replace(".", "[.]") for name in POLLING_TASKS))
    lines += [f"  pollingTasks: '{polling}',", "  alerts: {"]
    lines += [
        f"    {row.alert}: {{ severity: '{row.severity}', 'for': '{_duration(row.pending)}' }},"
        for row in TABLE
    ]
    return "\n".join([_HEAD, "{", *lines, "  },", "}", ""])


def table(runbooks: str = "") -> str:
    """Return which check looks for what alert fires on, with links to the runbooks, if on another page."""
    rows = []
    for row in TABLE:
        check = f"`{row.check}`" if row.check else ""
        limit = f"`{row.setting}` {row.limit:g}" if row.setting else ""
        alert = f"[{row.alert}]({runbooks}#{row.alert.lower()})"
        rows.append(f"| {alert} | {row.severity} | {_duration(row.pending)} | {check} | {limit} |")
    return "\n".join(["| alert | severity | pending | check | threshold |", "|---|---|---|---|---|", *rows])


def made() -> Mapping[Path, str]:
    """Return what has to be in which file."""
    return {PATH: libsonnet()}


def _duration(seconds: float) -> str:
    return f"{seconds / 60:g}m"
