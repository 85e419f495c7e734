"""Tasks leave the gauges without an event, on real brokers with real workers."""

import os
import signal
from collections.abc import Callable
from typing import Any

import pytest
from conftest import Broker
from harness.exporter import Exporter
from harness.outcomes import FileOutcomes
from harness.waiting import eventually, until_equal
from harness.workers import Worker

TASKS = "celery_tasks_in_flight"
RECONCILED = "celery_exporter_tasks_reconciled_total"
#: Seconds for two measurements of the queues, and the heartbeats between them, on a busy machine.
DEADLINE = 120.0


def in_states(exporter: Exporter) -> dict[str, int]:
    """Return the number of tasks by state, without zeros."""
    by_state = exporter.samples().by(TASKS, "state")
    return {state: int(count) for (state,), count in by_state.items() if count}


@pytest.fixture
def app(exporter: Callable[..., Exporter], running: Callable[..., Any]) -> Exporter:
    app: Exporter = running(exporter())
    return app.connected()


def test_purged_messages_are_no_longer_pending(app: Exporter, client: Any) -> None:
    for number in range(20):
        client.send_task("tasks.succeed", queue=f"queue{number % 2}")
    until_equal(lambda: in_states(app), {"PENDING": 20}, DEADLINE)
    with client.connection_for_write() as connection:
        for number in range(2):
            assert connection.default_channel.queue_purge(f"queue{number}") == 10
    until_equal(lambda: in_states(app), {}, DEADLINE)
    assert app.value(RECONCILED, reason="message_gone") == 20
    assert app.total("celery_tasks_total", state="PENDING") == 20


def test_tasks_without_events_and_ignored_tasks_leave_the_gauges(
    app: Exporter, client: Any, worker: Callable[..., Worker], running: Callable[..., Any]
) -> None:
    """Their worker still counts as one that sends task events."""
    running(worker(arguments=("--include", "harness.tasks_without_events")))
    for name in ("tasks.succeed", "tasks.without_events", "tasks.ignore"):
        for _ in range(5):
            client.send_task(name)
    eventually(lambda: app.total("celery_worker_processed_tasks_total") == 15, DEADLINE)
    until_equal(lambda: in_states(app), {}, DEADLINE)
    reasons = app.samples().by(RECONCILED, "reason")
    assert (reasons["message_gone",], reasons["not_running",]) == (5, 5)
    for _ in range(5):  # more heartbeats than it takes to detect a worker without events
        processed = app.total("celery_worker_processed_tasks_total")
        client.send_task("tasks.without_events")
        eventually(
            lambda before=processed: app.total("celery_worker_processed_tasks_total") > before, DEADLINE
        )
    assert app.value("celery_worker_task_events_enabled") == 1


def test_a_task_that_its_worker_does_not_report_leaves_the_gauges(
    app: Exporter,
    client: Any,
    worker: Callable[..., Worker],
    running: Callable[..., Any],
    outcomes: FileOutcomes,
) -> None:
    """Inspection shows which of two tasks the worker runs, and which tasks it has reserved."""
    running(worker())
    client.send_task("tasks.hold", ("gate",))
    client.send_task("tasks.succeed", countdown=600)
    client.send_task("tasks.ignore")
    until_equal(lambda: in_states(app), {"RECEIVED": 1, "STARTED": 2}, DEADLINE)
    until_equal(lambda: in_states(app), {"RECEIVED": 1, "STARTED": 1}, DEADLINE)
    assert app.total("celery_tasks_total", state="SUCCESS") == 0
    assert app.value(RECONCILED, reason="not_running") == 1
    outcomes.open_gate("gate")
    until_equal(lambda: in_states(app), {"RECEIVED": 1}, DEADLINE)
    assert app.total("celery_tasks_total", state="SUCCESS") == 1
    assert app.total(RECONCILED) == 1


def test_received_tasks_are_pending_again_after_worker_offline(
    app: Exporter, client: Any, worker: Callable[..., Worker], running: Callable[..., Any]
) -> None:
    first = running(worker("first@test"))
    for _ in range(5):
        client.send_task("tasks.succeed", countdown=600)
    until_equal(lambda: in_states(app), {"RECEIVED": 5}, DEADLINE)
    os.kill(first.pid, signal.SIGTERM)
    first.wait(60)
    until_equal(lambda: in_states(app), {"PENDING": 5}, DEADLINE)
    running(worker("second@test"))
    until_equal(lambda: in_states(app), {"RECEIVED": 5}, DEADLINE)
    eventually(lambda: app.total("celery_task_redeliveries_total") == 5, DEADLINE)


def test_an_expired_message_is_no_longer_pending_on_rabbitmq(
    broker: Broker, app: Exporter, client: Any
) -> None:
    if broker.kind != "rabbitmq":
        pytest.skip("Redis keeps expired messages until a worker receives and revokes them")
    client.send_task("tasks.succeed", queue="unconsumed")
    client.send_task("tasks.succeed", queue="unconsumed", expires=1)
    until_equal(lambda: in_states(app), {"PENDING": 1}, DEADLINE)
    assert app.value(RECONCILED, reason="expired") == 1


def test_a_replaced_task_is_counted_under_both_names_and_leaves_the_gauges(
    app: Exporter,
    client: Any,
    worker: Callable[..., Worker],
    running: Callable[..., Any],
) -> None:
    running(worker("a@test"), worker("b@test", queues="other"))
    eventually(lambda: app.total("celery_workers_online") == 2, DEADLINE)
    for _ in range(20):
        client.send_task("tasks.replace", ("tasks.succeed", "other"))
    expected = {
        **{("tasks.replace", "celery", state): 20 for state in ("PENDING", "RECEIVED", "STARTED")},
        **{("tasks.succeed", "other", state): 20 for state in ("PENDING", "RECEIVED", "STARTED", "SUCCESS")},
    }

    def counts() -> dict[tuple[str, ...], float]:
        sums = app.samples().by("celery_tasks_total", "task_name", "queue_name", "state")
        return {key: count for key, count in sums.items() if count}

    until_equal(counts, expected, DEADLINE)
    until_equal(lambda: in_states(app), {}, DEADLINE)
    assert app.total("celery_task_redeliveries_total") == 0
