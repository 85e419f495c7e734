"""How many tasks workers hold by their own replies, and which workers to inspect for it.

A reply to `inspect scheduled`, `reserved` or `active` has every task with its arguments: 374 bytes for one
without any. So a worker with thousands of tasks replies with megabytes, and runs nothing else meanwhile.

Invariant: in a round, a bounded number of workers is inspected, and by their last replies these have a
bounded number of tasks. The more tasks a worker has, the less often it is inspected.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping

from msgspec import Struct

#: Workers that are inspected in a round; later rounds inspect the others. 5,000 take 25 minutes by default.
MAX_COUNTED_WORKERS = 50
#: Tasks that the workers of a round may have by their last replies, but for the first of them: 2 MB at the
#: usual 400 bytes each. Later rounds inspect the other workers.
MAX_COUNTED_TASKS = 5_000
#: Seconds that a worker is left alone for each task in its last reply: 8 kB a second at 400 bytes.
SECONDS_PER_TASK = 0.05
#: … but at most this long.
MAX_COUNT_WAIT_SECONDS = 600.0
#: Rounds in a row without a reply of a worker, or inspections without a complete one, after which its counts
#: are unknown.
MAX_SILENT_ROUNDS = 3
#: Failures that lengthen the wait, which has its limit by then.
MAX_FAILURES = 32
#: Seconds after which counts are unknown in any case: longer than a turn of all workers.
MAX_COUNT_AGE_SECONDS = 1_800.0


class TaskCounts(Struct, frozen=True):
    """How many tasks a worker has by its replies. No task is in two of them.

    Celery subtracts active requests from the reserved ones, and reserves a scheduled request only when it is
    due (celery/worker/control.py, celery/worker/state.py).
    """

    scheduled: int
    reserved: int
    active: int

    @property
    def total(self) -> int:
        """Return the number of all tasks."""
        return self.scheduled + self.reserved + self.active


class _Turn(Struct):
    """The last inspection of a worker."""

    starts: int  # `Worker.starts`
    at: float = -math.inf
    due: float = -math.inf
    counts: TaskCounts | None = None
    counted: float = -math.inf
    silent_rounds: int = 0  # without any reply of it
    failures: int = 0  # inspections without a complete reply


class TaskCountSchedule:
    """Selects the workers to inspect in each round, and keeps their counts.

    Times are of a monotonic clock.
    """

    def __init__(self) -> None:
        self._turns: dict[str, _Turn] = {}

    def begin_round(self, workers: Mapping[str, int]) -> None:
        """Begin a round, in which these workers may reply: all that are up, with `Worker.starts`."""
        before, self._turns = self._turns, {}
        for name, starts in workers.items():
            turn = before.get(name)
            self._turns[name] = turn = turn if turn and turn.starts == starts else _Turn(starts)
            turn.silent_rounds += 1  # until it replies
            if turn.silent_rounds > MAX_SILENT_ROUNDS:
                turn.counts = None

    def pick(self, replying: Collection[str], now: float) -> list[str]:
        """Return the workers to inspect, those first whose last inspection was the earliest.

        `replying` are those that replied to another command in this round: it has to wait for the others.
        """
        turns = {name: turn for name, turn in self._turns.items() if name in replying}
        for turn in turns.values():
            turn.silent_rounds = 0
        due = [name for name, turn in turns.items() if turn.due <= now]
        due.sort(key=lambda name: turns[name].at)
        picked: list[str] = []
        tasks = 0
        for name in due[:MAX_COUNTED_WORKERS]:
            counts = turns[name].counts
            tasks += counts.total if counts else 0
            if picked and tasks > MAX_COUNTED_TASKS:
                break
            picked.append(name)
        return picked

    def record(
        self, picked: Collection[str], counts: Mapping[str, TaskCounts], now: float, interval: float
    ) -> None:
        """Record the replies of the inspected workers; one that is missing did not reply in full."""
        for name in picked:
            turn = self._turns[name]
            turn.at = now
            if name in counts:
                turn.counts, turn.counted, turn.failures = counts[name], now, 0
                turn.due = now + min(counts[name].total * SECONDS_PER_TASK, MAX_COUNT_WAIT_SECONDS)
            else:
                turn.failures = min(turn.failures + 1, MAX_FAILURES)
                turn.due = now + min(interval * 2**turn.failures, MAX_COUNT_WAIT_SECONDS)
                if turn.failures >= MAX_SILENT_ROUNDS:
                    turn.counts = None

    def values(self, now: float) -> dict[str, TaskCounts]:
        """Return the counts that are known, by worker."""
        return {
            name: turn.counts
            for name, turn in self._turns.items()
            if turn.counts is not None and now - turn.counted < MAX_COUNT_AGE_SECONDS
        }
