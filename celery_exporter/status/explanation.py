"""Why a task is where it is: what is known of it, and the answer of /api/v1/explain/<uuid>. Pure.

Invariant: an answer says what was seen, and by whom. What no event and no look at the broker showed is listed
as unknown.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated

from msgspec import Meta, Struct

from celery_exporter.core.message_location import MessageLocation, QueueLook
from celery_exporter.core.snapshot import ExporterState, WorkerView
from celery_exporter.core.task_details import FORGOTTEN
from celery_exporter.core.task_info import LOST, OPEN_STATE_NAMES, AttemptInfo, TaskInfo
from celery_exporter.core.types import State
from celery_exporter.status.facts import DISCOVERY_SECONDS

PENDING, RECEIVED, STARTED = State.PENDING.name, State.RECEIVED.name, State.STARTED.name
RETRY, REVOKED = State.RETRY.name, State.REVOKED.name
#: The diagnosis of a task that neither events nor the broker know.
UNSEEN = "never-seen"
#: Seconds within which events of what just happened may still be on their way.
RECENT_SECONDS = 5.0
#: Seconds by which a worker may take a message before or after it reports that.
SAME_TIME_SECONDS = 5.0


class BusyError(Exception):
    """The broker is not looked at now: another look runs, or the pause after it. Ask again in `seconds`."""

    def __init__(self, seconds: float) -> None:
        self.seconds = max(1, math.ceil(seconds))
        super().__init__(
            "another task is being explained, or was just now: each look at the broker is followed by a "
            f"pause; ask again in {self.seconds} s"
        )


class AmbiguousIdError(Exception):
    """Several tasks have an id that begins with what was given."""

    def __init__(self, given: str, uuids: Sequence[str]) -> None:
        super().__init__(f"several tasks begin with {given}")
        self.uuids = uuids


class Explanation(Struct, frozen=True):
    """Why a task is where it is. Times are Unix times in seconds; null means unknown."""

    uuid: Annotated[str, Meta(description="Id of the task.")]
    at: Annotated[float, Meta(description="When the broker was looked at.")]
    diagnosis: Annotated[str, Meta(description="The kind of the answer; see the table of diagnoses.")]
    sentence: Annotated[str, Meta(description="The answer for people. Its wording may change.")]
    evidence: Annotated[Sequence[str], Meta(description="What the answer follows from.")]
    unknown: Annotated[Sequence[str], Meta(description="What cannot be known, and what it may change.")]
    location: Annotated[MessageLocation, Meta(description="What the look at the broker showed.")]


class Facts(Struct, frozen=True):
    """All that is known of one task. None: unknown. `now` and `expires` are epoch seconds.

    `queue` is the own name of the task's queue, `worker` is the one that has the task by its events, and
    `consumers` are the workers that are up and consume the queue. `history_problem` says why the history file
    was not asked; empty if it was, or if there is none. `deferred` are the types of events that wait for a
    task-sent.
    """

    uuid: str
    now: float
    exporter: ExporterState
    location: MessageLocation
    task: TaskInfo | None = None
    queue: str | None = None
    worker: WorkerView | None = None
    consumers: Sequence[WorkerView] | None = None
    expires: float | None = None
    history_problem: str = ""
    deferred: Sequence[str] = ()

    @property
    def state(self) -> str | None:
        """Return the state of the task, None if no event of it was seen."""
        return self.task.state if self.task else None

    @property
    def is_open(self) -> bool:
        """Return whether the task is not over by its events."""
        return self.state in OPEN_STATE_NAMES

    @property
    def is_forgotten(self) -> bool:
        """Return whether the exporter removed the task while it was open; only the history has it."""
        return self.task is not None and self.is_open and self.task.reason == FORGOTTEN

    @property
    def is_unseen(self) -> bool:
        """Return whether the task was open before the exporter started, and nothing was seen of it since."""
        return self.task is not None and self.task.unseen_since is not None

    @property
    def is_with_worker(self) -> bool:
        """Return whether a worker has the task, by its events."""
        return self.state in {RECEIVED, STARTED}

    @property
    def is_waiting(self) -> bool:
        """Return whether no worker has the task, by its events; also if there are none."""
        return self.task is None or self.state in {PENDING, RETRY}

    @property
    def is_recent(self) -> bool:
        """Return whether the task entered its state so recently that events may be on their way."""
        return self.reported_at is not None and abs(self.now - self.reported_at) < RECENT_SECONDS

    @property
    def is_over(self) -> bool:
        """Return whether an event reported the end of the task."""
        return self.task is not None and not self.is_open and self.state != LOST

    @property
    def attempt(self) -> AttemptInfo | None:
        """Return the newest attempt that is not over."""
        return open_attempt(self.task) if self.task else None

    @property
    def eta(self) -> float | None:
        """Return the time before which the newest attempt must not start."""
        attempt = self.attempt
        return self.location.eta or (attempt.eta if attempt else None)

    @property
    def is_scheduled(self) -> bool:
        """Return whether the task is not due."""
        return self.eta is not None and self.eta > self.now

    @property
    def is_expired(self) -> bool:
        """Return whether the message of the task has expired."""
        expires = self.location.expires or self.expires
        return expires is not None and expires < self.now

    @property
    def is_worker_down(self) -> bool:
        """Return whether the worker that has the task is known, and down."""
        worker = self.worker
        if not self.is_with_worker or worker is None or worker.up:
            return False
        return worker.left or self.exporter.listening >= DISCOVERY_SECONDS

    @property
    def is_worker_unknown(self) -> bool:
        """Return whether it is unknown if the worker that has the task runs.

        The exporter has received no event of it since its start, or has removed it.
        """
        is_up = self.worker is not None and self.worker.up
        return self.is_with_worker and not is_up and not self.is_worker_down

    @property
    def is_worker_restarted(self) -> bool:
        """Return whether the worker that has the task started or connected again since it reported that.

        Both times are by the clock of the worker. Its consumer began without tasks then; see
        `worker_registry.has_lost`. If several processes use its name, another one may have started.
        """
        worker = self.worker
        if not self.is_with_worker or worker is None or not worker.up or worker.shared:
            return False
        attempt = self.attempt
        reported = (attempt.started or attempt.received) if attempt else None
        return worker.online is not None and worker.online > (
            reported or (self.task.since if self.task else 0.0)
        )

    @property
    def newest_event(self) -> float | None:
        """Return when the newest event of the task was sent; `reported_at` may be when it counted as over."""
        if self.state != LOST or self.task is None or not self.task.attempts:
            return self.reported_at
        newest = self.task.attempts[-1]
        return max((at for at in (newest.sent, newest.received, newest.started) if at), default=None)

    @property
    def is_taken_again(self) -> bool:
        """Return whether the message was taken after the worker that had the task started again."""
        online = self.worker.online if self.worker else None
        return self.is_worker_restarted and (self.location.since or 0.0) > (online or 0.0)

    @property
    def is_before_start(self) -> bool:
        """Return whether the newest event of the task is older than this exporter process."""
        return self.is_unseen or (self.newest_event is not None and self.newest_event < self.exporter.started)

    @property
    def is_before_subscription(self) -> bool:
        """Return whether it is older than the event subscription, so that later ones may have been lost."""
        return self.newest_event is not None and self.newest_event < (self.exporter.subscribed or 0.0)

    @property
    def is_held_by_worker(self) -> bool:
        """Return whether the message that is not acknowledged was taken when this worker reported it."""
        taken, attempt = self.location.since, self.attempt
        if taken is None or attempt is None or attempt.received is None:
            return False
        return abs(taken - attempt.received) < SAME_TIME_SECONDS

    @property
    def is_worker_full(self) -> bool:
        """Return whether all slots of the worker are busy, by its last heartbeat."""
        return self.worker is not None and is_full(self.worker)

    @property
    def reported_at(self) -> float | None:
        """Return when the task entered its state, by the clock of the exporter if the other is known."""
        skew = self.worker.clock_skew if self.worker else None
        return None if self.task is None else self.task.since - (skew or 0.0)

    @property
    def is_worker_idle(self) -> bool:
        """Return whether the worker runs nothing, by a heartbeat that it sent since it reported the task."""
        worker = self.worker
        if worker is None or worker.heartbeat is None or self.reported_at is None:
            return False
        return worker.active == 0 and worker.heartbeat - self.reported_at > RECENT_SECONDS

    @property
    def look(self) -> QueueLook | None:
        """Return what the broker reported of the task's queue."""
        name = self.location.queue or self.queue
        return None if name is None else self.location.look_at(name)

    @property
    def has_consumers(self) -> bool | None:
        """Return whether anything consumes the task's queue."""
        look = self.look
        if look is not None and look.consumers is not None:
            return look.consumers > 0
        return None if self.consumers is None else bool(self.consumers)

    @property
    def silent(self) -> Sequence[WorkerView]:
        """Return the workers of the queue with the solo pool that send no heartbeats: each runs a task."""
        solo = [worker for worker in self.consumers or () if worker.pool == "solo"]
        return [worker for worker in solo if self.now - (worker.heartbeat or 0.0) > RECENT_SECONDS]

    @property
    def are_consumers_full(self) -> bool:
        """Return whether all slots of all workers of the queue are busy."""
        return bool(self.consumers) and all(map(is_full, self.consumers or ()))


def open_attempt(task: TaskInfo) -> AttemptInfo | None:
    """Return the newest attempt that is not over; the last event may be about the end of another one."""
    return next((attempt for attempt in reversed(task.attempts) if attempt.ended is None), None)


def is_full(worker: WorkerView) -> bool:
    """Return whether all slots of a worker are busy, by its last heartbeat."""
    if worker.active is None or worker.pool_size is None:
        return False
    return worker.active >= worker.pool_size
