"""The workers of a cluster by node name, with their queues and registered tasks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping

from celery_exporter.core.events import Event
from celery_exporter.core.label_sets import LabelSets
from celery_exporter.core.queues import QueueTable
from celery_exporter.core.routing import Binding, Routes
from celery_exporter.core.task_names import clipped
from celery_exporter.core.types import OTHER, UNKNOWN, LabelSet, Timestamp
from celery_exporter.core.workers import MAX_WORKERS, Worker, WorkerInfo, host

#: Seconds within which a worker that started is inspected before its turn. If it restarted, tasks whose queue
#: is unknown wait for its reply as long. Its first event comes before it replies to inspection.
REPLY_SECONDS = 10.0


class WorkerRegistry:
    """Workers, and what events and inspection say about them. Not thread-safe.

    `worker_timeout` is the seconds of silence, at least, after which a worker is down;
    `purge_offline_worker_metrics` the seconds after which one that is down is removed, None for never.
    `fallbacks` counts events under the name of the label that had to do without a value.
    """

    def __init__(
        self,
        label_sets: LabelSets,
        fallbacks: Counter[str],
        worker_timeout: float,
        purge_offline_worker_metrics: float | None,
    ) -> None:
        self.workers: dict[str, Worker] = {}
        self.queues = QueueTable()
        self.routes = Routes()
        self.registered_names: frozenset[str] = frozenset()
        #: Names of removed workers, the newest last: a late worker-offline does not bring one back.
        self.purged: dict[str, None] = {}
        self.limit_rejections: Counter[str] = Counter({"worker": 0, "queue": 0})
        #: Workers that started recently and are to be inspected, by the listening time of their first event.
        self.uninspected: dict[str, float] = {}
        #: Those of them that restarted, and for whose reply tasks wait.
        self._awaited: dict[str, float] = {}
        #: Whether all task events of the worker of this name arrive here.
        self.is_whole: Callable[[str], bool] = lambda _: True
        self._label_sets = label_sets
        self._fallbacks = fallbacks
        self._timeout = worker_timeout
        self._purge = purge_offline_worker_metrics

    # -- events ----------------------------------------------------------------------------------------

    def on_worker_event(self, event: Event, now: Timestamp) -> None:
        """Apply a worker-online, worker-heartbeat or worker-offline event."""
        if event.type == "worker-offline" and event.hostname in self.purged:
            return
        worker = self._get_or_add(event.hostname, now)
        if worker is not None:
            # worker-online means a new process, whatever its pid is, or a new consumer.
            is_online = event.type == "worker-online" and worker.is_info_current
            if worker.on_worker_event(event, now) or is_online:
                self._on_restart(worker, now)
            worker.update_liveness(now.listening, self._timeout)

    def on_task_event(self, event: Event, now: Timestamp) -> None:
        """Record that the sender of a task event is alive; let the event share the strings of the worker."""
        worker = self.workers.get(event.hostname) or self._get_or_add(event.hostname, now)
        if worker is not None:
            worker.last_seen = now.listening
            event.hostname = worker.name  # one object for all its tasks, instead of one for each
            if event.pid == worker.task_pid:
                event.pid = worker.task_pid
            else:
                if worker.task_pid is not None and not worker.has_process(event.pid):
                    self._on_restart(worker, now)
                worker.task_pid = event.pid
            if not worker.events or event.type == "task-started":
                worker.on_task_event(event)
            worker.up = not worker.left
        elif self._label_sets.by_worker:
            self._fallbacks["worker"] += 1

    def _get_or_add(self, name: str, now: Timestamp) -> Worker | None:
        """Return the worker of this name, new if need be; None, and a rejection, if there are too many."""
        worker = self.workers.get(name)
        if worker is None:
            if len(self.workers) >= MAX_WORKERS or clipped(name) != name:
                self.limit_rejections["worker"] += 1
                return None
            worker = self.workers[name] = Worker(name, now.listening, is_whole=self.is_whole(name))
            self.purged.pop(name, None)
            self.uninspected[name] = now.listening
        worker.last_seen = now.listening
        return worker

    def _on_restart(self, worker: Worker, now: Timestamp) -> None:
        """Record that the known queues of a worker are those of an earlier process."""
        if worker.shared:  # its processes run side by side
            return
        worker.starts += 1
        worker.is_info_current = False
        self.uninspected[worker.name] = now.listening
        if worker.info.queues is not None:  # one that never replied may never do
            self._awaited.setdefault(worker.name, now.listening)  # however often it restarts

    def restore(self, worker: Worker, now: Timestamp) -> None:
        """Add a worker from the state file. Whether it has restarted since is unknown."""
        self.workers[worker.name] = worker
        self._on_restart(worker, now)

    def resume(self, now: Timestamp) -> None:
        """Expect the next event of each worker: another exporter has received all events for some time."""
        for worker in list(self.workers.values()):
            if worker.heartbeat is None and worker.events is None:  # only inspection has found it
                del self.workers[worker.name]
                self._awaited.pop(worker.name, None)
                self.uninspected.pop(worker.name, None)
                continue
            worker.resume()
            worker.update_liveness(now.listening, self._timeout)
            self._on_restart(worker, now)

    def interrupt(self) -> None:
        """Expect that events were lost: the event subscription was closed for a while."""
        for worker in self.workers.values():
            worker.interrupt()

    # -- inspection --------------------------------------------------------------------------------------

    def record_inspection(
        self, infos: Mapping[str, WorkerInfo], now: Timestamp, starts: Mapping[str, int]
    ) -> dict[str, set[str]]:
        """Record what workers replied, by node name; return the same as `registered`.

        `starts` has `Worker.starts` as it was when the command was sent: the reply of a worker that
        restarted since is that of its earlier process.
        """
        for name, info in infos.items():
            worker = self._get_or_add(name, now)
            if worker is not None:
                worker.info = info
                for queue in () if worker.up else info.queues or ():
                    self.use_queue(queue, now)
                if starts.get(name, worker.starts) == worker.starts:
                    worker.is_info_current = info.queues is not None
                    self._awaited.pop(name, None)
                    self.uninspected.pop(name, None)
        self.update_consumed(now)
        self.routes.update(self._bindings())
        registered = self.registered()
        self.registered_names = frozenset(registered)
        return registered

    def registered(self) -> dict[str, set[str]]:
        """Return the names of the tasks that workers know, and the queues that these may come from."""
        queues: dict[str, set[str]] = {}
        for worker in self.workers.values():
            for name in worker.info.registered or ():
                queues.setdefault(name, set()).update(worker.info.queues or (UNKNOWN, OTHER))
        return queues

    def _bindings(self) -> Iterator[Binding]:
        """Yield reported bindings; workers that consume the same queues share one object for them."""
        reported = {id(worker.info.bindings): worker.info.bindings for worker in self.workers.values()}
        for bindings in reported.values():
            yield from bindings

    # -- what tasks need to know of a worker -------------------------------------------------------------

    def skew(self, name: str) -> float:
        """Return by how many seconds a worker's clock is ahead of ours; 0 if that is unknown."""
        worker = self.workers.get(name)
        return (worker.clock_skew if worker else None) or 0.0

    def happened_at(self, event: Event) -> float:
        """Return when an event happened, in epoch seconds of our clock as far as the skew is known."""
        return event.timestamp - self.skew(event.hostname)

    def only_queue(self, name: str) -> str | None:
        """Return the queue that a worker consumes if it is one: all that it runs comes from there."""
        worker = self.workers.get(name)
        if worker is None or not worker.is_info_current:
            return None
        if worker.shared and worker.info.replies == 1:  # the queues of its other process are unknown
            return None
        queues = worker.info.queues
        return self.routes.label(queues[0]) if queues and len(queues) == 1 else None

    def is_info_current(self, name: str) -> bool:
        """Return whether the queues of a worker are known."""
        worker = self.workers.get(name)
        return worker is not None and worker.is_info_current

    def is_shadow_name(self, name: str | None, worker_name: str) -> bool | None:
        """Return whether a worker reports tasks under a name that it does not register; None: unknown."""
        worker = self.workers.get(worker_name)
        registered = worker.info.registered if worker else None
        return None if registered is None else name not in registered

    def has_lost(self, name: str, since: float) -> bool:
        """Return whether a worker has lost a task that it received at an epoch second of its clock.

        Each consumer begins without tasks (celery/worker/consumer/consumer.py, on_close): that of a
        container that comes back, whose process has the same pid again, and the next one after a lost
        connection.
        """
        worker = self.workers.get(name)
        if worker is None or worker.shared:  # another process may have come online
            return False
        return since < worker.online

    def is_any_awaited(self) -> bool:
        """Return whether tasks wait for the reply of any worker."""
        return bool(self._awaited)

    def is_awaited(self, name: str) -> bool:
        """Return whether tasks wait for the reply of this worker."""
        return name in self._awaited

    def is_awaited_in_time(self, name: str, listening: float) -> bool:
        """Return whether they do, and not for too long by this listening time."""
        since = self._awaited.get(name)
        return since is not None and listening - since < REPLY_SECONDS

    # -- queues --------------------------------------------------------------------------------------------

    def use_queue(self, name: str, now: Timestamp) -> None:
        """Record that an event or a worker named a queue. An excluded one is not measured."""
        if self._label_sets.show_queue(name):
            self.limit_rejections["queue"] += self.queues.use(name, now.listening)

    def update_consumed(self, now: Timestamp) -> None:
        """Record which queues the workers that are up consume."""
        consumed = {
            name: name in worker.info.auto_delete
            for worker in self.workers.values()
            if worker.up
            for name in worker.info.queues or ()
            if self._label_sets.show_queue(name)
        }
        self.limit_rejections["queue"] += self.queues.consume(consumed, now.listening)

    # -- time ------------------------------------------------------------------------------------------------

    def expire(self, now: Timestamp) -> set[str]:
        """Update who is up, remove who is down for too long, and queues; return the removed workers."""
        removed = set()
        for worker in self.workers.values():
            worker.update_liveness(now.listening, self._timeout)
            since = worker.down_since
            if self._purge is not None and since is not None and now.listening - since > self._purge:
                removed.add(worker.name)
        for name in removed:
            del self.workers[name]
            self.purged[name] = None
            self._awaited.pop(name, None)
            self.uninspected.pop(name, None)
        while len(self.purged) > MAX_WORKERS:
            del self.purged[next(iter(self.purged))]
        if self.queues.is_expiry_due(now.listening):
            self.update_consumed(now)
            self.queues.expire(now.listening)
        self._stop_waiting(now.listening - REPLY_SECONDS)
        return removed

    def _stop_waiting(self, before: float) -> None:
        """Wait no longer for replies of workers that started before a listening time."""
        for waiting in (self.uninspected, self._awaited):
            for name in [name for name, since in waiting.items() if since <= before]:
                del waiting[name]


def former_label_sets(
    label_sets: LabelSets, removed: set[str], remaining: set[str] | None
) -> dict[LabelSet, LabelSet]:
    """Return the label sets of removed workers, each with the one that its sums move to.

    `remaining` are the hosts of the other workers, None if sums by host are not shown. Where they are, sums
    stay with the host (as "@host") until its last worker is removed: a sum over the workers of a host must
    not fall.
    """
    hosts = remaining or set()
    former = {f"@{host(name)}" for name in removed if host(name) not in hosts}
    return {
        label_set: LabelSet(
            label_set.task_name,
            label_set.queue_name,
            f"@{at}" if (at := host(label_set.worker)) in hosts else "",
        )
        for label_set in label_sets.of_workers(removed | former)
    }
