"""Background jobs that run again and again, and how they fare."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

from msgspec import Struct

from celery_exporter.broker.connection import BrokerError
from celery_exporter.core.snapshot import CollectorView
from celery_exporter.persistence.state_file import StateFileError

log = logging.getLogger(__name__)

#: Seconds between two looks at whether a job is wanted before its time.
POLL = 0.25


class Collector(Struct):
    """A background job that runs every so many seconds and reports on itself."""

    name: str
    every: float
    job: Callable[[], None]
    close: Callable[[], None]
    wanted: Callable[[], bool] = lambda: False  # before its time
    success: bool | None = None
    seconds: float | None = None
    last_success: float | None = None
    error: str = ""

    def run(self) -> None:
        """Run the job once; what goes wrong is logged, not raised."""
        start = time.monotonic()
        try:
            self.job()
        except (BrokerError, StateFileError) as error:
            self._failed(str(error), str(error))
        except Exception as error:
            if self._failed(repr(error), type(error).__name__):
                log.debug("collector %s", self.name, exc_info=True)
        else:
            if self.success is False:
                log.info("collector %s works again", self.name)
            self.success, self.last_success, self.error = True, time.time(), ""
        self.seconds = time.monotonic() - start

    def repeat(self, stopping: threading.Event) -> None:
        """Run the job again and again until `stopping` is set, and close what it used.

        Between two runs there are `every` seconds, or at least `POLL` if it is wanted before.
        """
        while not stopping.is_set():
            self.run()
            end = time.monotonic() + self.every
            while not stopping.wait(min(POLL, max(0.0, end - time.monotonic()))):
                if self._is_wanted() or time.monotonic() >= end:
                    break
        self.close()

    def _is_wanted(self) -> bool:
        try:
            return self.wanted()
        except Exception:  # a fault of ours; it must not end the thread
            log.debug("collector %s", self.name, exc_info=True)
            return False

    def view(self) -> CollectorView:
        """Return how it fares."""
        return CollectorView(self.name, self.success, self.seconds, self.last_success, self.error)

    def _failed(self, why: str, short: str) -> bool:
        """Log it if it is new, and tell whether it is; `short` is what pages may show of it."""
        new = self.success is not False  # said once, not at every interval
        if new:
            log.warning("collector %s failed: %s", self.name, why)
        self.success, self.error = False, short
        return new
