"""--broker-url-file is read again: rotated passwords, another address, and an invalid file."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import redis
from conftest import Broker
from harness.events import publish_events, task_events
from harness.exporter import Exporter
from harness.servers import RedisServer
from harness.waiting import eventually


@pytest.fixture
def url_file(tmp_path: Path) -> Path:
    return tmp_path / "broker-url"


def started(running: Callable[..., Exporter], folder: Path, url_file: Path) -> Exporter:
    app = running(Exporter(folder / "exporter", None, "--broker-url-file", str(url_file)))
    return app.connected()


def replace(path: Path, text: str) -> None:
    """Replace a file by renaming a new one, as Kubernetes and the Vault agent do."""
    (new := path.with_suffix(".new")).write_text(text)
    os.replace(new, path)  # noqa: PTH105  the call under test


def is_healthy(app: Exporter) -> bool:
    return (
        app.value("celery_broker_up") == 1
        and app.value("celery_exporter_collector_success", collector="queues") == 1
        and app.value("celery_exporter_collector_success", collector="workers") == 1
    )


def test_a_rotated_redis_password_is_used(running: Callable[..., Exporter], tmp_path: Path, url_file: Path):
    with RedisServer(tmp_path / "redis", password="old") as server:
        url_file.write_text(server.url)
        app = started(running, tmp_path, url_file)
        server.client().config_set("requirepass", "new")
        server.password = "new"
        for kind in ("pubsub", "normal"):
            server.client().execute_command("CLIENT", "KILL", "TYPE", kind)
        eventually(lambda: app.value("celery_broker_up") == 0, 60)
        replace(url_file, f"{server.url}\n")
        eventually(lambda: is_healthy(app), 60)
        assert (":old@" in app.text(), ":new@" in app.text()) == (False, False)


def test_a_rotated_rabbitmq_user_is_used(
    running: Callable[..., Exporter], tmp_path: Path, url_file: Path, rabbit_broker: Broker
):
    server, url = rabbit_broker.server, rabbit_broker.url
    vhost = url.rpartition("/")[2]
    try:
        for user in ("first", "second"):
            server.control("add_user", user, user)
            server.control("set_permissions", "-p", vhost, user, ".*", ".*", ".*")
        url_file.write_text(url.replace("guest:guest", "first:first"))
        app = started(running, tmp_path, url_file)
        replace(url_file, url.replace("guest:guest", "second:second"))
        server.control("delete_user", "first")  # which closes its connections
        eventually(lambda: "new connections use amqp://second:***@" in app.text(), 60)
        eventually(lambda: is_healthy(app), 60)
        assert "second:***@" in app.get("/").text
    finally:
        server.control("delete_user", "second")


def test_the_exporter_moves_to_a_new_address_while_the_old_broker_is_up(
    running: Callable[..., Exporter], tmp_path: Path, url_file: Path, redis_broker: Broker
):
    url_file.write_text(redis_broker.url)
    app = started(running, tmp_path, url_file)
    with RedisServer(tmp_path / "redis") as other:
        replace(url_file, other.url)

        def is_counting() -> bool:
            publish_events(other.url, *task_events(1))
            return app.total("celery_tasks_total", state="SUCCESS") > 0

        eventually(is_counting, 60, every=1.0)
        assert str(other.port) in json.loads(app.get("/api/v1/status").text)["broker"]["url"]


@pytest.mark.parametrize(
    ("text", "error"),
    [
        (None, "No such file"),
        ("", "holds no URL"),
        ("hunter2", "holds no URL"),
        ("nonsense://hunter2@h", "unknown scheme"),
        ("amqp://me:hunter2@h//", "another kind of broker"),
    ],
)
def test_an_invalid_file_is_logged_and_the_old_url_stays_in_use(
    running: Callable[..., Exporter],
    tmp_path: Path,
    url_file: Path,
    redis_broker: Broker,
    text: str | None,
    error: str,
):
    url_file.write_text(redis_broker.url)
    app = started(running, tmp_path, url_file)
    if text is None:
        url_file.unlink()
    else:
        replace(url_file, text)
    eventually(lambda: error in app.text(), 30)
    redis.Redis.from_url(redis_broker.url).execute_command("CLIENT", "KILL", "TYPE", "pubsub")
    eventually(lambda: app.value("celery_exporter_reconnects_total") == 1 and is_healthy(app), 60)
    assert app.text().count("still using") == 1
    assert "hunter2" not in app.text()


def test_a_pipe_is_read_once(tmp_path: Path, redis_broker: Broker):
    """A second read of a pipe, such as <(command) of a shell, would block."""
    os.mkfifo(pipe := tmp_path / "pipe")
    app = Exporter(tmp_path / "exporter", None, "--broker-url-file", str(pipe))
    app.start()
    try:
        pipe.write_text(redis_broker.url)  # blocks until it is read
        app.wait_ready().connected()
        redis.Redis.from_url(redis_broker.url).execute_command("CLIENT", "KILL", "TYPE", "pubsub")
        eventually(lambda: app.value("celery_exporter_reconnects_total") == 1, 60)
        app.connected().stop_cleanly()
    finally:
        app.__exit__(None, None, None)
