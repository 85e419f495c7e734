"""The availability that `check` requires under every fault.

- /metrics responds within 100 ms (median) and 500 ms (maximum), and its counters do not fall.
- Liveness stays green.
- Readiness turns red within 15 s, and green within 10 s of the end of the fault.
- The numbers of threads and sockets return to their values before the fault.
- No explanation of a task is false (see `explained`).

Time in which the exporter waits for a CPU does not count (see `harness.spans`). `make faults` measures it,
too, on an idle machine.
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

from resilience.explained import Explained

MAX_RED_SECONDS, MAX_GREEN_SECONDS = 15.0, 10.0
MAX_MEDIAN_SECONDS, MAX_SCRAPE_SECONDS = 0.1, 0.5
#: Threads that start for scrapes at the same time.
RENDER_THREADS = 2
COUNTER_SUFFIXES = ("_total", "_count", "_bucket", "_sum")

numbers = itertools.count(100_000)  # of one length: no id begins like another


class Watched(Exporter):
    """An exporter, with the URL of the broker for the events that the test publishes."""

    def __init__(self, folder: Path, broker_url: str, *arguments: str, url: str = "", **options: Any) -> None:
        super().__init__(folder, url or broker_url, "-Q", "celery", *arguments, **options)
        self.broker_url = broker_url
        self.published: list[str] = []  # ids of tasks whose events were published
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

    def counts_events(self, count: float) -> None:
        """Publish tasks until this number of them is counted."""
        before = self.successes()

        def is_counted() -> bool:
            self.publish_task()
            return self.successes() >= before + count

        eventually(is_counted, MAX_GREEN_SECONDS, every=0.5)

    def publish_task(self) -> None:
        """Publish the events of a task that succeeded."""
        events = task_events(next(numbers))
        publish_events(self.broker_url, *events)
        self.published.append(events[0]["uuid"])

    def resources(self) -> tuple[int, int]:
        """Return the numbers of threads and of connections, without those of HTTP clients."""
        process = psutil.Process(self.pid)
        connections = [
            connection for connection in process.net_connections() if not self._is_http(connection)
        ]
        return process.num_threads(), len(connections)

    def _is_http(self, connection: Any) -> bool:
        return bool(connection.laddr and connection.laddr.port == self.port)


class Scraper(threading.Thread):
    """Scrapes continuously, and collects violations of the contract."""

    def __init__(self, app: Watched) -> None:
        super().__init__(daemon=True)
        self.app = app
        self.spans: list[TimeSpan] = []
        self.violations: list[str] = []
        self._last = Samples()
        self._stopping = threading.Event()

    def run(self) -> None:
        while not self._stopping.wait(0.1):
            paused = self.app.is_paused, self.app.pauses
            try:
                with TimeSpan(self.app.pid) as span:
                    samples = self.app.samples()
            except (OSError, AssertionError) as error:
                self.violations.append(f"/metrics: {error!r}")
                continue
            if paused == (False, self.app.pauses):  # otherwise the test had paused the exporter
                self.spans.append(span)
            if self.app.get("/-/healthy").status != 200:
                self.violations.append("/-/healthy is not 200")
            self.violations += [
                f"{series} fell from {before} to {samples.get(series)}"
                for series, before in self._last.items()
                if series[0].endswith(COUNTER_SUFFIXES) and samples.get(series, 0.0) < before
            ]
            self._last = samples

    def stop(self) -> None:
        self._stopping.set()
        self.join()


@dataclass
class Availability:
    """The checks of an exporter under a fault. The measured times are a row of the table."""

    app: Watched
    fault: str
    broker: str
    explained: Explained
    red: TimeSpan | None = None  # since the start of the fault
    green: TimeSpan | None = None  # since its end
    scrapes: list[TimeSpan] = field(default_factory=list)

    def turns_red(self, fault: Callable[[], object]) -> None:
        """Cause a fault, and assert that readiness turns red in time."""
        self.red = self._span(fault, lambda: not self.app.is_ready(), MAX_RED_SECONDS, "red")
        self.explained.fault_began()
        assert self.app.value("celery_broker_up") == 0
        assert self.app.get("/health").status == 503

    def turns_green(self, end: Callable[[], object]) -> None:
        """End the fault, and assert that readiness turns green in time."""
        self.explained.fault_ends()
        self.green = self._span(end, self.app.is_ready, MAX_GREEN_SECONDS, "green")
        assert self.app.value("celery_broker_up") == 1
        assert self.app.get("/health").status == 200

    def resubscribes(self, fault: Callable[[], object]) -> None:
        """Cause a fault that ends the subscription, and assert that a new one is open in time.

        Readiness may be green again before a request sees it red.
        """
        before = self.app.reconnects()

        def is_back() -> bool:
            return self.app.reconnects() > before and self.app.is_ready()

        self.green = self._span(fault, is_back, MAX_RED_SECONDS, "a new subscription")

    def counts_again(self, fault: Callable[[], object]) -> None:
        """Cause a fault that ends no connection, and assert that events are counted again in time."""
        before = self.app.successes()

        def is_counted() -> bool:
            self.app.publish_task()
            return self.app.successes() > before

        self.green = self._span(fault, is_counted, MAX_RED_SECONDS, "counted")

    def cells(self) -> dict[str, str]:
        """Return a row of the table."""
        times = [1_000 * scrape.elapsed_seconds for scrape in self.scrapes] or [math.nan]
        return {
            "fault": self.fault,
            "broker": self.broker,
            "red after": _format(self.red),
            "green after": _format(self.green),
            "/metrics median": f"{statistics.median(times):.0f} ms",
            "worst": f"{max(times):.0f} ms",
        }

    def _span(
        self, act: Callable[[], object], probe: Callable[[], bool], seconds: float, what: str
    ) -> TimeSpan:
        """Call `act`, assert that `probe` returns true within some seconds, and return the time."""
        act()
        span = TimeSpan.until(probe, self.app.pid, deadline=seconds, what=what)
        assert span.seconds < seconds, f"{what} after {span}"
        return span


@contextmanager
def check(availability: Availability, *, is_connected: bool) -> Iterator[Availability]:
    """Check the availability during the body of the `with` statement.

    The exporter must count events after it and, if `is_connected`, before it.
    """
    if is_connected:
        availability.app.counts_events(1)
    before = availability.app.resources()
    scraper = Scraper(availability.app)
    scraper.start()
    try:
        with availability.explained:
            yield availability
        availability.app.counts_events(1)
        availability.explained.assert_true()
    finally:
        scraper.stop()
        availability.scrapes = scraper.spans
    assert scraper.violations == []
    times = [scrape.seconds for scrape in availability.scrapes]
    assert statistics.median(times) < MAX_MEDIAN_SECONDS
    assert max(times) < MAX_SCRAPE_SECONDS, sorted(availability.scrapes, key=lambda scrape: scrape.seconds)[
        -5:
    ]
    if not is_connected:
        return

    def is_back() -> bool:
        now = availability.app.resources()
        assert now[0] <= before[0] + RENDER_THREADS, now
        assert now[1] <= before[1], now
        return True

    eventually(is_back, 15, what=f"threads and connections back to {before}")


def _format(span: TimeSpan | None) -> str:
    return "-" if span is None else f"{span.elapsed_seconds:.1f} s"
