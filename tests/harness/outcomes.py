"""The truth: what clients, workers and tasks write down of themselves, one count at a time.

Task bodies write what they come to (see `tasks.Noting`); what has no body, Celery's signals write, in the
process where it happens and right beside the event. Nothing here is ever taken from an event.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import redis
from celery import signals
from celery.exceptions import WorkerLostError

EXCEPTION = "exception="  # begins the "state" of a line that says how a failure was called
REDELIVERED = "redelivered"  # received again in the same attempt
_SEPARATOR = "|"


class Entry(NamedTuple):
    """What is counted. `worker` is empty for what clients did; `state` may also be one of the two above."""

    task: str
    queue: str
    state: str
    worker: str


class Ledger(ABC):
    """Counts by `Entry`, kept outside of all processes that write them. `place` tells where."""

    place: str

    @abstractmethod
    def note(self, entry: Entry) -> None:
        """Count one."""

    @abstractmethod
    def entries(self) -> Counter[Entry]:
        """Return all counts."""

    @abstractmethod
    def is_new(self, what: str) -> bool:
        """Tell whether nobody asked this before; True where that is not remembered."""

    def counts(self) -> Counter[tuple[str, str, str]]:
        """Return the counts by (task, queue, state)."""
        found: Counter[tuple[str, str, str]] = Counter()
        for entry, count in self.entries().items():
            found[entry[:3]] += count
        return found

    def of(self, *states: str) -> dict[tuple[str, str, str], int]:
        """Return the counts of these states only."""
        return {key: count for key, count in self.counts().items() if key[2] in states}

    def total(self, *states: str) -> int:
        return sum(self.of(*states).values())

    def exceptions(self) -> dict[tuple[str, str, str], int]:
        """Return how many failures there are for each (task, queue, exception)."""
        return {
            (task, queue, state.removeprefix(EXCEPTION)): count
            for (task, queue, state), count in self.counts().items()
            if state.startswith(EXCEPTION)
        }


class FileLedger(Ledger):
    """A line for each count: needs no server, and is slow to read when it is long."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.place = str(path)

    def note(self, entry: Entry) -> None:
        """Append one line; O_APPEND makes that whole, whoever else writes."""
        ledger = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.write(ledger, f"{_SEPARATOR.join(entry)}\n".encode())
        os.close(ledger)

    def entries(self) -> Counter[Entry]:
        lines = self.path.read_text().splitlines() if self.path.exists() else []
        return Counter(Entry(*line.split(_SEPARATOR)) for line in lines)

    def is_new(self, what: str) -> bool:  # noqa: ARG002
        return True


class RedisLedger(Ledger):
    """Counters in a Redis that no broker and no event comes near. Tasks can also wait there (`Gate`)."""

    COUNTS, SEEN = "counts", "seen"

    def __init__(self, url: str) -> None:
        self.place = url
        self.redis = redis.Redis.from_url(url, decode_responses=True)

    def note(self, entry: Entry) -> None:
        self.redis.hincrby(self.COUNTS, _SEPARATOR.join(entry), 1)

    def entries(self) -> Counter[Entry]:
        counts: dict[str, str] = self.redis.hgetall(self.COUNTS)
        return Counter({Entry(*key.split(_SEPARATOR)): int(count) for key, count in counts.items()})

    def is_new(self, what: str) -> bool:
        return bool(self.redis.sadd(self.SEEN, what))

    def open_gate(self, name: str) -> None:
        """Let the tasks go on that wait at this gate, and those that come to it later."""
        self.redis.set(name, "open")

    def is_open(self, gate: str) -> bool:
        return bool(self.redis.exists(gate))


def ledger_at(place: str) -> Ledger:
    return RedisLedger(place) if place.startswith("redis://") else FileLedger(Path(place))


# What Celery's signals tell. Each receiver is handed the ledger and the signal's own arguments.


def _published(ledger: Ledger, *, sender: str, routing_key: str, **_: Any) -> None:
    """A message went out (celery/app/amqp.py); with the anonymous exchange its routing key is the queue."""
    ledger.note(Entry(sender, routing_key, "PENDING", ""))


def _received(ledger: Ledger, *, request: Any, **_: Any) -> None:
    entry = Entry(request.name, request.delivery_info["routing_key"], "RECEIVED", request.hostname)
    ledger.note(entry)
    if not ledger.is_new(f"{request.id} {request.request_dict.get('retries', 0)}"):
        ledger.note(entry._replace(state=REDELIVERED))


def _turned(state: str, ledger: Ledger, *, request: Any, sender: Any, **_: Any) -> None:
    ledger.note(Entry(sender.name, request.delivery_info["routing_key"], state, request.hostname))


def _failed(ledger: Ledger, *, sender: Any, exception: Exception, **_: Any) -> None:
    """Only the failure of a task whose process died is not for its body to note."""
    if isinstance(exception, WorkerLostError):
        request = sender.request
        queue = request.delivery_info["routing_key"]
        note_failure(ledger, sender.name, queue, request.hostname, type(exception).__name__)


def _unknown(ledger: Ledger, *, sender: Any, message: Any, name: str, **_: Any) -> None:
    queue = message.delivery_info["routing_key"]
    note_failure(ledger, name, queue, sender.hostname, "NotRegistered")


def note_failure(ledger: Ledger, task: str, queue: str, worker: str, exception: str) -> None:
    for state in ("FAILURE", EXCEPTION + exception):
        ledger.note(Entry(task, queue, state, worker))


RECEIVERS: tuple[tuple[Any, Callable[..., None]], ...] = (
    (signals.after_task_publish, _published),
    (signals.task_received, _received),
    (signals.task_retry, partial(_turned, "RETRY")),
    (signals.task_revoked, partial(_turned, "REVOKED")),
    (signals.task_failure, _failed),
    (signals.task_unknown, _unknown),
)


def keep(ledger: Ledger) -> Callable[[], None]:
    """Have this process's Celery signals write to the ledger; return what ends that."""
    connected = [(signal, partial(receiver, ledger)) for signal, receiver in RECEIVERS]
    for signal, receiver in connected:
        signal.connect(receiver, weak=False)

    def end() -> None:
        for signal, receiver in connected:
            signal.disconnect(receiver)

    return end
