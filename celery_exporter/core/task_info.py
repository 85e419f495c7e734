"""What the exporter knows of one task, for people: the answer of /api/v1/tasks/<uuid>.

The descriptions are those of its JSON Schema, docs/reference/task-api.schema.json. Times are Unix times in
seconds, durations are seconds; null means unknown.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from msgspec import Meta, Struct
from msgspec.structs import replace

from celery_exporter.core.task_details import Attempt, TaskDetails
from celery_exporter.core.task_history import MAX_ATTEMPTS
from celery_exporter.core.tasks import OPEN_STATES, Task
from celery_exporter.core.types import EXCLUDED, UNKNOWN, LabelSet, State

#: The state of a task that counts as over although no event reported its end.
LOST = "LOST"
#: The states of a task by name: those of Celery, and `LOST`.
OPEN_STATE_NAMES = tuple(state.name for state in OPEN_STATES)
STATE_NAMES = (*(state.name for state in State), LOST)
_NAMES: dict[State | None, str] = {None: LOST, **{state: state.name for state in State}}
#: The ends of attempts that were started.
_WITH_RUNTIME = frozenset({State.SUCCESS, State.FAILURE, State.RETRY})
_NAMES_WITH_RUNTIME = frozenset(state.name for state in _WITH_RUNTIME)


class AttemptInfo(Struct, frozen=True):
    """One attempt, or one delivery of it."""

    state: Annotated[str, Meta(description="Its state now, or the one that ended it.")]
    retries: Annotated[int | None, Meta(description="Number of the attempt; 0 is the first one.")] = None
    generation: Annotated[
        int, Meta(description="1 for the work that `Task.replace()` sent under the same id, and so on.")
    ] = 0
    queue_name: Annotated[str | None, Meta(description="Queue, as `/metrics` shows it.")] = None
    worker: Annotated[str | None, Meta(description="Node name of the worker that has or had it.")] = None
    sent: Annotated[float | None, Meta(description="When it was sent, by the clock of the client.")] = None
    eta: Annotated[float | None, Meta(description="The time before which it must not start.")] = None
    received: Annotated[float | None, Meta(description="When the worker received it.")] = None
    started: Annotated[float | None, Meta(description="When it started.")] = None
    ended: Annotated[float | None, Meta(description="When it ended.")] = None
    queue_wait_seconds: Annotated[float | None, Meta(description="From sent, or the eta, to the start.")] = (
        None
    )
    prefetch_wait_seconds: Annotated[
        float | None, Meta(description="From received, or the eta, to the start.")
    ] = None
    runtime_seconds: Annotated[float | None, Meta(description="From the start to the end.")] = None
    exception: Annotated[str | None, Meta(description="Class of the exception, without its module.")] = None
    reason: Annotated[
        str | None, Meta(description="Why it counts as over, if no event reported its end.")
    ] = None


class TaskInfo(Struct, frozen=True):
    """One task. `state`, `since`, `worker` and `exception` are those of its newest attempt."""

    uuid: Annotated[str, Meta(description="Id of the task.")]
    task_name: Annotated[str | None, Meta(description="Name of the task, as `/metrics` shows it.")]
    queue_name: Annotated[str | None, Meta(description="Queue, as `/metrics` shows it.")]
    state: Annotated[str, Meta(description="Its state.", extra_json_schema={"enum": [*STATE_NAMES]})]
    since: Annotated[float, Meta(description="When it entered this state.")]
    worker: Annotated[str | None, Meta(description="Node name of the worker that has or had it.")] = None
    client: Annotated[str | None, Meta(description="Node name of the process that sent it.")] = None
    root_id: Annotated[str | None, Meta(description="Id of the task that began the workflow.")] = None
    parent_id: Annotated[str | None, Meta(description="Id of the task that sent this one.")] = None
    first_sent: Annotated[float | None, Meta(description="When it was sent first.")] = None
    runtime_seconds: Annotated[float | None, Meta(description="Run time of the newest attempt.")] = None
    exception: Annotated[str | None, Meta(description="Class of the newest exception.")] = None
    reason: Annotated[
        str | None,
        Meta(
            description="Why it is LOST (message_gone, expired, not_running), "
            "or forgotten in its last known state."
        ),
    ] = None
    attempts: Annotated[Sequence[AttemptInfo], Meta(description="Attempts, the newest last.")] = ()
    args: Annotated[str | None, Meta(description="Arguments (`--record-arguments`).")] = None
    kwargs: Annotated[str | None, Meta(description="Keyword arguments (`--record-arguments`).")] = None
    result: Annotated[str | None, Meta(description="Result (`--record-arguments`).")] = None
    unseen_since: Annotated[
        float | None,
        Meta(
            description="When the exporter started, if it was open before and nothing was seen of it since: "
            "it may be over."
        ),
    ] = None


def is_shown(task: Task) -> bool:
    """Return whether a task may be shown: it is identified, and not excluded."""
    return task.bucket.group.label_set != EXCLUDED


def state_name(task: Task) -> str:
    """Return the name of the state of an identified task, one of `STATE_NAMES`."""
    return _NAMES[task.bucket.effective_state]


def runtime_of(attempt: Attempt) -> float | None:
    """Return the runtime of an attempt in seconds, by its worker or from its times."""
    if attempt.runtime is not None or attempt.state not in _WITH_RUNTIME:
        return attempt.runtime
    return _between(attempt.started, attempt.ended)


def task_info(task: Task) -> TaskInfo:
    """Return what is known of an identified task."""
    label_set, state = task.bucket.group.label_set, state_name(task)
    worker = task.current_worker() or task.ended_by() or None
    details = task.details or TaskDetails(None)
    attempts = _attempts(task, details, state, worker) if task.details else []
    args, kwargs, result = details.arguments()
    return TaskInfo(
        uuid=task.uuid,
        task_name=_known(label_set.task_name),
        queue_name=_known(label_set.queue_name),
        state=state,
        since=task.since,
        worker=worker,
        client=details.client,
        root_id=details.root,
        parent_id=details.parent,
        first_sent=details.first_sent,
        runtime_seconds=attempts[-1].runtime_seconds if attempts else None,
        exception=attempts[-1].exception if attempts else None,
        reason=attempts[-1].reason if attempts else None,
        attempts=attempts,
        args=args,
        kwargs=kwargs,
        result=result,
    )


def _attempts(task: Task, details: TaskDetails, state: str, worker: str | None) -> list[AttemptInfo]:
    """Return the attempts of a task in this state; the newest one is at this worker."""
    workers = {delivery.attempt: delivery.worker for delivery in task.history().deliveries}
    *earlier, newest = details.attempts()
    infos = [
        _attempt_info(
            attempt,
            _attempt_state(attempt),
            attempt.worker or workers.get(attempt.number or 0),
            attempt.label_set or task.label_set_of(attempt.number),
        )
        for attempt in earlier
    ]
    is_sent_again = state == State.RETRY.name  # and waits
    newest_state = state if newest.ended is None and not is_sent_again else _attempt_state(newest)
    label_set = newest.label_set or task.label_set_of(newest.number)
    infos.append(_attempt_info(newest, newest_state, newest.worker or worker, label_set))
    return infos


def _attempt_state(attempt: Attempt) -> str:
    """Return the state of an attempt, as far as its own events say."""
    if attempt.ended is not None:
        return _NAMES[attempt.state]
    if attempt.started is not None:
        return State.STARTED.name
    return (State.PENDING if attempt.received is None else State.RECEIVED).name


def completed(attempt: AttemptInfo) -> AttemptInfo:
    """Return an attempt with the waits and the runtime that follow from its times."""
    runtime = attempt.runtime_seconds
    if runtime is None and attempt.state in _NAMES_WITH_RUNTIME:
        runtime = _between(attempt.started, attempt.ended)
    return replace(
        attempt,
        queue_wait_seconds=_wait(attempt.sent, attempt),
        prefetch_wait_seconds=_wait(attempt.received, attempt),
        runtime_seconds=runtime,
    )


def _attempt_info(
    attempt: Attempt, state: str, worker: str | None, label_set: LabelSet | None
) -> AttemptInfo:
    number = attempt.number
    generation, retries = (0, None) if number is None else divmod(number, MAX_ATTEMPTS)
    return AttemptInfo(
        state=state,
        retries=retries,
        generation=generation,
        queue_name=_known(label_set.queue_name) if label_set else None,
        worker=worker or None,
        sent=attempt.sent,
        eta=attempt.eta,
        received=attempt.received,
        started=attempt.started,
        ended=attempt.ended,
        queue_wait_seconds=_wait(attempt.sent, attempt),
        prefetch_wait_seconds=_wait(attempt.received, attempt),
        runtime_seconds=runtime_of(attempt),
        exception=_known(attempt.exception),
        reason=attempt.reason,
    )


def _wait(since: float | None, attempt: Attempt | AttemptInfo) -> float | None:
    """Return the seconds from a time, or from the eta if that is later, to the start."""
    return None if since is None else _between(max(since, attempt.eta or 0.0), attempt.started)


def _between(begin: float | None, end: float | None) -> float | None:
    """Return the seconds between two times, 0 if two clocks disagree about the order."""
    return None if begin is None or end is None else max(0.0, end - begin)


def _known(label_value: str | None) -> str | None:
    return None if label_value in {"", UNKNOWN} else label_value
