"""The state machine of a cluster.

Events go in, and their effects are added to the aggregates.

Invariant: every event goes through `apply`, in any order, and the resulting sums do not depend on the order
within the reorder window.

    apply → TaskLifecycle   puts the events of a task in order, and defers those that came too early
          → TaskUpdates     changes the state of the task, and counts
          → WorkerRegistry  workers, their queues and registered tasks
          → MeasurementSums what tasks measure themselves
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping

from celery_exporter.core.aggregates import Aggregates
from celery_exporter.core.beats import Beats
from celery_exporter.core.events import KNOWN_TYPES, MEASURED, WORKER_TYPES, Event
from celery_exporter.core.expected import ExpectedTask, ExpectedTasks
from celery_exporter.core.label_sets import LabelSets, rest
from celery_exporter.core.limits import Limits
from celery_exporter.core.measurements import MeasurementSums
from celery_exporter.core.records import MeasuredRecord, Record, RecordBuilder
from celery_exporter.core.task_info import TaskInfo, is_shown, task_info
from celery_exporter.core.task_lifecycle import TaskLifecycle
from celery_exporter.core.task_names import ShownAs
from celery_exporter.core.tasks import Task
from celery_exporter.core.transitions import EFFECTS
from celery_exporter.core.types import EXCLUDED, OTHER, UNKNOWN, LabelSet, State, Timestamp
from celery_exporter.core.worker_registry import WorkerRegistry, former_label_sets
from celery_exporter.core.workers import WorkerInfo, host

#: Seconds between two passes over all buckets and workers.
SWEEP_SECONDS = 1.0
#: Tasks that are scanned, while events wait, for which worker has received and not started them: 6 ms.
MAX_PREFETCHED = 50_000


class Cluster:
    """What is known of tasks and workers. Not thread-safe: its owner holds one lock.

    Sums go to the `aggregates`. `label_names` are the optional labels in use on task metrics, of "queue_name"
    and "worker". `show` returns the label value of a task name and `show_queue` that of a queue. `clients`
    says whether sendings are counted by the client's host, and `hosts` whether sums over the workers of a
    host are shown. `records` keeps the details of tasks; None: nothing needs them. `kept_tasks` is the number
    of tasks that are kept with their details after they were removed from the table. `expected` tasks have to
    run by a schedule.
    """

    def __init__(  # noqa: PLR0913  what is known, where it goes, and how it is shown
        self,
        limits: Limits,
        aggregates: Aggregates,
        label_names: Iterable[str] = ("queue_name",),
        show: ShownAs = str,
        *,
        show_queue: ShownAs = str,
        clients: bool = False,
        hosts: bool = False,
        records: RecordBuilder | None = None,
        kept_tasks: int = 0,
        expected: Iterable[ExpectedTask] = (),
    ) -> None:
        self.limits = limits
        self.aggregates = aggregates
        self.expected = ExpectedTasks(expected)
        self.label_sets = LabelSets(
            limits.max_series // len(State), label_names, show, show_queue, self.expected.names
        )
        self.events = dict.fromkeys((*KNOWN_TYPES, OTHER), 0)
        self.fallbacks: Counter[str] = Counter({"task_name": 0, "queue_name": 0, "worker": 0})
        #: Tasks that were ended or requeued without an event, by reason; see core/reconcile.py.
        self.reconciled: Counter[str] = Counter()
        self.measurements = MeasurementSums(limits.max_series)
        self.registry = WorkerRegistry(
            self.label_sets, self.fallbacks, limits.worker_timeout, limits.purge_offline_worker_metrics
        )
        self.beats = Beats(limits.purge_offline_worker_metrics)
        self._lifecycle = TaskLifecycle(
            limits,
            aggregates,
            self.label_sets,
            self.registry,
            self.fallbacks,
            clients=clients,
            records=records,
            kept_tasks=kept_tasks,
            expected=self.expected if self.expected.names else None,
        )
        #: The parts that others read.
        self.tasks = self._lifecycle.tasks
        self.workers = self.registry.workers
        self.queues = self.registry.queues
        self.limit_rejections = self.registry.limit_rejections
        self.ends = self._lifecycle.updates.ends
        self.repeated = self._lifecycle.updates.repeated
        self.counts_clients = clients
        self._hosts = hosts
        self._records = records
        self._next_sweep = 0.0
        self._handlers: dict[str, Callable[[Event, Timestamp], None]] = {
            "task-sent": self._lifecycle.on_sent,
            **dict.fromkeys(EFFECTS, self._lifecycle.on_worker_action),
            "task-received": self._lifecycle.on_received,
            **dict.fromkeys(WORKER_TYPES, self.registry.on_worker_event),
            MEASURED: self._on_measured,
        }

    # -- events, inspection, time --------------------------------------------------------------------

    def apply(self, event: Event, now: Timestamp) -> None:
        """Apply one event; one of an unknown type is only counted."""
        kind = event.type
        handler = self._handlers.get(kind)
        if handler is None:
            kind = OTHER
        else:
            handler(event, now)
        self.events[kind] += 1

    def apply_to_workers(self, event: Event, now: Timestamp) -> None:
        """Apply what an event says about its worker and its queue; its task is kept elsewhere."""
        if event.type in WORKER_TYPES:
            self.registry.on_worker_event(event, now)
        elif event.type == "task-sent":
            self._lifecycle.use_queue(event, now)
        elif event.type in EFFECTS:
            self.registry.on_task_event(event, now)

    def restrict_records(self, states: Collection[State]) -> None:
        """Make records only of transitions to these states."""
        if self._records is not None:
            self._records.restrict(states)

    def take_records(self, *, last: bool = False) -> list[Record | MeasuredRecord]:
        """Return the records of all transitions and measurements since the last call.

        `last` says that no event will follow, so that no record has to wait for one.
        """
        return self._records.take(last=last) if self._records is not None else []

    def note_changes(self) -> None:
        """Note from now on which tasks change, for `take_changed`."""
        if self._records is not None:
            self._records.note_changes()

    def take_changed(self, limit: int) -> tuple[list[TaskInfo], int]:
        """Return up to so many tasks that changed since they were taken, and how many were left out.

        Too many changed, then, since the last call.
        """
        if self._records is None:
            return [], 0
        tasks, surplus = self._records.take_changed(limit)
        return [task_info(task) for task in tasks if is_shown(task)], surplus

    def record_inspection(
        self, infos: Mapping[str, WorkerInfo], now: Timestamp, starts: Mapping[str, int] | None = None
    ) -> None:
        """Record what workers replied, by node name, and the label sets that follow from it.

        `starts` has `Worker.starts` of the workers as it was when the question was sent: one that restarted
        since has not replied yet.
        """
        registered = self.registry.record_inspection(infos, now, starts or {})
        self.label_sets.remove_shadows(self.registry.registered_names)
        for label_set in self.label_sets.admit_expected(self._expected_label_sets(registered)):
            self.aggregates.touch(label_set)

    def expire(self, now: Timestamp) -> None:
        """Let time pass: end waits that took too long, and remove what is too old."""
        self._lifecycle.expire_waits(now)
        if self._records is not None:
            self._records.expire(now.listening, self.limits.task_ttl)
        if now.listening >= self._next_sweep:
            self._next_sweep = now.listening + SWEEP_SECONDS
            self._lifecycle.expire_tasks(now)
            self._remove_label_sets_of_workers(self.registry.expire(now))
            if self.limits.series_ttl is not None:
                self._remove_idle_label_sets(now.listening - self.limits.series_ttl)
                self.measurements.expire(now.listening - self.limits.series_ttl)

    def watch_expected(self, now: Timestamp) -> None:
        """Judge the expected tasks. Call this only while events arrive."""
        self.expected.watch(now.wall, self.aggregates, self.tasks)

    # -- measurements ------------------------------------------------------------------------------------

    def _on_measured(self, event: Event, now: Timestamp) -> None:
        """Add what a task measured. That is no sign of life of a worker, and no transition of the task."""
        task = self.tasks.get(event.uuid or "")
        name = self._name_of_measured(event, task)
        if not name:  # excluded
            return
        self.measurements.observe(name, event.fields or {}, now.listening)
        if self._records is not None:
            self._records.add_measured(task, event, name)

    def _name_of_measured(self, event: Event, task: Task | None) -> str:
        """Return the label value for the name of the task; empty if it is excluded."""
        is_identified = task is not None and task.bucket is not self.tasks.unidentified
        label = task.bucket.group.label_set.task_name if task is not None and is_identified else UNKNOWN
        # A task beyond --max-series is `other`, by whatever name.
        return label if event.name is None or label == OTHER else self.label_sets.shown(event.name)

    def root_of(self, uuid: str) -> str:
        """Return the id of the task that began the workflow of a task: the same one if that is unknown."""
        task = self.tasks.get(uuid)
        return (task and task.details and task.details.root) or uuid

    # -- for reconciliation and the state file ---------------------------------------------------------

    def end_silently(self, task: Task, reason: str, now: Timestamp) -> None:
        """Finish a task without an event; a receipt or a start that follows all the same reopens it."""
        self.reconciled[reason] += 1
        self._lifecycle.end_silently(task, reason, now)

    def requeue(self, task: Task, now: Timestamp) -> None:
        """Put a task that its worker had received back to PENDING: the broker delivers it to another one."""
        self._lifecycle.requeue(task, now)

    def is_kept_past_ttl(self, task: Task, wall: float, started: Mapping[str, int]) -> bool:
        """Return whether a task stays beyond --task-ttl."""
        return self._lifecycle.is_kept_past_ttl(task, wall, started)

    def prefetched(self) -> dict[tuple[LabelSet, str], int] | None:
        """Return how many tasks each worker has received and not started; None if these are too many."""
        counts = self.tasks.prefetched(MAX_PREFETCHED)
        if counts is None:
            return None
        return {at: count for at, count in counts.items() if at[1] in self.workers}

    # -- label sets ------------------------------------------------------------------------------------------

    def _expected_label_sets(self, registered: Mapping[str, set[str]]) -> set[LabelSet]:
        """Return the label sets of registered tasks whose workers all consume one and the same queue.

        For others the queue is unknown until an event names it.
        """
        return {
            self.label_sets.make(name, next(iter(queues)))
            for name, queues in registered.items()
            if len(queues) == 1 or not self.label_sets.by_queue
        }

    def _remove_label_sets_of_workers(self, removed: set[str]) -> None:
        """Move the sums of removed workers to the label sets without them."""
        if removed:
            hosts = {host(name) for name in self.workers}
            self._merge(former_label_sets(self.label_sets, removed, hosts if self._hosts else None))
            self.aggregates.remove_clients({*map(host, removed)} - hosts)

    def _remove_idle_label_sets(self, before: float) -> None:
        """Add to `other` the sums of tasks that have none open and were not seen since."""
        registered = {self.label_sets.shown(name) for name in self.registry.registered()}
        stays = {OTHER, UNKNOWN, EXCLUDED.task_name, *registered}
        idle = {group.label_set for group in self.tasks.idle(before)}
        idle = {label_set for label_set in idle if label_set.task_name not in stays}
        if idle:
            self._merge({label_set: rest(label_set) for label_set in self.label_sets.of_tasks(idle)})
            self.tasks.drop(idle)

    def _merge(self, moves: Mapping[LabelSet, LabelSet]) -> None:
        for label_set, into in self.label_sets.remove(moves):
            self.aggregates.merge(label_set, into)
