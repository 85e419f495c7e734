"""Periodic jobs that query the broker and inspect the workers."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping
from functools import partial
from itertools import islice

from celery_exporter.broker.blocked import BlockedError
from celery_exporter.broker.connection import BrokerError, CachedConnection
from celery_exporter.broker.inspect import WorkerInspector
from celery_exporter.broker.queues.factory import queue_reader_for
from celery_exporter.broker.source import ConfigSource
from celery_exporter.core.queues import Absence, PollSchedule
from celery_exporter.core.reconcile import measurement_of
from celery_exporter.core.snapshot import QueueStats
from celery_exporter.core.task_counts import TaskCounts, TaskCountSchedule
from celery_exporter.core.workers import Worker, WorkerInfo
from celery_exporter.monitor.cluster_state import ClusterState
from celery_exporter.monitor.config import MonitorConfig
from celery_exporter.status.worker_checks import NO_REPLY

#: Seconds after which a queue length is stale, and is missing rather than wrong.
STALE_AFTER_SECONDS = 30.0
#: … or this many update intervals: a queue may be read only in every second round.
STALE_AFTER_INTERVALS = 3
#: Seconds of listening without a reply or an event of a worker after which there is none: five heartbeats.
NO_WORKER_SECONDS = 10.0
#: Workers that are inspected by name at a time: each worker receives the list.
MAX_INSPECTED = 200
#: Inspections without any reply after which workers are inspected less often, and seconds of the longest
#: wait. A worker whose accept_content lacks the serializer of the command logs a traceback for each.
MAX_WITHOUT_REPLY, MAX_INSPECTION_WAIT_SECONDS = 3, 300.0


class QueuePoller:
    """Reads the lengths of the queues in use. `poll` and `close` are of one thread, the rest of any."""

    def __init__(self, config: MonitorConfig, source: ConfigSource, state: ClusterState) -> None:
        self._state = state
        self._interval = config.update_interval
        self._stale_seconds = max(STALE_AFTER_SECONDS, STALE_AFTER_INTERVALS * config.update_interval)
        self._reader = CachedConnection(source, queue_reader_for)
        self._schedule: PollSchedule[QueueStats] = PollSchedule()
        self._unacked: int | None = None
        self._polled = 0.0  # monotonic time

    def poll(self) -> None:
        """Read the queues whose turn it is; raise BrokerError when the broker does not answer."""
        try:
            with self._reader.use() as reader:
                unacked = reader.unacked()
                with self._state.lock:
                    queues, at = self._state.cluster.queues, self._state.listening
                    names, requested, consumed = queues.names(), queues.requested, queues.consumed
                    self._schedule.retain(set(names))
                    if reader.costly:
                        names = self._schedule.pick(names, requested | consumed, time.monotonic())
                answers = reader.read(names, requested=requested, consumed=consumed)
        except Exception:
            with self._state.lock:  # a length that cannot be read is missing, not the old one
                self._unacked, self._polled = None, time.monotonic()
                self._schedule.clear_values()
            raise
        with self._state.lock:
            self._unacked, self._polled = unacked, time.monotonic()
            self._record(answers, at)

    def _record(self, answers: Mapping[str, QueueStats | Absence], at: float) -> None:
        cluster = self._state.cluster
        self._schedule.record(answers, self._polled, self._interval)
        cluster.queues.declare(answers)
        cluster.queues.prioritize(
            name for name, stats in answers.items() if isinstance(stats, QueueStats) and stats.has_priorities
        )
        lengths = {
            name: 0 if answer is Absence.MISSING else answer.length
            for name, answer in answers.items()
            if answer is not Absence.UNREADABLE
        }
        self._state.reconciler.add_measurement(measurement_of(cluster, lengths, self._unacked, at))

    def close(self) -> None:
        """Close the connection."""
        self._reader.close()

    # -- for a snapshot, under the lock ------------------------------------------------------------------

    def queue_stats(self) -> dict[str, QueueStats]:
        """Return what is known of each queue and not stale."""
        return self._schedule.values(time.monotonic(), self._stale_seconds)

    def unacked(self) -> int | None:
        """Return how many messages workers hold; None if that is unknown or stale."""
        return self._unacked if self._is_current() else None

    def missing(self) -> set[str]:
        """Return the queues that the broker does not have."""
        return self._schedule.absent(Absence.MISSING)

    def unmeasured(self) -> Collection[str]:
        """Return the consumed queues whose length the broker does not return; none if the poll is stale."""
        if not self._is_current():
            return ()
        absent = self._schedule.absent(Absence.MISSING) | self._schedule.absent(Absence.UNREADABLE)
        return absent & self._state.cluster.queues.consumed

    def _is_current(self) -> bool:
        """Return whether the last poll is recent; one that hangs leaves old values behind."""
        return time.monotonic() - self._polled < self._stale_seconds


class WorkerPoller:
    """Inspects workers: pools, queues, registered tasks, how many tasks they hold and, on suspicion, which.

    `poll` and `close` are of one thread, the rest of any. `blocked_reason` returns why RabbitMQ blocks
    publishers; empty or None if it does not.
    """

    def __init__(
        self,
        config: MonitorConfig,
        source: ConfigSource,
        state: ClusterState,
        blocked_reason: Callable[[], str | None],
    ) -> None:
        self.refused_serializers: Collection[str] = ()  # of replies; see --accept-content
        self._state = state
        self._interval = config.update_interval
        self._enable_events = config.enable_events
        self._blocked_reason = blocked_reason
        broker = config.broker
        inspector = partial(
            WorkerInspector, control_exchange=broker.control_exchange, accept=broker.accept_content
        )
        self._inspector = CachedConnection(source, inspector)
        self._task_counts = TaskCountSchedule()
        self._has_reply = False  # of any worker, ever
        self._inspected: float | None = None  # monotonic time of the last inspection of all workers
        self._without_reply, self._next = 0, 0.0  # inspections without a reply; monotonic time of the next

    def poll(self) -> None:
        """Inspect all workers, or between the regular inspections those that started since.

        Raises BrokerError if none replies, and BlockedError if RabbitMQ blocks publishers.
        """
        begin = time.monotonic()
        with self._state.lock:
            workers = list(self._state.cluster.workers.values())
            starts = {worker.name: worker.starts for worker in workers}
            before = {worker.name: worker.current_info for worker in workers}
            only = self._select(begin)
            if only is None:
                self._task_counts.begin_round({worker.name: worker.starts for worker in workers if worker.up})
        if reason := self._blocked_reason():
            raise BlockedError(reason)
        if begin < self._next and only is None:
            raise BrokerError(NO_REPLY)
        infos, refused = self._inspect(workers, before, only)
        with self._state.lock:
            self.refused_serializers = refused
            self._state.cluster.record_inspection(infos, self._state.now(), starts)
            self._has_reply = self._has_reply or bool(infos)
        if only is None:
            self._ping_beats()  # after the workers are recorded: where no beat replies, it waits for one
            self._inspected = begin
        elif self._has_reply:  # a worker without a reply may be starting
            return
        is_silent = not infos and not refused and any(worker.up for worker in workers)
        self._without_reply = self._without_reply + 1 if is_silent else 0
        self._next = time.monotonic() + inspection_wait(self._without_reply, self._interval)
        if refused:
            raise BrokerError(f"workers reply in {', '.join(refused)}, which --accept-content does not list")
        if is_silent:
            raise BrokerError(NO_REPLY)
        self._compare_tasks()
        self._count_tasks(infos)

    def _select(self, now: float) -> list[str] | None:
        """Return the workers to inspect now by name; None for all."""
        new = list(islice(self._state.cluster.registry.uninspected, MAX_INSPECTED))
        is_regular = self._inspected is None or now - self._inspected >= self._interval
        return new if new and (now < self._next or not is_regular) else None

    def _inspect(
        self, workers: Collection[Worker], before: dict[str, WorkerInfo], only: list[str] | None
    ) -> tuple[dict[str, WorkerInfo], list[str]]:
        """Return the replies by worker, and the serializers of replies that are not accepted."""
        without_events = [worker.name for worker in workers if worker.up and not worker.events]
        with self._inspector.use() as inspector:
            if self._enable_events and without_events:
                inspector.enable_events(without_events)
            infos = inspector.inspect(before, only)
            return infos, sorted(inspector.refused)

    def _ping_beats(self) -> None:
        beats = self._state.cluster.beats
        with self._inspector.use() as inspector:
            replied = inspector.ping_beats(is_any_known=bool(beats.by_name))
        with self._state.lock:
            beats.record_replies(replied, self._state.now())

    def _compare_tasks(self) -> None:
        """Inspect the tasks of workers that have more by their events than by their heartbeats."""
        with self._state.lock:
            suspects, at = self._state.reconciler.workers_to_inspect(self._state.now()), self._state.listening
        if not suspects:
            return
        with self._inspector.use() as inspector:
            held = inspector.held_tasks(suspects)
        self._state.run(self._state.reconciler.compare(held, at, self._state.now()))

    def _count_tasks(self, replying: Collection[str]) -> None:
        """Inspect how many tasks some of the workers have that just replied."""
        with self._state.lock:
            picked = self._task_counts.pick(replying, time.monotonic())
            workers, listening = self._state.cluster.workers, self._state.listening
            processes = {name: workers[name].count_processes(listening) for name in picked if name in workers}
        if not processes:
            return
        with self._inspector.use() as inspector:
            counts = inspector.count_tasks(processes)
        with self._state.lock:
            self._task_counts.record(picked, counts, time.monotonic(), self._interval)

    def task_counts(self) -> dict[str, TaskCounts]:
        """Return how many tasks each worker has, as far as is known. Under the lock."""
        return self._task_counts.values(time.monotonic())

    def is_due(self) -> bool:
        """Return whether workers started recently and were not inspected: tasks may wait for their reply."""
        with self._state.lock:
            return self._inspected is not None and bool(self._state.cluster.registry.uninspected)

    def has_result(self) -> bool:
        """Return whether a worker has replied, or there is none as far as events show. Under the lock."""
        is_empty = self._state.listening > NO_WORKER_SECONDS and not self._state.cluster.workers
        return self._has_reply or (is_empty and self._inspected is not None)

    def close(self) -> None:
        """Close the connection."""
        self._inspector.close()


def inspection_wait(without_reply: int, interval: float) -> float:
    """Return the seconds until the next inspection, after this many without a reply."""
    more = without_reply - MAX_WITHOUT_REPLY
    return min(interval * 2 ** min(more, 10), MAX_INSPECTION_WAIT_SECONDS) if more > 0 else 0.0
