"""--event-log: a line for each transition, through rotations, full disks and readers that do not read."""

from __future__ import annotations

import contextlib
import json
import os
import re
import resource
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import jsonschema
import pytest
from harness.broker_marks import on_redis
from harness.exporter import Exporter, run_cli
from harness.processes import ROOT, Process, need
from harness.sinks import exposed, outcomes, publish, send_mixed_tasks
from harness.waiting import BUSY_FACTOR, eventually, until_equal

SCHEMA = json.loads((ROOT / "docs/reference/event-log.schema.json").read_text())
UNREACHABLE_URL = "redis://127.0.0.1:1/0"
#: Seconds of the last flush and of the rest of a shutdown, see `sinks.pusher` and `app`.
MAX_STOP_SECONDS = 5.5 + 2
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount")


def lines(*paths: Path) -> list[dict]:
    """Return the objects of files; none of a file that does not exist yet. Each line is complete."""
    content = b"".join(path.read_bytes() for path in paths if path.exists())
    assert content[-1:] in {b"\n", b""}
    return [json.loads(line) for line in content.splitlines()]


def counts(objects: list[dict]) -> dict[tuple[str, ...], int]:
    return Counter((line["state"], line["task_name"], line.get("queue_name", "")) for line in objects)


def is_written(app: Exporter, records: int) -> Callable[[], bool]:
    """Return whether all of so many records have an outcome."""
    return lambda: sum(outcomes(app, "event_log").values()) == records


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "logs" / "events.jsonl"


@pytest.fixture
def logging(exporter, path):
    """`logging()` returns an exporter that writes an event log."""
    path.parent.mkdir()
    return lambda *arguments, **options: exporter("--event-log", str(path), *arguments, **options)


# -- lines ---------------------------------------------------------------------------------------------


def test_lines_are_as_many_as_the_metrics_say(running, logging, worker, client, path):
    """Real workers, with retries and failures. Each line is valid by the schema."""
    app = running(logging()).connected()
    running(worker("w@box", queues="left,right"))
    send_mixed_tasks(client)
    eventually(lambda: app.total("celery_tasks_total", state="FAILURE") >= 2, 30)
    until_equal(lambda: app.total("celery_tasks_total", state="SUCCESS"), 3, 30)
    until_equal(
        lambda: counts(lines(path)), exposed(app, "state", "task_name", "queue_name"), 20
    )  # they are in /metrics before the file
    until_equal(lambda: outcomes(app, "event_log"), {"delivered": len(lines(path))})
    for line in lines(path):
        jsonschema.validate(line, SCHEMA)
    (failure,) = [line for line in lines(path) if line.get("exception") == "ValueError"]
    assert failure["worker"] == "w@box"
    assert failure["received"] <= failure["started"] <= failure["sent"] + 60, "task-sent follows the message"
    assert failure["runtime_seconds"] >= 0
    retried = [line for line in lines(path) if line["task_name"] == "tasks.retry_once"]
    assert {(line["state"], line["retries"]) for line in retried} >= {("RETRY", 0), ("SUCCESS", 1)}
    assert len({line["uuid"] for line in retried}) == 1


@on_redis
def test_arguments_are_recorded_on_request_only(running, logging, worker, client, path):
    app = running(logging("--record-arguments")).connected()
    running(worker())
    client.send_task("tasks.fail_with_value_error", args=("pässword",))
    until_equal(lambda: app.total("celery_tasks_total", state="FAILURE"), 1, 20)
    eventually(lambda: [line for line in lines(path) if line["state"] == "FAILURE"])
    (line,) = [line for line in lines(path) if line["state"] == "FAILURE"]
    assert (line["args"], line["kwargs"]) == ("('pässword',)", "{}")
    jsonschema.validate(line, SCHEMA)
    app.stop_cleanly()
    path.unlink()
    app = running(logging()).connected()
    client.send_task("tasks.fail_with_value_error", args=("pässword",))
    until_equal(lambda: app.total("celery_tasks_total", state="FAILURE"), 1, 20)
    eventually(lambda: [line for line in lines(path) if line["state"] == "FAILURE"])
    assert "pässword" not in path.read_text()


@on_redis
def test_a_restart_appends(running, logging, broker, path):
    for number in range(3):
        app = running(logging()).connected()
        publish(broker.url, number)
        eventually(is_written(app, 4))
        app.stop_cleanly()
    assert Counter(line["uuid"] for line in lines(path)) == {f"task-{number}": 4 for number in range(3)}


@on_redis
def test_the_last_lines_are_written_at_the_end(running, logging, broker, path):
    app = running(logging("--sink-flush-interval", "60")).connected()
    publish(broker.url, *range(10))
    until_equal(lambda: app.total("celery_tasks_total", state="SUCCESS"), 10)
    app.stop_cleanly()
    assert len(lines(path)) == 40


@on_redis
def test_stdout_has_the_lines_and_stderr_the_log(broker, tmp_path):
    with PipedExporter(tmp_path / "piped", broker.url, "--event-log", "-") as app:
        app.connected()
        publish(broker.url, 1, 2)
        eventually(is_written(app, 8))
        os.kill(app.pid, signal.SIGHUP)  # stops it: there is no file to open again
        assert app.wait() == 0
        objects = [json.loads(line) for line in app.process.stdout.read().splitlines()]
    assert counts(objects) == dict.fromkeys(
        [(state, "made.up", "made") for state in ("PENDING", "RECEIVED", "STARTED", "SUCCESS")], 2
    )
    assert "level=info" in app.text()


class PipedExporter(Exporter):
    """An exporter whose stdout is a pipe that the test may read. Its log has stderr only."""

    def start(self) -> PipedExporter:
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                self.command(),
                cwd=self.folder,
                env=self.environment(),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                start_new_session=True,
            )
        return self


# -- rotation ------------------------------------------------------------------------------------------


class Tail(Process):
    """`tail -F`, as a log shipper follows a file."""

    name = "tail"

    def __init__(self, folder: Path, path: Path) -> None:
        super().__init__(folder)
        self.path = path

    def command(self) -> list[str]:
        output = self.folder / "shipped"
        tail = f"{need('tail')} -n +1 -F --sleep-interval 0.1 --max-unchanged-stats 1"  # by default 5 s
        return ["sh", "-c", f'exec {tail} "$0" >"$1"', str(self.path), str(output)]

    def shipped(self) -> list[dict]:
        """Return the objects of the lines that it has read to their end."""
        output = self.folder / "shipped"
        text = output.read_bytes() if output.exists() else b""
        return [json.loads(line) for line in text.rpartition(b"\n")[0].splitlines()]


@on_redis
def test_logrotate_and_a_shipper_lose_and_repeat_no_line(running, logging, broker, path, tmp_path):
    """With the configuration of docs/how-to/event-log.md."""
    app = running(logging("--sink-flush-interval", "0.1")).connected()
    tail = running(Tail(tmp_path / "tail", path))
    text = (ROOT / "docs/how-to/event-log.md").read_text()
    block = re.search(r"```logrotate.*?\n(.*?)```", text, re.DOTALL)[1]
    config = tmp_path / "logrotate.conf"
    config.write_text(block.replace("/var/log/celery-exporter/events.jsonl", str(path)))
    config.chmod(0o644)
    path.parent.chmod(0o755)
    for number in range(4):
        publish(broker.url, number)
        eventually(is_written(app, 4 * (number + 1)))
        until_equal(lambda: len(tail.shipped()), 4 * (number + 1))
        command = [need("logrotate"), "--force", "--state", tmp_path / "status", config]
        subprocess.run(command, check=True)
        assert not path.exists()
    publish(broker.url, 4)
    eventually(is_written(app, 20))
    until_equal(lambda: len(tail.shipped()), 20)
    assert len({(line["uuid"], line["state"]) for line in tail.shipped()}) == 20
    assert len(lines(path)) == 4
    assert len(lines(path.with_name("events.jsonl.1"))) == 4
    zipped = subprocess.run(
        ["zcat", *sorted(path.parent.glob("*.gz"))], capture_output=True, text=True, check=True
    )
    assert len(zipped.stdout.splitlines()) == 12


@on_redis
def test_sighup_opens_the_file_again_and_does_not_end_the_exporter(running, logging, broker, path):
    app = running(logging()).connected()
    publish(broker.url, 1)
    eventually(is_written(app, 4))
    path.rename(path.with_suffix(".1"))
    for _ in range(3):
        os.kill(app.pid, signal.SIGHUP)
    publish(broker.url, 2)
    eventually(is_written(app, 8))
    assert [len(lines(file)) for file in (path.with_suffix(".1"), path)] == [4, 4]
    app.stop_cleanly()


# -- what cannot be written ----------------------------------------------------------------------------


@contextlib.contextmanager
def small_disk(folder: Path, size: str) -> Iterator[None]:
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


@needs_root
@on_redis
def test_a_full_disk_drops_and_counts_lines_until_there_is_space(running, logging, broker, path, tmp_path):
    """No line is torn in the end, a shipper reads each once, and the accounts agree with the file."""
    app = logging("--sink-flush-interval", "0.1")
    with small_disk(path.parent, "64k"):
        running(app).connected()
        tail = running(Tail(tmp_path / "tail", path))
        filler = path.with_name("filler")
        publish(broker.url, 0)
        eventually(is_written(app, 4))
        publish(broker.url, *range(1, 100))
        eventually(is_written(app, 400))
        assert outcomes(app, "event_log")["not_written"] > 0
        assert b"\n" not in path.read_bytes()[-1:], "a tmpfs of 64 KiB ends within a line"
        assert app.get("/-/healthy").status == 200
        eventually(lambda: "No space left on device" in app.text())
        subprocess.run(["mount", "-o", "remount,size=1m", path.parent], check=True)
        publish(broker.url, 100)
        eventually(is_written(app, 404))
        assert not filler.exists()
        until_equal(lambda: outcomes(app, "event_log")["delivered"], len(lines(path)))
        assert [line["uuid"] for line in lines(path)][-4:] == ["task-100"] * 4
        until_equal(tail.shipped, lines(path))
        assert outcomes(app, "event_log").keys() == {"delivered", "not_written"}
        app.stop_cleanly()
        tail.kill()


@on_redis
def test_a_file_that_may_not_grow_drops_and_counts_lines(running, logging, broker, path):
    """The same for users who are not root, with a limit of the process in place of a small disk."""
    app = running(logging("--sink-flush-interval", "0.1", wrapper=("prlimit", "--fsize=20000:unlimited")))
    app.connected()
    publish(broker.url, *range(100))
    eventually(is_written(app, 400))
    assert path.stat().st_size == 20_000
    resource.prlimit(app.pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    publish(broker.url, 100)
    eventually(is_written(app, 404))
    until_equal(lambda: outcomes(app, "event_log")["delivered"], len(lines(path)))
    assert outcomes(app, "event_log")["not_written"] == 404 - len(lines(path))


@on_redis
def test_a_full_device_counts_all_lines(running, exporter, broker):
    app = running(exporter("--event-log", "/dev/full")).connected()
    publish(broker.url, 1)
    until_equal(lambda: outcomes(app, "event_log"), {"not_written": 4})


@on_redis
def test_a_directory_that_does_not_exist_yet_is_waited_for(running, exporter, broker, tmp_path):
    path = tmp_path / "later" / "log"
    app = running(exporter("--event-log", str(path))).connected()
    eventually(lambda: f"directory {path.parent} does not exist" in app.text())
    publish(broker.url, 1)
    until_equal(lambda: app.value("celery_exporter_sink_buffered_records"), 4)
    path.parent.mkdir()
    eventually(is_written(app, 4), 60)
    assert len(lines(path)) == 4


@on_redis
def test_a_file_without_permission_is_waited_for(running, logging, broker, path):
    """Root may open any file, unless it gives up the capability to do so."""
    is_root = os.geteuid() == 0
    app = logging(wrapper=("setpriv", "--bounding-set=-dac_override,-dac_read_search") if is_root else ())
    path.touch(mode=0o400)
    if is_root:
        os.chown(path, 65_534, -1)
    running(app).connected()
    eventually(lambda: f"cannot open {path}: Permission denied" in app.text())
    publish(broker.url, 1)
    until_equal(lambda: app.value("celery_exporter_sink_buffered_records"), 4)
    path.chmod(0o666)
    eventually(is_written(app, 4), 60)
    assert len(lines(path)) == 4


@pytest.mark.parametrize(
    ("name", "message"),
    [("folder", "is a directory; it takes the path of a file, or -"), ("file/log", "Not a directory")],
)
def test_a_path_that_can_never_be_written_to_ends_the_start(tmp_path, name, message):
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    result = run_cli("--broker-url", UNREACHABLE_URL, "--event-log", str(tmp_path / name))
    assert result.returncode == 2
    assert result.stderr.startswith("celery-exporter: --event-log: ")
    assert message in result.stderr
    assert result.stderr.count("\n") == 1


# -- readers that do not read --------------------------------------------------------------------------


def check_metrics_and_stop(app: Exporter, tasks: int) -> None:
    """Check that /metrics answers, that records wait, and that the exporter stops in time with code 0."""
    begin = time.monotonic()
    assert app.total("celery_tasks_total", state="SUCCESS") == tasks
    assert time.monotonic() - begin < BUSY_FACTOR
    samples = app.samples()
    waiting = samples.value("celery_exporter_sink_buffered_records", sink="event_log")
    assert waiting > 0
    records = samples.total("celery_exporter_sink_records_total", sink="event_log")
    assert waiting + records == samples.total("celery_tasks_total")
    os.kill(app.pid, signal.SIGTERM)
    assert app.wait(MAX_STOP_SECONDS) == 0
    assert app.ending.seconds < MAX_STOP_SECONDS
    assert "were not sent before the end" in app.text()
    assert "Traceback" not in app.text()


@on_redis
def test_a_reader_of_stdout_that_does_not_read_holds_up_nothing_else(broker, tmp_path):
    with PipedExporter(tmp_path / "piped", broker.url, "--event-log", "-") as app:
        app.connected()
        for start in range(0, 1_000, 100):
            publish(broker.url, *range(start, start + 100))
        until_equal(lambda: app.total("celery_tasks_total", state="SUCCESS"), 1_000, 20)
        check_metrics_and_stop(app, 1_000)
        whole = app.process.stdout.read().splitlines()[:-1]  # the last one may be torn
        assert all(json.loads(line) for line in whole)


@on_redis
def test_a_fifo_without_a_reader_holds_up_nothing_else(running, exporter, broker, tmp_path):
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    app = running(exporter("--event-log", str(fifo))).connected()
    eventually(lambda: "no process reads this FIFO" in app.text())
    publish(broker.url, *range(10))
    until_equal(lambda: app.total("celery_tasks_total", state="SUCCESS"), 10)
    check_metrics_and_stop(app, 10)


@on_redis
def test_a_fifo_gets_what_waited_for_its_reader(running, exporter, broker, tmp_path):
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    app = running(exporter("--event-log", str(fifo))).connected()
    publish(broker.url, *range(100))
    until_equal(lambda: app.value("celery_exporter_sink_buffered_records"), 400)
    with subprocess.Popen(["cat", fifo], stdout=(tmp_path / "read").open("wb")) as reader:
        eventually(is_written(app, 400), 60)
        app.stop_cleanly()
        assert reader.wait(60) == 0
    assert len(lines(tmp_path / "read")) == 400
