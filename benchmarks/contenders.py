"""The five that are compared, each a process of its own, seen from outside."""

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
    from typing_extensions import Self

#: Seconds without work after which a process has done all there is; one look; CPU seconds that are no work.
QUIET, LOOK, REST = 0.4, 0.05, 0.004
#: Seconds after which a process that does not come to rest is given up.
PATIENCE = 120.0


class Contender(Process):
    """A process that listens to events. `name` is what the table calls it."""

    letter: ClassVar[str]

    def __init__(self, folder: Path, broker: Broker) -> None:
        super().__init__(folder)
        self.broker = broker
        self.idle = 0.0  # CPU seconds a second, while nothing comes

    def environment(self) -> dict[str, str]:
        return {**os.environ, "PYTHONPATH": str(ROOT)}

    def counted(self) -> int:
        """Return how many events it has counted; it may end by that."""
        raise NotImplementedError

    def expected(self, kinds: Counter[str]) -> int:
        """Return how many of these it should have counted."""
        return kinds.total()

    def cpu(self) -> float:
        """Return the CPU seconds of it and its children, user and system, to the nanosecond."""
        family = [psutil.Process(self.pid), *psutil.Process(self.pid).children(recursive=True)]
        return sum(_cpu(process.pid) for process in family)

    def memory(self) -> float:
        """Return the MB it has in memory."""
        return psutil.Process(self.pid).memory_info().rss / 2**20

    def measure_idle(self, seconds: float) -> None:
        before, start = self.cpu(), time.monotonic()
        time.sleep(seconds)
        self.idle = (self.cpu() - before) / (time.monotonic() - start)

    def rest(self) -> float:
        """Wait until it has done all there was to do; return when that was (monotonic)."""
        start = busy = now = time.monotonic()
        cpu = self.cpu()
        while now - busy < QUIET:
            time.sleep(LOOK)
            before, then = cpu, now
            cpu, now = self.cpu(), time.monotonic()
            if cpu - before > REST + self.idle * (now - then):
                busy = now
            if now - start > PATIENCE:
                raise VoidError(f"{self.name} is busy {PATIENCE:.0f} s after the last event")
        return busy


def _cpu(pid: int) -> float:
    """psutil has it in hundredths of a second; this clock (clock_getcpuclockid(3)) is the same, but finer."""
    with contextlib.suppress(OSError):
        return time.clock_gettime(~pid << 3 | 2)
    return 0.0


class Script(Contender):
    """One of ours that says "ready", and what it counted when it is ended."""

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
    """One that has /metrics."""

    def __init__(self, folder: Path, broker: Broker) -> None:
        super().__init__(folder, broker)
        self.port = free_port()
        self.came_up = 0.0  # seconds from start to the first /metrics

    def get(self, path: str) -> str | None:
        """Return the page, or None when there is none."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=15)
        with contextlib.suppress(OSError, http.client.HTTPException), contextlib.closing(connection):
            connection.request("GET", path)
            answer = connection.getresponse()
            body = answer.read()
            return body.decode() if answer.status == 200 else None
        return None

    def sums(self, name: str) -> int:
        """Return the sum over all series of the metrics whose name matches."""
        values = re.findall(rf"^{name}(?:{{.*}})? (\S+)$", self.get("/metrics") or "", re.MULTILINE)
        return int(sum(map(float, values)))


class Ours(Page):
    name, letter = "this exporter", "b"
    options: tuple[str, ...] = ()

    def command(self) -> list[str]:
        where = ["--broker-url", self.broker.url, "--host", "127.0.0.1", "--port", str(self.port)]
        return [sys.executable, "-m", "celery_exporter", *where, *self.options]

    def start(self) -> Self:
        self.came_up = -time.monotonic()
        return super().start()

    def wait_ready(self) -> Self:
        eventually(lambda: self.get("/metrics"), self.deadline, every=0.005, what="first /metrics")
        self.came_up += time.monotonic()
        return super().wait_ready()

    def ready(self) -> bool:
        return self.get("/-/ready") is not None

    def counted(self) -> int:
        return self.sums("celery_exporter_events_total")


class OursOverKombu(Ours):
    name, letter = "this exporter, --event-consumer kombu", "c"
    options = ("--event-consumer", "kombu")


class Peer(Page):
    """The most used exporter. It shows no worker's events as a count, so tasks' are those it is asked for."""

    name, letter = "prometheus-exporter-celery", "d"
    python = Path()  # set when it is installed

    def command(self) -> list[str]:
        where = ["--broker-url", self.broker.url, "--host", "127.0.0.1", "--port", str(self.port)]
        # The workers on the tape are long gone, and with them would go what it counted.
        keep = ["--worker-timeout", "0", "--purge-offline-worker-metrics", "0"]
        return [str(self.python), "-c", START, *where, *keep]

    def environment(self) -> dict[str, str]:
        return {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}

    def ready(self) -> bool:
        return self.broker.is_heard()

    def counted(self) -> int:
        return self.sums(r"celery_task_[a-z]+_total")

    def expected(self, kinds: Counter[str]) -> int:
        return sum(count for kind, count in kinds.items() if kind.startswith("task-"))


ALL: tuple[type[Contender], ...] = (Floor, Ours, OursOverKombu, Peer, Receiver)
