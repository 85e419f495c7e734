"""The five contenders. Each runs in its own process, and is measured from outside."""

from __future__ import annotations

import contextlib
import http.client
import os
import re
import sys
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import psutil
from harness.processes import ROOT, Process, free_port
from harness.waiting import eventually

from benchmarks.brokers import Broker, VoidError
from benchmarks.peer import START

if TYPE_CHECKING:
    from typing import Self

#: A process is idle after so many seconds without work; seconds between checks; CPU seconds that count as
#: idle.
IDLE_SECONDS, CHECK_SECONDS, IDLE_CPU_SECONDS = 0.4, 0.05, 0.004
#: Seconds after which a process that does not become idle fails.
IDLE_TIMEOUT_SECONDS = 120.0


class Contender(Process):
    """A process that receives events. `name` is its name in the table."""

    letter: ClassVar[str]

    def __init__(self, folder: Path, broker: Broker) -> None:
        super().__init__(folder)
        self.broker = broker
        self.idle = 0.0  # CPU seconds per second without events

    def environment(self) -> dict[str, str]:
        return {**os.environ, "PYTHONPATH": str(ROOT)}

    def counted(self) -> int:
        """Return how many events the process has counted; this may stop it."""
        raise NotImplementedError

    def expected(self, kinds: Counter[str]) -> int:
        """Return how many of these events the process should have counted, by type."""
        return kinds.total()

    def cpu(self) -> float:
        """Return the CPU seconds of the process and its children, user and system."""
        family = [psutil.Process(self.pid), *psutil.Process(self.pid).children(recursive=True)]
        return sum(_cpu(process.pid) for process in family)

    def memory(self) -> float:
        """Return the resident memory in MB."""
        return psutil.Process(self.pid).memory_info().rss / 2**20

    def measure_idle(self, seconds: float) -> None:
        """Measure the CPU usage without events."""
        before, start = self.cpu(), time.monotonic()
        time.sleep(seconds)
        self.idle = (self.cpu() - before) / (time.monotonic() - start)

    def wait_until_idle(self) -> float:
        """Wait until the process is idle, and return the monotonic time of its last work."""
        start = busy = now = time.monotonic()
        cpu = self.cpu()
        while now - busy < IDLE_SECONDS:
            time.sleep(CHECK_SECONDS)
            cpu_before, before = cpu, now
            cpu, now = self.cpu(), time.monotonic()
            if cpu - cpu_before > IDLE_CPU_SECONDS + self.idle * (now - before):
                busy = now
            if now - start > IDLE_TIMEOUT_SECONDS:
                raise VoidError(f"{self.name} is busy {IDLE_TIMEOUT_SECONDS:.0f} s after the last event")
        return busy


def _cpu(pid: int) -> float:
    """Return CPU seconds from clock_getcpuclockid(3), which is finer than the hundredths of psutil."""
    with contextlib.suppress(OSError):
        return time.clock_gettime(~pid << 3 | 2)
    return 0.0


class Script(Contender):
    """A script of this package that prints "ready", and the number of events when it stops."""

    def ready(self) -> bool:
        return "ready" in self.text()

    def counted(self) -> int:
        self.stop()
        return int(re.findall(r"counted (\d+)", self.text())[0])


class Floor(Script):
    name, letter = "decode floor", "a"

    def command(self) -> list[str]:
        return [sys.executable, "-m", "benchmarks.floor", self.broker.url]


class Receiver(Script):
    name, letter = "Celery's receiver, empty handler", "e"

    def command(self) -> list[str]:
        return [sys.executable, "-m", "benchmarks.receiver", self.broker.url]


class Page(Contender):
    """A contender with /metrics."""

    def __init__(self, folder: Path, broker: Broker) -> None:
        super().__init__(folder, broker)
        self.port = free_port()
        self.start_seconds = 0.0  # from the start to the first /metrics

    def get(self, path: str) -> str | None:
        """Return a page, or None if the response is an error."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=15)
        with contextlib.suppress(OSError, http.client.HTTPException), contextlib.closing(connection):
            connection.request("GET", path)
            response = connection.getresponse()
            body = response.read()
            return body.decode() if response.status == 200 else None
        return None

    def sums(self, name: str) -> int:
        """Return the sum of all series whose metric name matches a regular expression."""
        values = re.findall(rf"^{name}(?:{{.*}})? (\S+)$", self.get("/metrics") or "", re.MULTILINE)
        return int(sum(map(float, values)))


class Ours(Page):
    name, letter = "this exporter", "b"
    options: tuple[str, ...] = ()

    def command(self) -> list[str]:
        address = ["--broker-url", self.broker.url, "--host", "127.0.0.1", "--port", str(self.port)]
        return [sys.executable, "-m", "celery_exporter", *address, *self.options]

    def start(self) -> Self:
        self.start_seconds = -time.monotonic()
        return super().start()

    def wait_ready(self) -> Self:
        eventually(lambda: self.get("/metrics"), self.deadline, every=0.005, what="first /metrics")
        self.start_seconds += time.monotonic()
        return super().wait_ready()

    def ready(self) -> bool:
        return self.get("/-/ready") is not None

    def counted(self) -> int:
        return self.sums("celery_exporter_events_total")


class OursOverKombu(Ours):
    name, letter = "this exporter, --event-consumer kombu", "c"
    options = ("--event-consumer", "kombu")


class Peer(Page):
    """The most used exporter. It does not count worker events, so only task events are compared."""

    name, letter = "prometheus-exporter-celery", "d"
    python = Path()  # interpreter of its virtual environment, set after the installation

    def command(self) -> list[str]:
        address = ["--broker-url", self.broker.url, "--host", "127.0.0.1", "--port", str(self.port)]
        # Timestamps of the event stream are old. With timeouts, the exporter would remove the workers
        # and their counts.
        no_timeouts = ["--worker-timeout", "0", "--purge-offline-worker-metrics", "0"]
        return [str(self.python), "-c", START, *address, *no_timeouts]

    def environment(self) -> dict[str, str]:
        return {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}

    def ready(self) -> bool:
        return self.broker.has_subscriber()

    def counted(self) -> int:
        return self.sums(r"celery_task_[a-z]+_total")

    def expected(self, kinds: Counter[str]) -> int:
        return sum(count for kind, count in kinds.items() if kind.startswith("task-"))


ALL: tuple[type[Contender], ...] = (Floor, Ours, OursOverKombu, Peer, Receiver)
