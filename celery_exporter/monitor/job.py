"""Periodic jobs, and how the last run of each went."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

from msgspec import Struct

from celery_exporter.broker.connection import BrokerError
from celery_exporter.core.snapshot import JobView
from celery_exporter.persistence.state_file import StateFileError

log = logging.getLogger(__name__)

#: Seconds between two checks whether a job is due before its interval is over.
CHECK_SECONDS = 0.25


def _never() -> bool:
    return False


def _nothing() -> None:
    pass


class PeriodicJob(Struct):
    """A job that runs every `interval` seconds in a thread of its own, or earlier when `is_due`.

    `close` runs once at the end. The results of the last run are exposed as celery_exporter_collector_*.
    """

    name: str
    interval: float
    run_once: Callable[[], None]
    close: Callable[[], None] = _nothing
    is_due: Callable[[], bool] = _never
    success: bool | None = None
    seconds: float | None = None
    last_success: float | None = None
    error: str = ""

    def run(self) -> None:
        """Run the job once; an error is logged, not raised."""
        start = time.monotonic()
        try:
            self.run_once()
        except (BrokerError, StateFileError) as error:
            self._fail(str(error), str(error))
        except Exception as error:
            if self._fail(repr(error), type(error).__name__):
                log.debug("job %s", self.name, exc_info=True)
        else:
            if self.success is False:
                log.info("job %s works again", self.name)
            self.success, self.last_success, self.error = True, time.time(), ""
        self.seconds = time.monotonic() - start

    def repeat(self, stopping: threading.Event) -> None:
        """Run the job until `stopping` is set, and close it.

        Two runs are `interval` seconds apart, or at least `CHECK_SECONDS` when it is due earlier.
        """
        while not stopping.is_set():
            self.run()
            end = time.monotonic() + self.interval
            while not stopping.wait(min(CHECK_SECONDS, max(0.0, end - time.monotonic()))):
                if self._is_due() or time.monotonic() >= end:
                    break
        self.close()

    def _is_due(self) -> bool:
        try:
            return self.is_due()
        except Exception:  # a fault of ours must not end the thread
            log.debug("job %s", self.name, exc_info=True)
            return False

    def view(self) -> JobView:
        """Return how the last run went."""
        return JobView(self.name, self.success, self.seconds, self.last_success, self.error)

    def _fail(self, reason: str, shown: str) -> bool:
        """Log an error if it is new, and return whether it is; `shown` is what /api/v1/status shows of it."""
        is_new = self.success is not False  # once, not at every interval
        if is_new:
            log.warning("job %s failed: %s", self.name, reason)
        self.success, self.error = False, shown
        return is_new
