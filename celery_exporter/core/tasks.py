"""The table of tasks: the state of each, since when, and its label set.

Invariant: every task is in exactly one bucket at a time. The bucket says its name, queue and state, and the
gauges show how many tasks a bucket has, so they cannot drift. A bucket's tasks are an insertion-ordered dict,
so its first entry is its oldest.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from itertools import islice, takewhile

from msgspec import Struct

from celery_exporter.core.events import Event
from celery_exporter.core.task_details import TaskDetails
from celery_exporter.core.task_history import MAX_ATTEMPTS, Delivery, TaskHistory
from celery_exporter.core.types import EXCLUDED, LabelSet, State

#: The states of a task that is not finished, in which a gauge counts it.
OPEN_STATES = (State.PENDING, State.RECEIVED, State.STARTED, State.RETRY)
#: How a task may finish; None: without an event.
FINAL_STATES = (State.SUCCESS, State.FAILURE, State.REVOKED, State.REJECTED, None)

#: Changed tasks whose ids are remembered, for the state file: that is 60 MB.
MAX_CHANGED = 500_000
#: Tasks at the head of a bucket that are searched for the oldest one.
MAX_SCANNED = 500


class Task(Struct, gc=False):
    """What is remembered of one task. Times are epoch seconds of the sender's clock.

    Usually only the newest attempt of a task is open: it waits, or a worker has it. The fields of the task
    hold that. While there is more to remember, `expanded` holds it, and the fields after it are unused.
    There are no arguments, results or tracebacks, and strings are shared. This is all the memory that a task
    in flight needs, and there may be a million of them.
    """

    uuid: str
    last_seen: float  # listening time of the newest event, for expiry
    bucket: StateBucket
    since: float = 0.0  # when it entered its state
    expanded: TaskHistory | None = None
    attempt: int = 0  # earlier ones are over
    sent: int | None = None  # the newest attempt whose task-sent was seen, as was that of attempt 0
    ready: float | None = None  # since when it waits: max(sent, eta), of those that are known
    worker: str | None = None  # that received the attempt, and ended it if the task is finished
    pid: int | None = None
    # When it was received (not before its eta), and then when it was started. Without a worker: of the
    # attempt before, which was given back before it was started.
    at: float | None = None
    details: TaskDetails | None = None  # for records; None while nothing is recorded

    def history(self) -> TaskHistory:
        """Return its history, made from its fields if it is not expanded."""
        if self.expanded is not None:
            return self.expanded
        attempt = self.attempt
        # The waiting times of attempts that are over are not needed; that the first one was sent is.
        sent = {} if self.sent is None else dict.fromkeys((0, self.sent), self.ready or 0.0)
        if self.worker is None:
            returned = (
                [] if self.at is None else [Delivery("", None, attempt - 1, self.ready, self.at, ended=True)]
            )
            return TaskHistory(sent, attempt - 1 if attempt else None, returned)
        ended, deliveries = self.bucket.state is None, []
        if self.at is not None:
            # Of a started task, the time of its receipt is not kept; only that there was one.
            started = None if self.bucket.state is State.RECEIVED else self.at
            deliveries = [Delivery(self.worker, self.pid, attempt, self.ready, self.at, started, ended)]
        return TaskHistory(sent, attempt, deliveries, self.worker if ended else "")

    def expand(self) -> TaskHistory:
        """Return its history, to be changed: it replaces the fields."""
        self.expanded = self.history()
        return self.expanded

    def compact(self) -> None:
        """Drop the expanded history if the fields can hold all of it."""
        history = self.expanded
        if history is None or self.bucket.state is None or history.skipped or history.ended_by:
            return
        if history.generations or history.copied:
            return
        received = -1 if history.received is None else history.received
        sent = max(history.sent, default=None)
        if not history.deliveries or self._is_given_back(history):
            attempt = received + 1
        elif len(history.deliveries) == 1 and self._is_usual(history, history.deliveries[0]):
            attempt = received
        else:
            return
        label_sets = history.attempt_label_sets
        elsewhere = label_sets is not None and label_sets.get(attempt) != self.bucket.group.label_set
        # Without the task-sent of the first attempt, a later one could be taken for that of other work.
        if elsewhere or (sent is not None and (sent > attempt or 0 not in history.sent)):
            return
        self.expanded, self.attempt, self.sent = None, attempt, sent
        self.ready = None if sent is None else history.sent[sent]
        self.worker = self.pid = self.at = None
        for delivery in history.deliveries:
            self.ready, self.worker, self.pid = delivery.ready, delivery.worker or None, delivery.pid
            at = delivery.received if delivery.started is None else delivery.started
            # A restart made two objects of one float.
            self.at = next((same for same in (self.since, self.ready) if same == at), at)

    def _is_given_back(self, history: TaskHistory) -> bool:
        """Return whether the only delivery is of the newest attempt, which was received and not started."""
        delivery = history.deliveries[-1]
        is_newest = len(history.deliveries) == 1 and delivery.attempt == history.received
        is_returned = delivery.received is not None and delivery.is_given_back()
        return is_newest and is_returned and self.bucket.state is State.PENDING

    def _is_usual(self, history: TaskHistory, delivery: Delivery) -> bool:
        newest = delivery.attempt == history.received and not delivery.ended
        is_timed = delivery.ready is not None or delivery.attempt not in history.sent
        state = State.STARTED if delivery.started else State.RECEIVED
        return newest and is_timed and delivery.received is not None and self.bucket.state is state

    @property
    def waiting_since(self) -> float | None:
        """Return since when (epoch seconds) the newest attempt that was sent waits."""
        return max(self.history().sent.values(), default=None)

    def is_next_sent(self) -> bool:
        """Return whether the task-sent of the attempt after those that were received was seen."""
        history = self.history()
        return any(history.received is None or attempt > history.received for attempt in history.sent)

    def is_due_after(self, at: float) -> bool:
        """Return whether the task is known not to be due before this epoch second."""
        history = self.history()
        ready = (
            delivery.ready or delivery.received or 0.0
            for delivery in history.deliveries
            if not delivery.ended
        )
        return max((*history.sent.values(), *ready), default=0.0) > at

    def is_sent(self, attempt: int) -> bool:
        """Return whether the `task-sent` of this attempt was seen, or is of no use any more."""
        if self.expanded is None:
            return attempt == self.sent or attempt < self.attempt
        return attempt in self.expanded.sent

    def is_any_sent(self) -> bool:
        """Return whether a `task-sent` of it was seen."""
        return self.sent is not None if self.expanded is None else bool(self.expanded.sent)

    def ended_by(self) -> str:
        """Return the worker that ended it, or one of its deliveries; empty if none has."""
        return self.history().ended_by

    def open_deliveries(self, worker: str, pid: int | None) -> list[Delivery]:
        """Return the deliveries to this worker process that are not over."""
        deliveries = self.history().deliveries
        return [
            delivery
            for delivery in deliveries
            if delivery.worker == worker and delivery.pid == pid and not delivery.ended
        ]

    def current_worker(self) -> str:
        """Return the worker that has its newest delivery; empty if none has."""
        if self.expanded is None:
            return self.worker or ""
        return self.expanded.deliveries[-1].worker if self.expanded.deliveries else ""

    def label_set_of(self, attempt: int | None) -> LabelSet:
        """Return the label set of an attempt; that of the task if the attempt has none of its own."""
        label_set = self.bucket.group.label_set
        label_sets = self.expanded.attempt_label_sets if self.expanded else None
        return label_set if label_sets is None or attempt is None else label_sets.get(attempt, label_set)


class StateBucket(Struct, gc=False):
    """Tasks of one group and state, in the order of their newest events: expiry relies on it."""

    group: TaskGroup
    state: State | None  # None: unidentified, or finished
    tasks: dict[str, Task]
    final: State | None = None  # of finished ones: the final state, if an event reported one

    @property
    def effective_state(self) -> State | None:
        """Return its state, or the final state: its key among the buckets of its group."""
        return self.final if self.state is None else self.state


class TaskGroup(Struct, gc=False):
    """Tasks of one name and queue: their label set, and their buckets."""

    label_set: LabelSet
    buckets: dict[State | None, StateBucket]  # by OPEN_STATES and FINAL_STATES
    last_seen: float = 0.0  # listening time of the newest event of any of them


class AwaitingSent(Struct, frozen=True, gc=False):
    """A delivery that waits for its `task-sent`, while its task stays in its bucket."""

    since: float  # listening time
    was_open: bool  # whether the task was, when the delivery was reported


class TasksInState(Struct, frozen=True, gc=False):
    """How many tasks of one label set are in a state now, and since when (epoch seconds) the oldest is."""

    label_set: LabelSet
    state: State
    count: int
    since: float | None


class TaskTable:
    """Tasks by uuid, bounded by count (`limit` unfinished ones) and by age. Not thread-safe."""

    def __init__(self, limit: int, tombstone_limit: int, kept_limit: int = 0) -> None:
        self.limit = limit
        #: Tasks that were removed, if their details are known: the newest `kept_limit` ones, oldest first.
        self.kept: dict[str, Task] = {}
        self._kept_limit = kept_limit
        self.evicted = 0
        #: Tasks without a label set yet: nothing says their name and queue so far.
        self.unidentified = StateBucket(TaskGroup(EXCLUDED, {}), None, {})
        #: By uuid, of identified tasks whose next delivery waits for its task-sent.
        self.awaiting_sent: dict[str, AwaitingSent] = {}
        self.deferred: dict[str, list[Event]] = {}  # events of both, by uuid
        self.expires: dict[str, float] = {}  # epoch seconds, of open tasks whose message expires
        self.finished: dict[str, Task] = {}  # tombstones of every group, in the order they finished
        #: Tombstones of tasks that ended without an event, which may be delivered again much later.
        self.ended_silently: dict[str, Task] = {}
        #: The ids of tasks that changed since a recorder emptied it; None: changes are not recorded.
        self.changed: set[str] | None = None
        self._tombstone_limit = tombstone_limit
        self._tasks: dict[str, Task] = {}
        #: Returns the task with a uuid, or None if the table has none.
        self.get = self._tasks.get
        self._groups: dict[LabelSet, TaskGroup] = {}

    def bound_changes(self) -> None:
        """Stop recording changes when there are too many: no recorder has fetched them for long."""
        if self.changed is not None and len(self.changed) > MAX_CHANGED:
            self.changed = None

    def __len__(self) -> int:
        """Return how many unfinished tasks there are."""
        return len(self._tasks) - len(self.finished) - len(self.ended_silently)

    def uuids(self) -> list[str]:
        """Return the ids of all tasks, including tombstones."""
        return list(self._tasks)

    def new(self, uuid: str, last_seen: float, bucket: StateBucket, since: float = 0.0) -> Task:
        """Add a new task and return it."""
        task = self._tasks[uuid] = bucket.tasks[uuid] = Task(uuid, last_seen, bucket, since)
        if self.kept and bucket is not self.unidentified:
            self.adopt(task)
        if self.changed is not None:
            self.changed.add(uuid)
        return task

    def adopt(self, task: Task) -> None:
        """Continue the details of a task with the same id that was removed. Until then, that one is found."""
        former = self.kept.pop(task.uuid, None)
        if former is not None and former.details is not None:
            task.details = former.details
            task.details.close()  # what comes now may be of another attempt

    def group(self, label_set: LabelSet) -> TaskGroup:
        """Return the one `TaskGroup` of this label set."""
        group = self._groups.get(label_set)
        if group is None:
            group = self._groups[label_set] = TaskGroup(label_set, {})
            group.buckets = {state: StateBucket(group, state, {}) for state in OPEN_STATES}
            group.buckets |= {state: StateBucket(group, None, self.finished, state) for state in FINAL_STATES}
            group.buckets[None] = StateBucket(group, None, self.ended_silently)
        return group

    def move(self, task: Task, group: TaskGroup, state: State | None, since: float) -> None:
        """Move the task to the end of another bucket."""
        uuid = task.uuid
        del task.bucket.tasks[uuid]
        bucket = task.bucket = group.buckets[state]
        bucket.tasks[uuid] = task
        task.since = since
        if self.changed is not None:
            self.changed.add(uuid)

    def finish(self, task: Task, group: TaskGroup, final: State | None, since: float) -> list[Task]:
        """Turn the task into a tombstone: its late events find it, no gauge counts it.

        Return the oldest tombstones when there are too many.
        """
        self.move(task, group, final if final in FINAL_STATES else None, since)
        if self.expires:
            self.expires.pop(task.uuid, None)
        tombstones = task.bucket.tasks
        if len(tombstones) <= self._tombstone_limit:
            return []
        # A hundredth at once: each pass over the dict skips its deleted entries.
        return list(islice(tombstones.values(), 1 + self._tombstone_limit // 100))

    def touch(self, task: Task, last_seen: float) -> None:
        """Record that a task was seen at a listening time."""
        if task.last_seen != last_seen:
            task.last_seen = task.bucket.group.last_seen = last_seen
            task.bucket.tasks[task.uuid] = task.bucket.tasks.pop(task.uuid)
        if self.changed is not None:
            self.changed.add(task.uuid)

    def defer(
        self, task: Task, events: list[Event], last_seen: float, awaiting: AwaitingSent | None = None
    ) -> None:
        """Queue events behind the deferred ones of the task; `awaiting` if they waited before."""
        waiting = self.deferred.setdefault(task.uuid, [])
        if not waiting and task.bucket is not self.unidentified:
            self.awaiting_sent[task.uuid] = awaiting or AwaitingSent(last_seen, task.bucket.state is not None)
        first = events[0]
        if first.retries:  # as the sender numbered it: its generation is decided when it is applied
            first.retries %= MAX_ATTEMPTS
        waiting += events
        if self.changed is not None:
            self.changed.add(task.uuid)

    def restart_wait(self, task: Task, last_seen: float) -> None:
        """Let deferred events wait as if they had come only now."""
        awaiting = self.awaiting_sent.pop(task.uuid, None)
        if awaiting is None:
            self.touch(task, last_seen)
        else:
            self.awaiting_sent[task.uuid] = AwaitingSent(last_seen, awaiting.was_open)
            if self.changed is not None:
                self.changed.add(task.uuid)

    def release(self, task: Task) -> tuple[AwaitingSent | None, list[Event]]:
        """Remove and return the deferred events, and since when if they were of another delivery."""
        if self.changed is not None:
            self.changed.add(task.uuid)
        return self.awaiting_sent.pop(task.uuid, None), self.deferred.pop(task.uuid, [])

    def remove(self, task: Task) -> None:
        """Remove a task that has no deferred events."""
        del task.bucket.tasks[task.uuid]
        del self._tasks[task.uuid]
        if self.changed is not None:
            self.changed.add(task.uuid)
        if self.expires:
            self.expires.pop(task.uuid, None)
        if self._kept_limit and task.details is not None:
            self._keep(task)

    def _keep(self, task: Task) -> None:
        self.kept.pop(task.uuid, None)
        self.kept[task.uuid] = task
        if len(self.kept) > self._kept_limit + self._kept_limit // 100:
            # Some at once: each pass over the dict skips its deleted entries.
            for uuid in list(islice(self.kept, len(self.kept) - self._kept_limit)):
                del self.kept[uuid]

    def overdue(self, tasks: dict[str, Task], before: float) -> list[Task]:
        """Return the tasks at the head of a bucket that were last seen before a listening time."""
        return list(takewhile(lambda task: task.last_seen < before, tasks.values()))

    def awaiting_sent_before(self, before: float) -> list[Task]:
        """Return the tasks whose next delivery waits since before a listening time."""
        if not self.awaiting_sent:  # the usual case
            return []
        early = takewhile(lambda item: item[1].since < before, self.awaiting_sent.items())
        return [self._tasks[uuid] for uuid, _ in early]

    def is_full(self) -> bool:
        """Return whether there are more unfinished tasks than the limit."""
        return len(self._tasks) > self.limit and len(self) > self.limit

    def surplus(self) -> list[Task]:
        """Return the oldest unfinished tasks beyond the limit, and a hundredth more, or a hundred.

        More than needed, since each pass skips the tombstones among them.
        """
        more = max(self.limit // 100, min(self.limit // 10, 100))
        closed = (self.finished, self.ended_silently)
        unfinished = (
            task for task in self._tasks.values() if all(task.bucket.tasks is not tasks for tasks in closed)
        )
        return list(islice(unfinished, len(self) - self.limit + more))

    def buckets(self) -> Iterator[StateBucket]:
        """Yield each bucket of unfinished, identified tasks."""
        for group in self._groups.values():
            for state in OPEN_STATES:
                yield group.buckets[state]

    def occupied(self, *states: State) -> list[StateBucket]:
        """Return the buckets of unfinished, identified tasks in these states that have any."""
        groups = self._groups.values()
        return [bucket for group in groups for state in states if (bucket := group.buckets[state]).tasks]

    def idle(self, before: float) -> list[TaskGroup]:
        """Return the groups that were last seen before a listening time and have no unfinished task."""
        idle = (group for group in self._groups.values() if group.last_seen < before)
        return [group for group in idle if not any(group.buckets[state].tasks for state in OPEN_STATES)]

    def drop(self, label_sets: Iterable[LabelSet]) -> None:
        """Remove groups that have no task any more, not even a tombstone."""
        for label_set in label_sets:
            self._groups.pop(label_set).buckets.clear()  # breaks the cycle: these structs are not collected

    def in_states(self) -> list[TasksInState]:
        """Return the gauges: one for each label set and open state."""
        return [
            TasksInState(group.label_set, state, len(tasks), _oldest(tasks) if tasks else None)
            for group in self._groups.values()
            for state in OPEN_STATES
            for tasks in [group.buckets[state].tasks]
        ]

    def started(self) -> Counter[str]:
        """Return how many tasks each worker has started and not ended."""
        buckets = self.occupied(State.STARTED)
        return Counter(task.current_worker() for bucket in buckets for task in bucket.tasks.values())

    def retrying(self, names: Collection[str]) -> Counter[str]:
        """Return how many tasks with these names wait for a retry."""
        buckets = self.occupied(State.RETRY)
        counts: Counter[str] = Counter()
        for bucket in buckets:
            if bucket.group.label_set.task_name in names:
                counts[bucket.group.label_set.task_name] += len(bucket.tasks)
        return counts

    def prefetched(self, limit: int) -> dict[tuple[LabelSet, str], int] | None:
        """Return how many tasks each worker has received and not started, by label set and worker.

        None if there are more than `limit`.
        """
        groups = (group for group in self._groups.values() if group.label_set != EXCLUDED)
        buckets = [group.buckets[State.RECEIVED] for group in groups]
        if sum(len(bucket.tasks) for bucket in buckets) > limit:
            return None
        counts: Counter[tuple[LabelSet, str]] = Counter()
        for bucket in buckets:
            label_set = bucket.group.label_set
            counts.update((label_set, task.current_worker()) for task in bucket.tasks.values())
        return counts


def _oldest(tasks: dict[str, Task]) -> float:
    """Return since when the oldest task of a bucket is there.

    That is the first one, unless a late event moved it. Scanning some at the head takes no noticeable time.
    """
    return min(task.since for task in islice(tasks.values(), MAX_SCANNED))
