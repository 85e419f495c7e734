"""Transports on which no event can arrive: it is said, and nothing is declared."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest
from harness.configs import broker_config
from harness.exporter import Exporter, run_cli
from harness.waiting import eventually
from harness.workers import client

from celery_exporter.broker.connection import why_no_events

SENTENCE = "transport has no fan-out between processes"


def queues_in(path: Path) -> set[str]:
    with sqlite3.connect(path) as database:
        return {name for (name,) in database.execute("SELECT name FROM kombu_queue")}


def test_a_database_as_the_broker(running: Callable[..., Exporter], tmp_path):
    path = tmp_path / "broker.db"
    url = f"sqla+sqlite:///{path}"
    with client(url) as app:
        app.send_task("tasks.succeed", queue="mail")
    before = queues_in(path)
    exporter = running(Exporter(tmp_path / "exporter", url, "-Q", "mail,nowhere"))
    eventually(lambda: exporter.value("celery_queue_length", queue_name="mail") == 1, 60)
    assert exporter.value("celery_queue_length", queue_name="nowhere") == 0  # nobody declared it yet
    assert exporter.value("celery_broker_up") is None  # no alarm for ever on what is known
    assert exporter.value("celery_exporter_collector_success", collector="workers") is None
    ready = exporter.get("/-/ready")
    assert (ready.status, SENTENCE in ready.text) == (503, True)
    assert exporter.get("/-/healthy").status == 200
    status = json.loads(exporter.get("/api/v1/status").text)
    bad = [each for each in status["findings"] if each["severity"] != "ok"]
    assert [(each["check"], SENTENCE in each["message"]) for each in bad] == [("transport", True)]
    assert SENTENCE in exporter.get("/").text
    assert exporter.text().count(SENTENCE) == 1, "the log says it at the start, once"
    assert f"sqla+sqlite:///{path}" in exporter.get("/").text
    with client(url) as app:
        app.send_task("tasks.succeed", queue="mail")
    eventually(lambda: exporter.value("celery_queue_length", queue_name="mail") == 2, 60)
    exporter.stop_cleanly()
    assert queues_in(path) == before


def test_the_other_commands_on_a_database(tmp_path):
    path = tmp_path / "broker.db"
    url = f"sqla+sqlite:///{path}"
    doctor = run_cli("doctor", "--json", "--broker-url", url, deadline=60)
    found = json.loads(doctor.stdout)["findings"]
    assert [(each["check"], each["severity"]) for each in found] == [("url", "ok"), ("transport", "critical")]
    assert (doctor.returncode, "Redis or RabbitMQ" in found[1]["remedy"]) == (2, True)
    record = run_cli("record", str(tmp_path / "tape.gz"), "--broker-url", url, deadline=60)
    assert (record.returncode, SENTENCE in record.stderr) == (1, True)
    top = run_cli("top", "--broker-url", url, deadline=60)
    assert SENTENCE in top.stderr
    assert not path.exists(), "nobody has connected"


def test_the_memory_of_one_process_is_no_broker(running: Callable[..., Exporter], tmp_path):
    exporter = running(Exporter(tmp_path / "exporter", "memory://", "-Q", "mail"))
    assert SENTENCE in eventually(lambda: exporter.get("/-/ready").text)
    assert exporter.value("celery_queue_length", queue_name="mail") is None


@pytest.mark.parametrize("url", ["redis://h/0", "amqp://h//", "filesystem://"])
def test_transports_with_fan_out(url):
    assert why_no_events(broker_config(url)) == ""
