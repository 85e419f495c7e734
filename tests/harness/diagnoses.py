"""Answers of /api/v1/explain, and what in the recorded outcomes of a task contradicts them.

`RULES` has what each diagnosis claims. Where a task is, the exporter knows from events, which may lag behind
the records. That a task, its message or its worker is gone must never be followed by a record of it.
"""

from __future__ import annotations

import http.client
import math
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import NamedTuple

import msgspec

from celery_exporter.monitor.explainer import EVENT_DELAY_SECONDS
from celery_exporter.status.explanation import Explanation
from harness.exporter import Exporter
from harness.outcomes import Entry
from harness.waiting import BUSY_FACTOR, eventually

#: Seconds by which events may lag behind the records: as for all waits, ten times that of a quiet machine.
LAG_SECONDS = BUSY_FACTOR * EVENT_DELAY_SECONDS
#: Seconds by which records may lag behind the broker and the events, on a busy machine: a client records a
#: task after it sent it, and a pool process begins a task after its worker reported the start.
RECORD_SECONDS = BUSY_FACTOR * 0.5
#: Seconds between two questions.
PAUSE_SECONDS = 0.1

UNSENT = ""  # the state of a task without a record
PENDING, RECEIVED, STARTED, REVOKED = "PENDING", "RECEIVED", "STARTED", "REVOKED"
#: A rejection may put the message back.
WAITS = frozenset({UNSENT, PENDING, "RETRY", "REJECTED"})
AT_WORKER = frozenset({RECEIVED, STARTED})
ENDS = frozenset({"SUCCESS", "FAILURE", REVOKED, "REJECTED"})
ANY = WAITS | AT_WORKER | ENDS

#: Limits that an answer states: with one of them, any event may be missing.
MISSED = (
    "while the exporter did not run",
    "while the exporter had no event subscription",
    "since the exporter lost its event subscription",
)
_REPORTED = re.compile(r"events: (\w+) at \S+ \S+ UTC(?: by worker (\S+))?")


class Answer(NamedTuple):
    """What the exporter answered, and when it was asked and answered (epoch seconds)."""

    asked: float
    answered: float
    explanation: Explanation


class Rule(NamedTuple):
    """What a diagnosis claims: by its records, the task was in one of these states a short time ago.

    `over` is what has no later record: "task", or "worker" for the message that the named worker had.
    """

    states: frozenset[str]
    over: str = ""


_RECEIVED, _STARTED = frozenset({RECEIVED}), frozenset({STARTED})

RULES: Mapping[str, Rule] = {
    "finished-and-queued": Rule(ENDS),
    "started-and-queued": Rule(_STARTED),
    "received-and-queued": Rule(_RECEIVED),
    "expired-in-queue": Rule(WAITS),
    "no-consumer": Rule(WAITS),
    "scheduled-in-queue": Rule(WAITS),
    "workers-busy": Rule(WAITS),
    "waiting": Rule(WAITS),
    "forgotten": Rule(ANY),
    "unseen": Rule(ANY),
    "returns": Rule(AT_WORKER, "worker"),
    "taken": Rule(WAITS | AT_WORKER),
    "worker-lost": Rule(AT_WORKER, "task"),
    "worker-down": Rule(_STARTED, "worker"),
    "worker-down-before-start": Rule(_RECEIVED, "worker"),
    "worker-unknown": Rule(AT_WORKER),
    "restarted-and-gone": Rule(_STARTED, "task"),
    "restarted": Rule(_STARTED, "worker"),
    "restarted-before-start": Rule(_RECEIVED, "worker"),
    "no-active-task": Rule(_STARTED, "task"),
    "running": Rule(_STARTED),
    "received-and-gone": Rule(_RECEIVED, "task"),
    "scheduled-at-worker": Rule(_RECEIVED),
    "reserved-by-full-worker": Rule(_RECEIVED),
    "reserved": Rule(_RECEIVED),
    "revoked": Rule(frozenset({REVOKED}), "task"),
    "finished": Rule(ENDS, "task"),
    "deferred": Rule(ANY),
    "scheduled-unreported": Rule(WAITS | _RECEIVED),
    "message-gone": Rule(WAITS | _RECEIVED, "task"),
    "expired": Rule(WAITS, "task"),
    "not-reported": Rule(AT_WORKER, "task"),
    "over": Rule(ANY, "task"),
    "just-sent": Rule(WAITS),
    "perhaps-unread": Rule(WAITS),
    "no-message": Rule(WAITS, "task"),
    "queue-missing": Rule(WAITS, "task"),
    "expired-unreported": Rule(WAITS),
    "scheduled": Rule(WAITS),
    "not-in-queue": Rule(WAITS),
    "queue-without-consumer": Rule(WAITS),
    "queue-with-busy-workers": Rule(WAITS),
    "queue-with-messages": Rule(WAITS),
    "unreported": Rule(WAITS),
    "never-seen": Rule(frozenset({UNSENT})),
}


def contradictions(
    answer: Answer,
    entries: Sequence[Entry],
    lag: float = LAG_SECONDS,
    is_reported: Callable[[Entry], bool] = lambda _: True,
) -> list[str]:
    """Return what in an answer the records contradict: all of that task, in order.

    `lag` is 0 if all events had arrived. `is_reported` says of which records the exporter gets an event.
    """
    lines = [
        *_wrong_states(answer, entries, lag, is_reported),
        *_wrong_place(answer, entries),
        *_later(answer, entries),
    ]
    recorded = [f"{entry.stored - answer.asked:+.2f} s {_describe(entry)}" for entry in entries]
    seconds, explanation = answer.answered - answer.asked, answer.explanation
    return [
        f"{explanation.diagnosis}: {line}\n{explanation}\nasked at 0, answered at {seconds:.2f} s, {recorded}"
        for line in lines
    ]


def _wrong_states(
    answer: Answer, entries: Sequence[Entry], lag: float, is_reported: Callable[[Entry], bool]
) -> Iterator[str]:
    explanation = answer.explanation
    if any(missed in line for line in explanation.unknown for missed in MISSED):
        lag = math.inf
    if explanation.diagnosis == "never-seen":
        entries = [entry for entry in entries if is_reported(entry)]
    states = states_between(entries, answer.asked - lag, answer.answered + RECORD_SECONDS)
    if not states & RULES[explanation.diagnosis].states:
        yield f"it was {sorted(states)}"
    state, worker = _reported(explanation)
    if state in ANY - states - {UNSENT}:
        yield f"the events say {state}, it was {sorted(states)}"
    if worker and all(entry.outcome.worker != worker for entry in entries):
        yield f"worker {worker} never had it"


def _wrong_place(answer: Answer, entries: Sequence[Entry]) -> Iterator[str]:
    """A look does not lag behind."""
    states = states_between(entries, answer.asked, answer.answered + RECORD_SECONDS)
    if answer.explanation.location.place == "queue" and not states & WAITS:
        yield f"its message was seen in a queue, it was {sorted(states)}"


def _later(answer: Answer, entries: Sequence[Entry]) -> Iterator[str]:
    """Yield the first record after an answer that there must not be."""
    states, over = RULES[answer.explanation.diagnosis]
    _, worker = _reported(answer.explanation)
    attempts = (entry.attempt.retries for entry in entries if entry.stored <= answer.answered)
    newest = max(attempts, default=0)
    for entry in entries:
        state = entry.outcome.state
        is_late = state in states & ENDS or entry.attempt.retries < newest  # only its record is
        if entry.stored <= answer.answered or is_late:
            continue
        if over == "worker" and state == RECEIVED:  # another delivery
            return
        if over == "task" or (over == "worker" and entry.outcome.worker == worker):
            yield f"{_describe(entry)} was recorded {entry.stored - answer.answered:.2f} s after the answer"
            return


def states_between(entries: Sequence[Entry], begin: float, end: float) -> frozenset[str]:
    """Return the states of a task in a time: that at the begin, and those that it entered until the end.

    The message of a task that is received next waits until then, even if a worker had it before.
    """
    entries = [entry for entry in entries if entry.outcome.state in ANY]
    before = [entry for entry in reversed(entries) if entry.stored <= begin]
    newest = max(before, key=_rank, default=None)  # of equal ones, the last one
    after = [entry.outcome.state for entry in entries if entry.stored > begin]
    count = sum(begin < entry.stored <= end for entry in entries)
    waited = {PENDING} if RECEIVED in after[: count + 1] else set()
    return frozenset({newest.outcome.state if newest else UNSENT, *after[:count], *waited})


def _rank(entry: Entry) -> tuple[int, bool]:
    """Return what decides which of two entries is newer, before time: a client records late."""
    return entry.attempt.retries, entry.outcome.state != PENDING


def _reported(explanation: Explanation) -> tuple[str, str]:
    """Return the state and the worker that events of the task name; each is empty if there is none."""
    matches = map(_REPORTED.fullmatch, explanation.evidence)
    return next(((match[1], match[2] or "") for match in matches if match), ("", ""))


def _describe(entry: Entry) -> str:
    return f"{entry.outcome.state} {entry.attempt.retries} {entry.outcome.worker}".rstrip()


class Asker(threading.Thread):
    """Asks an exporter about tasks all the time, and keeps the answers.

    `choose` returns the id of a task, or None.
    """

    def __init__(self, exporter: Callable[[], Exporter], choose: Callable[[], str | None]) -> None:
        super().__init__(name="asker", daemon=True)
        self.answers: list[Answer] = []
        self.errors: list[str] = []
        self._exporter = exporter
        self._choose = choose
        self._stopping = threading.Event()

    def run(self) -> None:
        while not self._stopping.wait(PAUSE_SECONDS):
            if uuid := self._choose():
                with suppress(OSError, http.client.HTTPException):  # the exporter does not run
                    self._ask(uuid)

    def stop(self) -> None:
        self._stopping.set()
        self.join()

    def ask(self, uuid: str) -> Answer:
        """Ask until the exporter is not busy with the answer to another question."""
        return eventually(lambda: self._ask(uuid), 30, what=f"an answer about {uuid}")

    def _ask(self, uuid: str) -> Answer | None:
        asked = time.time()
        response = self._exporter().get(f"/api/v1/explain/{uuid}")
        if response.status == http.client.OK:
            explanation = msgspec.json.decode(response.body, type=Explanation)
            self.answers.append(Answer(asked, time.time(), explanation))
            return self.answers[-1]
        if response.status not in {http.client.TOO_MANY_REQUESTS, http.client.GATEWAY_TIMEOUT}:
            self.errors.append(f"{uuid}: {response.status} {response.text}")
        return None
