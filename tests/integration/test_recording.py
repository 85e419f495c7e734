"""`record` and `replay`: a replay of recorded events has the same counts."""

import gzip
import json
import signal
import sys
import time
from pathlib import Path

import amqp
import kombu
import pytest
import redis
from harness.broker_marks import on_rabbitmq, on_redis
from harness.configs import broker_config
from harness.events import publish_event_bytes, publish_events, task_events
from harness.exporter import clean_environment, run_cli
from harness.processes import Process
from harness.servers import RedisServer
from harness.waiting import eventually, until_equal

from celery_exporter.broker.message import Message
from celery_exporter.recording.commands import replay
from celery_exporter.recording.format import Record, RecordingReader, RecordingWriter

TASKS = 20


class Recorder(Process):
    name = "record"

    def __init__(self, folder: Path, url: str, *arguments: str) -> None:
        super().__init__(folder)
        self.file = folder / "events"
        self.extra: dict[str, str] = {}
        self.arguments = [str(self.file), "--broker-url", url, *arguments]

    def command(self) -> list[str]:
        return [sys.executable, "-m", "celery_exporter", "record", *self.arguments]

    def environment(self) -> dict[str, str]:
        return clean_environment(self.extra)

    def ready(self) -> bool:
        return "recording from" in self.text()


@pytest.fixture
def recorded(running, exporter, worker, client, broker, tmp_path):
    """`recorded(*arguments)` records events of tasks; it returns their counts and the recording."""

    def record(*arguments):
        recorder = Recorder(tmp_path / "record", broker.url, *arguments)
        app = running(exporter(), recorder)[0].connected()
        task_worker = running(worker())
        for number in range(TASKS):
            name = "tasks.succeed" if number % 4 else "tasks.fail_with_value_error"
            client.send_task(name, queue="celery")
        until_equal(lambda: app.total("celery_tasks_total", state="SUCCESS"), TASKS * 3 // 4)
        until_equal(lambda: app.total("celery_tasks_total", state="FAILURE"), TASKS / 4)
        task_worker.stop()
        eventually(lambda: app.value("celery_worker_up", worker="worker@test") == 0)
        assert recorder.stop() == 0, recorder.tail()
        return counts(app), recorder.file

    return record


def counts(app) -> dict:
    """Return task counts above 0. Zeros depend on whether the worker was inspected in time."""
    sums = app.samples().by("celery_tasks_total", "task_name", "queue_name", "state")
    return {labels: count for labels, count in sums.items() if count}


def test_a_replay_has_the_counts_of_the_recorded_events(recorded, running, exporter, broker):
    expected, file = recorded()
    app = running(exporter()).connected()
    done = run_cli("replay", str(file), "--fast", "--broker-url", broker.url, deadline=30)
    assert done.returncode == 0, done.stderr
    until_equal(lambda: counts(app), expected)
    assert app.total("celery_exporter_events_malformed_total") == 0


@on_redis
def test_a_scrubbed_recording_has_the_same_counts_under_other_names(recorded, running, exporter, broker):
    expected, file = recorded("--scrub")
    text = gzip.decompress(file.read_bytes())
    assert not [word for word in (b"tasks.", b"worker@test", b'"celery"') if word in text]
    assert text.count(b"ValueError(") == text.count(b"ValueError()") > 0
    app = running(exporter()).connected()
    assert (
        run_cli("replay", str(file), "--speed", "50", "--broker-url", broker.url, deadline=30).returncode == 0
    )
    until_equal(lambda: sorted(counts(app).values()), sorted(expected.values()))


@on_redis
def test_the_readable_part_of_a_damaged_recording_is_replayed(recorded, running, exporter, broker):
    _, file = recorded()
    file.write_bytes(file.read_bytes()[:-40])
    app = running(exporter()).connected()
    done = run_cli("replay", str(file), "--fast", "--broker-url", broker.url, deadline=30)
    assert done.returncode == 2
    assert f"{file} is damaged after message" in done.stderr
    assert "Traceback" not in done.stderr
    reader = RecordingReader(file)
    assert len(list(reader)) == reader.messages > 0
    eventually(lambda: sum(counts(app).values()) > 0)


def test_recording_continues_after_a_broker_outage(running, tmp_path):
    server = running(RedisServer(tmp_path / "redis"))
    recorder = running(Recorder(tmp_path / "record", server.url))
    publish_events(server.url, *task_events(1))
    eventually(lambda: "1 messages" in recorder.text(), 20)
    server.stop()
    eventually(lambda: "recording is interrupted, reconnecting: " in recorder.text(), 20)
    running(server)
    eventually(lambda: "recording again; " in recorder.text(), 60)
    publish_events(server.url, *task_events(2))
    eventually(lambda: "2 messages" in recorder.text(), 20)
    assert recorder.stop() == 0
    assert len(list(RecordingReader(recorder.file))) == 2


def test_recording_ends_on_sigint_during_a_broker_outage(running, tmp_path):
    server = running(RedisServer(tmp_path / "redis"))
    recorder = running(Recorder(tmp_path / "record", server.url, "--seconds", "600"))
    server.stop()
    eventually(lambda: "recording is interrupted" in recorder.text(), 20)
    assert recorder.stop(signal.SIGINT) == 0
    assert recorder.ending.seconds < 6


@on_redis
def test_a_recording_is_readable_before_its_end(running, broker, tmp_path):
    """The last events are written within a second, so a crash loses only those."""
    recorder = running(Recorder(tmp_path / "record", broker.url))
    for number in range(300):
        publish_events(broker.url, *task_events(number))
    eventually(lambda: len(list(RecordingReader(recorder.file))) == 300, 20)
    recorder.kill()


@on_rabbitmq
def test_record_takes_no_events_from_an_exporter_with_a_durable_queue(running, exporter, broker, tmp_path):
    """It runs with the environment of the exporter, but does not consume from its durable queue."""
    durable = {"CELERY_EXPORTER_EVENT_QUEUE_DURABLE": "true"}
    app = running(exporter("--event-queue-durable")).connected()
    recorder = Recorder(tmp_path / "record", broker.url)
    recorder.extra = durable
    running(recorder)
    for number in range(10):
        publish_events(broker.url, *task_events(number))
    until_equal(lambda: app.total("celery_tasks_total", state="SUCCESS"), 10)
    eventually(lambda: len(list(RecordingReader(recorder.file))) == 10, 20)


@on_rabbitmq
def test_malformed_messages_are_recorded_and_replayed(running, exporter, broker, tmp_path):
    """They stop neither command."""
    recorder = running(Recorder(tmp_path / "record", broker.url))
    with kombu.Connection(broker.url) as connection:
        channel = connection.default_channel
        for content_type in ("\ud800", "x" * 255):
            channel.basic_publish(amqp.Message(b"{}", content_type=content_type), "celeryev", "x")
    custom = {"type": "é" * 200, "hostname": "w@h", "timestamp": time.time()}
    publish_event_bytes(broker.url, json.dumps(custom).encode())
    publish_events(broker.url, *task_events(1))
    eventually(lambda: len(list(RecordingReader(recorder.file))) == 4, 20)
    assert recorder.stop() == 0
    app = running(exporter()).connected()
    done = run_cli("replay", str(recorder.file), "--fast", "--broker-url", broker.url, deadline=30)
    assert (done.returncode, done.stderr.splitlines()[-1]) == (0, "4 messages replayed")
    until_equal(lambda: app.total("celery_tasks_total", state="SUCCESS"), 1)


def write_recording(path: Path, *times: float) -> Path:
    """Write a recording of messages that arrived at these seconds; return its path."""
    writer = RecordingWriter(path)
    for number, at in enumerate(times):
        writer.write(Record(at, Message(json.dumps(task_events(number)).encode())))
    writer.close()
    return path


@pytest.mark.parametrize(
    ("options", "least", "most"), [((), 4, 30), (("--speed", "4"), 1, 3.5), (("--fast",), 0, 2.5)]
)
def test_replay_keeps_the_times_of_messages_or_is_faster(broker, tmp_path, options, least, most):
    file = write_recording(tmp_path / "events", 7.0, 8.0, 11.0)
    done = run_cli("replay", str(file), *options, "--broker-url", broker.url, deadline=40)
    assert (done.returncode, "3 messages replayed" in done.stderr) == (0, True)
    assert done.span.elapsed_seconds >= least
    assert done.span.seconds < most + 1  # includes the start of Python


@on_rabbitmq
def test_replay_survives_30_seconds_without_a_message(broker, tmp_path):
    """RabbitMQ closes connections without heartbeats after 20 s."""
    file = write_recording(tmp_path / "events", 0.0, 30.0)
    done = run_cli("replay", str(file), "--broker-url", broker.url, deadline=60)
    assert (done.returncode, "2 messages replayed" in done.stderr) == (0, True)


def test_fast_and_speed_exclude_each_other(tmp_path):
    file = write_recording(tmp_path / "events", 0.0)
    done = run_cli("replay", str(file), "--fast", "--speed", "2", "--broker-url", "memory://")
    assert (done.returncode, "--speed" in done.stderr, "--fast" in done.stderr) == (2, True, True)


@on_redis
def test_record_refuses_to_overwrite_and_replay_refuses_other_files(broker, tmp_path):
    (tmp_path / "notes").write_text("text")
    for command in ("record", "replay"):
        done = run_cli(command, str(tmp_path / "notes"), "--broker-url", broker.url)
        assert done.returncode == 2
        assert str(tmp_path / "notes") in done.stderr
        assert "Traceback" not in done.stderr
    assert (tmp_path / "notes").read_text() == "text"


@pytest.mark.parametrize("command", ["record", "replay"])
def test_an_unreachable_broker_is_an_error_without_its_password(tmp_path, command):
    file = tmp_path / "events"
    if command == "replay":
        file.write_bytes(gzip.compress(b"celery-exporter events 1\n"))
    done = run_cli(command, str(file), "--broker-url", "redis://:secret@127.0.0.1:1/0", deadline=20)
    assert done.returncode == 1
    assert "127.0.0.1:1" in done.stderr
    assert "secret" not in done.stderr
    assert "Traceback" not in done.stderr


class OutputClosedError(Exception):
    """Standard error is closed."""


def test_record_leaves_no_file_if_the_broker_is_unreachable(tmp_path):
    done = run_cli("record", str(tmp_path / "events"), "--broker-url", "redis://127.0.0.1:1/0", deadline=20)
    assert (done.returncode, list(tmp_path.iterdir())) == (1, [])


@pytest.mark.parametrize("command", ["record", "replay"])
@pytest.mark.parametrize("url", ["redis://:S3c/ret@127.0.0.1:6379/0", "foo://x"])
def test_the_error_for_an_invalid_url_is_one_line_without_its_password(command, url, tmp_path):
    done = run_cli(command, str(tmp_path / "events"), "--broker-url", url)
    assert done.returncode in (1, 2)
    assert done.stderr.startswith("celery-exporter: ")
    assert done.stderr.count("\n") == 1
    assert "S3c" not in done.stderr


def test_a_failed_replay_closes_its_connection(redis_broker, tmp_path):
    file = tmp_path / "events"
    file.write_bytes(gzip.compress(b"celery-exporter events 1\n"))

    with redis.Redis.from_url(redis_broker.url) as server:

        def clients():
            return {client["id"] for client in server.client_list()}

        def fail(_):
            opened.update(clients() - before)
            raise OutputClosedError

        before, opened = clients(), set()
        # The traceback of the error keeps the connection from being garbage-collected.
        with pytest.raises(OutputClosedError) as error:
            replay(broker_config(redis_broker.url), file, speed=None, ended=bool, say=fail)
        assert opened
        until_equal(lambda: clients() & opened, set())
        del error


def test_seconds_ends_a_recording(broker, tmp_path):
    done = run_cli("record", str(tmp_path / "events"), "--seconds", "1", "--broker-url", broker.url)
    assert done.returncode == 0, done.stderr
    reader = RecordingReader(tmp_path / "events")
    list(reader)
    assert reader.damage is None
