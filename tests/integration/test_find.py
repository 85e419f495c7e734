"""`find` and /api/v1/tasks on real brokers: what became of each task, by its id and by a search."""

from __future__ import annotations

import json

import pytest
from harness.exporter import Exporter, run_cli
from harness.waiting import eventually
from harness.workers import client as make_client


def find(app: Exporter, *arguments: str, code: int = 0) -> str:
    """Return what `find` prints about this exporter; check its exit code."""
    result = run_cli("find", *arguments, "--url", f"http://127.0.0.1:{app.port}")
    assert result.returncode == code, result.stderr
    return result.stdout or result.stderr


def found(app: Exporter, *arguments: str) -> list[dict]:
    result = run_cli("find", *arguments, "--json", "--url", f"http://127.0.0.1:{app.port}")
    return json.loads(result.stdout)["tasks"]


def task(app: Exporter, uuid: str) -> dict:
    return json.loads(find(app, uuid, "--json"))["task"]


def test_what_became_of_each_task(running, exporter, worker, client):
    app = running(exporter()).connected()
    running(worker("w@box"))
    succeeded = client.send_task("tasks.succeed").id
    failed = client.send_task("tasks.fail_with_value_error").id
    retried = client.send_task("tasks.retry_once").id
    scheduled = client.send_task("tasks.succeed", countdown=3_600).id
    waiting = client.send_task("tasks.succeed", queue="elsewhere").id
    eventually(lambda: len(found(app, "--state", "SUCCESS,FAILURE")) == 3, 30)
    eventually(lambda: [each["uuid"] for each in found(app, "--state", "RECEIVED")] == [scheduled], 30)
    states = {uuid: task(app, uuid)["state"] for uuid in (succeeded, failed, retried, scheduled, waiting)}
    assert [*states.values()] == ["SUCCESS", "FAILURE", "SUCCESS", "RECEIVED", "PENDING"]
    assert [each["state"] for each in task(app, retried)["attempts"]] == ["RETRY", "SUCCESS"]
    assert task(app, failed)["exception"] == "ValueError"
    assert task(app, waiting)["queue_name"] == "elsewhere"
    assert task(app, scheduled)["attempts"][0]["eta"] > task(app, scheduled)["since"] + 3_000
    assert "SUCCESS" in find(app, succeeded[:8])
    assert "no task with the id 00000000 is known" in find(app, "00000000", code=1)
    assert "elsewhere" in find(app, "--why", waiting[:8])
    assert "No task that is kept is like this." in find(app, "--name", "none", code=1)


@pytest.mark.parametrize("option", ["--no-history", "--no-status-page"])
def test_without_a_history_find_says_how_to_get_one(running, exporter, option):
    app = running(exporter(option)).connected()
    assert option in find(app, "00000000", code=1)


def test_all_shards_are_asked_that_are_named(running, tmp_path, redis_broker):
    """Each keeps a part of the tasks."""
    apps = [
        Exporter(tmp_path / f"shard-{index}", redis_broker.url, "--shard", f"{index}/2") for index in range(2)
    ]
    running(*apps)
    for app in apps:
        app.connected()
    with make_client(redis_broker.url) as client:
        sent = {client.send_task("tasks.succeed", queue="elsewhere").id for _ in range(20)}
    urls = [f"http://127.0.0.1:{app.port}" for app in apps]
    arguments = [argument for url in urls for argument in ("--url", url)]

    def pages() -> dict[str, list[dict]]:
        result = run_cli("find", "--state", "PENDING", "--json", *arguments)
        return {url: page["tasks"] for url, page in json.loads(result.stdout).items()}

    eventually(lambda: sum(map(len, pages().values())) == len(sent), 30)
    parts = [{task["uuid"] for task in tasks} for tasks in pages().values()]
    assert set.union(*parts) == sent
    assert all(parts), "both shards have tasks"
    uuid = min(parts[1])
    found = run_cli("find", uuid, *arguments)
    assert (found.returncode, found.stdout.splitlines()[0]) == (0, f"{urls[1]}:")
    assert "find:" not in found.stderr
