"""Findings as HTML: problems with their remedies and runbooks, the critical ones first."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

from celery_exporter.status.finding import Finding, problems


def worst(findings: Sequence[Finding]) -> str:
    """Return the severity of the first of the sorted problems, or ok."""
    return findings[0].severity if findings else "ok"


def html(findings: Iterable[Finding]) -> str:
    """Return the section of problems."""
    items = "".join(map(_item, problems(findings))) or '<li class="ok">No problems found.</li>'
    return (
        '<section aria-labelledby="findings-title">\n<h2 id="findings-title">What to look at</h2>\n'
        f'<ul id="findings">{items}</ul>\n</section>\n'
    )


def _item(finding: Finding) -> str:
    return (
        f'<li class="{finding.severity}"><b>{finding.severity}</b> '
        f"{escape(finding.message)}{_runbook(finding.alert)}"
        f"<br><code>{escape(finding.remedy)}</code></li>"
    )


def _runbook(alert: str) -> str:
    return f' <a href="runbooks#{escape(alert.lower())}">{escape(alert)}</a>' if alert else ""
