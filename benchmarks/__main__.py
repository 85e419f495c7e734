"""`make bench`: a tape of events through a real redis-server into the running exporter; prints one table.

CPU is what the kernel booked on the exporter's process, less what it spends when nothing comes. What else
runs on the machine disturbs it through caches and clock rates only; wall times it disturbs fully. Hence
several rounds, their medians, and the least and the most beside them.

A target missed is a result, exit code 0. A run in which the exporter did not count every event is void: 1.
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

#: Forms of the same tape, with the most us of CPU an event that they may cost. Celery's clients send each
#: event by itself, and its prefork workers fill messages as far as they are busy.
FORMS = {
    "messages of one": (Form(client=1, worker=1), 35),
    "messages of ten": (Form(client=10, worker=10), 18),
    "sent one, rest ten": (Form(client=1, worker=10), None),
}
#: A tape that leaves 160 label sets, of 64 samples each.
WIDE = Cluster(tasks=1_280, names=80)
SAMPLES = 10_000
SCRAPES = 20
#: How a scrape is asked for: by curl, and by Prometheus 3.
HEADERS = {
    "text": {},
    "OpenMetrics gzip": {
        "Accept": "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.5,"
        "application/openmetrics-text;version=0.0.1;q=0.4,"
        "text/plain;version=1.0.0;escaping=allow-utf-8;q=0.3,text/plain;version=0.0.4;q=0.2,*/*;q=0.1",
        "Accept-Encoding": "gzip",
    },
}
#: Bytes that may wait in Redis for the exporter, where 8 MB for a minute, or 32 MB, get a subscriber cut off.
BACKLOG = 2 * 2**20
#: Seconds in which the idle cost is measured, after as many in which the start dies away.
IDLE = 1.5
#: Seconds without progress after which the rest of the events is not waited for.
STALLED = 10.0


class Row(NamedTuple):
    """A line of the table; `target` is what the value should not exceed."""

    label: str
    unit: str = ""
    target: float | None = None


ROWS = (
    *(Row(f"CPU an event, {form}", "us", target) for form, (_, target) in FORMS.items()),
    *(Row(f"kept up with, {form}", "events/s") for form in FORMS),
    *(Row(f"peak memory, {form}", "MB") for form in FORMS),
    Row("idle memory", "MB", 70),
    Row("start to first /metrics", "ms", 1_500),
    Row("samples in a wide scrape"),
    *(Row(f"wide scrape, {how}, median", "ms", 60) for how in HEADERS),
    *(Row(f"wide scrape, {how}, worst of {SCRAPES}", "ms") for how in HEADERS),
)

Results = defaultdict[str, list[float]]


class VoidError(Exception):
    """The run measured nothing; the text says why."""


# -- the two processes -------------------------------------------------------------------------------------


@contextlib.contextmanager
def running(command: list[str], log: Path) -> Iterator[int]:
    """Run a process, and end it; yield its id."""
    with log.open("wb") as output, subprocess.Popen(command, stdout=output, stderr=output) as process:
        try:
            yield process.pid
        finally:
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(5)
            process.kill()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def port_of(server: redis.Redis) -> int:
    return server.connection_pool.connection_kwargs["port"]


@contextlib.contextmanager
def redis_server(folder: Path) -> Iterator[redis.Redis]:
    server = redis.Redis(port=free_port(), socket_timeout=5)
    options = ["--bind", "127.0.0.1", "--dir", str(folder), "--save", ""]
    with running(["redis-server", "--port", str(port_of(server)), *options], folder / "redis.log"):
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            with contextlib.suppress(redis.ConnectionError):
                server.ping()
                break
            time.sleep(0.01)
        yield server


class Exporter:
    """The exporter as a user runs it, seen from outside."""

    def __init__(self, pid: int, port: int) -> None:
        self.process = psutil.Process(pid)
        self._http = http.client.HTTPConnection("127.0.0.1", port, timeout=10)

    def get(self, path: str = "/metrics", **headers: str) -> bytes | None:
        """Return the page, or None when there is none."""
        try:
            self._http.request("GET", path, headers=headers)
            answer = self._http.getresponse()
            body = answer.read()
        except OSError:
            self._http.close()
            return None
        return body if answer.status == 200 else None

    def wait_for(self, path: str) -> None:
        deadline = time.monotonic() + 15
        while self.get(path) is None:
            if time.monotonic() > deadline:
                raise VoidError(f"{path} was not answered with 200")
            time.sleep(0.005)

    def counted(self) -> Counter[str]:
        text = (self.get() or b"").decode()
        found = re.findall(r'^celery_exporter_events_total\{kind="(.+)"\} (\S+)$', text, re.MULTILINE)
        return Counter({kind: int(float(count)) for kind, count in found if float(count)})

    def cpu(self) -> float:
        times = self.process.cpu_times()
        return times.user + times.system

    def peak(self) -> float:
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.findall(r"VmHWM:\s+(\d+) kB", status)[0]) / 1024


@contextlib.contextmanager
def exporter(server: redis.Redis, results: Results) -> Iterator[Exporter]:
    """Start the exporter, and book how it came up."""
    port = free_port()
    options = ["--broker-url", f"redis://127.0.0.1:{port_of(server)}/0", "--host", "127.0.0.1"]
    command = [sys.executable, "-m", "celery_exporter", *options, "--port", str(port)]
    log = Path(server.config_get("dir")["dir"]) / "exporter.log"
    start = time.monotonic()
    with running(command, log) as pid:
        try:
            started = Exporter(pid, port)
            started.wait_for("/metrics")
            results["start to first /metrics"].append((time.monotonic() - start) * 1e3)
            started.wait_for("/-/ready")
            results["idle memory"].append(started.process.memory_info().rss / 2**20)
            yield started
        except VoidError as error:
            raise VoidError(f"{error}; the exporter's log ends with\n{log.read_text()[-2_000:]}") from None


# -- what is measured --------------------------------------------------------------------------------------


def replay(server: redis.Redis, target: Exporter, tape: Tape) -> None:
    """Publish the tape as fast as the exporter takes it; return when it has counted all of it."""
    with socket.create_connection(("127.0.0.1", port_of(server)), timeout=5) as wire:
        for chunk, commands in tape.chunks:
            wire.sendall(chunk)
            answers = b""
            while answers.count(b"\n") < commands:
                answers += wire.recv(65_536)
            if answers != b":1\r\n" * commands:
                raise VoidError("there was not always exactly one subscriber")
            while backlog(server) > BACKLOG:
                time.sleep(0.002)
    before, deadline = Counter(), time.monotonic() + STALLED
    while (counted := target.counted()) != tape.kinds:
        if counted != before:
            before, deadline = counted, time.monotonic() + STALLED
        if time.monotonic() > deadline:
            raise VoidError(f"the exporter counted {dict(counted)}, the tape has {dict(tape.kinds)}")
        time.sleep(0.05)


def backlog(server: redis.Redis) -> int:
    """Return how many bytes wait in Redis for its subscribers."""
    return sum(int(client["omem"]) for client in server.client_list(_type="pubsub"))


def measure_replay(server: redis.Redis, results: Results, form: str, tape: Tape) -> None:
    with exporter(server, results) as target:
        time.sleep(IDLE)
        before = target.cpu()
        time.sleep(IDLE)
        idle = (target.cpu() - before) / IDLE
        before, start = target.cpu(), time.monotonic()
        replay(server, target, tape)
        seconds, cpu = time.monotonic() - start, target.cpu() - before
        events = tape.kinds.total()
        results[f"CPU an event, {form}"].append((cpu - idle * seconds) / events * 1e6)
        results[f"kept up with, {form}"].append(events / seconds)
        results[f"peak memory, {form}"].append(target.peak())


def measure_scrapes(server: redis.Redis, results: Results, tape: Tape) -> None:
    with exporter(server, results) as target:
        replay(server, target, tape)
        lines = (target.get() or b"").splitlines()
        samples = sum(not line.startswith(b"#") for line in lines)
        if samples < SAMPLES:
            raise VoidError(f"a wide scrape has {samples} samples, not {SAMPLES}: widen WIDE")
        results["samples in a wide scrape"].append(samples)
        for how, headers in HEADERS.items():
            times = [time_scrape(target, headers) for _ in range(SCRAPES)]
            results[f"wide scrape, {how}, median"].append(statistics.median(times))
            results[f"wide scrape, {how}, worst of {SCRAPES}"].append(max(times))


def time_scrape(target: Exporter, headers: dict[str, str]) -> float:
    start = time.perf_counter()
    if target.get(**headers) is None:
        raise VoidError("a scrape failed")
    return (time.perf_counter() - start) * 1e3


# -- the table ---------------------------------------------------------------------------------------------


def describe(server: redis.Redis) -> str:
    models = re.findall(r"model name\s*: (.+)", Path("/proc/cpuinfo").read_text())
    packages = ("celery-event-exporter", "celery", "kombu", "redis", "hiredis", "msgspec", "uvicorn")
    software = [f"{package} {version(package)}" for package in packages]
    redis_version = server.info("server")["redis_version"]
    return (
        f"{models[0] if models else platform.machine()}, {os.cpu_count()} cores, "
        f"Python {platform.python_version()}, redis-server {redis_version}\n{', '.join(software)}"
    )


def show(row: Row, values: list[float]) -> str:
    median, digits = statistics.median(values), 1 if row.unit in ("us", "ms", "MB") else 0
    spread = f"{min(values):,.{digits}f} … {max(values):,.{digits}f}"
    verdict = "" if row.target is None else f"<= {row.target:<6g}{'over' if median > row.target else 'ok'}"
    return f"{row.label:42}{median:10,.{digits}f} {row.unit:9} {spread:18} {verdict}".rstrip()


def run(rounds: int) -> None:
    load, results = os.getloadavg()[0], defaultdict(list)
    tapes = {name: record(Cluster(tasks=25_000), form) for name, (form, _) in FORMS.items()}
    wide = record(WIDE, Form(client=1, worker=1))
    with (
        tempfile.TemporaryDirectory(prefix="celery-exporter-bench-") as name,
        redis_server(Path(name)) as server,
    ):
        print(describe(server))
        for _ in range(rounds):
            for form, tape in tapes.items():
                measure_replay(server, results, form, tape)
            measure_scrapes(server, results, wide)
    events, after = next(iter(tapes.values())).kinds.total(), os.getloadavg()[0]
    print(f"{events:,} events a replay, {rounds} rounds; load {load:.1f} before, {after:.1f} after\n")
    print(f"{'':42}{'median':>10} {'':9} {'least … most':18} target")
    print("\n".join(show(row, results[row.label]) for row in ROWS))


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3, help="default: 3")
    rounds = parser.parse_args().rounds
    if shutil.which("redis-server") is None:
        print("bench: redis-server is not installed (make servers)", file=sys.stderr)
        return 1
    try:
        run(rounds)
    except VoidError as error:
        print(f"bench: the run is void: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
