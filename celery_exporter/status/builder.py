"""A snapshot, and what was counted in the last minutes → `Status`. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from msgspec import Struct

from celery_exporter.core.snapshot import QueueView, Snapshot, WorkerView
from celery_exporter.core.types import State
from celery_exporter.status.checks import run_checks
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
    """Return what goes on, as of a snapshot; `growth` is what was counted up to it."""
    exporter, window = snapshot.exporter, growth.seconds
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
            growth.events / window if window else None,
            exporter.unacked,
            None if exporter.blocked is None else bool(exporter.blocked),
        ),
        findings=run_checks(snapshot, growth),
        workers=[_worker(worker) for worker in sorted(snapshot.workers, key=lambda each: each.name)],
        queues=[_queue(queue, exporter.at, growth.lengths) for queue in snapshot.queues],
        tasks=_tasks(snapshot, growth),
        failures=[
            FailureStatus(each.at, each.label_set.task_name, each.worker, each.exception, each.uuid)
            for each in snapshot.failures
        ],
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
    )


def _queue(
    queue: QueueView, now: float, lengths: Iterable[tuple[float, Mapping[str, int | None]]]
) -> QueueStatus:
    told = [(at, found[queue.name]) for at, found in lengths if queue.name in found]
    told.append((now, queue.length))
    return QueueStatus(queue.name, queue.length, queue.oldest, queue.consumers, queue.worker_processes, told)


# -- tasks ---------------------------------------------------------------------------------------------


class _Open(Struct):
    """The unfinished tasks of a name."""

    states: dict[str, int]
    oldest: float | None = None


def _tasks(snapshot: Snapshot, growth: Growth) -> list[TaskStatus]:
    open_: dict[str, _Open] = {}
    for group in snapshot.tasks:
        if group.count:
            one = open_.setdefault(group.label_set.task_name, _Open({}))
            one.states[group.state.name] = one.states.get(group.state.name, 0) + group.count
            one.oldest = min(filter(None, (group.since, one.oldest)), default=None)
    return [
        _task(name, growth.tasks.get(name), growth.seconds, open_.get(name, _Open({})))
        for name in sorted(growth.tasks.keys() | open_.keys())
    ]


def _task(name: str, grown: TaskGrowth | None, window: float, open_: _Open) -> TaskStatus:
    if grown is None:  # it is open, and has counted nothing under this name
        return TaskStatus(name, {}, None, None, None, None, None, open_.states, open_.oldest)
    rates = dict(zip(_STATES, [count / window for count in grown.transitions], strict=True)) if window else {}
    (runtime_p50, runtime_p95), (wait_p50, wait_p95) = grown.runtimes, grown.waits
    return TaskStatus(
        name,
        rates,
        grown.failure_share,
        runtime_p50,
        runtime_p95,
        wait_p50,
        wait_p95,
        open_.states,
        open_.oldest,
    )
