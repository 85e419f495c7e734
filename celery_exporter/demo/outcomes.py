"""Counts of task outcomes that the tasks record themselves, in Redis, independently of events."""

from __future__ import annotations

from collections import Counter
from typing import TypeAlias

import redis

Outcomes: TypeAlias = "Counter[tuple[str, str, str]]"  # (task name, queue, outcome) → how often

#: Each task ends with exactly one of these.
FINAL = ("SUCCESS", "FAILURE", "REVOKED")
COUNTED = (*FINAL, "RETRY")


class OutcomeStore:
    """The counts of sent tasks and of outcomes; one instance for each process.

    The client records sent tasks, the workers record outcomes, and the demo reads both.
    """

    OUTCOMES, SENT, WORKERS = "demo:outcomes", "demo:sent", "demo:workers"

    def __init__(self, url: str) -> None:
        self._redis = redis.Redis.from_url(url, decode_responses=True)

    def add_worker(self, name: str) -> None:
        """Record that a worker is ready for tasks."""
        self._redis.sadd(self.WORKERS, name)

    def add_sent(self) -> None:
        """Record that a task is about to be sent."""
        self._redis.incr(self.SENT)

    def add_outcome(self, task: str, queue: str, outcome: str) -> None:
        """Record an outcome of a task."""
        self._redis.hincrby(self.OUTCOMES, f"{task}|{queue}|{outcome}", 1)

    def workers(self) -> int:
        """Return how many workers are ready."""
        return int(self._redis.scard(self.WORKERS))

    def outcomes(self) -> Outcomes:
        """Return all recorded outcomes."""
        fields = self._redis.hgetall(self.OUTCOMES)
        return Counter({tuple(field.split("|")): int(count) for field, count in fields.items()})

    def unfinished(self) -> int:
        """Return how many sent tasks have no final outcome yet. A retry is not a final outcome."""
        ended = sum(count for (_, _, outcome), count in self.outcomes().items() if outcome in FINAL)
        return int(self._redis.get(self.SENT) or 0) - ended
