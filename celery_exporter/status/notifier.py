"""Findings → what the log has to say about them: a problem once, and its end once. Pure: time comes in."""

from __future__ import annotations

from collections.abc import Iterable

from celery_exporter.status.finding import Finding, Severity
from celery_exporter.status.thresholds import BY_CHECK, WINDOW

#: Seconds for which a problem has to last before it is logged. Workers that restart are away for less.
HOLD_SECONDS = 20.0
#: Checks whose errors the connection logs itself.
LOGGED_ELSEWHERE = frozenset({"subscription", "transport"})


class FindingNotifier:
    """Compares the findings of each run with those before, and reports what the log has to say."""

    def __init__(self) -> None:
        self._since: dict[str, float] = {}
        self._logged: dict[str, Severity] = {}
        self._seen: dict[str, float] = {}  # when each check found something last

    def changes(self, findings: Iterable[Finding], now: float) -> list[Finding]:
        """Return the findings to log; `now` is in seconds of a monotonic clock.

        A problem is logged once, after the pending time of its alert or `HOLD_SECONDS`, and its end once. A
        check without a finding has not ended. A problem that returns after `WINDOW` without a finding is
        logged again.
        """
        since, new = self._since, []
        self._since = {}
        for finding in findings:
            check, severity = finding.check, finding.severity
            if now - self._seen.get(check, now) > WINDOW:
                self._logged.pop(check, None)
            self._seen[check] = now
            if severity == "ok":
                if self._logged.pop(check, None):
                    new.append(finding)
                continue
            self._since[check] = since.get(check, now)
            held = now - self._since[check] >= _pending(check)
            if (
                held
                and check not in LOGGED_ELSEWHERE
                and self._logged.get(check) not in (severity, "critical")
            ):
                self._logged[check] = severity
                new.append(finding)
        return new


def _pending(check: str) -> float:
    """Return the seconds for which a problem has to last: longer where a value goes up and down."""
    row = BY_CHECK.get(check)
    return row.pending if row is not None and row.limit else HOLD_SECONDS
