"""Recorded outcomes: what clients, workers and tasks did, recorded where it happened.

Tests compare the exporter's sums with the counts, and its history with the entries. Task bodies record their
own state (see `tasks.RecordingTask`). For states without a task body, Celery's signals record them in the
same process, next to the event. No count and no entry is taken from an event.
"""

from __future__ import annotations

import json
import os
import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import redis
from celery import signals
from celery.exceptions import WorkerLostError

EXCEPTION_PREFIX = "exception="  # begins the state of an outcome that names the exception of a failure
REDELIVERED = "redelivered"  # received again in the same attempt
RETRIES_EXCEEDED = "retries_exceeded"  # a failure, because no retry was left
_SEPARATOR = "|"


class Outcome(NamedTuple):
    """What is counted. `worker` is empty for clients; `state` may also be one of the three above."""

    task: str
    queue: str
    state: str
    worker: str


class Attempt(NamedTuple):
    """An attempt of a task, as its message has it."""

    uuid: str
    retries: int


class Entry(NamedTuple):
    """One outcome of one attempt, and when it was recorded (epoch seconds)."""

    attempt: Attempt
    outcome: Outcome
    at: float
    exception: str | None = None  # class name, of a failure or a retry
    eta: str | None = None  # of a sent message, as it has it
    stored: float = 0.0  # by the clock of the server, whatever that of the process (epoch seconds)


class RecordedOutcomes(ABC):
    """Counts of outcomes, stored outside of all processes that record them, at `location`.

    Tasks can also wait there for a gate to open.
    """

    location: str

    @abstractmethod
    def record(
        self, outcome: Outcome, attempt: Attempt, *, exception: str | None = None, eta: str | None = None
    ) -> None:
        """Count one outcome of an attempt; keep it as an entry where entries are stored."""

    @abstractmethod
    def counts_by_worker(self) -> Counter[Outcome]:
        """Return all counts."""

    @abstractmethod
    def is_new(self, key: str) -> bool:
        """Return whether this is the first call with this key; True where calls are not stored."""

    @abstractmethod
    def open_gate(self, name: str) -> None:
        """Let tasks continue that wait at this gate, and those that reach it later."""

    @abstractmethod
    def is_open(self, gate: str) -> bool:
        """Return whether a gate is open."""

    def counts(self) -> Counter[tuple[str, str, str]]:
        """Return the counts by (task, queue, state)."""
        counts: Counter[tuple[str, str, str]] = Counter()
        for outcome, count in self.counts_by_worker().items():
            counts[outcome[:3]] += count
        return counts

    def of(self, *states: str) -> dict[tuple[str, str, str], int]:
        """Return the counts of these states only."""
        return {key: count for key, count in self.counts().items() if key[2] in states}

    def total(self, *states: str) -> int:
        return sum(self.of(*states).values())

    def exceptions(self) -> dict[tuple[str, str, str], int]:
        """Return the number of failures by (task, queue, exception)."""
        return {
            (task, queue, state.removeprefix(EXCEPTION_PREFIX)): count
            for (task, queue, state), count in self.counts().items()
            if state.startswith(EXCEPTION_PREFIX)
        }


class FileOutcomes(RecordedOutcomes):
    """One line in a file per outcome. It needs no server; reading a long file is slow."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.location = str(path)

    def record(
        self,
        outcome: Outcome,
        attempt: Attempt,  # noqa: ARG002
        *,
        exception: str | None = None,  # noqa: ARG002
        eta: str | None = None,  # noqa: ARG002
    ) -> None:
        """Append one line. O_APPEND keeps it whole when several processes write."""
        file = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.write(file, f"{_SEPARATOR.join(outcome)}\n".encode())
        os.close(file)

    def counts_by_worker(self) -> Counter[Outcome]:
        lines = self.path.read_text().splitlines() if self.path.exists() else []
        return Counter(Outcome(*line.split(_SEPARATOR)) for line in lines)

    def is_new(self, key: str) -> bool:  # noqa: ARG002
        return True

    def open_gate(self, name: str) -> None:
        self._gate(name).touch()

    def is_open(self, gate: str) -> bool:
        return self._gate(gate).exists()

    def _gate(self, name: str) -> Path:
        return self.path.with_name(f"{self.path.name}-{name}")


class RedisOutcomes(RecordedOutcomes):
    """Counters and entries in a Redis that is not the broker."""

    COUNTS, ENTRIES, ENTRY, SEEN = "counts", "entries", "entry", "seen"

    def __init__(self, url: str) -> None:
        self.location = url
        self.redis = redis.Redis.from_url(url, decode_responses=True)

    def record(
        self, outcome: Outcome, attempt: Attempt, *, exception: str | None = None, eta: str | None = None
    ) -> None:
        with self.redis.pipeline(transaction=False) as pipeline:
            pipeline.hincrby(self.COUNTS, _SEPARATOR.join(outcome), 1)
            entry = attempt, outcome, time.time(), exception, eta
            pipeline.xadd(self.ENTRIES, {self.ENTRY: json.dumps(entry)})
            pipeline.execute()

    def entries(self) -> list[Entry]:
        """Return all entries, in the order in which they were stored."""
        items = ((int(id_.split("-")[0]), item[self.ENTRY]) for id_, item in self.redis.xrange(self.ENTRIES))
        lines = ((stored_ms / 1_000, json.loads(line)) for stored_ms, line in items)
        return [
            Entry(Attempt(*attempt), Outcome(*outcome), *rest, stored)
            for stored, (attempt, outcome, *rest) in lines
        ]

    def counts_by_worker(self) -> Counter[Outcome]:
        counts: dict[str, str] = self.redis.hgetall(self.COUNTS)
        return Counter({Outcome(*key.split(_SEPARATOR)): int(count) for key, count in counts.items()})

    def is_new(self, key: str) -> bool:
        return bool(self.redis.sadd(self.SEEN, key))

    def open_gate(self, name: str) -> None:
        self.redis.set(name, "open")

    def is_open(self, gate: str) -> bool:
        return bool(self.redis.exists(gate))


def outcomes_at(location: str) -> RecordedOutcomes:
    """Return the outcomes at a Redis URL or a path."""
    return RedisOutcomes(location) if location.startswith("redis://") else FileOutcomes(Path(location))


# Receivers of Celery's signals. Each takes the outcomes and the signal's own arguments.


def attempt_of(request: Any) -> Attempt:
    """Return the attempt of a request: of Celery's `Context`, or of the one that a worker has."""
    retries = request.request_dict.get("retries") if hasattr(request, "request_dict") else request.retries
    return Attempt(request.id, retries or 0)


def _on_published(
    outcomes: RecordedOutcomes, *, sender: str, routing_key: str, headers: dict[str, Any], **_: Any
) -> None:
    """Record a sent message (celery/app/amqp.py). In the default exchange the routing key is the queue."""
    attempt = Attempt(headers["id"], headers["retries"])
    outcomes.record(Outcome(sender, routing_key, "PENDING", ""), attempt, eta=headers["eta"])


def _on_received(outcomes: RecordedOutcomes, *, request: Any, **_: Any) -> None:
    outcome = Outcome(request.name, request.delivery_info["routing_key"], "RECEIVED", request.hostname)
    attempt = attempt_of(request)
    outcomes.record(outcome, attempt)
    if not outcomes.is_new(f"{attempt.uuid} {attempt.retries}"):
        outcomes.record(outcome._replace(state=REDELIVERED), attempt)


def _on_retry(outcomes: RecordedOutcomes, *, request: Any, sender: Any, reason: Any, **_: Any) -> None:
    outcome = Outcome(sender.name, request.delivery_info["routing_key"], "RETRY", request.hostname)
    # Task.retry() without an exception has none.
    exception = None if reason.exc is None else type(reason.exc).__name__
    outcomes.record(outcome, attempt_of(request), exception=exception)


def _on_revoked(outcomes: RecordedOutcomes, *, request: Any, sender: Any, **_: Any) -> None:
    queue = request.delivery_info["routing_key"]
    outcomes.record(Outcome(sender.name, queue, "REVOKED", request.hostname), attempt_of(request))


def _on_failure(outcomes: RecordedOutcomes, *, sender: Any, exception: Exception, **_: Any) -> None:
    """Record the failure of a task whose process was killed. Task bodies record all other failures."""
    if isinstance(exception, WorkerLostError):
        request = sender.request
        outcome = Outcome(sender.name, request.delivery_info["routing_key"], "FAILURE", request.hostname)
        record_failure(outcomes, outcome, attempt_of(request), type(exception).__name__)


def _on_unknown(outcomes: RecordedOutcomes, *, sender: Any, message: Any, name: str, **_: Any) -> None:
    outcome = Outcome(name, message.delivery_info["routing_key"], "FAILURE", sender.hostname)
    attempt = Attempt(message.headers["id"], message.headers["retries"])
    record_failure(outcomes, outcome, attempt, "NotRegistered")


def record_failure(outcomes: RecordedOutcomes, outcome: Outcome, attempt: Attempt, exception: str) -> None:
    """Record a failure, and the class of its exception."""
    for state in (outcome.state, EXCEPTION_PREFIX + exception):
        outcomes.record(outcome._replace(state=state), attempt, exception=exception)


RECEIVERS: tuple[tuple[Any, Callable[..., None]], ...] = (
    (signals.after_task_publish, _on_published),
    (signals.task_received, _on_received),
    (signals.task_retry, _on_retry),
    (signals.task_revoked, _on_revoked),
    (signals.task_failure, _on_failure),
    (signals.task_unknown, _on_unknown),
)


def record_signals(outcomes: RecordedOutcomes) -> Callable[[], None]:
    """Record the outcomes that this process's Celery signals report; return a function that ends it."""
    connected = [(signal, partial(receiver, outcomes)) for signal, receiver in RECEIVERS]
    for signal, receiver in connected:
        signal.connect(receiver, weak=False)

    def end() -> None:
        for signal, receiver in connected:
            signal.disconnect(receiver)

    return end
