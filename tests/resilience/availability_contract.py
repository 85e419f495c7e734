"""The availability under every fault, held by `Availability`:

/metrics answers in 100 ms (median) and 500 ms (worst) and its counters never fall; liveness stays green;
readiness turns red within 15 s, and green again within 10 s of the end of the fault; threads and sockets
return to their number before it.

Seconds in which the exporter waits for a processor do not count (see `harness.time_spans`): `make faults`
measures them too, on a machine that does nothing else.
"""

from __future__ import annotations

import itertools
import math
import statistics
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
from harness.events import publish_events, task_events
from harness.exporter import Exporter, Samples
from harness.time_spans import TimeSpan
from harness.waiting import eventually

RED, GREEN = 15.0, 10.0
MEDIAN, WORST = 0.1, 0.5
#: Threads that are made as scrapes come in side by side.
RENDERERS = 2
COUNTING = ("_total", "_count", "_bucket", "_sum")

numbers = itertools.count(1)


class Watched(Exporter):
    """An exporter, and the broker's own address for what the test publishes beside it."""

    def __init__(self, folder: Path, broker_url: str, *arguments: str, url: str = "", **options: Any) -> None:
        super().__init__(folder, url or broker_url, "-Q", "celery", *arguments, **options)
        self.broker_url = broker_url
        self.pauses = 0
        self.is_paused = False

    def pause(self) -> None:
        self.pauses, self.is_paused = self.pauses + 1, True
        super().pause()

    def resume(self) -> None:
        super().resume()
        self.is_paused = False

    def is_ready(self) -> bool:
        return self.get("/-/ready").status == 200

    def reconnects(self) -> float:
        return self.total("celery_exporter_reconnects_total")

    def successes(self) -> float:
        return self.total("celery_tasks_total", state="SUCCESS")

    def counted(self, more: float) -> None:
        """Hold that it hears: what is published is counted, if need be at the second try."""
        before = self.successes()

        def heard() -> bool:
            publish_events(self.broker_url, *task_events(next(numbers)))
            return self.successes() >= before + more

        eventually(heard, GREEN, every=0.5)

    def size(self) -> tuple[int, int]:
        """Return how many threads it has, and how many connections besides those of HTTP clients."""
        process = psutil.Process(self.pid)
        others = [one for one in process.net_connections() if not self._is_of_http(one)]
        return process.num_threads(), len(others)

    def _is_of_http(self, connection: Any) -> bool:
        return bool(connection.laddr and connection.laddr.port == self.port)


class Watch(threading.Thread):
    """Scrapes all the time, and remembers what should not have been."""

    def __init__(self, app: Watched) -> None:
        super().__init__(daemon=True)
        self.app = app
        self.spans: list[TimeSpan] = []
        self.faults: list[str] = []
        self._last = Samples()
        self._stopping = threading.Event()

    def run(self) -> None:
        while not self._stopping.wait(0.1):
            paused = self.app.is_paused, self.app.pauses
            try:
                with TimeSpan(self.app.pid) as span:
                    samples = self.app.samples()
            except (OSError, AssertionError) as error:
                self.faults.append(f"/metrics: {error!r}")
                continue
            if paused == (False, self.app.pauses):  # else it was the test that kept it waiting
                self.spans.append(span)
            if self.app.get("/-/healthy").status != 200:
                self.faults.append("/-/healthy is not 200")
            self.faults += [
                f"{series} fell from {was} to {samples.get(series)}"
                for series, was in self._last.items()
                if series[0].endswith(COUNTING) and samples.get(series, 0.0) < was
            ]
            self._last = samples

    def stop(self) -> None:
        self._stopping.set()
        self.join()


@dataclass
class Availability:
    """What is asked of an exporter under a fault; what was measured of it is a line of the table."""

    app: Watched
    fault: str
    broker: str
    red: TimeSpan | None = None  # from the fault
    green: TimeSpan | None = None  # from its end
    scrapes: list[TimeSpan] = field(default_factory=list)

    def turns_red(self, fault: Callable[[], object]) -> None:
        """Do this, and hold that it is said in time."""
        self.red = self._span(fault, lambda: not self.app.is_ready(), RED, "red")
        assert self.app.value("celery_broker_up") == 0
        assert self.app.get("/health").status == 503

    def turns_green(self, end: Callable[[], object]) -> None:
        """Undo it, and hold that it hears again in time."""
        self.green = self._span(end, self.app.is_ready, GREEN, "green")
        assert self.app.value("celery_broker_up") == 1
        assert self.app.get("/health").status == 200

    def comes_back(self, fault: Callable[[], object]) -> None:
        """Do this, which ends a subscription but not the next one: it may be back before anybody looks."""
        before = self.app.reconnects()

        def is_back() -> bool:
            return self.app.reconnects() > before and self.app.is_ready()

        self.green = self._span(fault, is_back, RED, "a new subscription")

    def hears_again(self, fault: Callable[[], object]) -> None:
        """Do this, by which no connection ends, and hold that what is published is counted again in time."""
        before = self.app.successes()

        def heard() -> bool:
            publish_events(self.app.broker_url, *task_events(next(numbers)))
            return self.app.successes() > before

        self.green = self._span(fault, heard, RED, "counted")

    def cells(self) -> dict[str, str]:
        """Return a row of the table."""
        times = [1_000 * scrape.elapsed_seconds for scrape in self.scrapes] or [math.nan]
        return {
            "fault": self.fault,
            "broker": self.broker,
            "red after": _shown(self.red),
            "green after": _shown(self.green),
            "/metrics median": f"{statistics.median(times):.0f} ms",
            "worst": f"{max(times):.0f} ms",
        }

    def _span(
        self, act: Callable[[], object], probe: Callable[[], bool], seconds: float, what: str
    ) -> TimeSpan:
        """Do this, hold that something is so within so many seconds, and return how long it took."""
        act()
        span = TimeSpan.until(probe, self.app.pid, deadline=seconds, what=what)
        assert span.seconds < seconds, f"{what} after {span}"
        return span


@contextmanager
def hold(availability: Availability, *, deaf: bool) -> Iterator[Availability]:
    """Check availability over what happens inside.

    The exporter receives events at its end and, if not `deaf`, before it.
    """
    if not deaf:
        availability.app.counted(1)
    before = availability.app.size()
    watch = Watch(availability.app)
    watch.start()
    try:
        yield availability
        availability.app.counted(1)
    finally:
        watch.stop()
        availability.scrapes = watch.spans
    assert watch.faults == []
    times = [scrape.seconds for scrape in availability.scrapes]
    assert statistics.median(times) < MEDIAN
    assert max(times) < WORST, sorted(availability.scrapes, key=lambda scrape: scrape.seconds)[-5:]
    if deaf:
        return

    def is_back() -> bool:
        now = availability.app.size()
        assert now[0] <= before[0] + RENDERERS, now
        assert now[1] <= before[1], now
        return True

    eventually(is_back, 15, what=f"threads and connections back to {before}")


def _shown(span: TimeSpan | None) -> str:
    return "-" if span is None else f"{span.elapsed_seconds:.1f} s"
