"""The event log: where it writes to, and what becomes of lines that its output does not take."""

from __future__ import annotations

import json
import os
import socket
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from harness.waiting import eventually

from celery_exporter.core.records import MeasuredRecord, Measurements, Record
from celery_exporter.core.snapshot import SinkView
from celery_exporter.errors import BadSettingError
from celery_exporter.sinks.base import DELIVERED, NOT_WRITTEN, PermanentError, TemporaryError
from celery_exporter.sinks.event_log import STDOUT, EventLogSink
from celery_exporter.sinks.pusher import Pusher

from .test_line_writer import file_size_limit
from .transitions import T0, transition


def records(*names: str) -> list[Record]:
    return [transition(uuid=name) for name in names]


def send(sink: EventLogSink, *names: str) -> None:
    sink.send(sink.encode(records(*names)).body, 1.0)


def uuids(path: Path) -> list[str]:
    return [json.loads(line)["uuid"] for line in path.read_bytes().splitlines()]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "events.jsonl"


@pytest.fixture
def sink(path: Path):
    sink = EventLogSink(path)
    yield sink
    sink.close()


def test_transitions_are_wanted_and_measurements_are_not(sink):
    record, measured = transition(), MeasuredRecord("u", None, "n", "w", T0, Measurements())
    assert sink.select([record, measured]) == [record]


def test_lines_are_appended_also_after_a_restart(sink, path):
    send(sink, "u1", "u2")
    sink.close()
    again = EventLogSink(path)
    send(again, "u3")
    again.close()
    assert uuids(path) == ["u1", "u2", "u3"]


def test_the_group_can_read_a_new_file_and_an_existing_one_keeps_its_mode(sink, path, tmp_path):
    send(sink, "u1")
    umask = os.umask(0)
    os.umask(umask)
    assert stat.S_IMODE(path.stat().st_mode) == 0o640 & ~umask
    (tmp_path / "own").touch(mode=0o600)
    own = EventLogSink(tmp_path / "own")
    send(own, "u1")
    own.close()
    assert stat.S_IMODE((tmp_path / "own").stat().st_mode) == 0o600


def test_a_file_that_was_moved_away_is_opened_again(sink, path):
    send(sink, "u1")
    path.rename(path.with_suffix(".1"))
    send(sink, "u2")
    path.unlink()
    send(sink, "u3")
    assert uuids(path.with_suffix(".1")) == ["u1"]
    assert uuids(path) == ["u3"]


def test_a_file_is_opened_again_on_request(sink, path):
    send(sink, "u1")
    descriptors = len([*Path("/proc/self/fd").iterdir()])
    sink.reopen()
    send(sink, "u2")
    assert uuids(path) == ["u1", "u2"]
    assert len([*Path("/proc/self/fd").iterdir()]) == descriptors


def test_a_link_that_leads_to_another_file_is_followed(tmp_path):
    link = tmp_path / "link"
    link.symlink_to("one")
    sink = EventLogSink(link)
    send(sink, "u1")
    link.unlink()
    link.symlink_to("two")
    send(sink, "u2")
    sink.close()
    assert (uuids(tmp_path / "one"), uuids(tmp_path / "two")) == (["u1"], ["u2"])


# -- what cannot be written ----------------------------------------------------------------------------


def test_a_full_disk_loses_the_lines_that_were_not_begun_and_counts_them(sink, path):
    send(sink, "u1")
    size = path.stat().st_size
    with file_size_limit(size * 2 + 10), pytest.raises(PermanentError) as lost:
        send(sink, "u2", "u3", "u4", "u5")
    assert (lost.value.outcome, lost.value.count) == (NOT_WRITTEN, 2)
    assert str(lost.value) == f"cannot write to {path}: File too large; lines are lost"
    assert path.read_bytes()[-1:] != b"\n", "the line of u3 is torn"
    send(sink, "u6")
    assert uuids(path) == ["u1", "u2", "u3", "u6"]


def test_a_line_is_completed_before_the_file_is_left(sink, path):
    send(sink, "u1")
    with file_size_limit(path.stat().st_size + 10), pytest.raises(PermanentError):
        send(sink, "u2", "u3")
    path.rename(path.with_suffix(".1"))
    send(sink, "u4")
    assert (uuids(path.with_suffix(".1")), uuids(path)) == (["u1", "u2"], ["u4"])


def test_a_line_that_cannot_be_completed_is_logged(path, caplog):
    sink = EventLogSink(path)
    send(sink, "u1")
    with file_size_limit(path.stat().st_size + 10):
        with pytest.raises(PermanentError):
            send(sink, "u2")
        sink.close()
    assert caplog.messages == [f"the last line of {path} is not complete"]


def test_a_device_that_is_full_loses_all_lines():
    sink = EventLogSink(Path("/dev/full"))
    with pytest.raises(PermanentError, match="No space left on device; lines are lost") as lost:
        send(sink, "u1", "u2", "u3")
    assert lost.value.count == 3
    sink.close()


def test_a_directory_that_does_not_exist_yet_is_waited_for(tmp_path):
    path = tmp_path / "later" / "log"
    sink = EventLogSink(path)
    with pytest.raises(
        TemporaryError, match=rf"^cannot open {path}: directory {path.parent} does not exist$"
    ):
        send(sink, "u1")
    path.parent.mkdir()
    send(sink, "u1")
    sink.close()
    assert uuids(path) == ["u1"]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (Path.mkdir, "is a directory; it takes the path of a file, or -"),
        (lambda path: socket.socket(socket.AF_UNIX).bind(str(path)), "is no regular file"),
        (lambda path: path.symlink_to(path), "Too many levels of symbolic links"),
    ],
    ids=["directory", "socket", "link to itself"],
)
def test_a_path_that_can_never_be_written_to_is_an_error_at_start(tmp_path, make, message):
    path = tmp_path / "x"
    make(path)
    with pytest.raises(BadSettingError, match=message) as error:
        EventLogSink(path)
    assert str(error.value).startswith("--event-log: ")
    assert str(path) in str(error.value)


def test_a_path_below_a_file_is_an_error_at_start(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(BadSettingError, match="Not a directory"):
        EventLogSink(tmp_path / "file" / "log")


# -- FIFOs ---------------------------------------------------------------------------------------------


@pytest.fixture
def fifo(tmp_path: Path) -> Path:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    return fifo


def test_a_fifo_without_a_reader_waits_for_one(fifo):
    sink = EventLogSink(fifo)
    body = sink.encode(records("u1")).body
    for _ in range(2):
        with pytest.raises(TemporaryError, match=rf"^cannot open {fifo}: no process reads this FIFO$"):
            sink.send(body, 1.0)
    end = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    sink.send(body, 1.0)
    assert os.read(end, 65_536) == body
    os.close(end)
    with pytest.raises(TemporaryError, match="has no reader any more"):
        sink.send(body, 1.0)
    end = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    sink.send(body, 1.0)
    assert os.read(end, 65_536) == body
    os.close(end)
    sink.close()


def test_a_fifo_whose_reader_does_not_read_gets_each_line_once(fifo):
    sink = EventLogSink(fifo)
    end = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    body = sink.encode(records(*(f"u{number}" for number in range(1_000)))).body
    got = b""
    for _ in range(100):
        try:
            sink.send(body, 0.01)
            break
        except TemporaryError as error:
            assert str(error) == f"{fifo} takes no data: its reader does not read"  # noqa: PT017
        got += os.read(end, 50_000)
    os.set_blocking(end, True)
    sink.close()
    while data := os.read(end, 65_536):
        got += data
    os.close(end)
    assert got == body


# -- probes --------------------------------------------------------------------------------------------


def test_a_probe_creates_no_file(sink, path):
    sink.probe(1.0)
    assert not path.exists()
    send(sink, "u1")
    sink.probe(1.0)
    assert uuids(path) == ["u1"]


def test_a_probe_says_why_a_path_cannot_be_opened(tmp_path, fifo):
    with pytest.raises(TemporaryError, match="does not exist"):
        EventLogSink(tmp_path / "nosuch" / "log").probe(1.0)
    with pytest.raises(TemporaryError, match="no process reads"):
        EventLogSink(fifo).probe(1.0)


def test_a_probe_leaves_a_fifo_open_for_its_reader(fifo):
    end = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    sink = EventLogSink(fifo)
    sink.probe(1.0)
    with pytest.raises(BlockingIOError):  # neither data nor the end
        os.read(end, 1)
    sink.close()
    assert os.read(end, 1) == b""
    os.close(end)


# -- stdout --------------------------------------------------------------------------------------------

ON_STDOUT = """
import sys
from celery_exporter.sinks.event_log import STDOUT, EventLogSink
from unit.sinks.transitions import transition
sink = EventLogSink(STDOUT)
assert sink.reopen is None
for uuid in sys.argv[1:]:
    sink.send(sink.encode([transition(uuid=uuid)]).body, 30.0)
sink.close()
print("closed", file=sys.stderr)
"""


def run_on_stdout(*uuids: str, **options) -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, "-c", ON_STDOUT, *uuids]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    return subprocess.run(command, env=environment, check=False, stderr=subprocess.PIPE, **options)


def test_stdout_can_be_a_pipe_or_a_file(tmp_path):
    piped = run_on_stdout("u1", "u2", stdout=subprocess.PIPE)
    assert [json.loads(line)["uuid"] for line in piped.stdout.splitlines()] == ["u1", "u2"]
    with (tmp_path / "out").open("wb") as file:
        run_on_stdout("u1", "u2", stdout=file)
    assert (tmp_path / "out").read_bytes() == piped.stdout


def test_stdout_without_a_reader_loses_the_lines():
    end, descriptor = os.pipe()
    os.close(end)
    result = run_on_stdout("u1", stdout=descriptor)
    os.close(descriptor)
    assert b"cannot write to stdout: Broken pipe; lines are lost" in result.stderr


def test_a_closed_stdout_is_an_error_at_start(monkeypatch):
    monkeypatch.setattr(sys, "stdout", None)
    with pytest.raises(BadSettingError, match=r"^--event-log: got '-', but stdout is closed"):
        EventLogSink(STDOUT)


# -- with its pusher -----------------------------------------------------------------------------------


def delivered(view: SinkView) -> dict[str, int]:
    return {outcome: count for outcome, count in view.outcomes.items() if count}


def test_the_accounts_of_a_full_disk_agree_with_the_file(path):
    """The torn line is delivered, because it is completed as soon as there is space."""
    pusher = Pusher(EventLogSink(path), limit=1_000, flush_interval=0.01)
    pusher.start()

    def put(*names: str) -> None:
        pusher.put(records(*names))
        eventually(lambda: pusher.view().buffered == 0)

    put("u1")
    size = path.stat().st_size
    with file_size_limit(2 * size + 10):
        put("u2", "u3", "u4")
        put("u5")
        assert pusher.view().error == f"cannot write to {path}: File too large; lines are lost"
    put("u6")
    pusher.stop()
    pusher.join()
    written = uuids(path)
    assert (written[:2], written[-1]) == (["u1", "u2"], "u6")
    assert delivered(pusher.view()) == {DELIVERED: len(written), NOT_WRITTEN: 6 - len(written)}


def test_the_log_says_at_start_that_a_file_cannot_be_opened(tmp_path, caplog):
    pusher = Pusher(EventLogSink(tmp_path / "nosuch" / "log"), limit=10, flush_interval=0.01)
    pusher.start()
    eventually(lambda: "directory" in caplog.text)
    pusher.stop()
    pusher.join()
    assert "sink event_log: cannot open" in caplog.text
