"""Counts in Prometheus are exact after kill -9 at random times under load.

Events wait in a durable queue on RabbitMQ, so none is lost. The state file has all exposed values. The test
compares `increase()` without its extrapolation: the sum of the increases between samples, where a decrease
counts as a reset to 0, as in Prometheus.
"""

from __future__ import annotations

import random
import time
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any

import kombu
import pytest
from celery.events.event import get_exchange
from harness.servers import Prometheus
from harness.tables import add_row
from harness.waiting import eventually, until_equal

from .availability_contract import Watched
from .test_durable import Traffic

SUCCEEDED = 'celery_tasks_total{state="SUCCESS",task_name="made.up"}'
#: Open tasks in one message.
MESSAGE_TASKS = 500


def send_open(url: str, count: int) -> None:
    """Send tasks that are due tomorrow."""
    eta = (datetime.now(UTC) + timedelta(days=1)).isoformat()
    with kombu.Connection(url) as connection:
        producer = connection.Producer(exchange=get_exchange(connection))
        head = {"type": "task-sent", "hostname": "client@box", "name": "open", "queue": "made", "eta": eta}
        for first in range(0, count, MESSAGE_TASKS):
            now = time.time()
            events = [{**head, "timestamp": now, "uuid": f"open-{first + n}"} for n in range(MESSAGE_TASKS)]
            producer.publish(events, serializer="json", routing_key="task.multi", delivery_mode="transient")


def increase(samples: list[list[Any]]) -> float:
    """Return the increase of a counter, with resets as in Prometheus."""
    values = [0.0, *(float(text) for _, text in samples)]
    return sum(now - before if now >= before else now for before, now in pairwise(values))


@pytest.mark.parametrize(
    ("open_tasks", "kills"),
    [(20_000, 5), pytest.param(250_000, 200, marks=[pytest.mark.long, pytest.mark.timeout(5_400)])],
    ids=["", "250,000 open tasks"],
)
def test_killed_at_random_times(request, running, rabbit_broker, tmp_path, open_tasks, kills):
    arguments = ("--event-queue-durable", "--state-file", str(tmp_path / "state"))
    app = Watched(tmp_path / "exporter", rabbit_broker.url, *arguments)
    app.start()
    try:
        app.wait_ready()
        app.connected()
        prometheus = running(Prometheus(tmp_path / "prometheus", f"127.0.0.1:{app.port}"))
        send_open(rabbit_broker.url, open_tasks)
        until_equal(lambda: app.total("celery_tasks_in_flight", state="PENDING"), open_tasks, 120)
        eventually(lambda: prometheus.query("up == 1"), 60)
        stream = Traffic(rabbit_broker.url)
        stream.start()
        rng = random.Random(kills)
        max_start_seconds = 0.0
        for _ in range(kills):
            before = app.successes()
            eventually(lambda before=before: app.successes() > before, 120)  # it counts again
            time.sleep(rng.uniform(0.0, 2.0))
            app.kill()
            begin = time.monotonic()
            app.start()
            app.wait_ready()
            max_start_seconds = max(max_start_seconds, time.monotonic() - begin)
        tasks = stream.end()
        until_equal(app.successes, tasks, 120)
        eventually(
            lambda: [sample["value"][1] for sample in prometheus.query(SUCCEEDED)] == [str(tasks)], 120
        )
        (series,) = prometheus.query(f"{SUCCEEDED}[6h]")
        (resets,) = (float(sample["value"][1]) for sample in prometheus.query(f"resets({SUCCEEDED}[6h])"))
        counted = increase(series["values"])
        row = {
            "open tasks": open_tasks,
            "kills": kills,
            "tasks": tasks,
            "increase": f"{counted:.0f}",
            "resets": f"{resets:.0f}",
            "longest start": f"{max_start_seconds:.1f} s",
        }
        add_row(request.node, "kills", row)
        assert (resets, abs(counted - tasks) <= 0.01 * tasks) == (0, True), row
        assert app.total("celery_tasks_in_flight", state="PENDING", task_name="open") == open_tasks
    finally:
        app.kill()
