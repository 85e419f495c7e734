"""What an event changes: the state of its task, and the sums.

`Cluster` calls this with events that are in order; `task_lifecycle` puts them in order. Most tasks take the
short way: their fields hold all that is known, and a row of `EFFECTS` says what the next usual event does.
Everything else goes through the history of the task. See docs/explanation/adr/0002.
"""

from __future__ import annotations

from collections import Counter
from functools import partial

from celery_exporter.core.aggregates import Aggregates
from celery_exporter.core.duplicates import ExecutionEnd, RecentEnds
from celery_exporter.core.events import Event, epoch
from celery_exporter.core.executions import ExecutionMatcher
from celery_exporter.core.expected import ExpectedTasks
from celery_exporter.core.label_sets import LabelSets
from celery_exporter.core.records import RecordBuilder
from celery_exporter.core.task_history import MAX_ATTEMPTS, Delivery, TaskHistory, generation_of
from celery_exporter.core.task_labels import TaskLabels
from celery_exporter.core.tasks import Task, TaskTable
from celery_exporter.core.transitions import EFFECTS, apply_sent, apply_usual_sent
from celery_exporter.core.types import State, Timestamp
from celery_exporter.core.workers import host

#: Events that end an execution.
FINAL_EVENTS = tuple(kind for kind in EFFECTS if kind not in {"task-received", "task-started"})
# Looking up a member of an enum is slow.
PENDING, RECEIVED, STARTED, REJECTED = State.PENDING, State.RECEIVED, State.STARTED, State.REJECTED


class TaskUpdates:
    """Applies events to identified tasks, and counts them in the aggregates.

    `reorder_window` is in seconds; `clients` says whether sendings are counted by the client's host.
    `records` is None while nothing is recorded, and `expected` if no task is expected.
    """

    def __init__(  # noqa: PLR0913  the parts of a cluster
        self,
        tasks: TaskTable,
        aggregates: Aggregates,
        label_sets: LabelSets,
        labels: TaskLabels,
        executions: ExecutionMatcher,
        *,
        reorder_window: float,
        clients: bool,
        records: RecordBuilder | None,
        expected: ExpectedTasks | None,
    ) -> None:
        self.ends = RecentEnds()
        #: Events that report an end that is counted already, by type.
        self.repeated: Counter[str] = Counter(dict.fromkeys(FINAL_EVENTS, 0))
        self._clients = clients
        self._tasks = tasks
        self._aggregates = aggregates
        self._label_sets = label_sets
        self._labels = labels
        self._executions = executions
        self._reorder_window = reorder_window
        self._records = records
        self._expected = expected

    def record_sent(self, task: Task, event: Event, now: Timestamp) -> None:
        """Count the sending of a task, or of a retry of it; the task keeps its state."""
        label_set = task.label_set_of(event.retries) if task.expanded else task.bucket.group.label_set
        if task.expanded or not apply_usual_sent(task, event):
            label_set_at = partial(self._labels.at_worker, label_set)
            apply_sent(task.expand(), event, label_set_at, self._aggregates)
            task.compact()
        self._aggregates.count_transition(label_set, PENDING, min(event.timestamp, now.wall))
        if self._records is not None:
            self._records.add_sent(task, event, label_set)
        if self._expected is not None and (event.retries or 0) % MAX_ATTEMPTS == 0:
            self._expected.note_sent(label_set.task_name, event.timestamp)
        if self._clients:
            self._aggregates.count_sender(label_set, host(event.hostname))
        if event.expires is not None and (expires := epoch(event.expires)):
            self._tasks.expires[task.uuid] = expires
        if task.bucket.state is None and (event.retries or 0) >= MAX_ATTEMPTS:
            # The id of a finished task was used again.
            self.ends.add_finished(task, now.listening)
            task.expand().ended_by = ""
            group = self._tasks.group(task.label_set_of(event.retries))
            self._tasks.move(task, group, PENDING, event.timestamp)
        task.bucket.group.last_seen = now.listening
        if task.last_seen != now.listening or self._tasks.changed is not None:
            self._tasks.touch(task, now.listening)

    def apply(self, task: Task, event: Event, now: Timestamp) -> list[Task] | None:
        """Count what a worker did to a task, and put the task in the state that the event reports.

        Return tombstones to remove, if there are too many.
        """
        effect = EFFECTS[event.type]
        bucket, apply_usual, expected = task.bucket, effect.apply_usual, effect.expected
        group = bucket.group
        group.last_seen = now.listening
        if apply_usual is None or task.expanded is not None:
            return self._apply_unusual(task, event, now)
        if expected is None:
            is_usual = task.worker is None and (event.retries or 0) == task.attempt
        else:
            is_same_process = task.worker == event.hostname and task.pid == event.pid
            is_usual = is_same_process and bucket.state is expected and task.at is not None
        if not is_usual:
            return self._apply_unusual(task, event, now)
        label_set, aggregates, at = group.label_set, self._aggregates, event.timestamp
        if self._label_sets.by_worker:
            label_set = self._labels.at_worker(label_set, event.hostname)
        apply_usual(task, event, label_set, aggregates)
        aggregates.count_transition(label_set, effect.counts, at if at < now.wall else now.wall)  # noqa: FURB136  no call
        if self._records is not None:
            self._records.add_usual(task, event, label_set, effect.counts)
        task.last_seen = now.listening
        if effect.next_state is None:
            return self._tasks.finish(task, group, effect.counts, at)
        self._tasks.move(task, group, effect.next_state, at)
        return None

    def _apply_unusual(self, task: Task, event: Event, now: Timestamp) -> list[Task] | None:
        """Do the same as `apply` for an event that is not the expected next one."""
        if event.type in self.repeated:
            state = EFFECTS[event.type].counts
            if self.ends.is_repeated(task, event, state, now.listening):
                self.repeated[event.type] += 1
                return None
        surplus = self._apply_to_history(task.expand(), task, event, now)
        task.compact()
        return surplus

    def reopen(self, task: Task, event: Event, now: Timestamp, ended_by: str) -> None:
        """Apply a receipt that came before the end of another delivery, which was applied before it."""
        if task.bucket.state is None:
            self.ends.add_finished(task, now.listening)
            self._tasks.move(task, task.bucket.group, PENDING, task.since)
        self.apply(task, event, now)
        task.expand().ended_by = ended_by

    def _apply_to_history(
        self, history: TaskHistory, task: Task, event: Event, now: Timestamp
    ) -> list[Task] | None:
        """Do the same as `apply` with the history of the task, which holds all that is known of it."""
        effect = EFFECTS[event.type]
        is_open = task.bucket.state is not None
        if not is_open:
            self.ends.add_finished(task, now.listening)
        delivery = effect.find_delivery(history, event)
        if event.type in self.repeated:
            self._add_end(event, delivery, effect.counts, now)
        attempt = event.retries if delivery is None else delivery.attempt
        group_label_set = task.label_set_of(attempt)
        label_set = self._labels.at_worker(group_label_set, event.hostname)
        is_successor = self._executions.is_successor(history, task, event)
        is_newest = effect.apply_to_history(history, event, delivery, label_set, self._aggregates)
        self._aggregates.count_transition(label_set, effect.counts, min(event.timestamp, now.wall))
        if self._records is not None:
            self._records.add(task, event, label_set, effect.counts, attempt)
        next_state = PENDING if event.requeue and effect.counts is REJECTED else effect.next_state
        if not is_newest or not (is_open or is_successor or self._reopens(task, event, now)):
            self._tasks.touch(task, now.listening)
            if is_open and next_state is None and not history.is_superseded(attempt or 0):
                history.ended_by = event.hostname  # over when its later deliveries are
            return None
        task.last_seen = now.listening
        group = self._tasks.group(group_label_set) if history.generations else task.bucket.group
        state = _state_after(history, event, next_state)
        if state is not None:
            self._tasks.move(task, group, state, event.timestamp)
            return None
        surplus = self._tasks.finish(task, group, effect.counts, event.timestamp)
        if attempt is not None:
            self._begin_successor(history, task, attempt)
        return surplus

    def _add_end(self, event: Event, delivery: Delivery | None, state: State, now: Timestamp) -> None:
        """Remember an end, which may be reported once more."""
        started = delivery.started if delivery else None
        uuid, worker = event.uuid or "", event.hostname
        self.ends.add(
            ExecutionEnd(uuid, worker, state, event.timestamp, now.listening, event.runtime, started)
        )

    def _begin_successor(self, history: TaskHistory, task: Task, attempt: int) -> None:
        """Put a task in PENDING whose attempt is over, if its id was sent for other work meanwhile."""
        successor = history.next_sent(attempt)
        if successor is not None and generation_of(successor) > generation_of(attempt):
            history.ended_by = ""
            group = self._tasks.group(task.label_set_of(successor))
            self._tasks.move(task, group, PENDING, history.sent[successor])

    def _reopens(self, task: Task, event: Event, now: Timestamp) -> bool:
        """Return whether a finished task was received again; if not, the event is a late one.

        A new receipt is later by the clock of the worker that ended it, or later than the reorder window by
        the listening clock.
        """
        if task.bucket.effective_state is None:  # it ended without an event
            return event.type in {"task-received", "task-started"}
        if event.type != "task-received":
            return False
        is_later = task.history().ended_by == event.hostname and event.timestamp > task.since
        return is_later or now.listening - task.last_seen > self._reorder_window


def _state_after(history: TaskHistory, event: Event, state: State | None) -> State | None:
    """Return the state of a task after an event of its newest delivery; another delivery may be over."""
    if state is RECEIVED:
        history.ended_by = ""
    if state is None or (history.ended_by and state is not STARTED):
        history.ended_by = event.hostname
        return None
    return state
