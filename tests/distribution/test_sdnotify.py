"""sd_notify messages on a real socket, from a real process."""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Iterator
from pathlib import Path
from statistics import median

import pytest
from harness.exporter import Exporter
from harness.time_spans import TimeSpan
from harness.waiting import ANSWER_TIMEOUT, eventually
from harness.web_config import WebConfigExporter, unreachable_url

WATCHDOG_SECONDS = 0.8
INTERVAL_SECONDS = WATCHDOG_SECONDS / 2


class Manager:
    """The end of the socket that systemd reads."""

    def __init__(self, bound: socket.socket, name: str) -> None:
        self.socket = bound
        self.name = name
        bound.settimeout(ANSWER_TIMEOUT)

    def next(self) -> str:
        """Return the next message."""
        return self.socket.recv(4096).decode()

    def next_in(self, seconds: float) -> str | None:
        """Return the next message within some seconds, or None."""
        self.socket.settimeout(seconds)
        try:
            return self.next()
        except TimeoutError:
            return None
        finally:
            self.socket.settimeout(ANSWER_TIMEOUT)

    def environment(self, seconds: float | None = WATCHDOG_SECONDS) -> dict[str, str]:
        """Return the variables that systemd sets."""
        watchdog = {} if seconds is None else {"WATCHDOG_USEC": str(int(seconds * 1e6))}
        return {"NOTIFY_SOCKET": self.name, **watchdog}


@pytest.fixture(params=["path", "abstract"])
def manager(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Manager]:
    name = {"path": str(tmp_path / "notify"), "abstract": f"@celery-exporter-{os.getpid()}"}[request.param]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as bound:
        bound.bind(name.replace("@", "\0"))
        yield Manager(bound, name)


def exporter(folder: Path, environment: dict[str, str], **options) -> Exporter:
    return Exporter(folder / "exporter", unreachable_url(), environment=environment, **options)


def test_ready_when_it_serves_then_alive_then_stopping(tmp_path, manager):
    """The broker is down, since systemd should only learn the state of the process."""
    app = exporter(tmp_path, manager.environment())
    try:
        app.start()
        assert manager.next() == "READY=1"
        assert app.get("/-/healthy").status == 200, "READY=1 means that it serves"
        assert [manager.next() for _ in range(5)] == ["WATCHDOG=1"] * 5
        app.stop_cleanly()
    finally:
        app.kill()
    rest = [manager.next()]
    while rest[-1] == "WATCHDOG=1":
        rest.append(manager.next())
    assert rest[-1] == "STOPPING=1"


def test_keep_alive_messages_arrive_at_half_the_watchdog_time(tmp_path, running, manager):
    app = running(exporter(tmp_path, manager.environment(2.0)))
    assert [manager.next(), manager.next()] == ["READY=1", "WATCHDOG=1"]
    gaps = []
    for _ in range(5):  # the first one may have waited in the socket
        with TimeSpan(app.pid) as span:
            assert manager.next() == "WATCHDOG=1"
        gaps.append(span)
    assert median(gap.elapsed_seconds for gap in gaps) > 0.8, gaps
    assert median(gap.seconds for gap in gaps) < 1.6, gaps


def test_a_blocked_event_loop_sends_no_keep_alive_messages(tmp_path, running, manager):
    """Its thread blocks in a read of a file, as on a dead NFS server, and the other threads run."""
    app = WebConfigExporter(tmp_path / "exporter")
    app.extra = manager.environment()
    running(app)
    assert [manager.next(), manager.next()] == ["READY=1", "WATCHDOG=1"]
    os.mkfifo(pipe := tmp_path / "pipe")
    pipe.replace(app.file)  # atomically, because a file that was missing is not read again
    with pytest.raises(TimeoutError):  # the request triggers a check of the file
        app.get("/-/healthy", timeout=1)
    eventually(lambda: manager.next_in(5 * INTERVAL_SECONDS) is None)  # some messages were already sent
    before = turns_of_the_main_thread(app)
    eventually(lambda: turns_of_the_main_thread(app) > before, what="the main thread runs")
    assert manager.next_in(INTERVAL_SECONDS) is None
    app.file.write_text("{}\n")
    assert manager.next() == "WATCHDOG=1", "the event loop runs again"


def turns_of_the_main_thread(app: Exporter) -> int:
    """Return the number of voluntary context switches: the main thread checks the server every second."""
    status = Path(f"/proc/{app.pid}/status").read_text()
    return int(re.search(r"^voluntary_ctxt_switches:\s*(\d+)", status, re.MULTILINE)[1])


def test_without_a_watchdog_it_sends_ready_and_stopping_only(tmp_path, running, manager):
    app = running(exporter(tmp_path, manager.environment(None)))
    assert manager.next() == "READY=1"
    assert manager.next_in(1) is None
    app.stop_cleanly()
    assert manager.next() == "STOPPING=1"


def test_a_watchdog_of_another_process(tmp_path, running, manager):
    """WATCHDOG_PID is that of another process, such as a script that passed on its environment."""
    running(exporter(tmp_path, {**manager.environment(), "WATCHDOG_PID": "1"}))
    assert manager.next() == "READY=1"
    assert manager.next_in(1) is None


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {"NOTIFY_SOCKET": "", "WATCHDOG_USEC": ""},
        {"NOTIFY_SOCKET": "vsock:2:1234"},
        {"WATCHDOG_USEC": "1000000"},
        {"NOTIFY_SOCKET": "@", "WATCHDOG_USEC": "soon"},
    ],
)
def test_no_systemd(tmp_path, running, environment):
    """The exporter runs with missing or invalid variables."""
    running(exporter(tmp_path, environment)).stop_cleanly()


def test_a_missing_socket_is_logged(tmp_path, running):
    """systemd stops a process that does not notify it; the log line gives the reason."""
    app = running(exporter(tmp_path, {"NOTIFY_SOCKET": str(tmp_path / "nosuch")}))
    eventually(lambda: "cannot notify systemd of READY=1" in app.text())


def test_a_manager_that_does_not_read_does_not_block_requests(tmp_path, running, manager):
    """Requests are answered while the datagram queue of the socket is full."""
    datagrams = 0
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as other:
        other.setblocking(False)
        try:
            while True:
                other.sendto(b"x", manager.socket.getsockname())
                datagrams += 1
        except BlockingIOError:
            assert datagrams
    app = running(exporter(tmp_path, manager.environment(0.1)))
    for _ in range(5):
        assert app.get("/-/healthy").status == 200
    app.stop_cleanly()
