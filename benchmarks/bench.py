"""`make bench`: a tape of events through a real redis-server into the running exporter, as one table.

CPU is the exporter process' own, by the kernel's account, less what it spends when nothing comes; so what else
runs on the machine disturbs it little, but through shared caches and clock rates it does. Times are wall
times, and disturbed fully. Hence several rounds, medians, and the least and the most beside them.
A run in which the exporter did not count every event is void: exit code 1. A target missed is a result: 0.
"""

import argparse
import contextlib
import http.client
import os
import platform
import re
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import psutil
import redis
from tape import Cluster, Form, Tape, record

#: Forms of the same tape: how many events a client and a worker put into one message.
FORMS = {"messages of one": Form(1, 1), "messages of ten": Form(10, 10), "sent one, rest ten": Form(1, 10)}
#: Label sets with at least 63 samples each (8 states, 4 gauges, 3 histograms of 15 buckets …).
WIDE = Cluster(tasks=1_280, names=80)
SAMPLES = 10_000
SCRAPES = 20
#: Bytes that may wait in Redis for the exporter: a quarter of the limit at which a server that is not ours
#: cuts a subscriber off (client-output-buffer-limit pubsub 32mb 8mb 60).
BACKLOG = 2 * 2**20
#: Seconds in which idle cost is measured, after as many for the start to die away.
IDLE = 1.5
#: Seconds without an event more, after which we stop waiting for the rest.
STALLED = 10.0
#: What Prometheus 3 sends with a scrape.
ACCEPT = (
    "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.5,"
    "application/openmetrics-text;version=0.0.1;q=0.4,text/plain;version=1.0.0;escaping=allow-utf-8;q=0.3,"
    "text/plain;version=0.0.4;q=0.2,*/*;q=0.1"
)

Results = dict[str, list[float]]


class Row(NamedTuple):
    """A line of the table; `target` is what the value should not exceed."""

    label: str
    unit: str
    target: float | None = None


ROWS = (
    Row("CPU an event, messages of one", "us", 35),
    Row("CPU an event, messages of ten", "us", 18),
    Row("CPU an event, sent one, rest ten", "us"),
    Row("kept up with, messages of one", "events/s"),
    Row("kept up with, messages of ten", "events/s"),
    Row("kept up with, sent one, rest ten", "events/s"),
    Row("peak memory, messages of one", "MB"),
    Row("peak memory, messages of ten", "MB"),
    Row("peak memory, sent one, rest ten", "MB"),
    Row("idle memory", "MB", 70),
    Row("start to first /metrics", "ms", 1_500),
    Row("samples in the wide scrape", ""),
    Row("scrape, text, median of 20", "ms", 60),
    Row("scrape, text, worst of 20", "ms"),
    Row("scrape as Prometheus asks (gzip), median", "ms", 60),
    Row("scrape as Prometheus asks (gzip), worst", "ms"),
)


class VoidError(Exception):
    """The run measured nothing; the text says why."""


# -- the two processes ---------------------------------------------------------------------------------------


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextlib.contextmanager
def running(command: list[str], log: Path) -> Iterator[subprocess.Popen]:
    """Run a process; end it, and nothing but it."""
    with log.open("wb") as output, subprocess.Popen(command, stdout=output, stderr=output) as process:
        try:
            yield process
        finally:
            process.terminate()
            try:
                process.wait(5)
            except subprocess.TimeoutExpired:
                process.kill()


@contextlib.contextmanager
def redis_server(folder: Path) -> Iterator[redis.Redis]:
    """Run a redis-server of our own that never cuts a subscriber off."""
    port = free_port()
    options = f"--port {port} --bind 127.0.0.1 --dir {folder} --appendonly no".split()
    limits = ["--save", "", "--client-output-buffer-limit", "pubsub 0 0 0"]
    with running(["redis-server", *options, *limits], folder / "redis.log"):
        client = redis.Redis(port=port, socket_timeout=5)
        for _ in range(500):
            with contextlib.suppress(redis.ConnectionError):
                client.ping()
                break
            time.sleep(0.01)
        yield client
        client.close()


class Exporter:
    """The exporter as a user runs it, seen from outside."""

    def __init__(self, pid: int, port: int) -> None:
        self.process = psutil.Process(pid)
        self._http = http.client.HTTPConnection("127.0.0.1", port, timeout=10)

    def get(self, path: str = "/metrics", **headers: str) -> tuple[int, bytes]:
        try:
            self._http.request("GET", path, headers=headers)
            answer = self._http.getresponse()
            return answer.status, answer.read()
        except OSError:
            self._http.close()
            return 0, b""

    def wait_for(self, path: str) -> None:
        deadline = time.monotonic() + 15
        while self.get(path)[0] != 200:
            if time.monotonic() > deadline or not self.process.is_running():
                raise VoidError(f"the exporter did not answer {path} with 200")
            time.sleep(0.005)

    def counted(self) -> Counter[str]:
        text = self.get()[1].decode()
        found = re.findall(r'^celery_exporter_events_total\{kind="(.+)"\} (\S+)$', text, re.MULTILINE)
        return Counter({kind: int(float(count)) for kind, count in found})

    def cpu(self) -> float:
        times = self.process.cpu_times()
        return times.user + times.system

    def peak(self) -> float:
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) / 1024


@contextlib.contextmanager
def exporter(server: redis.Redis, folder: Path, results: Results) -> Iterator[Exporter]:
    """Start the exporter, and book how it came up."""
    broker, port = server.connection_pool.connection_kwargs["port"], free_port()
    command = [sys.executable, "-m", "celery_exporter", "--broker-url", f"redis://127.0.0.1:{broker}/0"]
    log = folder / "exporter.log"
    start = time.monotonic()
    with running([*command, "--host", "127.0.0.1", "--port", str(port)], log) as process:
        try:
            found = Exporter(process.pid, port)
            found.wait_for("/metrics")
            results["start to first /metrics"].append((time.monotonic() - start) * 1e3)
            results["idle memory"].append(found.process.memory_info().rss / 2**20)
            found.wait_for("/-/ready")
            yield found
        except VoidError:
            print(log.read_text()[-2_000:], file=sys.stderr)
            raise


# -- measuring -----------------------------------------------------------------------------------------------


def publish(server: redis.Redis, tape: Tape) -> None:
    """Write the tape to Redis as fast as the exporter takes it off."""
    port = server.connection_pool.connection_kwargs["port"]
    with socket.create_connection(("127.0.0.1", port), timeout=5) as wire:
        for chunk, commands in tape.chunks:
            wire.sendall(chunk)
            answers = b""
            while answers.count(b"\n") < commands:
                answers += wire.recv(65_536)
            if answers != b":1\r\n" * commands:
                raise VoidError("there was not always exactly one subscriber")
            while max(int(client["omem"]) for client in server.client_list(_type="pubsub")) > BACKLOG:
                time.sleep(0.002)


def wait_counted(target: Exporter, tape: Tape) -> None:
    """Return when all is counted; the exporter's idle tail is at most one look long."""
    counted, changed = Counter(), time.monotonic()
    while counted != tape.kinds:
        time.sleep(0.02)
        before, counted = counted, +target.counted()
        if counted != before:
            changed = time.monotonic()
        if time.monotonic() > changed + STALLED or counted.total() > tape.events:
            raise VoidError(f"the exporter counted {dict(counted)}, the tape has {dict(tape.kinds)}")


def measure_replay(server: redis.Redis, folder: Path, results: Results, name: str, tape: Tape) -> None:
    with exporter(server, folder, results) as target:
        time.sleep(IDLE)
        before = target.cpu()
        time.sleep(IDLE)
        idle = (target.cpu() - before) / IDLE
        before, start = target.cpu(), time.monotonic()
        publish(server, tape)
        wait_counted(target, tape)
        seconds, cpu = time.monotonic() - start, target.cpu() - before
        results[f"CPU an event, {name}"].append((cpu - idle * seconds) / tape.events * 1e6)
        results[f"kept up with, {name}"].append(tape.events / seconds)
        results[f"peak memory, {name}"].append(target.peak())


def measure_scrapes(server: redis.Redis, folder: Path, results: Results, tape: Tape) -> None:
    with exporter(server, folder, results) as target:
        publish(server, tape)
        wait_counted(target, tape)
        lines = target.get()[1].splitlines()
        samples = sum(not line.startswith(b"#") for line in lines)
        if samples < SAMPLES:
            raise VoidError(f"the wide scrape has {samples} samples, not {SAMPLES}: raise WIDE.names")
        results["samples in the wide scrape"].append(samples)
        gzip = {"Accept": ACCEPT, "Accept-Encoding": "gzip"}
        asked: tuple[tuple[str, dict[str, str]], ...] = (
            ("scrape, text, {} of 20", {}),
            ("scrape as Prometheus asks (gzip), {}", gzip),
        )
        for label, headers in asked:
            times = [time_scrape(target, headers) for _ in range(SCRAPES)]
            results[label.format("median")].append(statistics.median(times))
            results[label.format("worst")].append(max(times))


def time_scrape(target: Exporter, headers: dict[str, str]) -> float:
    start = time.perf_counter()
    status, _ = target.get(**headers)
    if status != 200:
        raise VoidError(f"a scrape was answered with {status}")
    return (time.perf_counter() - start) * 1e3


# -- the table -----------------------------------------------------------------------------------------------


def describe_machine(server: redis.Redis) -> str:
    cpus = re.findall(r"model name\s*: (.+)", Path("/proc/cpuinfo").read_text())
    packages = ("celery-event-exporter", "celery", "kombu", "redis", "hiredis", "msgspec", "uvicorn")
    return (
        f"{cpus[0] if cpus else platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}\n"
        + ", ".join(f"{package} {version(package)}" for package in packages)
        + f", redis-server {server.info('server')['redis_version']}"
    )


def show(results: Results) -> None:
    print(f"\n{'':42}{'median':>9}  {'least … most':17} {'':9} target")
    for row in ROWS:
        values = results[row.label]
        median, digits = statistics.median(values), 0 if row.unit in ("", "events/s") else 1
        spread = f"{min(values):,.{digits}f} … {max(values):,.{digits}f}"
        verdict = (
            "" if row.target is None else f"<= {row.target:g}  {'ok' if median <= row.target else 'over'}"
        )
        print(f"{row.label:42}{median:>9,.{digits}f}  {spread:17} {row.unit:9} {verdict}".rstrip())


def run(rounds: int, tasks: int) -> None:
    load = os.getloadavg()[0]
    results: Results = defaultdict(list)
    tapes = {name: record(Cluster(tasks), form) for name, form in FORMS.items()}
    wide = record(WIDE, Form(1, 1))
    with tempfile.TemporaryDirectory(prefix="celery-exporter-bench-") as name:
        folder = Path(name)
        with redis_server(folder) as server:
            print(describe_machine(server))
            events = ", ".join(f"{tape.events:,} as {name}" for name, tape in tapes.items())
            print(f"events a replay: {events}; {rounds} rounds, interleaved")
            for _ in range(rounds):
                for form, tape in tapes.items():
                    measure_replay(server, folder, results, form, tape)
                measure_scrapes(server, folder, results, wide)
    show(results)
    print(f"load average {load:.1f} before, {os.getloadavg()[0]:.1f} after")


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tasks", type=int, default=25_000, help="four events each")
    options = parser.parse_args()
    if shutil.which("redis-server") is None:
        print("bench: redis-server is not installed", file=sys.stderr)
        return 1
    try:
        run(options.rounds, options.tasks)
    except VoidError as error:
        print(f"bench: void: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
