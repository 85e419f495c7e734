"""Detects workers' repeated reports of the same end of an execution.

Celery 5.7 sends `task-failed` twice for one hard time limit (celery/worker/request.py: on_timeout, and
on_failure when the process is gone). Others repeat other ends. The second event comes some milliseconds
later. By then the task may have been sent, received and started again.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import takewhile

from msgspec import Struct

from celery_exporter.core.events import Event
from celery_exporter.core.task_exceptions import exception_class, unregistered_name
from celery_exporter.core.task_history import Delivery
from celery_exporter.core.tasks import Task
from celery_exporter.core.types import State

#: Seconds of the worker's clock within which the same end is a repeat, unless it ended another execution.
REPEAT_WINDOW_SECONDS = 1.0
#: Listening seconds for which an end is kept: a repeat may wait for a `task-sent`.
RETENTION_SECONDS = 10.0
#: Ends that are kept at a time: 8 MB at the usual 400 bytes each.
MAX_ENDS = 20_000
_TIME_LIMIT = "TimeLimitExceeded"


class ExecutionEnd(Struct, frozen=True, gc=False, array_like=True):
    """How a worker ended an execution, and when by its clock (epoch seconds)."""

    uuid: str
    worker: str
    state: State
    at: float
    listening: float  # when it was recorded
    runtime: float | None = None  # seconds, if the event had it
    started: float | None = None  # epoch seconds, if known


class RecentEnds:
    """Recent ends of tasks that went on after them: with another delivery, or with other work."""

    def __init__(self) -> None:
        self._ends: dict[tuple[str, str], ExecutionEnd] = {}  # by uuid and worker, oldest first

    def __iter__(self) -> Iterator[ExecutionEnd]:
        """Yield the ends, oldest first."""
        return iter(self._ends.values())

    def since(self, listening: float) -> list[ExecutionEnd]:
        """Return the ends that were recorded at this listening time or later, oldest first."""
        return list(takewhile(lambda end: end.listening >= listening, reversed(self._ends.values())))[::-1]

    def add(self, end: ExecutionEnd) -> None:
        """Add an end; it replaces the previous one of the same task and worker."""
        task_and_worker = end.uuid, end.worker
        self._ends.pop(task_and_worker, None)
        self._ends[task_and_worker] = end
        if len(self._ends) > MAX_ENDS:
            del self._ends[next(iter(self._ends))]

    def add_finished(self, task: Task, listening: float) -> None:
        """Add the end of a finished task that goes on, if an event reported that end."""
        state = task.bucket.effective_state
        if state is not None:
            self.add(ExecutionEnd(task.uuid, task.ended_by(), state, task.since, listening))

    def expire(self, listening: float) -> None:
        """Remove the ends whose retention has passed."""
        before = listening - RETENTION_SECONDS
        for end in list(takewhile(lambda end: end.listening < before, self._ends.values())):
            del self._ends[end.uuid, end.worker]
        if not self._ends:
            self._ends.clear()  # releases the memory that the dict took when it was full

    def is_repeated(self, task: Task, event: Event, state: State, listening: float) -> bool:
        """Return whether the event reports an end in this state that is counted already."""
        worker, bucket = event.hostname, task.bucket
        is_over, is_last = bucket.state is None, task.ended_by() == worker
        end = self._ends.get((task.uuid, worker))
        if end is not None and end.listening < listening - RETENTION_SECONDS:
            end = None  # `expire` is called from time to time only, and at other times after a restart
        if (
            is_over
            and is_last
            and bucket.effective_state is not None
            and (end is None or end.at < task.since)
        ):
            end = ExecutionEnd(task.uuid, worker, bucket.effective_state, task.since, task.last_seen)
        deliveries = task.open_deliveries(worker, event.pid)
        if end is not None and end.state is state and _is_soon_after(end, event):
            return not any(_may_end(delivery, event, end) for delivery in deliveries)
        if not is_last or deliveries:
            return False
        return not is_over or (bucket.effective_state is state and not _may_lack_receipt(event))


def _is_soon_after(end: ExecutionEnd, event: Event) -> bool:
    is_other = None not in (end.runtime, event.runtime) and end.runtime != event.runtime
    return not is_other and 0 <= event.timestamp - end.at < REPEAT_WINDOW_SECONDS


def _may_end(delivery: Delivery, event: Event, end: ExecutionEnd) -> bool:
    """Return whether the event may end this delivery, soon after another one ended in the same state.

    A hard time limit is reported twice. The second event is of another execution if the two executions
    started as far apart as they ended, whichever was taken to end first. A repeat follows at once.
    """
    if not (exception_class(event.exception) or "").endswith(_TIME_LIMIT):
        return delivery.started is not None or event.type == "task-revoked"
    if delivery.started is None or end.started is None:
        return False
    between = event.timestamp - end.at
    return abs(between - abs(delivery.started - end.started)) < between


def _may_lack_receipt(event: Event) -> bool:
    """Return whether a worker may end this execution without having sent `task-received`.

    It does so for revoked, expired and unregistered tasks (celery/worker/strategy.py).
    """
    return event.type == "task-revoked" or unregistered_name(event.exception) is not None
