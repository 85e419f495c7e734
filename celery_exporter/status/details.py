"""The parts of a status that the pages of one queue, of one worker and of failures show. Pure.

The descriptions are those of the JSON answers at /api/v1/queues/NAME, /api/v1/workers/NAME and
/api/v1/failures.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

from msgspec import Meta, Struct

from celery_exporter.status.finding import Finding, problems
from celery_exporter.status.model import (
    BrokerStatus,
    FailureGroup,
    FailureStatus,
    QueueStatus,
    Status,
    WorkerStatus,
)


class Detail(Struct, frozen=True, kw_only=True):
    """What all of these answers have. Times are Unix times in seconds. Null means unknown."""

    version: Annotated[int, Meta(description="Version of this format.")]
    exporter_version: Annotated[str, Meta(description="Version of the exporter.")]
    at: Annotated[float, Meta(description="When this answer was computed.")]
    broker: Annotated[BrokerStatus, Meta(description="The broker, and the event subscription on it.")]
    findings: Annotated[
        Sequence[Finding],
        Meta(description="Results of health checks that are not ok, the critical ones first."),
    ]


class WorkerDetail(Detail, frozen=True, kw_only=True):
    """One worker, the queues that it consumes, and its recent failures."""

    worker: Annotated[WorkerStatus, Meta(description="The worker.")]
    queues: Annotated[Sequence[QueueStatus], Meta(description="Queues that it consumes.")]
    failures: Annotated[Sequence[FailureStatus], Meta(description="Its recent failures.")]


class QueueDetail(Detail, frozen=True, kw_only=True):
    """One queue, and the workers that consume it."""

    queue: Annotated[QueueStatus, Meta(description="The queue.")]
    workers: Annotated[Sequence[WorkerStatus], Meta(description="Workers that consume it.")]


class Failures(Detail, frozen=True, kw_only=True):
    """Failures by exception and task, and the newest ones."""

    failure_groups: Annotated[
        Sequence[FailureGroup], Meta(description="By exception and task, those with new failures first.")
    ]
    failures: Annotated[Sequence[FailureStatus], Meta(description="At most 50, the newest first.")]


def worker_detail(status: Status, name: str) -> WorkerDetail | None:
    """Return one worker of a status; None if it has none of this name."""
    worker = next((worker for worker in status.workers if worker.name == name), None)
    if worker is None:
        return None
    return WorkerDetail(
        **common(status),
        worker=worker,
        queues=[queue for queue in status.queues if queue.name in (worker.queues or ())],
        failures=[failure for failure in status.failures if failure.worker == name],
    )


def queue_detail(status: Status, name: str) -> QueueDetail | None:
    """Return one queue of a status; None if it has none of this name."""
    queue = next((queue for queue in status.queues if queue.name == name), None)
    if queue is None:
        return None
    workers = [worker for worker in status.workers if name in (worker.queues or ())]
    return QueueDetail(**common(status), queue=queue, workers=workers)


def summary(status: Status) -> Detail:
    """Return what all pages show of a status."""
    return Detail(**common(status))


def failures(status: Status, _: str = "") -> Failures:
    """Return the failures of a status."""
    return Failures(**common(status), failure_groups=status.failure_groups, failures=status.failures)


def common(status: Status) -> dict[str, Any]:
    """Return the fields of `Detail`."""
    return {
        "version": status.version,
        "exporter_version": status.exporter_version,
        "at": status.at,
        "broker": status.broker,
        "findings": problems(status.findings),
    }
