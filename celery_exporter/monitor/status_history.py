"""Keeps recent counts and charts for the pages, and logs findings that are new or resolved."""

from __future__ import annotations

import logging
import math
import threading

from celery_exporter.core.snapshot import Snapshot
from celery_exporter.status.chart_history import ChartHistory
from celery_exporter.status.charts import ChartQuery, Charts, charts_of
from celery_exporter.status.checks import run_checks
from celery_exporter.status.notifier import FindingNotifier
from celery_exporter.status.recent import Growth, Recent

log = logging.getLogger("celery_exporter.status.checks")


class StatusHistory:
    """Recent counts, charts and findings. Times are monotonic seconds.

    `update` is of one thread, `growth` and `charts` of any. Checks run at most every `check_seconds`: they
    cost more than a sample for charts.
    """

    def __init__(self, check_seconds: float = 0.0) -> None:
        self._check_seconds, self._next_check = check_seconds, -math.inf
        self._recent = Recent()
        self._notifier = FindingNotifier()
        self._charts = ChartHistory()
        self._charts_lock = threading.Lock()

    def update(self, snapshot: Snapshot, now: float) -> None:
        """Add a snapshot that was taken now, and log what changed in the findings."""
        with self._charts_lock:
            self._charts.add(snapshot, now)
        if now < self._next_check:
            return
        self._next_check = now + self._check_seconds
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

    def charts(self, query: ChartQuery, now: float, at: float) -> Charts:
        """Return the charts of a valid query; `at` is now in epoch seconds."""
        with self._charts_lock:
            return charts_of(query, self._charts, now, at)
