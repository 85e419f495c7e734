"""A process that a test starts and ends: the base class of servers, workers and the exporter."""

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

from harness.time_spans import TimeSpan
from harness.waiting import ANSWER_TIMEOUT, BUSY_FACTOR, eventually

if TYPE_CHECKING:
    from typing import Self

ROOT = Path(__file__).resolve().parents[2]
TESTS = ROOT / "tests"
#: Folders of system programs on Debian, which are not on every user's PATH.
SYSTEM_PATH = ("/usr/lib/rabbitmq/bin", "/usr/sbin", "/sbin")

running: list[Process] = []  # conftest.py adds their logs to the report of a failed test
LOWEST_PORT, PORTS_PER_PROCESS = 10_000, 500
EPHEMERAL_PORT_RANGE = Path("/proc/sys/net/ipv4/ip_local_port_range")


@functools.cache
def _reserved_ports() -> Iterator[int]:
    """Reserve ports for this process until it ends, and yield them in turn, endlessly.

    The kernel uses the ports above them for outgoing connections, so a server cannot rely on those. The
    name of an abstract socket reserves a block against other runs of these tests on this machine.
    """
    highest = int(EPHEMERAL_PORT_RANGE.read_text().split()[0])
    blocks = range(LOWEST_PORT, highest - PORTS_PER_PROCESS, PORTS_PER_PROCESS)
    for first in random.sample(blocks, len(blocks)):
        lock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        try:
            lock.bind(f"\0celery-exporter-tests-{first}")
        except OSError:
            lock.close()
            continue
        _port_locks.append(lock)
        return itertools.cycle(range(first, first + PORTS_PER_PROCESS))
    pytest.fail(f"other runs of the tests have reserved all {len(blocks)} blocks of ports below {highest}")


_port_locks: list[socket.socket] = []


def free_port() -> int:
    """Return a free TCP port of 127.0.0.1 that this function has not returned recently."""
    for port in itertools.islice(_reserved_ports(), PORTS_PER_PROCESS):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    pytest.fail(f"all {PORTS_PER_PROCESS} reserved ports are in use")


def missing(what: str) -> NoReturn:
    """Skip the test for a missing program; fail it in CI."""
    (pytest.fail if os.environ.get("CI") else pytest.skip)(f"{what} is not installed")


def need(command: str) -> str:
    """Return the full path of a program; skip the test, or fail it in CI, if it is missing."""
    venv = str(Path(sys.executable).parent)  # which need not be activated
    path = os.pathsep.join((venv, *SYSTEM_PATH, os.environ.get("PATH", "")))
    return shutil.which(command, path=path) or missing(command)


def listening(port: int) -> bool:
    """Return whether a process accepts connections on this port of 127.0.0.1."""
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=ANSWER_TIMEOUT):
        return True
    return False


class Process:
    """A child process in its own process group, with its output in a file. `with` starts and ends it."""

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

    # -- start and end -----------------------------------------------------------------------------------

    def start(self) -> Self:
        """Start it without waiting until it is ready."""
        assert not self.alive(), f"{self.name} is already running"
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
            self.__exit__()
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
        """Wait until it ends by itself; return its exit code. `ending` is then the time that it took."""
        pids = (self.pid, *(child.pid for child in _family(self.pid)))
        self.ending = TimeSpan.until(
            lambda: not self.alive(), *pids, deadline=deadline, every=0.02, what=f"end of {self.name}"
        )
        self._remove_from_running()
        code = self.exit_code()
        assert code is not None
        return code

    def stop(self, sig: signal.Signals = signal.SIGTERM, deadline: float = 15.0) -> int:
        """Send a signal to the main process only, as an init system does; return the exit code."""
        os.kill(self.pid, sig)
        return self.wait(deadline)

    def kill(self) -> None:
        """Kill it and its children, in any state."""
        if self.process is not None and self.process.poll() is None:
            family = _family(self.process.pid)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            for child in family:
                with contextlib.suppress(psutil.NoSuchProcess):
                    child.kill()
            self.process.wait(BUSY_FACTOR * 10)
        self._remove_from_running()

    def pause(self) -> None:
        """Stop it with SIGSTOP: its connections stay open without answers."""
        self._signal_all(signal.SIGSTOP)

    def resume(self) -> None:
        self._signal_all(signal.SIGCONT)

    def _signal_all(self, sig: signal.Signals) -> None:
        for process in (psutil.Process(self.pid), *_family(self.pid)):
            process.send_signal(sig)

    def _remove_from_running(self) -> None:
        if self in running:
            running.remove(self)

    # -- log -----------------------------------------------------------------------------------------------

    def text(self) -> str:
        return self.log.read_text(errors="replace") if self.log.exists() else ""

    def tail(self, lines: int = 60) -> str:
        return "\n".join(self.text().splitlines()[-lines:])


@contextlib.contextmanager
def side_by_side(*processes: Process) -> Iterator[None]:
    """Start processes at the same time, wait until all are ready, and kill them at the end."""
    with contextlib.ExitStack() as stack:
        for process in processes:
            stack.callback(process.kill)
            process.start()
        for process in processes:
            process.wait_ready()
        yield


def communicate(
    process: subprocess.Popen[str], deadline: float = 10.0, what: str = "end"
) -> tuple[str, str, TimeSpan]:
    """Return the rest of stdout and stderr until a process ends by itself, and the time that it took."""
    outputs: tuple[str, str] | None = None

    def has_ended() -> bool:
        nonlocal outputs
        with contextlib.suppress(subprocess.TimeoutExpired):
            outputs = process.communicate(timeout=0.05)
        return outputs is not None

    with process:
        try:
            span = TimeSpan.until(has_ended, process.pid, deadline=deadline, every=0, what=what)
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
