"""Transports without fan-out, on which no event can arrive: a message, and no declared queue."""

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

MESSAGE = "transport has no fan-out between processes"


def queues_in(path: Path) -> set[str]:
    with sqlite3.connect(path) as database:
        return {name for (name,) in database.execute("SELECT name FROM kombu_queue")}


def test_serve_with_a_database_measures_queues_and_reports_that_no_events_arrive(
    running: Callable[..., Exporter], tmp_path
):
    path = tmp_path / "broker.db"
    url = f"sqla+sqlite:///{path}"
    with client(url) as app:
        app.send_task("tasks.succeed", queue="mail")
    before = queues_in(path)
    exporter = running(Exporter(tmp_path / "exporter", url, "-Q", "mail,nowhere"))
    eventually(lambda: exporter.value("celery_queue_length", queue_name="mail") == 1, 60)
    assert exporter.value("celery_queue_length", queue_name="nowhere") == 0  # it is not declared
    assert exporter.value("celery_broker_up") is None  # so that no alert fires permanently
    assert exporter.value("celery_exporter_collector_success", collector="workers") is None
    ready = exporter.get("/-/ready")
    assert (ready.status, MESSAGE in ready.text) == (503, True)
    assert exporter.get("/-/healthy").status == 200
    status = json.loads(exporter.get("/api/v1/status").text)
    problems = [finding for finding in status["findings"] if finding["severity"] != "ok"]
    assert [(finding["check"], MESSAGE in finding["message"]) for finding in problems] == [
        ("transport", True)
    ]
    assert MESSAGE in exporter.get("/").text
    assert exporter.text().count(MESSAGE) == 1, "logged once, at the start"
    assert f"sqla+sqlite:///{path}" in exporter.get("/").text
    with client(url) as app:
        app.send_task("tasks.succeed", queue="mail")
    eventually(lambda: exporter.value("celery_queue_length", queue_name="mail") == 2, 60)
    exporter.stop_cleanly()
    assert queues_in(path) == before


def test_other_commands_with_a_database_report_that_no_events_arrive(tmp_path):
    path = tmp_path / "broker.db"
    url = f"sqla+sqlite:///{path}"
    doctor = run_cli("doctor", "--json", "--broker-url", url, deadline=60)
    findings = json.loads(doctor.stdout)["findings"]
    assert [finding["check"] for finding in findings] == ["url", "transport"]
    assert [finding["severity"] for finding in findings] == ["ok", "critical"]
    assert (doctor.returncode, "Redis or RabbitMQ" in findings[1]["remedy"]) == (2, True)
    record = run_cli("record", str(tmp_path / "events.gz"), "--broker-url", url, deadline=60)
    assert (record.returncode, MESSAGE in record.stderr) == (1, True)
    top = run_cli("top", "--broker-url", url, deadline=60)
    assert MESSAGE in top.stderr
    assert not path.exists(), "no command has connected"


def test_a_memory_transport_reports_that_no_events_arrive(running: Callable[..., Exporter], tmp_path):
    exporter = running(Exporter(tmp_path / "exporter", "memory://", "-Q", "mail"))
    assert MESSAGE in eventually(lambda: exporter.get("/-/ready").text)
    assert exporter.value("celery_queue_length", queue_name="mail") is None


@pytest.mark.parametrize("url", ["redis://h/0", "amqp://h//", "filesystem://"])
def test_transports_with_fan_out_have_no_reason_against_events(url):
    assert why_no_events(broker_config(url)) == ""
