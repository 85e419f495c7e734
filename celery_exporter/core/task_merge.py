"""Puts together what two descriptions say of one task.

After a restart the exporter knows less than the history file.
"""

from __future__ import annotations

from collections.abc import Sequence

from msgspec.structs import replace

from celery_exporter.core.task_details import MAX_ATTEMPTS_KEPT, MAX_OPEN_ATTEMPTS
from celery_exporter.core.task_info import (
    LOST,
    OPEN_STATE_NAMES,
    STATE_NAMES,
    AttemptInfo,
    TaskInfo,
    completed,
)

#: Attempts of one task that are kept, the newest of them: as many as `TaskDetails` has.
MAX_ATTEMPTS = MAX_ATTEMPTS_KEPT + MAX_OPEN_ATTEMPTS + 1
#: Fields that stay what they were once they are known.
_KEPT = ("task_name", "queue_name", "root_id", "parent_id", "args", "kwargs", "result")
#: Fields that are those of the newest attempt.
_OF_NEWEST = ("runtime_seconds", "exception", "reason", "worker")
_KEPT_OF_ATTEMPT = ("queue_name", "sent", "eta", "received", "started", "runtime_seconds", "exception")
#: The states of a task whose end an event reported.
_ENDED = frozenset(STATE_NAMES) - {*OPEN_STATE_NAMES, LOST}
#: What tells deliveries of one attempt apart.
_TIMES = ("received", "started", "ended")


def merged(newer: TaskInfo, older: TaskInfo) -> TaskInfo:
    """Return what two descriptions of one task say together.

    The older one fills in what the newer one does not know: where the task comes from, its arguments,
    attempts that are over, and the times of an attempt that both have.
    """
    if older.state in _ENDED and _is_outdated(newer, older):
        return older
    unknown = {name: getattr(older, name) for name in _KEPT if getattr(newer, name) is None}
    first = next((info for info in (older, newer) if _is_first_known(info)), None)
    first = first or (newer if older.first_sent is None else older)
    client = first.client or newer.client or older.client
    attempts = _merged_attempts(newer.attempts, older.attempts)
    if attempts != [*newer.attempts] and attempts[-1].state == newer.state:
        newest = {name: getattr(attempts[-1], name) for name in _OF_NEWEST if getattr(newer, name) is None}
        unknown |= newest
    return replace(newer, **unknown, client=client, first_sent=first.first_sent, attempts=attempts)


def _is_outdated(newer: TaskInfo, older: TaskInfo) -> bool:
    """Return whether a description is from a state file that was saved before the end of the task.

    No event has come since the restart, so only the state then is known, or that the task does not run.
    """
    if newer.state == LOST:
        return not any(_has_event(attempt) for attempt in newer.attempts)
    return newer.state in OPEN_STATE_NAMES and not newer.attempts and newer.since <= older.since


def _has_event(attempt: AttemptInfo) -> bool:
    return attempt.state != LOST or any((attempt.sent, attempt.received, attempt.started))


def _is_first_known(info: TaskInfo) -> bool:
    """Return whether the sending of the first attempt is known; a worker sends the others."""
    return any((each.retries, each.generation) == (0, 0) and each.sent is not None for each in info.attempts)


def _merged_attempts(newer: Sequence[AttemptInfo], older: Sequence[AttemptInfo]) -> list[AttemptInfo]:
    """Return all attempts of the newer description, and before them those that only the older one has.

    Of those only attempts that are over or have a lower number stay: the newer description knows what workers
    have now. If it knows no attempt, as after a restart, all stay.
    """
    if not newer:
        return [*older]
    both, left = [*newer], [attempt for attempt in older if attempt not in newer]
    unmatched = []
    for place, attempt in enumerate(newer):
        if attempt in older:
            continue
        same = _find_same(attempt, left)
        if same is None:
            unmatched.append(place)
        else:
            left.remove(same)
            both[place] = _filled(attempt, same)
    over = [attempt for attempt in left if _is_over(attempt) or _is_before_all(attempt, newer)]
    for place in unmatched:
        both[place] = _without_wrong_number(newer[place], over)
    if not _are_numbered(newer) and _are_numbered(both):
        both.sort(key=_number)
    return [*over, *both][-MAX_ATTEMPTS:]


def _are_numbered(attempts: Sequence[AttemptInfo]) -> bool:
    return all(attempt.retries is not None for attempt in attempts)


def _number(attempt: AttemptInfo) -> tuple[int, int]:
    return attempt.generation, attempt.retries or 0


def _find_same(attempt: AttemptInfo, older: Sequence[AttemptInfo]) -> AttemptInfo | None:
    """Return the older description of an attempt; without a number of the attempt, the newest one started."""
    same = [other for other in older if _is_same(attempt, other)]
    if not _is_number_reported(attempt):
        same = [other for other in reversed(same) if other.started is not None] or same
    return next(iter(same), None)


def _is_same(newer: AttemptInfo, older: AttemptInfo) -> bool:
    """Return whether two descriptions are of one delivery of one attempt, as far as both know.

    After a restart, a number that no event reported counts from 0: it may be too low. So do generations.
    """
    times = [(getattr(newer, name), getattr(older, name)) for name in _TIMES]
    known = [one == other for one, other in times if None not in {one, other}]
    if known:
        return all(known)
    is_at_other_worker = older.received is not None and newer.worker not in {None, older.worker}
    if is_at_other_worker or (older.ended is not None and newer.ended is None):
        return False
    if newer.retries is None or older.retries is None:
        return True
    if not _is_number_reported(newer):
        return newer.retries <= older.retries
    return newer.retries == older.retries and newer.generation in {0, older.generation}


def _is_over(attempt: AttemptInfo) -> bool:
    return attempt.ended is not None or attempt.reason is not None


def _is_before_all(attempt: AttemptInfo, others: Sequence[AttemptInfo]) -> bool:
    """Return whether an attempt was followed by these, and nothing was seen of its end."""
    numbers = [_number(other) for other in others if other.retries is not None]
    return attempt.retries is not None and bool(numbers) and _number(attempt) < min(numbers)


def _is_number_reported(attempt: AttemptInfo) -> bool:
    """Return whether an event had the number: those after task-received have none, and it is assumed."""
    return attempt.retries is not None and (attempt.sent is not None or attempt.received is not None)


def _without_wrong_number(attempt: AttemptInfo, before: Sequence[AttemptInfo]) -> AttemptInfo:
    """Return an attempt without an assumed number that one before it has, or a greater one."""
    if attempt.retries is None or _is_number_reported(attempt):
        return attempt
    is_wrong = any(other.retries is not None and other.retries >= attempt.retries for other in before)
    return replace(attempt, retries=None) if is_wrong else attempt


def _filled(newer: AttemptInfo, older: AttemptInfo) -> AttemptInfo:
    """Return a newer description with what only the older one knows.

    After a restart, generations are counted from 0 again.
    """
    unknown = {
        name: value
        for name in _KEPT_OF_ATTEMPT
        if getattr(newer, name) is None and (value := getattr(older, name)) is not None
    }
    if not _is_number_reported(newer):
        unknown |= {"retries": older.retries, "generation": older.generation}
    elif newer.generation == 0:
        unknown |= {"generation": older.generation}
    return completed(replace(newer, **unknown)) if unknown else newer
