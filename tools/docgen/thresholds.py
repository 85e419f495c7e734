"""The thresholds of alerts and checks: as Jsonnet for the mixin, and as a table for people."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from celery_exporter.status import problems as status_problems
from celery_exporter.status.thresholds import LONG_WINDOW, POLLING_TASKS, TABLE, WINDOW
from tools.docgen import markdown
from tools.docgen.checks import problems

PATH = Path(__file__).resolve().parents[2] / "alerts" / "thresholds.libsonnet"
_HEAD = "// Made from celery_exporter/status/thresholds.py by make alerts: set _config of the mixin instead."


def libsonnet() -> str:
    """Return the first part of the mixin's _config, in the layout of jsonnetfmt."""
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
    """Return a table of the alerts, with checks of the same condition; `runbooks` is the page to link to."""
    checks_by_alert: dict[str, dict[str, None]] = {}
    for problem in problems(status_problems).values():
        checks_by_alert.setdefault(problem.alert, {})[f"`{problem.check}`"] = None
    rows = []
    for row in TABLE:
        checks = ", ".join(checks_by_alert.get(row.alert, ()))
        limit = f"`{row.setting}` {row.limit:g}" if row.setting else ""
        alert = f"[{row.alert}]({runbooks}#{row.alert.lower()})"
        rows.append((alert, row.severity, _duration(row.pending), checks, limit))
    return markdown.table(("alert", "severity", "pending", "checks", "threshold"), rows)


def made() -> Mapping[Path, str]:
    """Return the generated file and its text."""
    return {PATH: libsonnet()}


def _duration(seconds: float) -> str:
    return f"{seconds / 60:g}m"
