"""The truth: outcomes as those saw them who caused them, kept in the broker, away from the event stream."""

from __future__ import annotations

from collections import Counter
from typing import TypeAlias

import redis

Outcomes: TypeAlias = "Counter[tuple[str, str, str]]"  # (task name, queue, outcome) → how often

FINAL = ("SUCCESS", "FAILURE", "REVOKED")  # each task ends in exactly one of these
COUNTED = (*FINAL, "RETRY")


class Ledger:
    """One per process. The client writes what it sends, the workers what came of it, the demo reads both."""

    OUTCOMES, SENT, WORKERS = "demo:ledger", "demo:sent", "demo:workers"

    def __init__(self, url: str) -> None:
        self._redis = redis.Redis.from_url(url, decode_responses=True)

    def add_worker(self, name: str) -> None:
        """A worker is ready for tasks."""
        self._redis.sadd(self.WORKERS, name)

    def add_sent(self) -> None:
        """A task is about to be sent."""
        self._redis.incr(self.SENT)

    def add_outcome(self, task: str, queue: str, outcome: str) -> None:
        """A task came to this outcome."""
        self._redis.hincrby(self.OUTCOMES, f"{task}|{queue}|{outcome}", 1)

    def workers(self) -> int:
        """How many workers are ready."""
        return int(self._redis.scard(self.WORKERS))

    def outcomes(self) -> Outcomes:
        """All that was counted so far."""
        fields = self._redis.hgetall(self.OUTCOMES)
        return Counter({tuple(field.split("|")): int(count) for field, count in fields.items()})

    def unfinished(self) -> int:
        """How many of the tasks sent have no final outcome yet; a retry is a stop on the way."""
        ended = sum(count for (_, _, outcome), count in self.outcomes().items() if outcome in FINAL)
        return int(self._redis.get(self.SENT) or 0) - ended
