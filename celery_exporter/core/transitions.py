"""What each task event does: which state it is counted as, where the task is afterwards, what is measured.

One row a type. The measuring matches events to deliveries, which `Delivery` explains; each of its functions
books what it can and tells whether the event is of the task's newest delivery. If it is not, the task is
further on already, and stays where it is.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timezone
from operator import attrgetter

from msgspec import Struct

from celery_exporter.core.aggregates import Aggregates, Failure
from celery_exporter.core.events import Event, exception_class
from celery_exporter.core.task_history import MAX_ATTEMPTS, Delivery, TaskHistory, generation_of
from celery_exporter.core.tasks import Task
from celery_exporter.core.types import UNKNOWN, LabelSet, State

#: Open deliveries kept for one task, and sendings: it has worse problems than a lost runtime if it has more.
MAX_DELIVERIES = 8
#: Seconds between the end of a task's body and the event that tells of it, on a worker that keeps up.
MAX_DELAY = 0.5
# An enum's members are looked up each time they are named.
RECEIVED, STARTED, SUCCESS, FAILURE = State.RECEIVED, State.STARTED, State.SUCCESS, State.FAILURE

#: The delivery that an event speaks of, if it is known.
Find = Callable[[TaskHistory, Event], Delivery | None]
#: Worker name → the key under which what it did is booked.
KeyAt = Callable[[str], LabelSet]
#: What to book under the key of what the event's worker did; tells whether it is of the newest delivery.
Measure = Callable[[TaskHistory, Event, Delivery | None, LabelSet, Aggregates], bool]
#: Whether an event is the usual one for a task without a story, which has none after it either.
IsUsual = Callable[[Task, Event], bool]
#: What to book, and to remember, if it is.
Usually = Callable[[Task, Event, LabelSet, Aggregates], None]


# -- usually: an attempt is received, started and ended by one worker process ----------------------------


def usually_sent(task: Task, event: Event) -> bool:
    """Note since when the newest attempt of a task without a story waits; tell whether that is all."""
    if task.worker is not None or (event.retries or 0) != task.attempt:
        return False
    task.sent, task.ready = task.attempt, _from(event)
    return True


def _is_received(task: Task, event: Event) -> bool:
    return task.worker is None and (event.retries or 0) == task.attempt


def _usually_received(task: Task, event: Event, _: LabelSet, __: Aggregates) -> None:
    at = _from(event)
    if task.sent != task.attempt:
        task.ready = epoch(event.eta) or None
    task.worker, task.pid = event.hostname, event.pid
    task.at = task.ready if task.ready == at else at  # one object for both, if it is the eta


def _is_started(task: Task, event: Event) -> bool:
    here = task.worker == event.hostname and task.pid == event.pid
    return here and task.bucket.state is RECEIVED and task.at is not None


def _usually_started(task: Task, event: Event, label_set: LabelSet, aggregates: Aggregates) -> None:
    started = event.timestamp
    aggregates.observe_start(label_set, started, task.ready, task.at, task.uuid)
    task.at = started


def _is_ended(task: Task, event: Event) -> bool:
    here = task.worker == event.hostname and task.pid == event.pid
    return here and task.bucket.state is STARTED and task.at is not None


def _usually_succeeded(task: Task, event: Event, label_set: LabelSet, aggregates: Aggregates) -> None:
    if event.runtime is not None:
        aggregates.observe_runtime(label_set, SUCCESS, event.runtime, event.uuid)
    _end(task)


def _usually_failed(task: Task, event: Event, label_set: LabelSet, aggregates: Aggregates) -> None:
    aggregates.count_failure(_failure(label_set, event))
    if task.at is not None:
        aggregates.observe_runtime(label_set, FAILURE, event.timestamp - task.at, event.uuid)
    _end(task)


def _end(task: Task) -> None:
    if task.ready is not None:  # otherwise its wait is outstanding
        task.at = None


# -- otherwise -------------------------------------------------------------------------------------------


def at_sent(history: TaskHistory, event: Event, key_at: KeyAt, aggregates: Aggregates) -> None:
    """Note since when an attempt waits, and book the wait of one that was started before we heard of it."""
    attempt, ready = event.retries or 0, _from(event)
    for delivery in history.deliveries:
        if delivery.attempt == attempt and delivery.ready is None:  # this was overtaken
            delivery.ready = ready
            if delivery.started is not None:
                aggregates.observe_queue_wait(key_at(delivery.worker), delivery.started - ready, event.uuid)
    history.sent[attempt] = ready
    if len(history.sent) > MAX_DELIVERIES:
        del history.sent[min((each for each in history.sent if each != attempt), key=_use)]


def _use(attempt: int) -> tuple[int, bool, int]:
    """Return by what it is judged which sending is of least use: by the first one others are told apart."""
    return generation_of(attempt), attempt % MAX_ATTEMPTS == 0, attempt


def _at_received(
    history: TaskHistory, event: Event, _: Delivery | None, label_set: LabelSet, aggregates: Aggregates
) -> bool:
    attempt, eta = event.retries or 0, epoch(event.eta)
    received = _from(event)
    ready = history.sent.get(attempt)
    late = attempt in (history.skipped or ())
    if _is_again(history, attempt) and not _is_copy(history, event):
        aggregates.count_redelivery(label_set)
        is_unstarted = _take_unstarted(history, attempt)
        if not (eta and is_unstarted):
            ready = received  # not before its eta, which a redelivered message still carries
    for delivery in _held(history, event):
        is_this = delivery.attempt == attempt or delivery.attempt not in history.sent
        if is_this and delivery.received is None and delivery.started is not None:  # it was overtaken
            aggregates.observe_prefetch_wait(label_set, delivery.started - received, event.uuid)
            delivery.received = received
            return False
    newest = _deliver(history, Delivery(event.hostname, event.pid, attempt, ready or eta or None, received))
    return newest and not late


def _is_again(history: TaskHistory, attempt: int) -> bool:
    """Tell whether an attempt was received before; from now on it was.

    An older attempt than was received already may have been another worker's, whose events are late.
    """
    if history.is_received(attempt):
        return True
    if history.received is not None and attempt <= history.received:
        history.skipped = (history.skipped or set()) - {attempt}
    else:
        _pass_by(history, attempt)
    return False


def _pass_by(history: TaskHistory, attempt: int) -> None:
    """Note that an attempt is the newest one received; receipts of older ones may come late."""
    base = attempt - attempt % MAX_ATTEMPTS  # between two generations there are no attempts
    newest = base - 1 if history.received is None else history.received
    between = range(max(newest + 1, base, attempt - MAX_DELIVERIES), attempt)
    sent = (each for each in history.sent if each < attempt and (history.received is None or each > newest))
    skipped = sorted({*(history.skipped or ()), *between, *sent})
    history.skipped = set(skipped[-MAX_DELIVERIES:]) if skipped else history.skipped
    history.received = attempt


def _close_attempt(history: TaskHistory, attempt: int) -> None:
    """Note that an attempt is over whose receipt was lost, or comes late: that is no redelivery then."""
    if history.received is None or attempt > history.received:
        _pass_by(history, attempt)
        history.skipped = {*(history.skipped or ()), attempt}


def _take_unstarted(history: TaskHistory, attempt: int) -> bool:
    """Tell whether nobody has started an attempt that was received; forget who gave it back."""
    before = [each for each in history.deliveries if each.attempt == attempt]
    history.deliveries = [each for each in history.deliveries if not each.is_given_back()]
    return bool(before) and all(each.started is None for each in before)


def _is_copy(history: TaskHistory, event: Event) -> bool:
    """Tell whether the worker received its own copy of a task that was sent to several queues."""
    return history.copied and all(delivery.worker != event.hostname for delivery in history.deliveries)


def _at_started(
    history: TaskHistory, event: Event, delivery: Delivery | None, label_set: LabelSet, aggregates: Aggregates
) -> bool:
    assert delivery is not None  # noqa: S101  `_find_started` makes one
    aggregates.observe_start(label_set, event.timestamp, delivery.ready, delivery.received, event.uuid or "")
    delivery.started = event.timestamp
    return delivery is history.deliveries[-1]


def _at_success(
    history: TaskHistory, event: Event, delivery: Delivery | None, label_set: LabelSet, aggregates: Aggregates
) -> bool:
    if event.runtime is not None:
        aggregates.observe_runtime(label_set, State.SUCCESS, event.runtime, event.uuid)
    return _ended(history, delivery)


def _at_failure(
    history: TaskHistory, event: Event, delivery: Delivery | None, label_set: LabelSet, aggregates: Aggregates
) -> bool:
    aggregates.count_failure(_failure(label_set, event))
    _time(delivery, event, State.FAILURE, label_set, aggregates)
    return _ended(history, delivery)


def _at_retry(
    history: TaskHistory, event: Event, delivery: Delivery | None, label_set: LabelSet, aggregates: Aggregates
) -> bool:
    _time(delivery, event, State.RETRY, label_set, aggregates)
    # One of a delivery that is over already is told once more, and the next attempt may have been received.
    newest = _ended(history, delivery) and (
        delivery is not None or all(each.ended for each in history.deliveries)
    )
    if delivery is not None and not history.is_received(delivery.attempt):
        _close_attempt(history, delivery.attempt)
    # Where nobody tells of sendings each retry would be remembered for it. A late one comes before the end.
    history.deliveries = [each for each in history.deliveries if each is not delivery]
    return newest


def _at_end(history: TaskHistory, _: Event, delivery: Delivery | None, __: LabelSet, ___: Aggregates) -> bool:
    return _ended(history, delivery)


# -- deliveries ----------------------------------------------------------------------------------------


def _none(_: TaskHistory, __: Event) -> None:
    """Find none: the event is not about a delivery, or makes one."""


def _find_started(history: TaskHistory, event: Event) -> Delivery:
    """Return the delivery that a worker starts: the oldest one that it has not started.

    If its receipt did not reach us it is of the oldest attempt that was sent after the newest that was
    received; else of one that nobody was heard to send.
    """
    for each in _held(history, event):
        if each.started is None:
            return each
    taken = {each.attempt for each in history.deliveries}
    newer = (each for each in history.sent if history.received is None or each > history.received)
    attempt = min((each for each in newer if each not in taken), default=None)
    if attempt is None:
        over = history.received is not None and not any(not each.ended for each in history.deliveries)
        attempt = (history.received or 0) + over
        ready = None
    else:
        ready = history.sent[attempt]
    delivery = Delivery(event.hostname, event.pid, attempt, ready, None)
    _deliver(history, delivery)
    return delivery


def _failure(label_set: LabelSet, event: Event) -> Failure:
    exception = exception_class(event.exception) or UNKNOWN
    return Failure(event.timestamp, label_set, event.hostname, exception, event.uuid or "")


def _time(
    delivery: Delivery | None, event: Event, state: State, label_set: LabelSet, aggregates: Aggregates
) -> None:
    """Book a runtime that the event does not carry, by the clock of the worker that ran it."""
    if delivery is not None and delivery.started is not None:
        aggregates.observe_runtime(label_set, state, event.timestamp - delivery.started, event.uuid)


def _ended(history: TaskHistory, delivery: Delivery | None) -> bool:
    """Close a delivery; tell whether it was the newest (as one that we know nothing of must be)."""
    if delivery is None:
        return True
    newest = history.deliveries[-1] is delivery
    delivery.ended = True
    if delivery.ready is not None or delivery.started is None:
        history.deliveries.remove(delivery)
    return newest


def _first_held(history: TaskHistory, event: Event) -> Delivery | None:
    """Return the delivery that an event may end after which the task goes on.

    That is the oldest one of the newest generation: what it succeeded may have ended without an event.
    """
    held = _started_or_held(history, event)
    return max(reversed(held), key=lambda each: (generation_of(each.attempt), -each.attempt), default=None)


def _last_held(history: TaskHistory, event: Event) -> Delivery | None:
    """Return the delivery that an event may end which ends the task.

    That is the one that was started nearest to when the event says, where it tells the run time; else one of
    the last attempt, and of equal ones the newest.
    """
    held = _started_or_held(history, event)
    if len(held) > 1 and event.runtime is not None:
        started = event.timestamp - event.runtime
        nearest = min(reversed(held), key=lambda each: abs((each.started or 0.0) - started))
        if abs((nearest.started or 0.0) - started) < MAX_DELAY:
            return nearest
    return max(reversed(held), key=attrgetter("attempt"), default=None)


def _started_or_held(history: TaskHistory, event: Event) -> list[Delivery]:
    """Return the open deliveries to the sender's process that it started, or all if it started none."""
    held = _held(history, event)
    return [each for each in held if each.started is not None] or held


def _held(history: TaskHistory, event: Event) -> list[Delivery]:
    """Return the open deliveries to the sender's process, the oldest first."""
    worker, pid = event.hostname, event.pid
    return [
        each for each in history.deliveries if each.worker == worker and each.pid == pid and not each.ended
    ]


def _deliver(history: TaskHistory, delivery: Delivery) -> bool:
    """Add a delivery and tell whether it is the newest; those to an earlier process of its worker died."""
    alive = [
        each
        for each in history.deliveries
        if each.worker != delivery.worker or each.pid == delivery.pid or each.ended
    ]
    history.deliveries = sorted([*alive[1 - MAX_DELIVERIES :], delivery], key=attrgetter("attempt"))
    return history.deliveries[-1] is delivery


def _from(event: Event) -> float:
    """Return since when a task waits that was sent or received: not before its eta."""
    return event.timestamp if event.eta is None else max(event.timestamp, epoch(event.eta))


def epoch(eta: str | None) -> float:
    """Return an ISO 8601 time as epoch seconds; 0.0 (long ago) for none and for what is no time.

    Celery writes UTC offsets (kombu.utils.json, celery/app/amqp.py); a time without one is UTC.
    """
    if not eta:
        return 0.0
    try:
        parsed = datetime.fromisoformat(eta.replace("Z", "+00:00"))
        return (parsed if parsed.tzinfo else parsed.replace(tzinfo=timezone.utc)).timestamp()
    except (ValueError, OverflowError):
        return 0.0


# -- the table -------------------------------------------------------------------------------------------


class Effect(Struct, frozen=True):
    """What a worker's event does: the state it is counted as entering, and where the task is afterwards.

    `lands` is None when the task is finished.
    """

    counts: State
    find: Find
    measure: Measure
    lands: State | None = None
    usual: tuple[IsUsual, Usually] | None = None  # None: a task always has a story then


#: The transition table. All unfinished states take each event alike, for each may be the next that
#: reaches us. Celery records RETRY for a cancelled task (mark_as_retry); it will be delivered again.
EFFECTS = {
    "task-received": Effect(
        State.RECEIVED, _none, _at_received, State.RECEIVED, (_is_received, _usually_received)
    ),
    "task-started": Effect(
        State.STARTED, _find_started, _at_started, State.STARTED, (_is_started, _usually_started)
    ),
    "task-succeeded": Effect(State.SUCCESS, _last_held, _at_success, usual=(_is_ended, _usually_succeeded)),
    "task-failed": Effect(State.FAILURE, _last_held, _at_failure, usual=(_is_ended, _usually_failed)),
    "task-retried": Effect(State.RETRY, _first_held, _at_retry, State.RETRY),
    "task-revoked": Effect(State.REVOKED, _last_held, _at_end),
    "task-rejected": Effect(State.REJECTED, _first_held, _at_end),
    "task-cancelled": Effect(State.RETRY, _first_held, _at_retry, State.RETRY),
}
