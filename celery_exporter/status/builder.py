"""Builds the `Status` from a snapshot and the recent growth of its counts. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from operator import attrgetter

from msgspec import Struct

from celery_exporter.core.snapshot import QueueView, Snapshot, WorkerView
from celery_exporter.core.types import State
from celery_exporter.status.checks import run_checks
from celery_exporter.status.facts import can_receive_events, short
from celery_exporter.status.failure_groups import failure_groups
from celery_exporter.status.model import (
    VERSION,
    BrokerStatus,
    FailureStatus,
    QueueStatus,
    Status,
    TaskStatus,
    WorkerStatus,
)
from celery_exporter.status.recent import Growth, TaskGrowth

_STATES = tuple(state.name for state in State)


def build(snapshot: Snapshot, growth: Growth, broker_url: str) -> Status:
    """Return the status at the time of a snapshot; `growth` has the counts of the last minutes."""
    exporter, window = snapshot.exporter, growth.seconds
    is_current = can_receive_events(snapshot)
    return Status(
        version=VERSION,
        exporter_version=exporter.version,
        at=exporter.at,
        started=exporter.started,
        window=window,
        broker=BrokerStatus(
            broker_url,
            exporter.broker_up,
            exporter.reconnects,
            exporter.last_event,
            exporter.event_lag,
            growth.events / window if window and is_current else None,
            exporter.unacked,
            None if exporter.blocked is None else bool(exporter.blocked),
            exporter.outage.since if exporter.outage else None,
            short(exporter.outage.error) or None if exporter.outage else None,
            exporter.active,
        ),
        findings=run_checks(snapshot, growth),
        workers=[_worker(worker) for worker in sorted(snapshot.workers, key=attrgetter("name"))],
        queues=[_queue(queue, exporter.at, growth.lengths) for queue in snapshot.queues],
        # What happens now is unknown while no event can be received. A mean over the last minutes would be
        # too low, and fall until it is 0.
        tasks=_tasks(snapshot, growth.tasks, window if is_current else 0.0),
        failures=[
            FailureStatus(
                failure.at, failure.label_set.task_name, failure.worker, failure.exception, failure.uuid
            )
            for failure in snapshot.failures
        ],
        failure_groups=failure_groups(snapshot),
    )


def _worker(worker: WorkerView) -> WorkerStatus:
    return WorkerStatus(
        worker.name,
        worker.up,
        worker.active,
        worker.pool_size,
        worker.processed_total,
        worker.loadavg[0] if worker.loadavg else None,
        worker.clock_skew,
        worker.events,
        worker.heartbeat,
        worker.version,
        worker.pool_max,
        worker.pool,
        worker.prefetch_count,
        worker.restarts,
        worker.max_resident_bytes,
        worker.queues,
    )


def _queue(
    queue: QueueView, now: float, samples: Iterable[tuple[float, Mapping[str, int | None]]]
) -> QueueStatus:
    lengths = [(at, by_name[queue.name]) for at, by_name in samples if queue.name in by_name]
    lengths.append((now, queue.length))
    return QueueStatus(
        queue.name, queue.length, queue.oldest, queue.consumers, queue.worker_processes, lengths
    )


# -- tasks ---------------------------------------------------------------------------------------------


class _Open(Struct):
    """The unfinished tasks of one name."""

    states: dict[str, int]
    oldest: float | None = None  # epoch seconds


def _tasks(snapshot: Snapshot, growth: Mapping[str, TaskGrowth], window: float) -> list[TaskStatus]:
    """Return the status of each task name; a window of 0 s is one in which nothing is known."""
    open_: dict[str, _Open] = {}
    for group in snapshot.tasks:
        if group.count:
            tasks = open_.setdefault(group.label_set.task_name, _Open({}))
            tasks.states[group.state.name] = tasks.states.get(group.state.name, 0) + group.count
            tasks.oldest = min(filter(None, (group.since, tasks.oldest)), default=None)
    return [
        _task(name, growth.get(name) if window else None, window, open_.get(name, _Open({})))
        for name in sorted(growth.keys() | open_.keys())
    ]


def _task(name: str, growth: TaskGrowth | None, window: float, open_: _Open) -> TaskStatus:
    if growth is None:
        return TaskStatus(
            name, dict.fromkeys(_STATES), None, None, None, None, None, open_.states, open_.oldest
        )
    (runtime_p50, runtime_p95), (wait_p50, wait_p95) = growth.runtimes, growth.waits
    return TaskStatus(
        name,
        _rates(growth, window),
        growth.failure_share,
        runtime_p50,
        runtime_p95,
        wait_p50,
        wait_p95,
        open_.states,
        open_.oldest,
    )


def _rates(growth: TaskGrowth, window: float) -> dict[str, float | None]:
    counts = zip(_STATES, growth.transitions, strict=True)
    rates: dict[str, float | None] = {state: count / window for state, count in counts}
    if all(aggregate.sent is None for aggregate in growth.aggregates):
        rates[State.PENDING.name] = None
    return rates
