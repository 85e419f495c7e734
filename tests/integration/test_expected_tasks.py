"""Expected tasks on real brokers: late when beat does not send them, or no worker runs them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from conftest import Broker
from harness.exporter import Exporter
from harness.proxy import Proxy
from harness.waiting import eventually, stays, until_equal
from harness.workers import Beat, Worker, client

#: Sent by the beat each second.
TASK = "tasks.succeed"
#: Sent once.
RARE = "tasks.retry_once"
EXPECTED = [{"task": TASK, "every": 2, "grace": 3}, {"task": RARE, "every": "1h"}]
ON_TIME = {"PENDING": 0.0, "SUCCESS": 0.0}
NO_SUCCESS = {"PENDING": 0.0, "SUCCESS": 1.0}
LATE = {"PENDING": 1.0, "SUCCESS": 1.0}
#: Longer than a task that is due takes to be late.
LONG_SECONDS = 8.0


@pytest.fixture
def options(tmp_path: Path) -> tuple[str, ...]:
    config = tmp_path / "config.yml"
    config.write_text(json.dumps({"expected": EXPECTED}))  # JSON is YAML
    return "--config.file", str(config), "--state-file", str(tmp_path / "state"), "--update-interval", "1"


@pytest.fixture
def beat(tmp_path: Path, broker: Broker) -> Beat:
    schedule = {"each second": {"task": TASK, "schedule": 1.0}}
    return Beat(tmp_path / "beat", broker.url, beat_schedule=schedule)


def overdue(app: Exporter, task: str = TASK) -> dict[str, float]:
    samples = app.samples().by("celery_task_overdue", "task_name", "state")
    return {state: value for (name, state), value in samples.items() if name == task}


def due(app: Exporter, task: str) -> float | None:
    metric = "celery_task_next_expected_timestamp_seconds"
    return app.value(metric, task_name=task, state="SUCCESS")


def finding(app: Exporter) -> dict[str, Any]:
    findings = json.loads(app.get("/api/v1/status").text)["findings"]
    return next(each for each in findings if each["check"] == "expected-tasks")


def test_what_is_late_is_named_and_known_after_a_restart(
    running: Callable[..., Any],
    exporter: Callable[..., Exporter],
    worker: Callable[..., Worker],
    broker: Broker,
    beat: Beat,
    options: tuple[str, ...],
):
    app = running(exporter(*options)).connected()
    runner, scheduler = running(worker(), beat)
    with client(broker.url) as sender:
        sender.send_task(RARE, queue="celery")
    eventually(lambda: app.total("celery_tasks_total", state="SUCCESS", task_name=TASK) > 2, 40)
    until_equal(lambda: overdue(app), ON_TIME, 20)
    successes = app.total("celery_tasks_total", state="SUCCESS", task_name=TASK)
    while app.total("celery_tasks_total", state="SUCCESS", task_name=TASK) < successes + 6:  # 6 s, not 5
        assert overdue(app) == ON_TIME
    assert finding(app)["severity"] == "ok"

    runner.stop()
    until_equal(lambda: overdue(app), NO_SUCCESS, 30)
    assert f"{TASK} (no success, due" in eventually(lambda: finding(app)["message"])
    running(runner)
    until_equal(lambda: overdue(app), ON_TIME, 40)

    scheduler.stop()
    until_equal(lambda: overdue(app), LATE, 30)
    assert f"{TASK} (not sent, due" in eventually(lambda: finding(app)["message"])
    assert overdue(app, RARE) == ON_TIME
    next_hour = due(app, RARE)
    app.stop_cleanly()

    app = running(exporter(*options)).connected()
    assert due(app, RARE) == next_hour, "its last success is in the state file"
    until_equal(lambda: overdue(app), LATE, 30)
    running(scheduler)
    until_equal(lambda: overdue(app), ON_TIME, 40)


def test_what_is_due_without_a_connection_is_not_late(
    running: Callable[..., Any],
    worker: Callable[..., Worker],
    broker: Broker,
    beat: Beat,
    options: tuple[str, ...],
    tmp_path: Path,
):
    """Beat and the worker keep their connections: the tasks run, and the exporter does not receive it."""
    parts = urlsplit(broker.url)
    assert parts.port is not None
    with Proxy(parts.port) as proxy:
        url = broker.url.replace(str(parts.port), str(proxy.port))
        app = running(Exporter(tmp_path / "exporter", url, *options, "--retry-interval", "1")).connected()
        running(worker(), beat)
        eventually(lambda: app.total("celery_tasks_total", state="SUCCESS", task_name=TASK) > 2, 40)
        until_equal(lambda: overdue(app), ON_TIME, 20)
        proxy.refuse()
        until_equal(lambda: app.value("celery_broker_up"), 0.0, 30)
        last_due = due(app, TASK)
        stays(lambda: (overdue(app), due(app, TASK)) == (ON_TIME, last_due), LONG_SECONDS)
        beat.stop()  # so that what was due meanwhile would be late, for want of an event that comes after
        proxy.forward()
        app.connected(45)
        seen = [overdue(app)]
        while due(app, TASK) == last_due:
            seen.append(overdue(app))
        assert seen == [ON_TIME] * len(seen)
        until_equal(lambda: overdue(app), LATE, 30)
