"""`record` and `replay`: the events of real workers go into a file, and come out of it as they were."""

import gzip
import sys
from pathlib import Path

import pytest
import redis
from harness.events import one_task, publish_events
from harness.exporter import clean_environment, run_cli
from harness.marks import on_redis
from harness.processes import Process
from harness.servers import RedisServer
from harness.waiting import eventually, until_equal

from celery_exporter.recording import replay
from celery_exporter.settings import load
from celery_exporter.tape import Reader

TASKS = 20


class Recorder(Process):
    name = "record"

    def __init__(self, folder: Path, url: str, *arguments: str) -> None:
        super().__init__(folder)
        self.file = folder / "events"
        self.arguments = [str(self.file), "--broker-url", url, *arguments]

    def command(self) -> list[str]:
        return [sys.executable, "-m", "celery_exporter", "record", *self.arguments]

    def environment(self) -> dict[str, str]:
        return clean_environment()

    def ready(self) -> bool:
        return "recording from" in self.text()


@pytest.fixture
def recorded(running, exporter, worker, client, broker, tmp_path):
    """`recorded(...)` returns what an exporter counted of it, and the file; nobody says more after that."""

    def make(*arguments):
        recorder = Recorder(tmp_path / "record", broker.url, *arguments)
        heard = running(exporter(), recorder)[0].connected()
        busy = running(worker())
        for number in range(TASKS):
            name = "tasks.succeed" if number % 4 else "tasks.fail_with_value_error"
            client.send_task(name, queue="celery")
        until_equal(lambda: heard.total("celery_tasks_total", state="SUCCESS"), TASKS * 3 // 4)
        until_equal(lambda: heard.total("celery_tasks_total", state="FAILURE"), TASKS / 4)
        busy.stop()
        eventually(lambda: heard.value("celery_worker_up", worker="worker@test") == 0)
        assert recorder.stop() == 0, recorder.tail()
        return counted(heard), recorder.file

    return make


def counted(app) -> dict:
    return app.samples().by("celery_tasks_total", "task_name", "queue_name", "state")


def test_what_is_replayed_counts_as_it_did(recorded, running, exporter, broker):
    heard, file = recorded()
    again = running(exporter()).connected()
    done = run_cli("replay", str(file), "--fast", "--broker-url", broker.url, deadline=30)
    assert done.returncode == 0, done.stderr
    until_equal(lambda: counted(again), heard)
    assert again.total("celery_exporter_events_malformed_total") == 0


@on_redis
def test_a_scrubbed_recording_counts_the_same_under_other_names(recorded, running, exporter, broker):
    heard, file = recorded("--scrub")
    text = gzip.decompress(file.read_bytes())
    assert not [word for word in (b"tasks.", b"worker@test", b'"celery"') if word in text]
    assert text.count(b"ValueError(") == text.count(b"ValueError()") > 0
    again = running(exporter()).connected()
    assert (
        run_cli("replay", str(file), "--speed", "50", "--broker-url", broker.url, deadline=30).returncode == 0
    )
    until_equal(lambda: sorted(counted(again).values()), sorted(heard.values()))


@on_redis
def test_what_can_be_read_of_a_damaged_recording_is_replayed(recorded, running, exporter, broker):
    _, file = recorded()
    file.write_bytes(file.read_bytes()[:-40])
    again = running(exporter()).connected()
    done = run_cli("replay", str(file), "--fast", "--broker-url", broker.url, deadline=30)
    assert done.returncode == 2
    assert f"{file} is damaged after message" in done.stderr
    assert "Traceback" not in done.stderr
    reader = Reader(file)
    assert len(list(reader)) == reader.messages > 0
    eventually(lambda: sum(counted(again).values()) > 0)


def test_a_broker_that_was_away_does_not_end_a_recording(running, tmp_path):
    server = running(RedisServer(tmp_path / "redis"))
    recorder = running(Recorder(tmp_path / "record", server.url))
    publish_events(server.url, *one_task(1))
    eventually(lambda: "1 messages" in recorder.text(), 20)
    server.stop()
    eventually(lambda: "nothing is recorded now, trying again: " in recorder.text(), 20)
    running(server)
    eventually(lambda: "recording again; " in recorder.text(), 60)
    publish_events(server.url, *one_task(2))
    eventually(lambda: "2 messages" in recorder.text(), 20)
    assert recorder.stop() == 0
    assert len(list(Reader(recorder.file))) == 2


@on_redis
def test_a_recording_is_not_written_over_and_what_is_none_is_said_to_be(broker, tmp_path):
    (tmp_path / "mine").write_text("mine")
    for command in ("record", "replay"):
        done = run_cli(command, str(tmp_path / "mine"), "--broker-url", broker.url)
        assert done.returncode == 1
        assert str(tmp_path / "mine") in done.stderr
        assert "Traceback" not in done.stderr
    assert (tmp_path / "mine").read_text() == "mine"


@pytest.mark.parametrize("command", ["record", "replay"])
def test_without_a_broker_it_says_so(tmp_path, command):
    file = tmp_path / "events"
    if command == "replay":
        file.write_bytes(gzip.compress(b"celery-exporter events 1\n"))
    done = run_cli(command, str(file), "--broker-url", "redis://:secret@127.0.0.1:1/0", deadline=20)
    assert done.returncode == 1
    assert "127.0.0.1:1" in done.stderr
    assert "secret" not in done.stderr
    assert "Traceback" not in done.stderr


class NobodyReadsError(Exception):
    """Standard error is gone, and what is said has nowhere to go."""


def test_a_broker_that_is_away_leaves_no_empty_file(tmp_path):
    done = run_cli("record", str(tmp_path / "events"), "--broker-url", "redis://127.0.0.1:1/0", deadline=20)
    assert (done.returncode, list(tmp_path.iterdir())) == (1, [])


@pytest.mark.parametrize("command", ["record", "replay"])
@pytest.mark.parametrize("url", ["redis://:S3c/ret@127.0.0.1:6379/0", "foo://x"])
def test_a_url_of_no_use_is_one_line_without_its_password(command, url, tmp_path):
    done = run_cli(command, str(tmp_path / "events"), "--broker-url", url)
    assert done.returncode in (1, 2)
    assert done.stderr.startswith("celery-exporter: ")
    assert done.stderr.count("\n") == 1
    assert "S3c" not in done.stderr


def test_a_replay_that_fails_hangs_up(redis_broker, tmp_path):
    file = tmp_path / "events"
    file.write_bytes(gzip.compress(b"celery-exporter events 1\n"))

    with redis.Redis.from_url(redis_broker.url) as server:

        def clients():
            return {client["id"] for client in server.client_list()}

        def say(_):
            made.update(clients() - before)
            raise NobodyReadsError

        before, made = clients(), set()
        # While the error is held, its traceback keeps the connection from being collected.
        with pytest.raises(NobodyReadsError) as held:
            replay(load({"broker_url": redis_broker.url}, {}), file, speed=None, ended=bool, say=say)
        assert made
        until_equal(lambda: clients() & made, set())
        del held


def test_it_ends_by_itself_after_so_many_seconds(broker, tmp_path):
    done = run_cli("record", str(tmp_path / "events"), "--seconds", "1", "--broker-url", broker.url)
    assert done.returncode == 0, done.stderr
    reader = Reader(tmp_path / "events")
    list(reader)
    assert reader.broken is None
