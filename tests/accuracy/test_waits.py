"""The values of waits, and an order of events that a test cannot make a worker produce."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from celery import Celery
from harness.broker_marks import on_redis
from harness.events import publish_events, task_events
from harness.waiting import eventually, until_equal

#: Seconds from sending to the eta: more than one worker needs to stop and another one to start.
ETA_SECONDS = 15


@contextmanager
def received_events(client: Celery) -> Iterator[list[dict[str, Any]]]:
    """Yield a list to which Celery's event receiver appends events."""
    events: list[dict[str, Any]] = []
    with client.connection_for_read() as connection:
        receiver = client.events.Receiver(connection, handlers={"*": events.append})
        thread = threading.Thread(
            target=receiver.capture, kwargs={"limit": None, "wakeup": False}, daemon=True
        )
        thread.start()
        try:
            yield events
        finally:
            receiver.should_stop = True
            thread.join()


def times_of(events: list[dict[str, Any]], kind: str, worker: str) -> dict[str, float]:
    """Return the timestamps of a worker's events of this type, by task id, in epoch seconds."""
    matching = (event for event in events if (event["type"], event["hostname"]) == (kind, worker))
    return {event["uuid"]: event["timestamp"] for event in matching}


def test_a_countdown_that_another_worker_takes_over_waits_from_its_eta(
    running, exporter, worker, client, outcomes
):
    """In a rollout, the worker with the tasks stops, and the broker delivers them to the next one."""
    app = running(exporter()).connected()
    first = running(worker("first@box"))
    labels = {"task_name": "tasks.succeed", "queue_name": "celery"}
    with received_events(client) as events:
        eventually(lambda: events, what="a heartbeat, which shows that the subscription is open")
        eta = datetime.now(UTC) + timedelta(seconds=ETA_SECONDS)
        for _ in range(4):
            client.send_task("tasks.succeed", queue="celery", eta=eta)
        until_equal(lambda: app.value("celery_tasks_in_flight", state="RECEIVED", **labels), 4)
        first.stop()
        running(worker("second@box"))
        until_equal(lambda: outcomes.total("SUCCESS"), 4, ETA_SECONDS + 60)
        eventually(lambda: len(times_of(events, "task-started", "second@box")) == 4)
    waits = [at - eta.timestamp() for at in times_of(events, "task-started", "second@box").values()]
    until_equal(lambda: app.value("celery_task_queue_wait_seconds_count", **labels), 4)
    assert app.value("celery_task_queue_wait_seconds_sum", **labels) == pytest.approx(sum(waits), abs=0.01)
    assert app.value("celery_task_redeliveries_total", **labels) == 4


@on_redis
def test_waits_are_measured_from_the_eta(running, exporter, worker, client, outcomes):
    """A task with an eta waits from its eta. Each start has one wait, and none is negative."""
    app = running(exporter()).connected()
    late = running(worker("late@box"))
    labels = {"task_name": "tasks.succeed", "queue_name": "celery"}
    with received_events(client) as events:
        eventually(lambda: events, what="a heartbeat, which shows that the subscription is open")
        eta = datetime.now(UTC) + timedelta(seconds=4)
        for _ in range(3):
            client.send_task("tasks.succeed", queue="celery", eta=eta)
        until_equal(lambda: outcomes.total("SUCCESS"), 3, 60)
        eventually(lambda: len(times_of(events, "task-started", "late@box")) == 3)
    waits = [at - eta.timestamp() for at in times_of(events, "task-started", "late@box").values()]
    assert min(waits) >= 0
    until_equal(lambda: app.value("celery_task_queue_wait_seconds_count", **labels), 3)
    samples = app.samples()
    assert samples.value("celery_task_queue_wait_seconds_sum", **labels) == pytest.approx(
        sum(waits), abs=0.01
    )
    assert samples.value("celery_task_prefetch_wait_seconds_count", **labels) == 3
    assert late.alive()


@on_redis
def test_a_retry_event_after_the_end_of_the_next_attempt(running, exporter, broker):
    """The first attempt may report after the second; no task stays in flight."""
    app = running(exporter()).connected()
    sent, received, started, succeeded = task_events(1)
    retried = {**started, "type": "task-retried", "exception": "OSError('x')", "traceback": ""}
    attempts = [(sent, received, started), ({**sent, "retries": 1}, {**received, "retries": 1}, started)]
    events = [*attempts[0], *attempts[1], succeeded, retried]
    now = time.time()
    publish_events(
        broker.url, *({**event, "timestamp": now + number / 100} for number, event in enumerate(events))
    )
    labels = {"task_name": "made.up", "queue_name": "made"}
    until_equal(lambda: app.value("celery_tasks_total", state="RETRY", **labels), 1)
    by_state = app.samples().by("celery_tasks_total", "state", **labels)
    assert {state: n for (state,), n in by_state.items() if n} == {
        "PENDING": 2,
        "RECEIVED": 2,
        "STARTED": 2,
        "SUCCESS": 1,
        "RETRY": 1,
    }
    assert app.total("celery_tasks_in_flight") == 0
