"""Keeps recent counts for the status page, and logs findings that are new or resolved."""

from __future__ import annotations

import logging

from celery_exporter.core.snapshot import Snapshot
from celery_exporter.status.checks import run_checks
from celery_exporter.status.notifier import FindingNotifier
from celery_exporter.status.recent import Growth, Recent

log = logging.getLogger("celery_exporter.status.checks")


class StatusHistory:
    """Recent counts and findings. Times are monotonic seconds.

    `update` is of one thread, `growth` of any.
    """

    def __init__(self) -> None:
        self._recent = Recent()
        self._notifier = FindingNotifier()

    def update(self, snapshot: Snapshot, now: float) -> None:
        """Add a snapshot that was taken now, and log what changed in the findings."""
        self._recent.add(snapshot, now)
        findings = run_checks(snapshot, self._recent.growth(snapshot, now))
        for finding in self._notifier.changes(findings, now):
            if finding.severity == "ok":
                log.info("resolved: %s", finding.message)
            else:
                alert = f" (alert {finding.alert})" if finding.alert else ""
                log.warning("%s: %s%s", finding.message, finding.remedy, alert)

    def growth(self, snapshot: Snapshot, now: float) -> Growth:
        """Return what was counted in the last minutes up to a snapshot."""
        return self._recent.growth(snapshot, now)
