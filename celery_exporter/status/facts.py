"""What the checks derive from a snapshot. Pure."""

from __future__ import annotations

from celery_exporter.core.snapshot import JobView, Snapshot, WorkerView
from celery_exporter.quoting import printable

#: Seconds of listening after which an event of each live worker has arrived: three heartbeats.
DISCOVERY_SECONDS = 6.0

#: The error of a broker that has neither answered nor refused yet.
NO_ANSWER = "the broker has not answered yet"
#: Characters of an error that the broker returned.
_MAX_ERROR_LENGTH = 200


def can_receive_events(snapshot: Snapshot) -> bool:
    """Return whether events can arrive; if not, a worker without events may be up."""
    exporter = snapshot.exporter
    return (
        exporter.broker_up
        and not exporter.blocked
        and not exporter.no_events
        and exporter.active is not False
    )


def has_discovered(snapshot: Snapshot) -> bool:
    """Return whether each live worker had time to send an event."""
    return snapshot.exporter.listening >= DISCOVERY_SECONDS


def workers_up(snapshot: Snapshot) -> list[WorkerView]:
    """Return the workers that are up."""
    return [worker for worker in snapshot.workers if worker.up]


def job(snapshot: Snapshot, name: str) -> JobView | None:
    """Return the state of the periodic job of this name, None if it does not run."""
    return next((view for view in snapshot.exporter.jobs if view.name == name), None)


def short(error: str) -> str:
    """Return the beginning of an error, printable."""
    return printable(error)[:_MAX_ERROR_LENGTH]
