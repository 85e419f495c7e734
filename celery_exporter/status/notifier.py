"""Findings of each run → those to log: a problem once, and its end once. Pure: time comes in."""

from __future__ import annotations

from collections.abc import Iterable

from celery_exporter.status.finding import Finding, Severity
from celery_exporter.status.thresholds import BY_ALERT, WINDOW

#: Seconds for which a problem has to last before it is logged. Workers that restart are away for less.
HOLD_SECONDS = 20.0
#: Checks whose errors the connection logs itself.
LOGGED_ELSEWHERE = frozenset({"subscription", "transport"})


class FindingNotifier:
    """Compares the findings of each run with earlier ones, and returns those to log."""

    def __init__(self) -> None:
        self._since: dict[str, float] = {}  # check → when its problem began
        self._logged: dict[str, Severity] = {}
        self._last_found: dict[str, float] = {}  # check → when it had a finding last

    def changes(self, findings: Iterable[Finding], now: float) -> list[Finding]:
        """Return the findings to log; `now` is in seconds of a monotonic clock.

        A problem is logged once, after the pending time of its alert or `HOLD_SECONDS`, and its end once. A
        check without a finding has not ended. A problem that returns after `WINDOW` without a finding is
        logged again.
        """
        since, changes = self._since, []
        self._since = {}
        for finding in findings:
            check, severity = finding.check, finding.severity
            if now - self._last_found.get(check, now) > WINDOW:
                self._logged.pop(check, None)
            self._last_found[check] = now
            if severity == "ok":
                if self._logged.pop(check, None):
                    changes.append(finding)
                continue
            self._since[check] = since.get(check, now)
            has_lasted = now - self._since[check] >= _pending_seconds(finding)
            is_new = self._logged.get(check) not in (severity, "critical")
            if has_lasted and is_new and check not in LOGGED_ELSEWHERE:
                self._logged[check] = severity
                changes.append(finding)
        return changes


def _pending_seconds(finding: Finding) -> float:
    """Return the seconds for which a problem has to last: longer where a value goes up and down."""
    threshold = BY_ALERT.get(finding.alert)
    return threshold.pending if threshold is not None and threshold.limit else HOLD_SECONDS
