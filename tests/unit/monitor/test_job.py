"""Background jobs: how often they run, and what they say of themselves."""

from __future__ import annotations

import threading

from celery_exporter.broker.connection import BrokerError
from celery_exporter.monitor.job import CHECK_SECONDS, PeriodicJob


class Stopping(threading.Event):
    """Is set after some waits, which it remembers and does not make."""

    def __init__(self, waits: int) -> None:
        super().__init__()
        self.waits: list[float] = []
        self._most = waits

    def wait(self, timeout: float | None = None) -> bool:
        """Remember the wait; tell whether it was the last one."""
        assert timeout is not None
        self.waits.append(timeout)
        if len(self.waits) >= self._most:
            self.set()
        return self.is_set()


def fail() -> None:
    raise BrokerError("no answer")


def test_a_job_that_is_always_wanted_and_fails_at_once_keeps_no_processor_busy():
    stopping = Stopping(5)
    PeriodicJob("workers", 60, fail, lambda: None, is_due=lambda: True).repeat(stopping)
    assert stopping.waits == [CHECK_SECONDS] * 5


def test_a_job_runs_when_it_is_wanted_before_its_time():
    runs: list[int] = []
    stopping = Stopping(8)
    wanted = lambda: len(stopping.waits) % 4 == 0  # noqa: E731
    PeriodicJob("state", 60, lambda: runs.append(len(stopping.waits)), lambda: None, wanted).repeat(stopping)
    assert runs == [0, 4]


def test_what_a_job_used_is_closed_at_the_end():
    closed: list[bool] = []
    PeriodicJob("queues", 60, lambda: None, lambda: closed.append(True)).repeat(Stopping(1))
    assert closed == [True]
