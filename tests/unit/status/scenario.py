"""Events and replies → the findings of all checks, by check, or the status that the API returns."""

from __future__ import annotations

import msgspec

from celery_exporter.core.snapshot import JobView, Snapshot
from celery_exporter.core.workers import WorkerInfo
from celery_exporter.status.builder import build
from celery_exporter.status.checks import run_checks
from celery_exporter.status.facts import DISCOVERY_SECONDS
from celery_exporter.status.finding import Finding
from celery_exporter.status.model import Status
from celery_exporter.status.recent import Recent
from unit.core.cluster_driver import T0, ClusterDriver, heartbeat, received, sent, started, succeeded

REPLIED = WorkerInfo(queues=("q",), registered=(), pool="prefork", pool_size=4)
HEALTHY = [JobView("queues", True, 0.1, T0), JobView("workers", True, 0.1, T0)]
TASK = (sent(), received(), started())


def heartbeats(host: str = "w@h", processed: tuple[int, ...] = (0,), **fields) -> list[dict]:
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


def task_events(number: int, at: float, runtime: float = 0.5, end=succeeded, **more) -> list[dict]:
    """Return all events of a task that is sent at a time and runs for some seconds."""
    uuid = f"u{number}"
    ended = end(uuid, at=at + 1 + runtime, runtime=runtime, **more)
    return [sent(uuid, at=at), received(uuid, at=at), started(uuid, at=at + 1), ended]


def status(driver: ClusterDriver, recent: Recent, **around) -> Status:
    """Return the status as clients of the API receive it."""
    snapshot = driver.shown(**around)
    result = build(snapshot, recent.growth(snapshot, driver.now), "redis://broker/0")
    return msgspec.json.decode(msgspec.json.encode(result), type=Status)
