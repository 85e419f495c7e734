"""Which execution an event belongs to: `(uuid, retries)` alone does not identify one.

`Task.replace()` sends new work under the uuid of the replaced task, which ends without an event
(celery/app/task.py); applications send tasks with an id of their own choice again and again. So attempts are
numbered in *generations*: the attempts of one sending are `base + retries`, and a further `task-sent`, or a
`task-received` under another name, begins a successor with a base of its own.

Two events may disagree about the name of one execution: a message with a `shadow` header is sent under its
task's name and received under the shadow (celery/worker/request.py, Request.name). So a receipt under another
name belongs to a sending that nobody has received yet, if there is one.
"""

from __future__ import annotations

from collections.abc import Iterable

from celery_exporter.core.tasks import MAX_ATTEMPTS, Generation, TaskHistory
from celery_exporter.core.types import OTHER, UNKNOWN

#: Generations that are told apart at a time. An id that is sent more often before it is finished has no
#: history worth telling; the oldest one is forgotten.
MAX_GENERATIONS = 8
#: Generations of one task in all, so that an attempt's number stays below 2**63, which the state file holds.
_LAST_GENERATION = 2**31
#: Names that stand for any task: of a task that nobody introduced, and of one without room in the table.
_ANY_NAME = frozenset({UNKNOWN, OTHER})


def generations(story: TaskHistory, name: str) -> list[Generation]:
    """Return the generations of a task, oldest first; of a task that has one, `name` is its shown name."""
    return story.generations or [Generation(0, name)]


def find_sent(known: list[Generation], story: TaskHistory, name: str, retries: int, at: float) -> int | None:
    """Return the attempt that a `task-sent` announces; None for one that begins a successor.

    `name` is what the task is shown as, `at` the timestamp of the event. A `task-sent` that comes late
    belongs to an attempt that was received already, and to the oldest such one; that of a retry to the newest
    generation that had been sent by then.
    """
    alike = (each.base for each in known if is_alike(each.name, name))
    bases = [base for base in alike if base + retries not in story.sent]
    if retries:
        bases = [base for base in bases if story.sent.get(base, at) <= at][::-1] or bases
    return bases[0] + retries if bases else None


def find_received(known: list[Generation], story: TaskHistory, name: str, retries: int) -> list[int]:
    """Return the attempts of that name that a `task-received` may be about, the likeliest first.

    Those are the ones that were not received yet, and queues are first in, first out; else the newest one,
    which is delivered again. None where the id is used for work of another name now of which nobody was heard
    to publish `task-sent`: then it may have been sent once more, likewise.
    """
    named = [each.base + retries for each in known if is_alike(each.name, name)]
    new = [attempt for attempt in named if not story.is_received(attempt)]
    newest = known[-1]
    is_unsent = not is_alike(newest.name, name) and newest.base not in story.sent
    return new or ([] if is_unsent and story.is_received(newest.base) else named[-1:])


def find_shadowed(known: Iterable[Generation], story: TaskHistory, retries: int) -> int | None:
    """Return the oldest attempt that was sent, under whichever name, and not received yet."""
    attempts = (each.base + retries for each in known)
    return next((each for each in attempts if each in story.sent and not story.is_received(each)), None)


def add_successor(story: TaskHistory, known: list[Generation], name: str) -> int:
    """Begin a generation after all that are known; return the base of its attempts."""
    base = min(generation_of(known[-1].base) + 1, _LAST_GENERATION) * MAX_ATTEMPTS
    story.generations = [*known[1 - MAX_GENERATIONS :], Generation(base, name)]
    return base


def add_predecessor(story: TaskHistory, known: list[Generation], name: str) -> int:
    """Begin a generation before all that are known; return the base of its attempts."""
    base = (generation_of(known[0].base) - 1) * MAX_ATTEMPTS
    story.generations = [Generation(base, name), *known[: MAX_GENERATIONS - 1]]
    if story.received is not None:
        story.skipped = {*(story.skipped or ()), base}
    return base


def generation_of(attempt: int) -> int:
    """Return the number of the generation that an attempt belongs to."""
    return attempt // MAX_ATTEMPTS


def is_alike(known: str, name: str) -> bool:
    """Tell whether two names may be of one execution."""
    return known == name or known in _ANY_NAME or name in _ANY_NAME
