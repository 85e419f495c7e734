"""Beats of Celery 5.7 on real brokers: up while their scheduler ticks, down when it does not."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import Broker
from harness.exporter import Exporter, run_cli
from harness.waiting import eventually, until_equal
from harness.workers import Beat, Worker

NAME = f"celerybeat@{socket.gethostname()}"
FAST = ("--update-interval", "1")


@pytest.fixture
def beat(tmp_path: Path, broker: Broker) -> Callable[..., Beat]:
    """`beat(**configuration)` returns a beat on the test's broker; `running` starts it."""
    return lambda **configuration: Beat(tmp_path / "beat", broker.url, **configuration)


def beats(app: Exporter) -> dict[str, float]:
    samples = app.samples().by("celery_beat_up", "worker")
    return {name: value for (name,), value in samples.items()}


def finding(app: Exporter) -> dict[str, Any]:
    found = {each["check"]: each for each in json.loads(app.get("/api/v1/status").text)["findings"]}
    beat: dict[str, Any] = found.get("beat", {})
    return beat


def test_a_beat_is_up_until_it_stops_also_over_a_restart_of_the_exporter(
    running: Callable[..., Any],
    exporter: Callable[..., Exporter],
    worker: Callable[..., Worker],
    beat: Callable[..., Beat],
    tmp_path: Path,
):
    state = (*FAST, "--state-file", str(tmp_path / "state"))
    app, scheduler, _ = running(exporter(*state), beat(), worker())
    until_equal(lambda: beats(app), {NAME: 1.0}, 30)
    assert finding(app)["severity"] == "ok"
    first = app.value("celery_beat_last_reply_timestamp_seconds", worker=NAME)
    assert first is not None
    eventually(lambda: (app.value("celery_beat_last_reply_timestamp_seconds", worker=NAME) or 0) > first, 30)
    scheduler.stop()
    until_equal(lambda: beats(app), {NAME: 0.0}, 30)
    assert NAME in eventually(lambda: finding(app)["message"] if finding(app)["severity"] != "ok" else "")
    assert app.value("celery_worker_up", worker=NAME) is None, "it is no worker"
    last = app.value("celery_beat_last_reply_timestamp_seconds", worker=NAME)
    app.stop_cleanly()

    app = running(exporter(*state)).connected()
    until_equal(lambda: beats(app), {NAME: 0.0})
    assert app.value("celery_beat_last_reply_timestamp_seconds", worker=NAME) == last
    running(scheduler)
    until_equal(lambda: beats(app), {NAME: 1.0}, 30)


def test_a_beat_whose_scheduler_does_not_tick_is_down(
    running: Callable[..., Any], exporter: Callable[..., Exporter], beat: Callable[..., Beat]
):
    """It sleeps for an hour, and should tick twice a minute."""
    app = running(exporter(*FAST)).connected()
    running(beat(beat_max_loop_interval=3_600, beat_remote_control_max_tick_age=30))
    until_equal(lambda: beats(app), {NAME: 1.0}, 30)
    until_equal(lambda: beats(app), {NAME: 0.0}, 60)


def test_a_beat_without_remote_control_is_unknown_and_doctor_knows_one_with_it(
    running: Callable[..., Any],
    exporter: Callable[..., Exporter],
    worker: Callable[..., Worker],
    beat: Callable[..., Beat],
    broker: Broker,
):
    app, scheduler, _ = running(exporter(*FAST), beat(beat_enable_remote_control=False), worker())
    eventually(lambda: app.value("celery_worker_pool_size", worker="worker@test"), 30)
    assert beats(app) == {}
    assert finding(app) == {}
    scheduler.stop()
    running(beat())
    until_equal(lambda: beats(app), {NAME: 1.0}, 30)
    doctor = run_cli("doctor", "--json", "--seconds", "8", "--broker-url", broker.url, deadline=90)
    checks = {each["check"]: each for each in json.loads(doctor.stdout)["findings"]}
    assert checks["beat"]["message"] == f"1 beat up: {NAME}"
