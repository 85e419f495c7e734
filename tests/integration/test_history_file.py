"""--history-file on real brokers: what is known of a task outlasts the exporter, and faults of the file.

With a file that cannot be used, the exporter goes on: it counts, `/metrics` answers, one line of the log says
what is wrong, and so does `find`.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from harness.broker_marks import on_redis
from harness.events import publish_events, task_events
from harness.exporter import Exporter
from harness.waiting import eventually, until_equal

from celery_exporter.core.task_info import TaskInfo
from celery_exporter.history import query
from celery_exporter.history.file import HistoryFileError, connect_reader, translated

from .test_find import find, task

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount a file system")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    folder = tmp_path / "history"
    folder.mkdir()
    return folder / "tasks"


@pytest.fixture
def remembering(exporter: Callable[..., Exporter], path: Path) -> Callable[..., Exporter]:
    """`remembering(*arguments)` returns an exporter with the same history file each time."""

    def make(*arguments: str, **options: Any) -> Exporter:
        return exporter("--history-file", str(path), *arguments, **options)

    return make


def listed(app: Exporter, **parameters: str) -> dict[str, Any]:
    """Return the answer of /api/v1/tasks."""
    text = "&".join(f"{name}={value}" for name, value in parameters.items())
    response = app.get(f"/api/v1/tasks?{text}")
    assert response.status == 200, response.text
    answer: dict[str, Any] = json.loads(response.body)
    return answer


def answers(app: Exporter, *uuids: str) -> list[Any]:
    """Return what the API and `find` say: all tasks, each of these alone, and its attempts as text."""
    texts = [find(app, uuid).partition("\n\n")[2] for uuid in uuids]  # without how long ago it was
    return [listed(app), *(json.loads(find(app, uuid, "--json")) for uuid in uuids), texts]


def stored_state(path: Path, uuid: str) -> str | None:
    """Return the state that a task has in the file."""
    return next((info.state for info in stored(path, uuid)), None)


def stored_attempts(path: Path, uuid: str) -> list[str]:
    """Return the states of the attempts that a task has in the file."""
    return [attempt.state for info in stored(path, uuid) for attempt in info.attempts]


def stored(path: Path, uuid: str) -> list[TaskInfo]:
    """Return the task that the file has, if it has it: the exporter may not have created the tables yet."""
    with (
        contextlib.suppress(HistoryFileError),
        contextlib.closing(connect_reader(path)) as connection,
        translated(path),
    ):
        return query.find(connection, uuid, 1)
    return []


def publish(app: Exporter, url: str, *numbers: int) -> None:
    """Publish the events of tasks that succeed, and wait until /metrics has them."""
    before = app.total("celery_tasks_total", state="SUCCESS")
    for number in numbers:
        publish_events(url, *task_events(number))
    until_equal(lambda: app.total("celery_tasks_total", state="SUCCESS"), before + len(numbers))


def errors(app: Exporter) -> list[str]:
    return [line for line in app.text().splitlines() if "level=error" in line]


# -- restarts ------------------------------------------------------------------------------------------------


def stop(app: Exporter) -> None:
    app.stop_cleanly()


def kill(app: Exporter) -> None:
    os.kill(app.pid, signal.SIGKILL)
    app.wait()


@pytest.mark.parametrize("end", [stop, kill])
def test_answers_are_the_same_after_a_restart(
    running, remembering, worker, client, outcomes, path, tmp_path, end
):
    """A task that runs meanwhile keeps its attempts, its root and its sent time, and ends after it."""
    state = ("--state-file", str(tmp_path / "state"))
    app = running(remembering(*state)).connected()
    running(worker("w@box"))
    failed = client.send_task("tasks.retry_and_fail").id
    held = client.send_task("tasks.retry_and_hold", ["gate"]).id
    waiting = client.send_task("tasks.succeed", queue="elsewhere").id
    uuids = (failed, held, waiting)
    until_equal(lambda: [stored_state(path, uuid) for uuid in uuids], ["FAILURE", "STARTED", "PENDING"], 30)
    saved = app.value("celery_exporter_collector_last_success_timestamp_seconds", collector="state") or 0
    eventually(
        lambda: (
            (app.value("celery_exporter_collector_last_success_timestamp_seconds", collector="state") or 0)
            > saved
        )
    )
    before = answers(app, *uuids)
    end(app)

    app = running(remembering(*state)).connected()
    assert answers(app, *uuids) == before
    was = task(app, held)
    assert [attempt["state"] for attempt in was["attempts"]] == ["RETRY", "STARTED"]
    outcomes.open_gate("gate")
    eventually(lambda: task(app, held)["state"] == "SUCCESS", 30)
    now = task(app, held)
    assert now["attempts"][0] == was["attempts"][0]
    assert now["attempts"][1] == was["attempts"][1] | {
        name: now["attempts"][1][name] for name in ("state", "ended", "runtime_seconds")
    }
    for name in ("task_name", "queue_name", "worker", "client", "root_id", "parent_id", "first_sent"):
        assert now[name] == was[name]
    until_equal(lambda: stored_state(path, held), "SUCCESS")


@on_redis
def test_without_a_state_file_the_history_goes_on(running, remembering, worker, client, outcomes, path):
    """The end of a task has neither its name nor where it came from; the file has."""
    app = running(remembering()).connected()
    running(worker("w@box"))
    held = client.send_task("tasks.retry_and_hold", ["gate"]).id
    until_equal(lambda: stored_state(path, held), "STARTED", 30)
    was = task(app, held)
    app.stop_cleanly()

    app = running(remembering()).connected()
    again = task(app, held)
    assert again["unseen_since"] > was["since"], "the start of this exporter"
    assert {**again, "unseen_since": was["unseen_since"]} == was
    outcomes.open_gate("gate")
    eventually(lambda: task(app, held)["state"] == "SUCCESS", 30)
    now = task(app, held)
    assert now["unseen_since"] is None
    for name in ("task_name", "queue_name", "worker", "client", "root_id", "parent_id", "first_sent"):
        assert now[name] == was[name], name
    assert [attempt["state"] for attempt in now["attempts"]] == ["RETRY", "SUCCESS"]
    assert now["attempts"][1]["started"] == was["attempts"][1]["started"]
    until_equal(lambda: stored_state(path, held), "SUCCESS")


def test_a_task_that_ended_while_no_exporter_ran_is_shown_as_unseen(
    running, remembering, broker, worker, client, outcomes, path
):
    """Without a state file, an exporter says of what was open before it that it has seen nothing since."""
    app = running(remembering()).connected()
    running(worker("w@box"))
    held = client.send_task("tasks.hold", ["gate"]).id
    waiting = client.send_task("tasks.succeed", queue="elsewhere").id
    until_equal(lambda: [stored_state(path, uuid) for uuid in (held, waiting)], ["STARTED", "PENDING"], 30)
    assert [task(app, uuid)["unseen_since"] for uuid in (held, waiting)] == [None, None]
    app.stop_cleanly()
    outcomes.open_gate("gate")
    until_equal(lambda: outcomes.total("SUCCESS"), 1, 30)

    app = running(remembering()).connected()
    start = app.value("process_start_time_seconds") or 0.0
    assert task(app, held)["state"] == "STARTED"
    for uuid in (held, waiting):
        assert start - 1 < task(app, uuid)["unseen_since"] < start + 30
        assert "It was open when the exporter stopped, and nothing was seen of it since" in find(app, uuid)
        page = app.get(f"/task/{uuid}").text
        assert "Nothing seen since" in page
    assert "STARTED (unseen)  " in find(app, "--state", "STARTED")
    why = find(app, "--why", held)
    assert "its last state was STARTED" in why
    assert "at worker w@box. Nothing was seen of it since the exporter started" in why
    assert "what happened while the exporter did not run" in why
    queue = "at position 1 of 1" if broker.kind == "redis" else "queue elsewhere has 1 message"
    assert queue in eventually(lambda: find(app, "--why", waiting), 30)

    running(worker("v@box", queues="elsewhere"))
    eventually(lambda: task(app, waiting)["state"] == "SUCCESS", 30)
    assert task(app, waiting)["unseen_since"] is None


def test_attempts_keep_their_numbers_over_a_restart_without_a_state_file(
    running, remembering, worker, client, outcomes, path
):
    """One task is retried and started after the restart, the other one was retried before it."""
    app = running(remembering()).connected()
    running(worker("w@box", concurrency=1))
    client.send_task("tasks.hold", ["both received"])
    later = client.send_task("tasks.retry_once").id
    first = client.send_task("tasks.hold_and_retry", ["gate"]).id
    until_equal(lambda: [stored_attempts(path, uuid) for uuid in (later, first)], [["RECEIVED"]] * 2, 30)
    outcomes.open_gate("both received")
    expected = [["RETRY", "RECEIVED"], ["STARTED"]]
    until_equal(lambda: [stored_attempts(path, uuid) for uuid in (later, first)], expected, 30)
    before = [task(app, uuid)["attempts"] for uuid in (later, first)]
    app.stop_cleanly()

    app = running(remembering()).connected()
    outcomes.open_gate("gate")
    expected = [["RETRY", "SUCCESS"]] * 2
    until_equal(lambda: [stored_attempts(path, uuid) for uuid in (later, first)], expected, 30)
    for uuid, known in zip((later, first), before, strict=True):
        attempts = task(app, uuid)["attempts"]
        assert [attempt["retries"] for attempt in attempts] == [0, 1]
        for attempt, was in zip(attempts, known, strict=False):
            for name in ("sent", "received", "started", "queue_name", "worker"):
                assert was[name] in {None, attempt[name]}
        for attempt in attempts:
            times = [attempt[name] for name in ("received", "started", "ended")]
            assert times == sorted(times)
        # `task-sent` is stamped after the message was published: a worker may have received it by then.
        assert attempts[0]["started"] < attempts[1]["sent"]


# -- faults of the file --------------------------------------------------------------------------------------


def check_without_file(app: Exporter, url: str, problem: str) -> None:
    """Check that the exporter goes on without the file, and that log, API and `find` say what is wrong."""
    eventually(lambda: problem in app.text())
    publish(app, url, 1, 2)
    assert app.get("/-/healthy").status == app.get("/-/ready").status == 200
    assert "celery_tasks_total" in app.get("/metrics").text
    (line,) = errors(app)
    assert problem in line
    assert "The exporter goes on without it" in line
    answer = listed(app)
    assert {each["uuid"] for each in answer["tasks"]} == {"task-1", "task-2"}, "those in memory"
    assert problem in answer["problem"]
    assert problem in find(app, "task-1")
    assert problem in find(app)
    assert problem in find(app, "no-such-task", code=1)
    assert problem in find(app, "--name", "none", code=1)


def check_recovered(app: Exporter, url: str, path: Path, number: int) -> None:
    """Check that a task is written and that the file is searched again."""
    publish(app, url, number)
    until_equal(lambda: stored_state(path, f"task-{number}"), "SUCCESS", 60)
    assert listed(app)["problem"] == ""


def damage_pages(path: Path) -> None:
    size = path.stat().st_size
    with path.open("r+b") as file:
        file.seek(4_096)
        file.write(b"\xff" * (size - 4_096))


def write_other_file(path: Path) -> None:
    path.write_bytes(b"text\n" * 100)


@on_redis
@pytest.mark.parametrize(
    ("damage", "problem"),
    [(damage_pages, "is damaged"), (write_other_file, "is not a history file of celery-exporter")],
)
def test_a_file_that_cannot_be_read_stays_until_it_is_moved(
    running, remembering, broker, path, damage, problem
):
    app = running(remembering()).connected()
    publish(app, broker.url, *range(10, 30))
    app.stop_cleanly()
    damage(path)
    content = path.read_bytes()
    app.log.unlink()
    app = running(remembering()).connected()
    check_without_file(app, broker.url, problem)
    assert path.read_bytes() == content
    path.rename(path.with_name("moved"))
    check_recovered(app, broker.url, path, 3)
    assert path.with_name("moved").read_bytes() == content


@on_redis
def test_a_read_only_directory_is_reported_and_waited_for(running, remembering, broker, path):
    """Root may write to any directory, unless it gives up the capability to do so."""
    is_root = os.geteuid() == 0
    app = remembering(wrapper=("setpriv", "--bounding-set=-dac_override,-dac_read_search") if is_root else ())
    path.parent.chmod(0o500)
    running(app).connected()
    check_without_file(app, broker.url, f"cannot open {path} for writing: Permission denied")
    path.parent.chmod(0o700)
    check_recovered(app, broker.url, path, 3)


@on_redis
def test_a_directory_that_does_not_exist_yet_is_waited_for(running, remembering, broker, path):
    path.parent.rmdir()
    app = running(remembering()).connected()
    check_without_file(app, broker.url, f"directory {path.parent} does not exist")
    path.parent.mkdir()
    check_recovered(app, broker.url, path, 3)


@contextlib.contextmanager
def small_disk(folder: Path, size: str) -> Iterator[None]:
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


@needs_root
@on_redis
def test_a_full_disk_is_reported_and_tasks_wait_until_there_is_space(running, remembering, broker, path):
    """Memory has the newest tasks meanwhile, and the file has the older ones: both are searched."""
    with small_disk(path.parent, "1m"):
        app = running(remembering()).connected()
        publish(app, broker.url, 1)
        until_equal(lambda: stored_state(path, "task-1"), "SUCCESS")
        filler = path.with_name("filler")
        with contextlib.suppress(OSError):
            filler.write_bytes(b"\0" * 2**20)
        publish(app, broker.url, *range(2, 400))
        eventually(lambda: "Free space on its disk" in app.text(), 30)
        assert len(errors(app)) == 1
        assert app.get("/-/ready").status == 200
        assert stored_state(path, "task-399") is None
        assert [task(app, f"task-{number}")["state"] for number in (1, 399)] == ["SUCCESS", "SUCCESS"]
        filler.unlink()
        check_recovered(app, broker.url, path, 400)
        until_equal(lambda: stored_state(path, "task-399"), "SUCCESS")
        assert "tasks are written again" in app.text()
        app.stop_cleanly()


@on_redis
def test_a_file_of_another_exporter_is_left_alone_until_that_one_ends(
    running, remembering, broker, path, tmp_path
):
    first = running(remembering()).connected()
    second = Exporter(tmp_path / "second", broker.url, "--history-file", str(path))
    running(second).connected()
    check_without_file(second, broker.url, f"{path} is in use by another exporter")
    assert errors(first) == []
    assert listed(first)["problem"] == ""
    assert {each["uuid"] for each in listed(first)["tasks"]} == {"task-1", "task-2"}
    first.stop_cleanly()
    check_recovered(second, broker.url, path, 3)


@on_redis
def test_a_file_that_is_moved_away_while_in_use_is_created_again(running, remembering, broker, path):
    app = running(remembering()).connected()
    publish(app, broker.url, 1)
    until_equal(lambda: stored_state(path, "task-1"), "SUCCESS")
    path.rename(path.with_name("moved"))
    eventually(lambda: f"{path} was removed or moved, and a new one is begun" in app.text())
    check_recovered(app, broker.url, path, 2)
    assert len(errors(app)) == 1
    assert {each["uuid"] for each in listed(app)["tasks"]} == {"task-1", "task-2"}, "memory has the first one"
