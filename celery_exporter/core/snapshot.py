"""An immutable copy of everything that is shown, at one moment. Times are epoch seconds of our clock.

Whoever renders (a profile, a page, a sink) sees this and nothing else. None means: not known, so not shown.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from msgspec import Struct

from celery_exporter.core.facts import Key
from celery_exporter.core.ledger import Cell
from celery_exporter.core.tasks import InState


class WorkerView(Struct, frozen=True):
    """One worker, as celery_worker_* metrics show it."""

    name: str
    up: bool
    active: int | None
    processed_total: int
    restarts: int
    missed: int
    loadavg: tuple[float, float, float] | None
    heartbeat: float | None
    clock_skew: float | None
    events: bool | None
    software: str
    version: str
    system: str
    pool: str | None
    pool_size: int | None
    prefetch_count: int | None
    max_resident_bytes: int | None


class QueueView(Struct, frozen=True):
    """One queue, as the broker and the workers told it."""

    name: str
    length: int | None
    consumers: int | None
    worker_processes: int | None
    oldest: float | None


class CollectorView(Struct, frozen=True):
    """How one background collector fares; `success` is None until it has run once."""

    name: str
    success: bool | None
    seconds: float | None
    last_success: float | None


class Snapshot(Struct, frozen=True):
    """The cluster and this exporter, at one moment."""

    at: float
    runtime_bounds: Sequence[float]
    wait_bounds: Sequence[float]
    cells: Mapping[Key, Cell]
    tasks: Sequence[InState]
    workers: Sequence[WorkerView]
    queues: Sequence[QueueView]
    collectors: Sequence[CollectorView]
    broker_up: bool
    unacked: int | None
    events: Mapping[str, int]
    malformed: Mapping[str, int]
    fallbacks: Mapping[str, int]
    event_lag: float | None
    last_event: float | None
    reconnects: int
    tasks_tracked: int
    tasks_evicted: int
    negative_waits: int
    version: str
