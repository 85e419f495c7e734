"""sd_notify, as systemd hears it: a real socket, and the real process at its other end."""

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

WATCHDOG = 0.8  # seconds until systemd would act
EVERY = WATCHDOG / 2


class Manager:
    """systemd's end of the socket."""

    def __init__(self, bound: socket.socket, name: str) -> None:
        self.socket = bound
        self.name = name
        bound.settimeout(ANSWER_TIMEOUT)

    def next(self) -> str:
        return self.socket.recv(4096).decode()

    def next_in(self, seconds: float) -> str | None:
        """Return what comes within so many seconds, or None."""
        self.socket.settimeout(seconds)
        try:
            return self.next()
        except TimeoutError:
            return None
        finally:
            self.socket.settimeout(ANSWER_TIMEOUT)

    def environment(self, seconds: float | None = WATCHDOG) -> dict[str, str]:
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
    """The broker is not there: what systemd is to know is that the process does its part."""
    app = exporter(tmp_path, manager.environment())
    try:
        app.start()
        assert manager.next() == "READY=1"
        assert app.get("/-/healthy").status == 200, "it said that it serves"
        assert [manager.next() for _ in range(5)] == ["WATCHDOG=1"] * 5
        app.stop_cleanly()
    finally:
        app.kill()
    rest = [manager.next()]
    while rest[-1] == "WATCHDOG=1":
        rest.append(manager.next())
    assert rest[-1] == "STOPPING=1"


def test_signs_of_life_come_at_half_the_time_that_systemd_waits(tmp_path, running, manager):
    app = running(exporter(tmp_path, manager.environment(2.0)))
    assert [manager.next(), manager.next()] == ["READY=1", "WATCHDOG=1"]
    gaps = []
    for _ in range(5):  # the first may have waited for us
        with TimeSpan(app.pid) as span:
            assert manager.next() == "WATCHDOG=1"
        gaps.append(span)
    assert median(gap.elapsed_seconds for gap in gaps) > 0.8, gaps
    assert median(gap.seconds for gap in gaps) < 1.6, gaps


def test_a_stuck_event_loop_gives_no_sign_of_life(tmp_path, running, manager):
    """Its thread reads a file that does not come, and all others go on: as with one on a dead NFS server."""
    app = WebConfigExporter(tmp_path / "exporter")
    app.extra = manager.environment()
    running(app)
    assert [manager.next(), manager.next()] == ["READY=1", "WATCHDOG=1"]
    os.mkfifo(pipe := tmp_path / "pipe")
    pipe.replace(app.file)  # at once: a file that was missing in between would not be read again
    with pytest.raises(TimeoutError):  # this request makes it look at the file
        app.get("/-/healthy", timeout=1)
    eventually(lambda: manager.next_in(5 * EVERY) is None)  # some were under way
    before = turns_of_the_main_thread(app)
    eventually(lambda: turns_of_the_main_thread(app) > before, what="the process lives, but for its loop")
    assert manager.next_in(EVERY) is None
    app.file.write_text("{}\n")
    assert manager.next() == "WATCHDOG=1", "the loop turns again"


def turns_of_the_main_thread(app: Exporter) -> int:
    """Return how often it went to sleep by itself: it looks every second whether the server lives."""
    status = Path(f"/proc/{app.pid}/status").read_text()
    return int(re.search(r"^voluntary_ctxt_switches:\s*(\d+)", status, re.MULTILINE)[1])


def test_without_a_watchdog_it_says_only_when_it_begins_and_ends(tmp_path, running, manager):
    app = running(exporter(tmp_path, manager.environment(None)))
    assert manager.next() == "READY=1"
    assert manager.next_in(1) is None
    app.stop_cleanly()
    assert manager.next() == "STOPPING=1"


def test_a_watchdog_that_is_meant_for_another_process(tmp_path, running, manager):
    """WATCHDOG_PID names it: a script round us, say, which passed its environment on."""
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
    """Nothing of it may keep the exporter from running."""
    running(exporter(tmp_path, environment)).stop_cleanly()


def test_a_socket_that_nobody_holds_is_told_in_the_log(tmp_path, running):
    """systemd will end what it does not hear of; then this line says why."""
    app = running(exporter(tmp_path, {"NOTIFY_SOCKET": str(tmp_path / "nosuch")}))
    eventually(lambda: "cannot notify systemd of READY=1" in app.text())


def test_a_manager_that_does_not_read_holds_nobody_up(tmp_path, running, manager):
    """Its queue of datagrams is full: requests are answered all the same."""
    full = 0
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as other:
        other.setblocking(False)
        try:
            while True:
                other.sendto(b"x", manager.socket.getsockname())
                full += 1
        except BlockingIOError:
            assert full
    app = running(exporter(tmp_path, manager.environment(0.1)))
    for _ in range(5):
        assert app.get("/-/healthy").status == 200
    app.stop_cleanly()
