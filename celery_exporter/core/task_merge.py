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
_KEPT_OF_ATTEMPT = (
    *("retries", "queue_name", "sent", "eta", "received", "started", "runtime_seconds"),
    "exception",
)
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

    Of those only attempts that are over stay: the newer description knows what workers have now. If it knows
    no attempt, as after a restart, all stay.
    """
    if not newer:
        return [*older]
    both, over = [*newer], []
    free = [place for place, attempt in enumerate(newer) if attempt not in older]
    for attempt in older:
        if attempt in newer:
            continue
        same = next((place for place in free if _is_same(newer[place], attempt)), None)
        if same is not None:
            free.remove(same)
            both[same] = _filled(newer[same], attempt)
        elif attempt.ended is not None or attempt.reason is not None:
            over.append(attempt)
    return [*over, *both][-MAX_ATTEMPTS:]


def _is_same(newer: AttemptInfo, older: AttemptInfo) -> bool:
    """Return whether two descriptions are of one delivery of one attempt, as far as both know."""
    if newer.retries != older.retries and None not in {newer.retries, older.retries}:
        return False
    times = [(getattr(newer, name), getattr(older, name)) for name in _TIMES]
    known = [one == other for one, other in times if None not in {one, other}]
    is_another = older.ended is not None and newer.ended is None and not known
    return newer.generation == older.generation and all(known) and not is_another


def _filled(newer: AttemptInfo, older: AttemptInfo) -> AttemptInfo:
    unknown = {
        name: value
        for name in _KEPT_OF_ATTEMPT
        if getattr(newer, name) is None and (value := getattr(older, name)) is not None
    }
    return completed(replace(newer, **unknown)) if unknown else newer
