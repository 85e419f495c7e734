"""The transition table: what each task event does to the state of its task and to the sums.

`EFFECTS` has one row for each type of event. A row has two implementations (docs/explanation/adr/0002).

Usual: one worker process receives, starts and ends an attempt. The fields of the task hold everything.

    PENDING ┐  task-received           task-started
    RETRY   ┴────────────────▶ RECEIVED ────────────▶ STARTED ─┬─ task-succeeded ─▶ SUCCESS
                                                               └─ task-failed ────▶ FAILURE

With history: everything else, in any order. An event of the newest delivery determines the state. An event
of another delivery only adds to the sums, since the task has gone on already.

                           ┌── task-received ───────────────────▶ RECEIVED
                           ├── task-started ────────────────────▶ STARTED
    PENDING  ┐             ├── task-retried, task-cancelled ────▶ RETRY
    RECEIVED ├─────────────┼── task-rejected with requeue ──────▶ PENDING
    STARTED  │             ├── task-rejected ───────────────────▶ REJECTED ┐
    RETRY    ┘             ├── task-succeeded ──────────────────▶ SUCCESS  ├── task-received: RECEIVED,
                           ├── task-failed ─────────────────────▶ FAILURE  │   if it is a new delivery
                           └── task-revoked ────────────────────▶ REVOKED  ┘
"""

from __future__ import annotations

from collections.abc import Callable
from operator import attrgetter

from msgspec import Struct

from celery_exporter.core.aggregates import Aggregates, Failure
from celery_exporter.core.events import Event, epoch
from celery_exporter.core.task_exceptions import RETRIES_EXCEEDED, exception_class
from celery_exporter.core.task_history import MAX_ATTEMPTS, Delivery, TaskHistory, generation_of
from celery_exporter.core.tasks import Task
from celery_exporter.core.types import UNKNOWN, LabelSet, State

#: Open deliveries, and sendings, that are kept for one task. For a task with more, some runtimes are lost.
MAX_DELIVERIES = 8
#: Seconds from the end of a task's body to the event that reports it, on a worker that keeps up.
MAX_END_DELAY_SECONDS = 0.5
# Looking up a member of an enum is slow.
RECEIVED, SUCCESS, FAILURE = State.RECEIVED, State.SUCCESS, State.FAILURE

#: Adds the expected next event of a task without an expanded history to the sums under a label set, and to
#: the fields of the task.
ApplyUsual = Callable[[Task, Event, LabelSet, Aggregates], None]
#: Returns the delivery that an event is about, None if it is unknown.
FindDelivery = Callable[[TaskHistory, Event], Delivery | None]
#: Adds an event about a delivery to the sums under a label set, and to the history of the task. Returns
#: whether the event determines the state: the delivery is the newest one.
ApplyToHistory = Callable[[TaskHistory, Event, Delivery | None, LabelSet, Aggregates], bool]
#: Returns the label set for what a worker did, by its name.
LabelSetAtWorker = Callable[[str], LabelSet]


# -- usual -----------------------------------------------------------------------------------------------


def apply_usual_sent(task: Task, event: Event) -> bool:
    """Record since when the newest attempt waits; return False if the fields of the task cannot hold it."""
    if task.worker is not None or (event.retries or 0) != task.attempt:
        return False
    task.sent, task.ready = task.attempt, event.timestamp if event.eta is None else _ready_at(event)
    return True


def _apply_usual_receipt(task: Task, event: Event, _: LabelSet, __: Aggregates) -> None:
    at = event.timestamp if event.eta is None else _ready_at(event)
    if task.sent != task.attempt:
        task.ready = epoch(event.eta) or None
    task.worker, task.pid = event.hostname, event.pid
    task.at = task.ready if task.ready == at else at  # one object for both, if it is the eta


def _apply_usual_start(task: Task, event: Event, label_set: LabelSet, aggregates: Aggregates) -> None:
    started = event.timestamp
    aggregates.observe_start(label_set, started, task.ready, task.at, task.uuid)
    task.at = started


def _apply_usual_success(task: Task, event: Event, label_set: LabelSet, aggregates: Aggregates) -> None:
    if event.runtime is not None:
        aggregates.observe_runtime(label_set, SUCCESS, event.runtime, event.uuid)
    elif task.at is not None:
        aggregates.add_execution(label_set, event.timestamp - task.at)
    if task.ready is not None:  # otherwise its task-sent, and so its wait, is outstanding
        task.at = None


def _apply_usual_failure(task: Task, event: Event, label_set: LabelSet, aggregates: Aggregates) -> None:
    aggregates.count_failure(_failure(label_set, event))
    if task.at is not None:
        aggregates.observe_runtime(label_set, FAILURE, event.timestamp - task.at, event.uuid)
    if task.ready is not None:
        task.at = None


# -- with history ----------------------------------------------------------------------------------------


def apply_sent(
    history: TaskHistory, event: Event, label_set_at: LabelSetAtWorker, aggregates: Aggregates
) -> None:
    """Record since when an attempt waits; observe its wait if its `task-started` came first."""
    attempt, ready = event.retries or 0, _ready_at(event)
    for delivery in history.deliveries:
        if delivery.attempt == attempt and delivery.ready is None:  # its receipt came first
            delivery.ready = ready
            if delivery.started is not None:
                label_set = label_set_at(delivery.worker)
                aggregates.observe_queue_wait(label_set, delivery.started - ready, event.uuid)
    history.sent[attempt] = ready
    if len(history.sent) > MAX_DELIVERIES:
        del history.sent[min((other for other in history.sent if other != attempt), key=_sending_priority)]


def _sending_priority(attempt: int) -> tuple[int, bool, int]:
    """Return the priority of keeping a sending: the first one of a generation identifies later ones."""
    return generation_of(attempt), attempt % MAX_ATTEMPTS == 0, attempt


def _apply_received(
    history: TaskHistory, event: Event, _: Delivery | None, label_set: LabelSet, aggregates: Aggregates
) -> bool:
    attempt, eta = event.retries or 0, epoch(event.eta)
    received = _ready_at(event)
    ready = history.sent.get(attempt)
    is_late = attempt in (history.skipped or ())
    if _record_receipt(history, attempt) and not _is_copy(history, event):
        aggregates.count_redelivery(label_set)
        is_unstarted = _remove_given_back(history, attempt)
        if not (eta and is_unstarted):
            ready = received  # not before its eta, which the redelivered message still has
    for delivery in _open_deliveries(history, event):
        is_this = delivery.attempt == attempt or delivery.attempt not in history.sent
        started = delivery.started if delivery.received is None else None
        if is_this and started is not None and started >= event.timestamp:  # its start came first
            aggregates.observe_prefetch_wait(label_set, started - received, event.uuid)
            delivery.received = received
            return False
    delivery = Delivery(event.hostname, event.pid, attempt, ready or eta or None, received)
    return _add_delivery(history, delivery) and not is_late


def _record_receipt(history: TaskHistory, attempt: int) -> bool:
    """Record that an attempt was received; return whether it had been received before.

    An attempt that is older than the newest one may have been received by another worker, whose events are
    late.
    """
    if history.is_received(attempt):
        return True
    if history.received is not None and attempt <= history.received:
        history.skipped = (history.skipped or set()) - {attempt}
    else:
        _set_newest_received(history, attempt)
    return False


def _set_newest_received(history: TaskHistory, attempt: int) -> None:
    """Make an attempt the newest one that was received; receipts of the skipped ones may come late."""
    base = attempt - attempt % MAX_ATTEMPTS  # no attempts exist between two generations
    newest = base - 1 if history.received is None else history.received
    between = range(max(newest + 1, base, attempt - MAX_DELIVERIES), attempt)
    sent = (
        other for other in history.sent if other < attempt and (history.received is None or other > newest)
    )
    skipped = sorted({*(history.skipped or ()), *between, *sent})
    history.skipped = set(skipped[-MAX_DELIVERIES:]) if skipped else history.skipped
    history.received = attempt


def _close_attempt(history: TaskHistory, attempt: int) -> None:
    """Record that an attempt without a receipt is over: a late receipt of it is no redelivery."""
    if history.received is None or attempt > history.received:
        _set_newest_received(history, attempt)
        history.skipped = {*(history.skipped or ()), attempt}


def _remove_given_back(history: TaskHistory, attempt: int) -> bool:
    """Remove deliveries that were given back; return whether the attempt was received and never started."""
    before = [delivery for delivery in history.deliveries if delivery.attempt == attempt]
    history.deliveries = [delivery for delivery in history.deliveries if not delivery.is_given_back()]
    return bool(before) and all(delivery.started is None for delivery in before)


def _is_copy(history: TaskHistory, event: Event) -> bool:
    """Return whether the worker received its own copy of a task that was sent to several queues."""
    return history.copied and all(delivery.worker != event.hostname for delivery in history.deliveries)


def _apply_started(
    history: TaskHistory, event: Event, delivery: Delivery | None, label_set: LabelSet, aggregates: Aggregates
) -> bool:
    assert delivery is not None  # noqa: S101  `_find_or_add_unstarted` returns one
    aggregates.observe_start(label_set, event.timestamp, delivery.ready, delivery.received, event.uuid or "")
    delivery.started = event.timestamp
    return delivery is history.deliveries[-1]


def _apply_success(
    history: TaskHistory, event: Event, delivery: Delivery | None, label_set: LabelSet, aggregates: Aggregates
) -> bool:
    if event.runtime is not None:
        aggregates.observe_runtime(label_set, State.SUCCESS, event.runtime, event.uuid)
    else:
        _add_execution(delivery, event, label_set, aggregates)
    return _close(history, delivery)


def _apply_failure(
    history: TaskHistory, event: Event, delivery: Delivery | None, label_set: LabelSet, aggregates: Aggregates
) -> bool:
    aggregates.count_failure(_failure(label_set, event))
    _observe_runtime(delivery, event, State.FAILURE, label_set, aggregates)
    return _close(history, delivery)


def _apply_retry(
    history: TaskHistory, event: Event, delivery: Delivery | None, label_set: LabelSet, aggregates: Aggregates
) -> bool:
    _observe_runtime(delivery, event, State.RETRY, label_set, aggregates)
    # A retry of a closed delivery is a repeat, and the next attempt may have been received.
    is_newest = _close(history, delivery) and (
        delivery is not None or all(other.ended for other in history.deliveries)
    )
    if delivery is not None and not history.is_received(delivery.attempt):
        _close_attempt(history, delivery.attempt)
    # Without task-sent events every retry would be kept for its wait. A late task-sent of a retry still comes
    # before the end of the retry.
    history.deliveries = [other for other in history.deliveries if other is not delivery]
    return is_newest


def _apply_end(
    history: TaskHistory, event: Event, delivery: Delivery | None, label_set: LabelSet, aggregates: Aggregates
) -> bool:
    _add_execution(delivery, event, label_set, aggregates)
    return _close(history, delivery)


# -- deliveries ----------------------------------------------------------------------------------------


def _find_none(_: TaskHistory, __: Event) -> None:
    """Return None: the event is about no delivery, or begins one."""


def _find_or_add_unstarted(history: TaskHistory, event: Event) -> Delivery:
    """Return the oldest delivery that a worker has not started; add one if its receipt was not seen.

    An added delivery is of the oldest attempt that was sent after the newest received one. If there is none,
    its `task-sent` was not seen either. A retry that is due later is another attempt.
    """
    for delivery in _open_deliveries(history, event):
        if delivery.started is None:
            return delivery
    delivered = {delivery.attempt for delivery in history.deliveries}
    newer = (sent for sent in history.sent if history.received is None or sent > history.received)
    due = (sent for sent in newer if not sent % MAX_ATTEMPTS or history.sent[sent] <= event.timestamp)
    attempt = min((sent for sent in due if sent not in delivered), default=None)
    if attempt is None:
        is_over = history.received is not None and all(delivery.ended for delivery in history.deliveries)
        attempt = (history.received or 0) + is_over
        ready = None
    else:
        ready = history.sent[attempt]
    delivery = Delivery(event.hostname, event.pid, attempt, ready, None)
    _add_delivery(history, delivery)
    return delivery


def _find_continued(history: TaskHistory, event: Event) -> Delivery | None:
    """Return the delivery that an event may end after which the task goes on.

    That is the oldest one of the newest generation: earlier generations may have ended without an event.
    """
    return max(
        reversed(_endable_deliveries(history, event)),
        key=lambda delivery: (generation_of(delivery.attempt), -delivery.attempt),
        default=None,
    )


def _find_retried(history: TaskHistory, event: Event) -> Delivery | None:
    """Return the delivery that was retried; None if it is unknown.

    The next attempt may be received before that is reported.
    """
    delivery = _find_continued(history, event)
    is_next = delivery is not None and delivery.started is None and delivery.attempt % MAX_ATTEMPTS
    return None if is_next else delivery


def _find_finished(history: TaskHistory, event: Event) -> Delivery | None:
    """Return the delivery that an event may end which finishes the task.

    If the event has a runtime, that is the delivery which started nearest to the time that follows from it.
    Otherwise it is one of the last attempt, and of several the newest.
    """
    deliveries = _endable_deliveries(history, event)
    if len(deliveries) > 1 and event.runtime is not None:
        started = event.timestamp - event.runtime
        nearest = min(reversed(deliveries), key=lambda delivery: abs((delivery.started or 0.0) - started))
        if abs((nearest.started or 0.0) - started) < MAX_END_DELAY_SECONDS:
            return nearest
    return max(reversed(deliveries), key=attrgetter("attempt"), default=None)


def _endable_deliveries(history: TaskHistory, event: Event) -> list[Delivery]:
    """Return the open deliveries that the sender's process started; all open ones if it started none."""
    deliveries = _open_deliveries(history, event)
    return [delivery for delivery in deliveries if delivery.started is not None] or deliveries


def _open_deliveries(history: TaskHistory, event: Event) -> list[Delivery]:
    """Return the open deliveries to the sender's process, oldest first."""
    worker, pid = event.hostname, event.pid
    return [
        delivery
        for delivery in history.deliveries
        if delivery.worker == worker and delivery.pid == pid and not delivery.ended
    ]


def _add_delivery(history: TaskHistory, delivery: Delivery) -> bool:
    """Add a delivery; return whether it is the newest one.

    The open deliveries to an earlier process of its worker are removed: that process does not run any more.
    """
    remaining = [
        other
        for other in history.deliveries
        if other.worker != delivery.worker or other.pid == delivery.pid or other.ended
    ]
    history.deliveries = sorted([*remaining[1 - MAX_DELIVERIES :], delivery], key=attrgetter("attempt"))
    return history.deliveries[-1] is delivery


def _close(history: TaskHistory, delivery: Delivery | None) -> bool:
    """End a delivery; return whether it was the newest one. An unknown delivery counts as the newest."""
    if delivery is None:
        return True
    is_newest = history.deliveries[-1] is delivery
    delivery.ended = True
    if delivery.ready is not None or delivery.started is None:
        history.deliveries.remove(delivery)
    return is_newest


def _observe_runtime(
    delivery: Delivery | None, event: Event, state: State, label_set: LabelSet, aggregates: Aggregates
) -> None:
    """Observe the runtime of an event that has none, by the clock of its worker."""
    if delivery is not None and delivery.started is not None:
        aggregates.observe_runtime(label_set, state, event.timestamp - delivery.started, event.uuid)


def _add_execution(
    delivery: Delivery | None, event: Event, label_set: LabelSet, aggregates: Aggregates
) -> None:
    """Add the time since the start of an execution whose end has no runtime: it was terminated, say."""
    if delivery is not None and delivery.started is not None:
        aggregates.add_execution(label_set, event.timestamp - delivery.started)


def _failure(label_set: LabelSet, event: Event) -> Failure:
    exception = exception_class(event.exception) or UNKNOWN
    exceeded = event.traceback == RETRIES_EXCEEDED
    return Failure(event.timestamp, label_set, event.hostname, exception, event.uuid or "", exceeded)


def _ready_at(event: Event) -> float:
    """Return since when (epoch seconds) a sent or received task waits: not before its eta."""
    return event.timestamp if event.eta is None else max(event.timestamp, epoch(event.eta))


# -- the table -------------------------------------------------------------------------------------------


class Effect(Struct, frozen=True):
    """What an event of a worker does. `counts` is the state in which the event is counted.

    `apply_usual` is for the event that is expected next: a receipt of the newest attempt, which no worker
    has; or the next event of the worker process that has it, whose task is in the state `expected`.
    """

    counts: State
    find_delivery: FindDelivery
    apply_to_history: ApplyToHistory
    next_state: State | None = None  # of the task; None: it is finished
    expected: State | None = None
    apply_usual: ApplyUsual | None = None  # None: such an event always needs the history


#: The transition table. Each row holds for all open states, since any event may be missing or late. Celery
#: records RETRY for a cancelled task (mark_as_retry): it will be delivered again.
EFFECTS = {
    "task-received": Effect(
        State.RECEIVED,
        _find_none,
        _apply_received,
        State.RECEIVED,
        apply_usual=_apply_usual_receipt,
    ),
    "task-started": Effect(
        State.STARTED,
        _find_or_add_unstarted,
        _apply_started,
        State.STARTED,
        expected=State.RECEIVED,
        apply_usual=_apply_usual_start,
    ),
    "task-succeeded": Effect(
        State.SUCCESS,
        _find_finished,
        _apply_success,
        expected=State.STARTED,
        apply_usual=_apply_usual_success,
    ),
    "task-failed": Effect(
        State.FAILURE,
        _find_finished,
        _apply_failure,
        expected=State.STARTED,
        apply_usual=_apply_usual_failure,
    ),
    "task-retried": Effect(State.RETRY, _find_retried, _apply_retry, State.RETRY),
    "task-revoked": Effect(State.REVOKED, _find_finished, _apply_end),
    "task-rejected": Effect(State.REJECTED, _find_continued, _apply_end),
    "task-cancelled": Effect(State.RETRY, _find_continued, _apply_retry, State.RETRY),
}
