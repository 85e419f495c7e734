"""RabbitMQ's memory and disk alarms: publishers are blocked, nobody is dead."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
from conftest import Broker
from harness.exporter import Exporter, run_cli
from harness.servers import RabbitServer, RabbitServer4
from harness.waiting import eventually
from harness.workers import Worker, client

#: The shortest there is: three heartbeats.
SHORT = ("--worker-timeout", "1")
PATIENCE = 6.0
ALARMS = {
    "memory": (
        ("set_vm_memory_high_watermark", "0.00000001"),
        ("set_vm_memory_high_watermark", "0.6"),
    ),
    "disk": (("set_disk_free_limit", "1000000GB"), ("set_disk_free_limit", "1MB")),
}


@contextmanager
def alarm(server: RabbitServer, kind: str = "memory") -> Iterator[None]:
    on, off = ALARMS[kind]
    try:
        server.control(*on)
        yield
    finally:
        server.control(*off)


def findings(app: Exporter) -> dict[str, dict[str, str]]:
    """Return what the status API finds that is not well, by check."""
    found = json.loads(app.get("/api/v1/status").text)["findings"]
    return {each["check"]: each for each in found if each["severity"] != "ok"}


def silence(app: Exporter) -> float:
    """Return the seconds since the newest heartbeat."""
    return time.time() - (app.value("celery_worker_last_heartbeat_timestamp_seconds") or 0.0)


def is_blocked(app: Exporter) -> bool:
    return app.value("celery_broker_blocked") == 1


def test_workers_are_not_judged_while_publishers_are_blocked(
    running: Callable[..., Exporter], tmp_path, rabbit_broker: Broker
):
    url = rabbit_broker.url
    app, _ = running(
        Exporter(tmp_path / "exporter", url, *SHORT, "--purge-offline-worker-metrics", "1"),
        Worker(tmp_path / "worker", url, pool="threads"),
    )
    eventually(lambda: app.value("celery_worker_pool_size") == 2, 60)
    assert app.value("celery_broker_blocked") == 0
    with alarm(rabbit_broker.server):
        eventually(lambda: is_blocked(app), 30)
        eventually(lambda: silence(app) > 2 * PATIENCE, 60)
        assert app.value("celery_worker_up") == 1
        assert app.value("celery_workers_online") == 1
        assert app.get("/-/ready").status == 200, "the subscription is open"
        (found,) = findings(app).values()
        assert (found["check"], found["severity"]) == ("publishers", "critical")
        assert "low on memory" in found["message"]
        assert "rabbitmq-diagnostics alarms" in found["remedy"]
        assert json.loads(app.get("/api/v1/status").text)["broker"]["blocked"] is True
        doctor = run_cli("doctor", "--json", "--seconds", "8", "--broker-url", url, deadline=60)
        bad = [each for each in json.loads(doctor.stdout)["findings"] if each["severity"] != "ok"]
        assert [each["check"] for each in bad] == ["publishers"]
        assert "rabbitmq-diagnostics alarms" in bad[0]["remedy"]
    eventually(lambda: app.value("celery_broker_blocked") == 0, 30)
    eventually(lambda: silence(app) < PATIENCE, 30)
    with client(url) as clients:
        clients.send_task("tasks.succeed", (0.01,), queue="celery")
    eventually(lambda: app.total("celery_tasks_total", state="SUCCESS") == 1, 30)
    assert app.value("celery_worker_up") == 1
    eventually(lambda: not findings(app), 30)
    assert "all workers are down" not in app.text()
    said = [
        line
        for line in app.text().splitlines()
        if "celery_exporter.status.checks" in line and "publishers" in line
    ]
    assert len(said) <= 2, "once when it stood for long, once when it was over"


@pytest.mark.parametrize("kind", ALARMS)
def test_an_alarm_is_known_without_workers_and_costs_one_connection(
    running: Callable[..., Exporter], tmp_path, rabbit_broker: Broker, kind: str
):
    """RabbitMQ does not notice that a blocked connection was closed: new ones would collect there."""
    server = rabbit_broker.server

    def looked() -> float:
        return (
            app.value("celery_exporter_collector_last_success_timestamp_seconds", collector="blocked") or 0.0
        )

    def connections_stay() -> bool:
        """The others open theirs once, which may take a busy machine a while."""
        connections, begin = server.control("list_connections", "pid"), looked()
        eventually(lambda: looked() > begin + 6, 60)
        return server.control("list_connections", "pid") == connections

    with alarm(server, kind):
        app = running(Exporter(tmp_path / "exporter", rabbit_broker.url))
        eventually(lambda: is_blocked(app), 60)
        eventually(lambda: f"low on {kind}" in findings(app)["publishers"]["message"], 30, ignore=(KeyError,))
        eventually(connections_stay, 60, what="the same connections as before some looks")
        app.stop_cleanly()


def test_rabbitmq_4_tells_of_its_alarms_too(running: Callable[..., Exporter], tmp_path):
    with RabbitServer4(tmp_path / "rabbitmq") as server:
        app = running(Exporter(tmp_path / "exporter", server.url)).connected(60)
        eventually(lambda: app.value("celery_broker_blocked") == 0, 30)
        with alarm(server):
            eventually(lambda: is_blocked(app), 60)
        eventually(lambda: app.value("celery_broker_blocked") == 0, 30)


def test_a_user_who_may_not_publish_leaves_it_unknown(
    running: Callable[..., Exporter], tmp_path, rabbit_broker: Broker
):
    vhost = rabbit_broker.url.rpartition("/")[2]
    rabbit_broker.server.control("set_permissions", "-p", vhost, "guest", "celeryev.*", "celeryev.*", ".*")
    app = running(Exporter(tmp_path / "exporter", rabbit_broker.url)).connected()
    eventually(lambda: "job blocked failed" in app.text(), 30)
    assert app.value("celery_broker_blocked") is None
    assert app.get("/-/ready").status == 200


def test_redis_does_not_tell(running: Callable[..., Exporter], tmp_path, redis_broker: Broker):
    app = running(Exporter(tmp_path / "exporter", redis_broker.url)).connected()
    assert app.value("celery_broker_blocked") is None
    assert app.value("celery_exporter_collector_success", collector="blocked") is None
