"""RabbitMQ's memory and disk alarms block publishers; workers stay up."""

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

#: The effective minimum is three heartbeats.
SHORT_TIMEOUT = ("--worker-timeout", "1")
MIN_WORKER_TIMEOUT_SECONDS = 6.0
ALARMS = {
    "memory": (
        ("set_vm_memory_high_watermark", "0.00000001"),
        ("set_vm_memory_high_watermark", "0.6"),
    ),
    "disk": (("set_disk_free_limit", "1000000GB"), ("set_disk_free_limit", "1MB")),
}


@contextmanager
def alarm(server: RabbitServer, kind: str = "memory") -> Iterator[None]:
    """Raise an alarm, and clear it at the end."""
    on, off = ALARMS[kind]
    try:
        server.control(*on)
        yield
    finally:
        server.control(*off)


def findings(app: Exporter) -> dict[str, dict[str, str]]:
    """Return the findings of the status API with problems, by check."""
    all_findings = json.loads(app.get("/api/v1/status").text)["findings"]
    return {finding["check"]: finding for finding in all_findings if finding["severity"] != "ok"}


def heartbeat_age(app: Exporter) -> float:
    """Return the seconds since the newest heartbeat."""
    return time.time() - (app.value("celery_worker_last_heartbeat_timestamp_seconds") or 0.0)


def is_blocked(app: Exporter) -> bool:
    return app.value("celery_broker_blocked") == 1


def test_workers_stay_up_while_publishers_are_blocked(
    running: Callable[..., Exporter], tmp_path, rabbit_broker: Broker
):
    url = rabbit_broker.url
    app, _ = running(
        Exporter(tmp_path / "exporter", url, *SHORT_TIMEOUT, "--purge-offline-worker-metrics", "1"),
        Worker(tmp_path / "worker", url, pool="threads"),
    )
    eventually(lambda: app.value("celery_worker_pool_size") == 2, 60)
    assert app.value("celery_broker_blocked") == 0
    with alarm(rabbit_broker.server):
        eventually(lambda: is_blocked(app), 30)
        eventually(lambda: heartbeat_age(app) > 2 * MIN_WORKER_TIMEOUT_SECONDS, 60)
        assert app.value("celery_worker_up") == 1
        assert app.value("celery_workers_online") == 1
        assert app.get("/-/ready").status == 200, "the subscription is open"
        (finding,) = findings(app).values()
        assert (finding["check"], finding["severity"]) == ("publishers", "critical")
        assert "low on memory" in finding["message"]
        assert "rabbitmq-diagnostics alarms" in finding["remedy"]
        assert json.loads(app.get("/api/v1/status").text)["broker"]["blocked"] is True
        doctor = run_cli("doctor", "--json", "--seconds", "8", "--broker-url", url, deadline=60)
        results = json.loads(doctor.stdout)["findings"]
        problems = [finding for finding in results if finding["severity"] != "ok"]
        assert [finding["check"] for finding in problems] == ["publishers"]
        assert "rabbitmq-diagnostics alarms" in problems[0]["remedy"]
    eventually(lambda: app.value("celery_broker_blocked") == 0, 30)
    eventually(lambda: heartbeat_age(app) < MIN_WORKER_TIMEOUT_SECONDS, 30)
    with client(url) as celery_app:
        celery_app.send_task("tasks.succeed", (0.01,), queue="celery")
    eventually(lambda: app.total("celery_tasks_total", state="SUCCESS") == 1, 30)
    assert app.value("celery_worker_up") == 1
    eventually(lambda: not findings(app), 30)
    assert "all workers are down" not in app.text()
    lines = [
        line
        for line in app.text().splitlines()
        if "celery_exporter.status.checks" in line and "publishers" in line
    ]
    assert len(lines) <= 2, "one line for the finding, one for its end"


@pytest.mark.parametrize("kind", ALARMS)
def test_an_alarm_is_detected_without_workers_over_one_connection(
    running: Callable[..., Exporter], tmp_path, rabbit_broker: Broker, kind: str
):
    """RabbitMQ does not detect the end of a blocked connection, so new ones would accumulate."""
    server = rabbit_broker.server

    def last_check() -> float:
        return (
            app.value("celery_exporter_collector_last_success_timestamp_seconds", collector="blocked") or 0.0
        )

    def has_stable_connections() -> bool:
        """Return whether the connections stay the same; other jobs open theirs at the start."""
        connections, begin = server.control("list_connections", "pid"), last_check()
        eventually(lambda: last_check() > begin + 6, 60)
        return server.control("list_connections", "pid") == connections

    with alarm(server, kind):
        app = running(Exporter(tmp_path / "exporter", rabbit_broker.url))
        eventually(lambda: is_blocked(app), 60)
        eventually(lambda: f"low on {kind}" in findings(app)["publishers"]["message"], 30, ignore=(KeyError,))
        eventually(has_stable_connections, 60, what="the same connections after some checks")
        app.stop_cleanly()


def test_an_alarm_is_detected_on_rabbitmq_4(running: Callable[..., Exporter], tmp_path):
    with RabbitServer4(tmp_path / "rabbitmq") as server:
        app = running(Exporter(tmp_path / "exporter", server.url)).connected(60)
        eventually(lambda: app.value("celery_broker_blocked") == 0, 30)
        with alarm(server):
            eventually(lambda: is_blocked(app), 60)
        eventually(lambda: app.value("celery_broker_blocked") == 0, 30)


def test_blocked_is_unknown_without_the_permission_to_publish(
    running: Callable[..., Exporter], tmp_path, rabbit_broker: Broker
):
    vhost = rabbit_broker.url.rpartition("/")[2]
    rabbit_broker.server.control("set_permissions", "-p", vhost, "guest", "celeryev.*", "celeryev.*", ".*")
    app = running(Exporter(tmp_path / "exporter", rabbit_broker.url)).connected()
    eventually(lambda: "job blocked failed" in app.text(), 30)
    assert app.value("celery_broker_blocked") is None
    assert app.get("/-/ready").status == 200


def test_blocked_is_absent_on_redis(running: Callable[..., Exporter], tmp_path, redis_broker: Broker):
    app = running(Exporter(tmp_path / "exporter", redis_broker.url)).connected()
    assert app.value("celery_broker_blocked") is None
    assert app.value("celery_exporter_collector_success", collector="blocked") is None
