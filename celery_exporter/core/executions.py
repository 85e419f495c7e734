"""Which execution an event belongs to: `(uuid, retries)` alone does not identify one.

`Task.replace()` sends new work under the uuid of the replaced task, which ends without an event
(celery/app/task.py). Applications send tasks with ids of their own choice repeatedly. So attempts are
numbered in *generations*: the attempts of one sending are `base + retries`. A further `task-sent`, or a
`task-received` under another name, begins a successor with a base of its own.

Two events may disagree about the name of one execution: a message with a `shadow` header is sent under the
name of its task and received under the shadow name (celery/worker/request.py, Request.name). So a receipt
under another name belongs to a sending without a receipt so far, if there is one.
"""

from __future__ import annotations

from collections.abc import Iterable

from celery_exporter.core.events import Event
from celery_exporter.core.label_sets import LabelSets
from celery_exporter.core.task_history import MAX_ATTEMPTS, Generation, TaskHistory, generation_of
from celery_exporter.core.tasks import Task, TaskTable
from celery_exporter.core.types import OTHER, UNKNOWN, State
from celery_exporter.core.worker_registry import WorkerRegistry

#: Generations of one task that are distinguished at a time. For an id that is sent more often before it is
#: finished, the oldest one is dropped.
MAX_GENERATIONS = 8
#: Generations of one task in all, so that the number of an attempt stays below 2**63 for the state file.
_LAST_GENERATION = 2**31
#: Seconds by which a message may be received before its sender has written `task-sent`, on one clock.
MAX_SENT_DELAY_SECONDS = 0.05
#: Names that may stand for any task: of one without a known name, and of one beyond the series limit.
_ANY_NAME = frozenset({UNKNOWN, OTHER})


class ExecutionMatcher:
    """Numbers the attempts that events are about, so that each event finds its execution."""

    def __init__(self, tasks: TaskTable, label_sets: LabelSets, workers: WorkerRegistry) -> None:
        self._tasks = tasks
        self._label_sets = label_sets
        self._workers = workers

    def number_sent(self, task: Task, event: Event) -> None:
        """Number the attempt that was sent; one that was sent before begins a successor of the task."""
        retries, name = event.retries or 0, task.bucket.group.label_set.task_name
        if task.expanded is None and event.name == name and (task.sent is None or retries > task.sent):
            return
        history = task.history()
        existing, shown = generations(history, name), self._shown(event.name)
        attempt = find_sent(existing, history, shown, retries, event.timestamp)
        if (
            attempt == existing[-1].base > 0
            and self._is_older(history, event)
            and not history.is_received(attempt)
        ):
            # a deferred receipt was taken for that of a successor
            history.generations, attempt = existing[:-1], None
        event.retries = self._add_generation(task, event) + retries if attempt is None else attempt

    def number_received(self, task: Task, event: Event) -> bool:
        """Number the attempt that was received; return whether a `task-sent` may still come that explains it.

        That is so if one of the task was seen, but not of this attempt, or if the attempt was received
        already: then it is delivered again, or its id was used for other work.
        """
        retries = event.retries or 0
        name = task.bucket.group.label_set.task_name
        if task.expanded is None and event.name == name and (task.worker is None or retries > task.attempt):
            return task.sent is not None and retries != task.sent and retries >= task.attempt
        history, shown = task.history(), self._shown(event.name)
        is_shadow = self._workers.is_shadow_name(event.name, event.hostname)
        existing = generations(history, name)
        attempts = find_received(existing, history, shown, retries)
        is_unsure = len(attempts) > 1  # the receipt of the other one may follow
        attempt = next(iter(attempts), None)
        if attempt is None and is_shadow is not False:
            attempt = find_shadowed(existing, history, retries)
            is_unsure = is_shadow is None and attempt is not None
        event.retries = self._add_generation(task, event) + retries if attempt is None else attempt
        # One that was given back, or sent to several workers, is expected to be received again.
        is_expected = task.bucket.state is State.PENDING or history.copied
        is_again = task.history().is_received(event.retries) and not is_expected
        return task.is_any_sent() and (is_unsure or is_again or not task.is_sent(event.retries))

    def has_predecessor(self, task: Task, sent: Event) -> bool:
        """Return whether the oldest deferred receipt of a task is of other work than this `task-sent`."""
        receipts = (event for event in self._tasks.deferred[task.uuid] if event.type == "task-received")
        first = next(receipts, None)
        if first is None or is_alike(self._shown(first.name), self._shown(sent.name)):
            return False
        is_shadow = self._workers.is_shadow_name(first.name, first.hostname)
        is_much_older = first.timestamp < sent.timestamp - MAX_SENT_DELAY_SECONDS
        return is_shadow is False or (is_shadow is None and is_much_older)

    def is_successor(self, history: TaskHistory, task: Task, event: Event) -> bool:
        """Return whether a receipt is of other work than all before it, and later than the end of that."""
        if event.type != "task-received" or history.received is None:
            return False
        is_later = self._workers.happened_at(event) > task.since - self._workers.skew(history.ended_by)
        return is_later and generation_of(event.retries or 0) > generation_of(history.received)

    def is_of_open_delivery(self, task: Task, event: Event) -> bool:
        """Return whether an event is of an earlier delivery than the deferred receipt of its task."""
        deliveries = task.open_deliveries(event.hostname, event.pid)
        deferred = self._tasks.deferred[task.uuid]
        if any(other.type == "task-started" and other.hostname == event.hostname for other in deferred):
            return False  # it would overtake that one
        if event.type == "task-started":
            return any(delivery.started is None for delivery in deliveries)
        return any(delivery.started is not None for delivery in deliveries)

    def _add_generation(self, task: Task, event: Event) -> int:
        """Begin a generation for other work under the id of a task; return the base of its attempts."""
        history, shown = task.expand(), self._shown(event.name)
        existing = generations(history, task.bucket.group.label_set.task_name)
        # A worker's clock may be off: its timestamp is compared with a client's only if nothing else helps.
        is_comparable = event.type == "task-sent" or task.bucket.state is State.PENDING
        is_older = is_comparable and self._is_older(history, event)
        is_older = is_older or self._is_received_before(history, event)
        add = add_predecessor if is_older and len(existing) == 1 else add_successor
        return add(history, existing, shown)

    def _is_older(self, history: TaskHistory, event: Event) -> bool:
        """Return whether an event is older than all that is known of its task.

        That includes receipts: a task that replaces itself is sent by the host that received it, and the
        clock of the client that sent it may be ahead.
        """
        received = (delivery.received or delivery.started or 0.0 for delivery in history.deliveries)
        return event.timestamp < min((*history.sent.values(), *received), default=0.0)

    def _is_received_before(self, history: TaskHistory, event: Event) -> bool:
        """Return whether a receipt is earlier than all other receipts of its task.

        Events of two workers that received it within some milliseconds arrive in any order.
        """
        if event.type != "task-received" or not history.deliveries:
            return False
        workers = self._workers.workers
        names = {event.hostname, *(delivery.worker for delivery in history.deliveries)}
        if any(name not in workers or workers[name].clock_skew is None for name in names):
            return False  # clocks may be off
        at = self._workers.happened_at(event)
        return all(
            at < (delivery.received or 0.0) - self._workers.skew(delivery.worker)
            for delivery in history.deliveries
        )

    def _shown(self, name: str | None) -> str:
        return self._label_sets.shown(name) if name else UNKNOWN


# -- generations -------------------------------------------------------------------------------------------


def generations(history: TaskHistory, name: str) -> list[Generation]:
    """Return the generations of a task, oldest first; `name` is the label value of a task with only one."""
    return history.generations or [Generation(0, name)]


def find_sent(
    existing: list[Generation], history: TaskHistory, name: str, retries: int, at: float
) -> int | None:
    """Return the attempt that a `task-sent` announces; None for one that begins a successor.

    `name` is the label value of the task, `at` the timestamp of the event. A late `task-sent` belongs to an
    attempt that was received already, and to the oldest such one; that of a retry to the newest generation
    that had been sent by then.
    """
    alike = (generation.base for generation in existing if is_alike(generation.name, name))
    bases = [base for base in alike if base + retries not in history.sent]
    if retries:
        bases = [base for base in bases if history.sent.get(base, at) <= at][::-1] or bases
    return bases[0] + retries if bases else None


def find_received(existing: list[Generation], history: TaskHistory, name: str, retries: int) -> list[int]:
    """Return the attempts of that name that a `task-received` may be about, the likeliest first.

    Those are the ones that were not received yet, since queues are first in, first out; else the newest one,
    which is delivered again. None where the id is now used for work of another name whose `task-sent` is
    missing: then the `task-sent` of this one may be missing, too.
    """
    named = [generation.base + retries for generation in existing if is_alike(generation.name, name)]
    new = [attempt for attempt in named if not history.is_received(attempt)]
    newest = existing[-1]
    is_unsent = not is_alike(newest.name, name) and newest.base not in history.sent
    return new or ([] if is_unsent and history.is_received(newest.base) else named[-1:])


def find_shadowed(existing: Iterable[Generation], history: TaskHistory, retries: int) -> int | None:
    """Return the oldest attempt that was sent, under any name, and not received yet."""
    attempts = (generation.base + retries for generation in existing)
    waiting = (attempt for attempt in attempts if attempt in history.sent)
    return next((attempt for attempt in waiting if not history.is_received(attempt)), None)


def add_successor(history: TaskHistory, existing: list[Generation], name: str) -> int:
    """Begin a generation after all that are known; return the base of its attempts."""
    base = min(generation_of(existing[-1].base) + 1, _LAST_GENERATION) * MAX_ATTEMPTS
    history.generations = [*existing[1 - MAX_GENERATIONS :], Generation(base, name)]
    return base


def add_predecessor(history: TaskHistory, existing: list[Generation], name: str) -> int:
    """Begin a generation before all that are known; return the base of its attempts."""
    base = (generation_of(existing[0].base) - 1) * MAX_ATTEMPTS
    history.generations = [Generation(base, name), *existing[: MAX_GENERATIONS - 1]]
    if history.received is not None:
        history.skipped = {*(history.skipped or ()), base}
    return base


def is_alike(name: str, other: str) -> bool:
    """Return whether two names may be of one execution."""
    return name == other or name in _ANY_NAME or other in _ANY_NAME
