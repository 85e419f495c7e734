"""Gauges come down although no event says so, on real brokers with real workers."""

import os
import signal
from collections.abc import Callable
from typing import Any

import pytest
from conftest import Broker
from harness.exporter import Exporter
from harness.waiting import eventually, until_equal
from harness.workers import Worker

TASKS = "celery_tasks_in_flight"
RECONCILED = "celery_exporter_tasks_reconciled_total"
#: Seconds for two measurements of the queues and the heartbeats in between, on a busy machine.
DEADLINE = 120.0


def in_states(exporter: Exporter) -> dict[str, int]:
    """Return how many tasks are in which state, zeros left out."""
    by_state = exporter.samples().by(TASKS, "state")
    return {state: int(count) for (state,), count in by_state.items() if count}


@pytest.fixture
def watching(exporter: Callable[..., Exporter], running: Callable[..., Any]) -> Exporter:
    watching: Exporter = running(exporter())
    return watching.connected()


def test_purged_messages_wait_no_more(watching: Exporter, client: Any) -> None:
    for number in range(20):
        client.send_task("tasks.succeed", queue=f"queue{number % 2}")
    until_equal(lambda: in_states(watching), {"PENDING": 20}, DEADLINE)
    with client.connection_for_write() as connection:
        for number in range(2):
            assert connection.default_channel.queue_purge(f"queue{number}") == 10
    until_equal(lambda: in_states(watching), {}, DEADLINE)
    assert watching.value(RECONCILED, reason="message_gone") == 20
    assert watching.total("celery_tasks_total", state="PENDING") == 20


def test_tasks_that_nobody_reports_and_that_are_ignored_leave_the_gauges(
    watching: Exporter, client: Any, worker: Callable[..., Worker], running: Callable[..., Any]
) -> None:
    """The worker that runs them is not taken for one that sends no task events either."""
    running(worker(arguments=("--include", "harness.tasks_without_events")))
    for name in ("tasks.succeed", "tasks.without_events", "tasks.ignore"):
        for _ in range(5):
            client.send_task(name)
    eventually(lambda: watching.total("celery_worker_processed_tasks_total") == 15, DEADLINE)
    until_equal(lambda: in_states(watching), {}, DEADLINE)
    reasons = watching.samples().by(RECONCILED, "reason")
    assert (reasons["message_gone",], reasons["not_running",]) == (5, 5)
    for _ in range(5):  # as many heartbeats as take a worker without events to be noticed, and more
        processed = watching.total("celery_worker_processed_tasks_total")
        client.send_task("tasks.without_events")
        eventually(
            lambda before=processed: watching.total("celery_worker_processed_tasks_total") > before, DEADLINE
        )
    assert watching.value("celery_worker_task_events_enabled") == 1


def test_what_a_worker_that_runs_another_task_does_not_have_leaves_the_gauges(
    watching: Exporter, client: Any, worker: Callable[..., Worker], running: Callable[..., Any]
) -> None:
    """Only its answers tell which of the two it runs; what it holds for later it has, too."""
    running(worker())
    client.send_task("tasks.succeed", (50,))
    client.send_task("tasks.succeed", countdown=600)
    client.send_task("tasks.ignore")
    until_equal(lambda: in_states(watching), {"RECEIVED": 1, "STARTED": 2}, DEADLINE)
    until_equal(lambda: in_states(watching), {"RECEIVED": 1, "STARTED": 1}, DEADLINE)
    assert watching.total("celery_tasks_total", state="SUCCESS") == 0
    assert watching.value(RECONCILED, reason="not_running") == 1
    until_equal(lambda: in_states(watching), {"RECEIVED": 1}, DEADLINE)
    assert watching.total("celery_tasks_total", state="SUCCESS") == 1
    assert watching.total(RECONCILED) == 1


def test_what_a_worker_had_received_waits_again_after_its_goodbye(
    watching: Exporter, client: Any, worker: Callable[..., Worker], running: Callable[..., Any]
) -> None:
    first = running(worker("first@test"))
    for _ in range(5):
        client.send_task("tasks.succeed", countdown=600)
    until_equal(lambda: in_states(watching), {"RECEIVED": 5}, DEADLINE)
    os.kill(first.pid, signal.SIGTERM)
    first.wait(60)
    until_equal(lambda: in_states(watching), {"PENDING": 5}, DEADLINE)
    running(worker("second@test"))
    until_equal(lambda: in_states(watching), {"RECEIVED": 5}, DEADLINE)
    eventually(lambda: watching.total("celery_task_redeliveries_total") == 5, DEADLINE)


def test_a_message_that_expires_in_a_queue_waits_no_more_where_rabbitmq_drops_it(
    broker: Broker, watching: Exporter, client: Any
) -> None:
    if broker.kind != "rabbitmq":
        pytest.skip("Redis keeps expired messages until a worker takes and revokes them")
    client.send_task("tasks.succeed", queue="alone")
    client.send_task("tasks.succeed", queue="alone", expires=1)
    until_equal(lambda: in_states(watching), {"PENDING": 1}, DEADLINE)
    assert watching.value(RECONCILED, reason="expired") == 1


def test_a_replaced_task_is_counted_under_both_names_and_leaves_nothing_open(
    watching: Exporter,
    client: Any,
    worker: Callable[..., Worker],
    running: Callable[..., Any],
) -> None:
    running(worker("a@test"), worker("b@test", queues="other"))
    eventually(lambda: watching.total("celery_workers_online") == 2, DEADLINE)
    for _ in range(20):
        client.send_task("tasks.replace", ("tasks.succeed", "other"))
    want = {
        **{("tasks.replace", "celery", state): 20 for state in ("PENDING", "RECEIVED", "STARTED")},
        **{("tasks.succeed", "other", state): 20 for state in ("PENDING", "RECEIVED", "STARTED", "SUCCESS")},
    }

    def counted() -> dict[tuple[str, ...], float]:
        counts = watching.samples().by("celery_tasks_total", "task_name", "queue_name", "state")
        return {key: count for key, count in counts.items() if count}

    until_equal(counted, want, DEADLINE)
    until_equal(lambda: in_states(watching), {}, DEADLINE)
    assert watching.total("celery_task_redeliveries_total") == 0
