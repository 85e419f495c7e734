"""The law under every fault, held by `Law`:

/metrics answers in 100 ms (median) and 500 ms (worst) and its counters never fall; liveness stays green;
readiness turns red within 15 s, and green again within 10 s of the end of the fault; threads and sockets
return to their number before it.
"""

from __future__ import annotations

import itertools
import math
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
from harness.events import one_task, publish_events
from harness.exporter import Exporter, Samples
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
            publish_events(self.broker_url, *one_task(next(numbers)))
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

    def __init__(self, app: Exporter) -> None:
        super().__init__(daemon=True)
        self.app = app
        self.times: list[float] = []
        self.faults: list[str] = []
        self._last = Samples()
        self._stopping = threading.Event()

    def run(self) -> None:
        while not self._stopping.wait(0.1):
            begin = time.monotonic()
            try:
                samples = self.app.samples()
            except (OSError, AssertionError) as error:
                self.faults.append(f"/metrics: {error!r}")
                continue
            self.times.append(time.monotonic() - begin)
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
class Law:
    """What is asked of an exporter under a fault; what was measured of it is a line of the table."""

    app: Watched
    fault: str
    broker: str
    red: float | None = None  # seconds from the fault
    green: float | None = None  # seconds from its end
    times: list[float] = field(default_factory=list)  # seconds, of /metrics

    def turns_red(self, fault: Callable[[], object]) -> None:
        """Do this, and hold that it is said in time."""
        self.red = _seconds(fault, lambda: not self.app.is_ready(), RED, "red")
        assert self.app.value("celery_broker_up") == 0
        assert self.app.get("/health").status == 503

    def turns_green(self, end: Callable[[], object]) -> None:
        """Undo it, and hold that it hears again in time."""
        self.green = _seconds(end, self.app.is_ready, GREEN, "green")
        assert self.app.value("celery_broker_up") == 1
        assert self.app.get("/health").status == 200

    def comes_back(self, fault: Callable[[], object]) -> None:
        """Do this, which ends a subscription but not the next one: it may be back before anybody looks."""
        before = self.app.reconnects()

        def is_back() -> bool:
            return self.app.reconnects() > before and self.app.is_ready()

        self.green = _seconds(fault, is_back, RED, "a new subscription")

    def hears_again(self, fault: Callable[[], object]) -> None:
        """Do this, by which no connection ends, and hold that what is published is counted again in time."""
        before = self.app.successes()

        def heard() -> bool:
            publish_events(self.app.broker_url, *one_task(next(numbers)))
            return self.app.successes() > before

        self.green = _seconds(fault, heard, RED, "counted")

    def cells(self) -> dict[str, str]:
        """Return a row of the table."""
        times = [1_000 * seconds for seconds in self.times] or [math.nan]
        return {
            "fault": self.fault,
            "broker": self.broker,
            "red after": _shown(self.red),
            "green after": _shown(self.green),
            "/metrics median": f"{statistics.median(times):.0f} ms",
            "worst": f"{max(times):.0f} ms",
        }


def _seconds(act: Callable[[], object], probe: Callable[[], bool], deadline: float, what: str) -> float:
    """Return how long after an act something was so."""
    act()
    begin = time.monotonic()
    eventually(probe, deadline, what=what)
    return time.monotonic() - begin


@contextmanager
def hold(law: Law, *, deaf: bool) -> Iterator[Law]:
    """Hold the law over what happens inside. The exporter hears at its end and, if not `deaf`, before it."""
    if not deaf:
        law.app.counted(1)
    before = law.app.size()
    watch = Watch(law.app)
    watch.start()
    try:
        yield law
        law.app.counted(1)
    finally:
        watch.stop()
        law.times = watch.times
    assert watch.faults == []
    assert statistics.median(law.times) < MEDIAN
    assert max(law.times) < WORST
    if deaf:
        return

    def is_back() -> bool:
        now = law.app.size()
        assert now[0] <= before[0] + RENDERERS, now
        assert now[1] <= before[1], now
        return True

    eventually(is_back, 15, what=f"threads and connections back to {before}")


def _shown(seconds: float | None) -> str:
    return "-" if seconds is None else f"{seconds:.1f} s"
