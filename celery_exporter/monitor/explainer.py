"""Explains why a task is where it is: asks the cluster, and looks at the broker. Only when a person asks."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from msgspec.structs import replace

from celery_exporter.broker.connection import BrokerError, CachedConnection, Source
from celery_exporter.broker.message_lookup.factory import message_lookup_for
from celery_exporter.core.cluster import Cluster
from celery_exporter.core.message_location import MessageLocation
from celery_exporter.core.snapshot import ExporterState, WorkerView, worker_view
from celery_exporter.core.task_info import TaskInfo
from celery_exporter.core.task_search import Found
from celery_exporter.core.types import OTHER
from celery_exporter.monitor.cluster_state import ClusterState
from celery_exporter.status.explain import explain
from celery_exporter.status.explanation import (
    PENDING,
    RETRY,
    AmbiguousIdError,
    BusyError,
    Explanation,
    Facts,
    open_attempt,
)

#: A look is followed by a pause of this many times its duration, so that requests in a loop leave the broker
#: half of its time.
PAUSE_FACTOR = 1.0
#: Looks for one answer, if the task changes meanwhile, and seconds after which no other one begins.
MAX_LOOKS, MAX_LOOKING_SECONDS = 3, 3.0
#: Seconds within which a worker reports what it did, and seconds between two checks for its event.
EVENT_DELAY_SECONDS, POLL_SECONDS = 1.5, 0.1


class Explainer:
    """Explains one task at a time, on a connection of its own. For any thread.

    `find` returns the tasks whose id begins with a text; with a whole id, that one. `exporter_state` is
    called under the lock of the cluster.
    """

    def __init__(
        self,
        source: Source,
        state: ClusterState,
        find: Callable[[str], Found],
        exporter_state: Callable[[], ExporterState],
    ) -> None:
        self._state = state
        self._find_all = find
        self._exporter_state = exporter_state
        self._lookup = CachedConnection(source, message_lookup_for)
        self._looking = threading.Lock()
        self._next = 0.0  # monotonic time

    def explain(self, uuid: str) -> Explanation:
        """Return why the task is where it is whose id is, or begins with, a text.

        Raises BusyError if another look runs, or ended just now, and AmbiguousIdError.
        """
        if not self._looking.acquire(blocking=False):
            raise BusyError(1.0)
        try:
            begin = time.monotonic()
            if begin < self._next:
                raise BusyError(self._next - begin)
            found = self._find_all(uuid)
            if len(found.tasks) > 1:
                raise AmbiguousIdError(uuid, [task.uuid for task in found.tasks])
            return self._explain(found.tasks[0].uuid if found.tasks else uuid, begin, found.problem)
        finally:
            self._lookup.close()  # the next look is minutes away
            self._looking.release()

    def _explain(self, uuid: str, begin: float, history_problem: str) -> Explanation:
        task = self._find(uuid)
        for _ in range(MAX_LOOKS):
            location = self._look(uuid, task)
            before, task = task, self._find_changed(uuid, task, location)
            if before == task:
                break
            location = MessageLocation("unknown", reason="the task changed while the broker was looked at")
            if time.monotonic() - begin > MAX_LOOKING_SECONDS:
                break
        facts = self._facts(uuid, task, location)
        return explain(replace(facts, history_problem=history_problem))

    def _find(self, uuid: str) -> TaskInfo | None:
        return next((task for task in self._find_all(uuid).tasks if task.uuid == uuid), None)

    def _find_changed(self, uuid: str, before: TaskInfo | None, location: MessageLocation) -> TaskInfo | None:
        """Return what is known of the task after a look, which may have seen what events report later."""
        end = time.monotonic() + (EVENT_DELAY_SECONDS if _is_ahead(before, location) else 0.0)
        while (task := self._find(uuid)) == before and time.monotonic() < end:
            time.sleep(POLL_SECONDS)
        return task

    def _look(self, uuid: str, task: TaskInfo | None) -> MessageLocation:
        with self._state.lock:
            own = own_queues(task, self._state.cluster)
            others = [name for name in reversed(self._state.cluster.queues.names()) if name not in own]
        begin = time.monotonic()
        try:
            with self._lookup.use() as lookup:
                return lookup.look_up(uuid, own, others)
        except BrokerError as error:
            return MessageLocation("unknown", reason=f"the broker does not answer: {error}")
        finally:
            end = time.monotonic()
            self._next = end + PAUSE_FACTOR * (end - begin)

    def _facts(self, uuid: str, task: TaskInfo | None, location: MessageLocation) -> Facts:
        with self._state.lock:
            queue = location.queue or newest_queue(task, self._state.cluster)
            exporter = self._exporter_state()
            workers = self._state.cluster.workers
            worker = workers.get(task.worker) if task and task.worker else None
            return Facts(
                uuid,
                exporter.at,
                exporter,
                location,
                task,
                queue,
                worker_view(worker, self._state.listening) if worker else None,
                None if queue is None else self._consumers(queue, exporter),
                self._state.cluster.tasks.expires.get(uuid),
                deferred=[event.type for event in self._state.cluster.tasks.deferred.get(uuid, ())],
            )

    def _consumers(self, queue: str, exporter: ExporterState) -> list[WorkerView] | None:
        """Return the workers that are up and consume a queue; None while the queues of any are unknown."""
        up = [worker for worker in self._state.cluster.workers.values() if worker.up]
        if not exporter.workers_known or any(worker.info.queues is None for worker in up):
            return None
        consumers = (worker for worker in up if queue in (worker.info.queues or ()))
        return [worker_view(worker, self._state.listening) for worker in consumers]


def own_queues(task: TaskInfo | None, cluster: Cluster) -> list[str]:
    """Return the queues, by their own names, that may be those of a task; that of its open attempt first.

    A label value that is a name comes before the known queues that have it: only the history may know it.
    """
    queues: dict[str, None] = {}
    for label in _labels(task):
        if _is_name(label, cluster):
            queues[label] = None
        queues |= dict.fromkeys(_known_queues(label, cluster))
    return list(queues)


def newest_queue(task: TaskInfo | None, cluster: Cluster) -> str | None:
    """Return the own name of the queue of a task's open attempt; None if it may be one of several."""
    for label in _labels(task)[:1]:
        known = _known_queues(label, cluster)
        if len(known) == 1:
            return known[0]
        return label if not known and _is_name(label, cluster) else None
    return None


def _labels(task: TaskInfo | None) -> list[str]:
    """Return the label values of the queues of a task, that of its open attempt first."""
    if task is None:
        return []
    waiting = open_attempt(task)
    attempts = [*([waiting] if waiting else ()), task, *reversed(task.attempts)]
    return list(dict.fromkeys(attempt.queue_name for attempt in attempts if attempt.queue_name))


def _known_queues(label: str, cluster: Cluster) -> list[str]:
    return [name for name in cluster.queues.names() if cluster.label_sets.queue_label(name) == label]


def _is_name(label: str, cluster: Cluster) -> bool:
    """Return whether a label value may be the own name of a queue: it is shown as it is."""
    return label != OTHER and cluster.label_sets.queue_label(label) == label


def _is_ahead(task: TaskInfo | None, location: MessageLocation) -> bool:
    """Return whether a task waits by its events, and its message does not wait in a queue."""
    if task is None or task.state not in {PENDING, RETRY}:
        return False
    is_empty = any(look.length == 0 for look in location.queues[:1])
    return location.place in {"absent", "unacknowledged"} or (location.place == "unknown" and is_empty)
