"""Background jobs: how often they run, and their results."""

from __future__ import annotations

import threading

from celery_exporter.broker.connection import BrokerError
from celery_exporter.monitor.job import CHECK_SECONDS, PeriodicJob


class Stopping(threading.Event):
    """An event that records waits instead of waiting; it is set after some waits."""

    def __init__(self, waits: int) -> None:
        super().__init__()
        self.waits: list[float] = []
        self._max_waits = waits

    def wait(self, timeout: float | None = None) -> bool:
        """Record the wait; return whether it was the last one."""
        assert timeout is not None
        self.waits.append(timeout)
        if len(self.waits) >= self._max_waits:
            self.set()
        return self.is_set()


def fail() -> None:
    raise BrokerError("no answer")


def test_a_job_that_is_always_due_and_fails_waits_between_attempts():
    stopping = Stopping(5)
    PeriodicJob("workers", 60, fail, lambda: None, is_due=lambda: True).repeat(stopping)
    assert stopping.waits == [CHECK_SECONDS] * 5


def test_a_job_that_is_due_runs_before_its_interval_ends():
    runs: list[int] = []
    stopping = Stopping(8)
    is_due = lambda: len(stopping.waits) % 4 == 0  # noqa: E731
    PeriodicJob("state", 60, lambda: runs.append(len(stopping.waits)), lambda: None, is_due).repeat(stopping)
    assert runs == [0, 4]


def test_a_job_is_closed_at_the_end():
    closed: list[bool] = []
    PeriodicJob("queues", 60, lambda: None, lambda: closed.append(True)).repeat(Stopping(1))
    assert closed == [True]
