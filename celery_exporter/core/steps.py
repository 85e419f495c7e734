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

from celery_exporter.core.events import Event, exception_class
from celery_exporter.core.facts import UNKNOWN, Fact, Key, Prefetched, Queued, Raised, Ran, Redelivered, State
from celery_exporter.core.tasks import Delivery, Task

#: Open deliveries kept for one task: redelivered more often, it has worse problems than a lost runtime.
MAX_DELIVERIES = 8
#: The last retry of a task whose sending is remembered.
MAX_ATTEMPTS = 100

#: The delivery that an event speaks of, if it is known.
Find = Callable[[Task, Event], Delivery | None]
#: Worker name → the key under which what it did is booked.
KeyAt = Callable[[str], Key]
#: What to book under the key of what the event's worker did; tells whether it is of the newest delivery.
Measure = Callable[[Task, Event, Delivery | None, Key, list[Fact]], bool]


def at_sent(task: Task, event: Event, key_at: KeyAt, facts: list[Fact]) -> None:
    """Note since when an attempt waits, and book the wait of one that was started before we heard of it."""
    attempt, ready = event.retries or 0, max(event.timestamp, _epoch(event.eta))
    for delivery in task.deliveries or ():
        if delivery.attempt == attempt and delivery.ready is None:  # this was overtaken
            delivery.ready = ready
            if delivery.started is not None:
                facts.append(Queued(key_at(delivery.worker), delivery.started - ready, event.uuid))
    if attempt == 0:
        task.ready = ready
    elif attempt <= MAX_ATTEMPTS:
        task.resent = {**(task.resent or {}), attempt: ready}


def _at_received(task: Task, event: Event, _: Delivery | None, key: Key, facts: list[Fact]) -> bool:
    attempt, eta = event.retries or 0, _epoch(event.eta)
    ready, received = task.ready_at(attempt), max(event.timestamp, eta)
    late = task.skipped is not None and attempt in task.skipped
    if _is_again(task, attempt):
        facts.append(Redelivered(key))
        ready = event.timestamp
    for delivery in _held(task, event):
        if delivery.received is None and delivery.started is not None:  # it was overtaken
            facts.append(Prefetched(key, delivery.started - received, event.uuid))
            delivery.received = received
            return False
    newest = _deliver(task, Delivery(event.hostname, event.pid, attempt, ready or eta or None, received))
    return newest and not late


def _is_again(task: Task, attempt: int) -> bool:
    """Tell whether an attempt was received before; from now on it was.

    An older attempt than was received already may have been another worker's, whose events are late.
    """
    if attempt == 0 and task.received is None:  # nearly all
        task.received = 0
        return False
    skipped = task.skipped or set()
    if attempt in skipped:
        task.skipped = skipped - {attempt} or None
        return False
    if task.received is not None and attempt <= task.received:
        return True
    oldest = attempt - MAX_DELIVERIES
    first = 0 if task.received is None else task.received + 1
    more = range(max(first, oldest), attempt)
    if skipped or more:
        task.skipped = {each for each in (*skipped, *more) if each >= oldest} or None
    task.received = attempt
    return False


def _at_started(task: Task, event: Event, delivery: Delivery | None, key: Key, facts: list[Fact]) -> bool:
    if delivery is None:  # its task-received did not reach us
        ready = task.ready if task.received is None else None
        delivery = Delivery(event.hostname, event.pid, task.received or 0, ready, None)
        _deliver(task, delivery)
    if delivery.ready is not None:
        facts.append(Queued(key, event.timestamp - delivery.ready, event.uuid))
    if delivery.received is not None:
        facts.append(Prefetched(key, event.timestamp - delivery.received, event.uuid))
    delivery.started = event.timestamp
    return delivery is (task.deliveries or [delivery])[-1]


def _at_success(task: Task, event: Event, delivery: Delivery | None, key: Key, facts: list[Fact]) -> bool:
    if event.runtime is not None:
        facts.append(Ran(key, State.SUCCESS, event.runtime, event.uuid))
    return _ended(task, delivery)


def _at_failure(task: Task, event: Event, delivery: Delivery | None, key: Key, facts: list[Fact]) -> bool:
    facts.append(Raised(key, exception_class(event.exception) or UNKNOWN))
    _time(delivery, event, State.FAILURE, key, facts)
    return _ended(task, delivery)


def _at_retry(task: Task, event: Event, delivery: Delivery | None, key: Key, facts: list[Fact]) -> bool:
    _time(delivery, event, State.RETRY, key, facts)
    return _ended(task, delivery)


def _at_end(task: Task, _: Event, delivery: Delivery | None, __: Key, ___: list[Fact]) -> bool:
    return _ended(task, delivery)


# -- deliveries ----------------------------------------------------------------------------------------


def _none(_: Task, __: Event) -> None:
    """Find none: the event is not about a delivery, or makes one."""


def _next_held(task: Task, event: Event) -> Delivery | None:
    """Return the delivery that a worker starts: the oldest one that it has not started."""
    for each in _held(task, event):
        if each.started is None:
            return each
    return None


def _time(delivery: Delivery | None, event: Event, state: State, key: Key, facts: list[Fact]) -> None:
    """Book a runtime that the event does not carry, by the clock of the worker that ran it."""
    if delivery is not None and delivery.started is not None:
        facts.append(Ran(key, state, event.timestamp - delivery.started, event.uuid))


def _ended(task: Task, delivery: Delivery | None) -> bool:
    """Close a delivery; tell whether it was the newest (as one that we know nothing of must be)."""
    if delivery is None or task.deliveries is None:
        return True
    newest = task.deliveries[-1] is delivery
    delivery.ended = True
    if delivery.ready is not None or delivery.started is None:
        task.deliveries.remove(delivery)
    return newest


def _first_held(task: Task, event: Event) -> Delivery | None:
    """Return the delivery that an event may end after which the task goes on: the oldest one."""
    held = _held(task, event)
    return next((each for each in held if each.started is not None), held[0] if held else None)


def _last_held(task: Task, event: Event) -> Delivery | None:
    """Return the delivery that an event may end which ends the task: one of the last attempt."""
    held = _held(task, event)
    if len(held) < 2:
        return held[0] if held else None
    started = [each for each in held if each.started is not None] or held
    return max(started, key=attrgetter("attempt"))


def _held(task: Task, event: Event) -> list[Delivery]:
    """Return the open deliveries to the sender's process, the oldest first."""
    deliveries = task.deliveries
    if deliveries is None:
        return []
    worker, pid = event.hostname, event.pid
    return [each for each in deliveries if each.worker == worker and each.pid == pid and not each.ended]


def _deliver(task: Task, delivery: Delivery) -> bool:
    """Add a delivery and tell whether it is the newest; those to an earlier process of its worker died."""
    if not task.deliveries:
        task.deliveries = [delivery]
        return True
    alive = [
        each
        for each in task.deliveries
        if each.worker != delivery.worker or each.pid == delivery.pid or each.ended
    ]
    task.deliveries = sorted([*alive[1 - MAX_DELIVERIES :], delivery], key=attrgetter("attempt"))
    return task.deliveries[-1] is delivery


def _epoch(eta: str | None) -> float:
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


# -- the table ---------------------------------------------------------------------------------------------


class Effect(Struct, frozen=True):
    """What a worker's event does: the state it is counted as entering, and where the task is afterwards.

    `lands` is None when the task is finished.
    """

    counts: State
    find: Find
    measure: Measure
    lands: State | None = None


#: The transition table. All unfinished states take each event alike, for each may be the next that
#: reaches us. Celery records RETRY for a cancelled task (mark_as_retry); it will be delivered again.
EFFECTS = {
    "task-received": Effect(State.RECEIVED, _none, _at_received, State.RECEIVED),
    "task-started": Effect(State.STARTED, _next_held, _at_started, State.STARTED),
    "task-succeeded": Effect(State.SUCCESS, _last_held, _at_success),
    "task-failed": Effect(State.FAILURE, _last_held, _at_failure),
    "task-retried": Effect(State.RETRY, _first_held, _at_retry, State.RETRY),
    "task-revoked": Effect(State.REVOKED, _last_held, _at_end),
    "task-rejected": Effect(State.REJECTED, _first_held, _at_end),
    "task-cancelled": Effect(State.RETRY, _first_held, _at_retry, State.RETRY),
}
