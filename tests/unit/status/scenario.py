"""Events and replies → the findings of all checks, by check."""

from __future__ import annotations

from celery_exporter.core.snapshot import JobView, Snapshot
from celery_exporter.core.workers import WorkerInfo
from celery_exporter.status.checks import run_checks
from celery_exporter.status.facts import DISCOVERY_SECONDS
from celery_exporter.status.finding import Finding
from celery_exporter.status.recent import Recent
from unit.core.cluster_driver import T0, ClusterDriver, heartbeat, received, sent, started

REPLIED = WorkerInfo(queues=("q",), registered=(), pool="prefork", pool_size=4)
HEALTHY = [JobView("queues", True, 0.1, T0), JobView("workers", True, 0.1, T0)]
TASK = (sent(), received(), started())


def beats(host: str = "w@h", processed: tuple[int, ...] = (0,), **fields) -> list[dict]:
    return [heartbeat(host, 100 + 2 * n, processed=count, **fields) for n, count in enumerate(processed)]


def findings(*events: dict, profiles: dict[str, WorkerInfo] | None = None, **exporter) -> dict[str, Finding]:
    """Apply events, let workers reply, and return the findings after `DISCOVERY_SECONDS`, by check."""
    driver = ClusterDriver()
    driver.apply(*events)
    if profiles is None:
        profiles = dict.fromkeys(driver.cluster.workers, REPLIED)
    driver.cluster.record_inspection(profiles, driver.timestamp())
    values = {"listening": DISCOVERY_SECONDS, "jobs": HEALTHY, "last_event": T0, **exporter}
    return {finding.check: finding for finding in run(driver.shown(**values))}


def run(snapshot: Snapshot) -> list[Finding]:
    """Return the findings where nothing was counted in the last minutes."""
    return run_checks(snapshot, Recent().growth(snapshot, 0.0))


def severities(by_check: dict[str, Finding]) -> set[str]:
    return {finding.severity for finding in by_check.values()}
