"""A process that a test starts, looks into and ends: the base of servers, workers and the exporter."""

from __future__ import annotations

import contextlib
import functools
import itertools
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import psutil
import pytest

from harness.time_spans import Span
from harness.waiting import ANSWER_TIMEOUT, BUSY_FACTOR, eventually

if TYPE_CHECKING:
    from typing_extensions import Self

ROOT = Path(__file__).resolve().parents[2]
TESTS = ROOT / "tests"
MORE_PATH = ("/usr/lib/rabbitmq/bin", "/usr/sbin", "/sbin")  # where Debian keeps what users don't run

running: list[Process] = []  # conftest shows their logs under a failed test
LOWEST_PORT, PORTS_AT_ONCE = 10_000, 500
OF_OUTGOING_CONNECTIONS = Path("/proc/sys/net/ipv4/ip_local_port_range")


@functools.cache
def _own_ports() -> Iterator[int]:
    """Claim ports for this process, until it ends, and return them over and over.

    The kernel gives the ports above them to outgoing connections of anybody, for as long as nobody listens
    there yet or again. Another run of these tests on this machine finds the name of the socket taken.
    """
    highest = int(OF_OUTGOING_CONNECTIONS.read_text().split()[0])
    firsts = range(LOWEST_PORT, highest - PORTS_AT_ONCE, PORTS_AT_ONCE)
    for first in random.sample(firsts, len(firsts)):
        claim = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        try:
            claim.bind(f"\0celery-exporter-tests-{first}")
        except OSError:
            claim.close()
            continue
        _claims.append(claim)
        return itertools.cycle(range(first, first + PORTS_AT_ONCE))
    pytest.fail(f"{len(firsts)} other runs of the tests have all ports below {highest}")


_claims: list[socket.socket] = []


def free_port() -> int:
    """Return a TCP port of 127.0.0.1 on which nobody listens, and which nobody here was given of late."""
    for port in itertools.islice(_own_ports(), PORTS_AT_ONCE):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    pytest.fail(f"somebody listens on all of {PORTS_AT_ONCE} ports")


def missing(what: str) -> NoReturn:
    """Skip at a desk, fail in CI."""
    (pytest.fail if os.environ.get("CI") else pytest.skip)(f"{what} is not installed")


def need(command: str) -> str:
    """Return the full path of a program that the test can't do without."""
    ours = str(Path(sys.executable).parent)  # what the lock file installed, whether it is activated or not
    path = os.pathsep.join((ours, *MORE_PATH, os.environ.get("PATH", "")))
    return shutil.which(command, path=path) or missing(command)


def listening(port: int) -> bool:
    """Tell whether someone accepts connections on this port of 127.0.0.1."""
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=ANSWER_TIMEOUT):
        return True
    return False


class Process:
    """A child process in a group of its own, its output in a file; `with` starts and ends it."""

    name = "process"
    deadline = 30.0  # seconds to become ready (see `eventually`)

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.log = folder / "log"
        self.process: subprocess.Popen[bytes] | None = None

    def command(self) -> list[str]:
        raise NotImplementedError

    def environment(self) -> dict[str, str]:
        return dict(os.environ)

    def ready(self) -> bool:
        return True

    # life

    def start(self) -> Self:
        """Start it without waiting; several can come up side by side."""
        assert not self.alive(), f"{self.name} runs already"
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                self.command(),
                cwd=self.folder,
                env=self.environment(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        running.append(self)
        return self

    def wait_ready(self) -> Self:
        def probe() -> bool:
            if not self.alive():
                raise RuntimeError(f"{self.name} ended with {self.exit_code()} at start:\n{self.tail()}")
            return self.ready()

        eventually(probe, self.deadline, what=f"{self.name} ready")
        return self

    def __enter__(self) -> Self:
        try:
            return self.start().wait_ready()
        except BaseException:
            self.kill()
            raise

    def __exit__(self, *_: object) -> None:
        self.kill()

    @property
    def pid(self) -> int:
        assert self.process is not None, f"{self.name} was not started"
        return self.process.pid

    def alive(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def exit_code(self) -> int | None:
        return None if self.process is None else self.process.poll()

    def wait(self, deadline: float = 10.0) -> int:
        """Wait for it to end by itself; return its exit code. `ending` is then how long that took."""
        pids = (self.pid, *(child.pid for child in _family(self.pid)))
        self.ending = Span.until(
            lambda: not self.alive(), *pids, deadline=deadline, every=0.02, what=f"end of {self.name}"
        )
        self._forget()
        code = self.exit_code()
        assert code is not None
        return code

    def stop(self, sig: signal.Signals = signal.SIGTERM, deadline: float = 15.0) -> int:
        """Ask it to end, as an init system would: a signal to the main process only."""
        os.kill(self.pid, sig)
        return self.wait(deadline)

    def kill(self) -> None:
        """End it and its children now, whatever state it is in."""
        if self.process is not None and self.process.poll() is None:
            family = _family(self.process.pid)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            for child in family:
                with contextlib.suppress(psutil.NoSuchProcess):
                    child.kill()
            self.process.wait(BUSY_FACTOR * 10)
        self._forget()

    def pause(self) -> None:
        """Freeze it (SIGSTOP): connections stay open and nobody answers."""
        self._signal_all(signal.SIGSTOP)

    def resume(self) -> None:
        self._signal_all(signal.SIGCONT)

    def _signal_all(self, sig: signal.Signals) -> None:
        for process in (psutil.Process(self.pid), *_family(self.pid)):
            process.send_signal(sig)

    def _forget(self) -> None:
        if self in running:
            running.remove(self)

    # log

    def text(self) -> str:
        return self.log.read_text(errors="replace") if self.log.exists() else ""

    def tail(self, lines: int = 60) -> str:
        return "\n".join(self.text().splitlines()[-lines:])


@contextlib.contextmanager
def side_by_side(*processes: Process) -> Iterator[None]:
    """Start them at the same time, go on when all are ready, and end them."""
    with contextlib.ExitStack() as stack:
        for process in processes:
            stack.callback(process.kill)
            process.start()
        for process in processes:
            process.wait_ready()
        yield


def communicate(
    process: subprocess.Popen[str], deadline: float = 10.0, what: str = "end"
) -> tuple[str, str, Span]:
    """Return what a process still prints until it ends by itself, and the time that it took."""

    outputs: tuple[str, str] | None = None

    def has_ended() -> bool:
        nonlocal outputs
        with contextlib.suppress(subprocess.TimeoutExpired):
            outputs = process.communicate(timeout=0.05)
        return outputs is not None

    with process:
        try:
            span = Span.until(has_ended, process.pid, deadline=deadline, every=0, what=what)
        except BaseException:
            process.kill()
            raise
    assert outputs is not None
    return *outputs, span


def _family(pid: int) -> list[psutil.Process]:
    try:
        return psutil.Process(pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []
