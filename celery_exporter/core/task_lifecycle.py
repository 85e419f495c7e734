"""The lifecycle of tasks: puts their events in order, and decides when each task begins and ends.

A client's `task-sent` (the only event with the queue) and a worker's events travel on different connections
and overtake each other. So a task is *identified* by its `task-sent`. Events that come earlier are deferred
until then, or until the reorder window has passed. Then they are applied, and from there on the events of
the task come in order, since those of one sender do. The same holds for each retry, which may go to another
queue.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from operator import attrgetter

from celery_exporter.core.aggregates import Aggregates
from celery_exporter.core.events import Event, EventWithArguments
from celery_exporter.core.executions import ExecutionMatcher
from celery_exporter.core.expected import ExpectedTasks
from celery_exporter.core.label_sets import LabelSets
from celery_exporter.core.limits import Limits
from celery_exporter.core.records import RecordBuilder
from celery_exporter.core.task_exceptions import RETRIES_EXCEEDED, read_traceback
from celery_exporter.core.task_labels import TaskLabels
from celery_exporter.core.task_updates import TaskUpdates
from celery_exporter.core.tasks import StateBucket, Task, TaskTable
from celery_exporter.core.types import UNKNOWN, State, Timestamp
from celery_exporter.core.worker_registry import WorkerRegistry

#: Seconds for which the late events of a finished task find it: ten times the longest known delay between
#: the end of a task and its last event (a worker's event buffer).
TOMBSTONE_SECONDS = 60.0
#: Tombstones at a time: 15 MB at the usual 300 bytes each.
MAX_TOMBSTONES = 50_000
#: Deferred events of one task; no Celery worker or client sends more of one task within the reorder window.
MAX_DEFERRED_EVENTS = 64
#: Tasks that wait for their task-sent at a time, 2 KB each: 10,000 new ones a second.
MAX_UNIDENTIFIED = 20_000
#: Characters of an exception that are kept while its event waits: the class, or NotRegistered('name').
MAX_DEFERRED_EXCEPTION = 512

_TYPE, _HOSTNAME, _TIMESTAMP = attrgetter("type"), attrgetter("hostname"), attrgetter("timestamp")
# Looking up a member of an enum is slow.
PENDING, RECEIVED, STARTED = State.PENDING, State.RECEIVED, State.STARTED


class TaskLifecycle:
    """Applies task events in any order. Not thread-safe.

    `fallbacks` counts tasks under the name of the label that had to do without a value; `clients` says
    whether sendings are counted by the client's host.
    """

    def __init__(  # noqa: PLR0913  the parts of a cluster
        self,
        limits: Limits,
        aggregates: Aggregates,
        label_sets: LabelSets,
        workers: WorkerRegistry,
        fallbacks: Counter[str],
        *,
        clients: bool,
        records: RecordBuilder | None,
        kept_tasks: int,
        expected: ExpectedTasks | None,
    ) -> None:
        self.tasks = TaskTable(limits.max_tasks, MAX_TOMBSTONES, kept_tasks)
        self._limits = limits
        self._label_sets = label_sets
        self._workers = workers
        self._records = records
        self._labels = TaskLabels(self.tasks, label_sets, workers, fallbacks)
        self._executions = ExecutionMatcher(self.tasks, label_sets, workers)
        self.updates = TaskUpdates(
            self.tasks,
            aggregates,
            label_sets,
            self._labels,
            self._executions,
            reorder_window=limits.reorder_window,
            clients=clients,
            records=records,
            expected=expected,
        )

    # -- events ----------------------------------------------------------------------------------------

    def on_sent(self, event: Event, now: Timestamp) -> None:
        """Apply a task-sent event of a client."""
        is_copied = self.use_queue(event, now)
        queue, tasks = event.queue, self.tasks
        task = tasks.get(event.uuid or "")
        if task is not None and task.bucket.state is None and self._is_reused_id(task, event, now):
            self.evict([task], now)
            task = None
        if task is None:
            if queue is None and self._label_sets.by_queue:  # but its worker may consume only one
                self._defer(self._new(event, tasks.unidentified, now), event, now)
                return
            if event.name and queue:
                label_set = self._label_sets.of_task(event.name, queue)
            else:
                label_set = self._labels.find([event])
            task = self._new(event, tasks.group(label_set).buckets[PENDING], now)
        elif task.bucket is tasks.unidentified:
            is_usual = queue is not None and tasks.deferred[task.uuid][0].name == event.name
            if not is_usual and self._waits_for_receipt(task, event):
                self._defer(task, event, now)
                return
            self._identify(task, event)
        else:
            self._executions.number_sent(task, event)
            self._labels.update(task, event, queue)
        if is_copied:
            task.expand().copied = True
        self.updates.record_sent(task, event, now)
        if tasks.deferred and task.uuid in tasks.deferred:
            self._apply_deferred(task, now)

    def use_queue(self, event: Event, now: Timestamp) -> bool:
        """Name the queue of a task-sent event; return whether its message went to several, as copies."""
        # By default a message goes to the default exchange, with the queue's name as its routing key.
        is_copied = bool(event.exchange or event.routing_key != event.queue) and self._resolve_queue(event)
        queue = event.queue
        if queue is not None and queue not in self._workers.queues.recent and not is_copied:
            self._workers.use_queue(queue, now)
        return is_copied

    def on_received(self, event: Event, now: Timestamp) -> None:
        """Apply a task-received event of a worker."""
        self._workers.on_task_event(event, now)
        tasks = self.tasks
        task = tasks.get(event.uuid or "") or self._new(event, tasks.unidentified, now)
        if tasks.deferred and task.uuid in tasks.deferred:
            self._defer(task, event, now)
            if task.bucket is tasks.unidentified:
                self._identify_by_worker(task, event, now)
            return
        if task.bucket.state is RECEIVED and self._is_lost(task, event):
            self.requeue(task, now)
        if not _is_first_receipt(task, event):
            is_early = task.bucket is tasks.unidentified or self._executions.number_received(task, event)
            if is_early or (self._workers.is_any_awaited() and self._waits_for_worker(task, event)):
                self._defer(task, event, now)
                return
            self._labels.update_at_receipt(task, event)
        self.updates.apply(task, event, now)  # a receipt finishes no task

    def on_worker_action(self, event: Event, now: Timestamp) -> None:
        """Apply any other task event of a worker."""
        self._workers.on_task_event(event, now)
        if event.exception is not None or event.traceback is not None:
            read_traceback(event)
        tasks = self.tasks
        task = tasks.get(event.uuid or "") or self._new(event, tasks.unidentified, now)
        if task.bucket is tasks.unidentified:
            self._defer(task, event, now)
            return
        is_waiting = tasks.awaiting_sent and task.uuid in tasks.awaiting_sent
        if is_waiting and not self._executions.is_of_open_delivery(task, event):
            self._defer(task, event, now)
            return
        if surplus := self.updates.apply(task, event, now):
            self.evict(surplus, now)
        if is_waiting:
            self._apply_deferred(task, now)

    def _resolve_queue(self, event: Event) -> bool:
        """Name the queue that the message went to; return whether it went to several, as copies."""
        route = self._workers.routes.find(event.queue, event.exchange, event.routing_key)
        event.queue = route.queue
        return route.copied

    def _new(self, event: Event, bucket: StateBucket, now: Timestamp) -> Task:
        task = self.tasks.new(event.uuid or "", now.listening, bucket, event.timestamp)
        if self.tasks.is_full():
            self.evict(self.tasks.surplus(), now)
        return task

    def _is_reused_id(self, task: Task, event: Event, now: Timestamp) -> bool:
        """Return whether the id of a finished task was used again, for a new one."""
        if task.bucket is self.tasks.unidentified:
            return False
        awaiting = self.tasks.awaiting_sent.get(task.uuid)  # a receipt that may be of what is sent now
        newest = task.last_seen if awaiting is None else awaiting.since
        return now.listening - newest > self._limits.reorder_window and event.timestamp > task.since

    def _is_lost(self, task: Task, event: Event) -> bool:
        """Return whether a worker that receives a task again has lost its earlier delivery of the task."""
        worker = event.hostname
        return task.current_worker() == worker and self._workers.has_lost(worker, task.since)

    # -- deferred events ---------------------------------------------------------------------------------

    def _defer(self, task: Task, event: Event, now: Timestamp) -> None:
        if event.exception is not None:
            event.exception = event.exception[:MAX_DEFERRED_EXCEPTION]
        if event.traceback != RETRIES_EXCEEDED:
            event.traceback = None
        event.tags = event.fields = None
        if isinstance(event, EventWithArguments):
            event.clip_arguments()
        event.uuid = task.uuid
        self.tasks.defer(task, [event], now.listening)
        if len(self.tasks.deferred[task.uuid]) >= MAX_DEFERRED_EVENTS:
            self._release(task, now)
        unidentified, awaiting_sent = self.tasks.unidentified.tasks, self.tasks.awaiting_sent
        if len(unidentified) > MAX_UNIDENTIFIED:
            self._release(next(iter(unidentified.values())), now)
        if len(awaiting_sent) > MAX_UNIDENTIFIED and (oldest := self.tasks.get(next(iter(awaiting_sent)))):
            self._release(oldest, now)

    def _release(self, task: Task, now: Timestamp) -> None:
        """Apply deferred events without waiting for a task-sent any longer."""
        if task.bucket is self.tasks.unidentified:
            sent = self._take_oldest_sent(task)
            self._identify(task, sent)
            if sent is not None:
                self.updates.record_sent(task, sent, now)
        self._apply_deferred(task, now, wait=False)

    def _take_oldest_sent(self, task: Task) -> Event | None:
        """Remove and return the deferred `task-sent` if it is the oldest of the deferred events."""
        deferred = self.tasks.deferred.get(task.uuid, [])
        if "task-sent" not in map(_TYPE, deferred):  # the usual case
            return None
        oldest = min(deferred, key=_TIMESTAMP)
        if oldest.type != "task-sent":
            return None
        deferred.remove(oldest)
        return oldest

    def _identify(self, task: Task, sent: Event | None) -> None:
        """Give the task its label set, by its `task-sent` or by what is known without it."""
        if sent is not None and sent.name and sent.queue:
            label_set, since = self._label_sets.of_task(sent.name, sent.queue), sent.timestamp
        else:
            deferred = self.tasks.deferred.get(task.uuid, [])
            events = [event for event in deferred if event.type != "task-sent"]
            if sent is not None:
                events.insert(0, sent)
            elif len({*map(_HOSTNAME, events)}) > 1:
                events = [event for event in events if event.hostname == events[0].hostname]
            label_set, since = self._labels.find(events), events[0].timestamp
        self.tasks.move(task, self.tasks.group(label_set), PENDING, since)
        if self.tasks.kept:
            self.tasks.adopt(task)

    def _identify_by_worker(self, task: Task, event: Event, now: Timestamp) -> None:
        """Identify a task that was sent to an unknown queue, if the queues of its worker are known."""
        is_sent = self.tasks.deferred[task.uuid][0].type == "task-sent"
        if is_sent and self._workers.is_info_current(event.hostname):
            self._release(task, now)

    def _apply_deferred(self, task: Task, now: Timestamp, *, wait: bool = True) -> None:
        """Apply deferred events, up to one that has to wait for another task-sent if that may still come.

        They are judged by when they came: a late one does not reopen a finished task, and one that came
        before the end of another delivery does.
        """
        awaiting, events = self.tasks.release(task)
        came = now if awaiting is None else Timestamp(awaiting.since, now.wall)
        is_finished = task.bucket.state is None
        ended_by = task.ended_by() if awaiting and awaiting.was_open and is_finished else ""
        types = [*map(_TYPE, events)]
        if "task-sent" in types:
            self._apply_late_sent([event for event in events if event.type == "task-sent"], task, came)
            events = [event for event in events if event.type != "task-sent"]
        has_generations = task.expanded is not None and task.expanded.generations
        if not wait and (types.count("task-received") > 1 or has_generations):
            events.sort(key=self._workers.happened_at)  # those of each sender stay in their order
        for index, event in enumerate(events):
            if event.type == "task-received" and not _is_first_receipt(task, event):
                if self._executions.number_received(task, event) and wait:
                    self.tasks.defer(task, events[index:], came.listening, awaiting)
                    return
                self._labels.update_at_receipt(task, event)
                if ended_by and not _is_outdated(task, event):
                    self.updates.reopen(task, event, came, ended_by)
                    ended_by = ""
                    continue
            self.evict(self.updates.apply(task, event, came) or (), now)
        if awaiting is not None and task.bucket.state is None:
            self.tasks.touch(task, now.listening)  # it may have ended just now

    def _apply_late_sent(self, events: Iterable[Event], task: Task, came: Timestamp) -> None:
        """Apply deferred task-sent events to an identified task: late ones, of a retry, or of other work."""
        for event in events:
            self._executions.number_sent(task, event)
            self._labels.update(task, event, event.queue)
            self.updates.record_sent(task, event, came)

    def _waits_for_receipt(self, task: Task, event: Event) -> bool:
        """Return whether only a receipt will show the queue of a task, or whose `task-sent` this is."""
        is_queue_unknown = event.queue is None and self._label_sets.by_queue
        if is_queue_unknown and not self._is_worker_known(task):
            return True
        return self._executions.has_predecessor(task, event)

    def _is_worker_known(self, task: Task) -> bool:
        """Return whether the queues of a worker that received an unidentified task are known."""
        deferred = self.tasks.deferred[task.uuid]
        return any(self._workers.is_info_current(event.hostname) for event in deferred)

    def _waits_for_worker(self, task: Task, event: Event) -> bool:
        """Return whether the reply of a worker will show the queue of an identified task."""
        return self._labels.is_missing(task) and self._workers.is_awaited(event.hostname)

    # -- time ----------------------------------------------------------------------------------------------

    def expire_waits(self, now: Timestamp) -> None:
        """Release the tasks whose reorder window has passed, except where a worker's reply is awaited."""
        tasks = self.tasks
        before = now.listening - self._limits.reorder_window
        unidentified = tasks.overdue(tasks.unidentified.tasks, before)
        for task in (*unidentified, *tasks.awaiting_sent_before(before)):
            if self._workers.is_any_awaited() and self._is_reply_awaited(task, now):
                tasks.restart_wait(task, now.listening)
            else:
                self._release(task, now)

    def _is_reply_awaited(self, task: Task, now: Timestamp) -> bool:
        deferred = self.tasks.deferred.get(task.uuid, ())
        return any(self._workers.is_awaited_in_time(event.hostname, now.listening) for event in deferred)

    def expire_tasks(self, now: Timestamp) -> None:
        """Remove old tombstones, and open tasks beyond --task-ttl that no worker can be running."""
        tasks, limits = self.tasks, self._limits
        self.updates.ends.expire(now.listening)
        tasks.bound_changes()
        self.evict(tasks.overdue(tasks.finished, now.listening - TOMBSTONE_SECONDS), now)
        # A tombstone of a task that ended without an event has a label set, and lives no longer than this.
        longest = min(limits.task_ttl, limits.series_ttl or limits.task_ttl)
        self.evict(tasks.overdue(tasks.ended_silently, now.listening - longest), now)
        started: Counter[str] | None = None
        for bucket in list(tasks.buckets()):  # a released task may add others
            overdue = tasks.overdue(bucket.tasks, now.listening - limits.task_ttl)
            if overdue and bucket.state is STARTED and started is None:
                started = tasks.started()
            for task in overdue:
                if self.is_kept_past_ttl(task, now.wall, started or {}):
                    tasks.touch(task, now.listening)
                else:
                    self.evict([task], now)
            if not bucket.tasks:
                bucket.tasks.clear()  # gives back the memory that it took when it was full

    def is_kept_past_ttl(self, task: Task, wall: float, started: Mapping[str, int]) -> bool:
        """Return whether a task stays beyond --task-ttl: it is not due yet, or its worker must be running it.

        The latter holds while a worker reports as many active tasks as it has started (`started`, by name).
        The reply to an inspection, which names them, counts as an event of each. The limit of tasks bounds
        them, too.
        """
        if task.is_due_after(wall):
            return True
        is_started = task.bucket.state is STARTED
        worker = self._workers.workers.get(task.current_worker()) if is_started else None
        return worker is not None and worker.up and (worker.active or 0) >= started.get(worker.name, 1)

    def evict(self, tasks: Iterable[Task], now: Timestamp) -> None:
        """Remove tasks; their deferred events are applied before."""
        for task in tasks:
            if task.uuid in self.tasks.deferred:  # by which others of the same ones may be evicted
                self._release(task, now)
            if self.tasks.get(task.uuid) is not task:
                continue
            if task.bucket.state is not None:
                self.tasks.evicted += 1
                if self._records is not None:
                    self._records.note_forgotten(task)
            self.tasks.remove(task)

    # -- without an event ----------------------------------------------------------------------------------

    def end_silently(self, task: Task, reason: str, now: Timestamp) -> None:
        """Finish a task without an event; a receipt or a start that follows all the same reopens it."""
        if self._records is not None:
            self._records.note_end(task, reason, now.wall)
        task.last_seen = task.bucket.group.last_seen = now.listening
        self.evict(self.tasks.finish(task, task.bucket.group, None, now.wall), now)

    def requeue(self, task: Task, now: Timestamp) -> None:
        """Put a task that its worker had received back to PENDING: the broker delivers it to another one."""
        task.expand().give_back(task.current_worker())
        self.tasks.move(task, task.bucket.group, PENDING, now.wall)
        task.compact()
        if self._records is not None:
            self._records.note_change(task)


def _is_first_receipt(task: Task, event: Event) -> bool:
    """Return whether a receipt is the first of an attempt with a complete `task-sent`, the usual case."""
    label_set = task.bucket.group.label_set
    is_next = task.worker is None and task.expanded is None and task.sent == (event.retries or 0)
    return is_next and event.name == label_set.task_name and label_set.queue_name != UNKNOWN


def _is_outdated(task: Task, event: Event) -> bool:
    """Return whether a receipt is of an attempt before the newest one, or of work before that."""
    return (event.retries or 0) < (task.history().received or 0)
