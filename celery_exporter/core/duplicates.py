"""Whether a worker says once more how an execution ended.

Celery 5.7 says `task-failed` twice of one hard time limit (celery/worker/request.py: on_timeout, and
on_failure when the process is gone), others repeat other ends. The second one comes some milliseconds later;
by then the task may have been sent, received and started again.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import takewhile

from msgspec import Struct

from celery_exporter.core.events import Event, exception_class, unregistered_name
from celery_exporter.core.task_history import Delivery
from celery_exporter.core.tasks import Task
from celery_exporter.core.types import State

#: Seconds, by the worker's clock, within which what it says twice is said of one execution, unless it has
#: started another one.
REPEAT_SECONDS = 1.0
_TIME_LIMIT = "TimeLimitExceeded"
#: Listening time for which an end is remembered: events that follow may wait for a `task-sent`.
RETENTION_SECONDS = 10.0
#: Ends that are remembered at a time, of tasks that went on after them: at 400 bytes each, usually, 8 MB.
MAX_ENDS = 20_000


class ExecutionEnd(Struct, frozen=True, gc=False, array_like=True):
    """How a worker ended an execution, and when by its clock (epoch seconds)."""

    uuid: str
    worker: str
    state: State
    at: float
    listening: float  # when it was noted
    runtime: float | None = None  # seconds, if that was told
    started: float | None = None  # when the execution was, if that is known


class RecentEnds:
    """What workers ended of late, of tasks that were not over by it or that began anew since."""

    def __init__(self) -> None:
        self._ends: dict[tuple[str, str], ExecutionEnd] = {}  # by task and worker, in the order of `listened`

    def __iter__(self) -> Iterator[ExecutionEnd]:
        """Yield what is remembered, the oldest first."""
        return iter(self._ends.values())

    def since(self, listening: float) -> list[ExecutionEnd]:
        """Return what was noted at this listening time or later."""
        return list(takewhile(lambda end: end.listening >= listening, reversed(self._ends.values())))[::-1]

    def add(self, end: ExecutionEnd) -> None:
        """Remember that a worker ended an execution."""
        at = end.uuid, end.worker
        self._ends.pop(at, None)
        self._ends[at] = end
        if len(self._ends) > MAX_ENDS:
            del self._ends[next(iter(self._ends))]

    def add_finished(self, task: Task, listening: float) -> None:
        """Remember how a finished task ended that goes on."""
        if task.bucket.effective_state is not None:
            self.add(
                ExecutionEnd(task.uuid, task.ended_by(), task.bucket.effective_state, task.since, listening)
            )

    def expire(self, listening: float) -> None:
        """Forget what is too long ago."""
        old = takewhile(lambda each: each[1].listening < listening - RETENTION_SECONDS, self._ends.items())
        for label_set in [label_set for label_set, _ in old]:
            del self._ends[label_set]
        if not self._ends:
            self._ends.clear()  # gives back what it took when it was full

    def is_repeated(self, task: Task, event: Event, state: State) -> bool:
        """Tell whether a worker says once more that an execution ended in this state."""
        worker, bucket = event.hostname, task.bucket
        is_over, is_last = bucket.state is None, task.ended_by() == worker
        end = self._ends.get((task.uuid, worker))
        if (
            is_over
            and is_last
            and bucket.effective_state is not None
            and (end is None or end.at < task.since)
        ):
            end = ExecutionEnd(task.uuid, worker, bucket.effective_state, task.since, task.last_seen)
        held = task.open_deliveries(worker, event.pid)
        if end is not None and end.state is state and _is_soon(end, event):
            return not any(_may_end(each, event, end) for each in held)
        if not is_last or held:
            return False
        return not is_over or (bucket.effective_state is state and not _may_lack_receipt(event))


def _is_soon(end: ExecutionEnd, event: Event) -> bool:
    is_other = None not in (end.runtime, event.runtime) and end.runtime != event.runtime
    return not is_other and 0 <= event.timestamp - end.at < REPEAT_SECONDS


def _may_end(delivery: Delivery, event: Event, end: ExecutionEnd) -> bool:
    """Tell whether the event may end this delivery, right after another one ended in the same state.

    A hard time limit is told twice. The second one is of another execution if the two began as far apart as
    they ended, which of them was taken to end first; a repeat follows at once.
    """
    if not (exception_class(event.exception) or "").endswith(_TIME_LIMIT):
        return delivery.started is not None or event.type == "task-revoked"
    if delivery.started is None or end.started is None:
        return False
    between = event.timestamp - end.at
    return abs(between - abs(delivery.started - end.started)) < between


def _may_lack_receipt(event: Event) -> bool:
    """Tell whether a worker may end something that it published no `task-received` for.

    It does so with what is revoked or expired, and what it does not know (celery/worker/strategy.py).
    """
    return event.type == "task-revoked" or unregistered_name(event.exception) is not None
