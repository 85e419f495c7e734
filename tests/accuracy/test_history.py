"""The history of single tasks says of each what the task, its workers and its client recorded themselves.

State, attempts, queue, worker and exception are compared with what task bodies and Celery's signals recorded.
Times are compared with when each event was made, by the process that made it (see `harness.event_times`): a
task body starts and ends in another process than its events are made in, so its own times differ from theirs
by as long as that process waits for a processor. A time is right if it is within 5 ms of the call that made
the event. No event is read for any of this.
"""

from __future__ import annotations

from typing import Any

import pytest
from harness import tasks
from harness.event_times import made_events, note_events

from .histories import differences, listed_tasks, recorded_tasks, task_by_id
from .jobs import BACK_OFF, KILLED, LATER, PLAIN, send_shuffled
from .scene import Scene
from .test_endings import send_expired, send_revoked

CELERY = ("celery",)
#: Tasks that run while the exporter restarts, and those that their worker has received.
CONCURRENCY, PREFETCHED = 2, 4


def start(scene: Scene, pool: str, *arguments: str) -> None:
    """Start an exporter, and a worker with this pool. The worker and the client note their events."""
    scene.make_exporter(*arguments)
    note_events(scene.client, scene.outcomes)
    options: dict[str, Any] = {"worker_lost_wait": 0.1} if pool == "prefork" else {}
    options["environment"] = {tasks.EVENT_TIMES: "1"}
    scene.start(scene.exporter, scene.make_worker(pool=pool, concurrency=CONCURRENCY, **options))


def run_all_kinds(scene: Scene, pool: str) -> None:
    """Run tasks that end in all ways, and wait for them."""
    send_expired(scene, CELERY)
    send_revoked(scene, CELERY, 1)
    send_shuffled(scene, (*PLAIN, *LATER, *BACK_OFF, *(KILLED if pool == "prefork" else ())), CELERY)
    scene.await_ends()


def assert_same(scene: Scene) -> None:
    """Assert that the history shows what was recorded, in lists and task by task."""
    scene.assert_exact()
    recorded = recorded_tasks(scene.outcomes.entries(), made_events(scene.outcomes))
    assert len(recorded) == scene.sent
    listed = {task.uuid: task for task in listed_tasks(scene.exporter)}
    lines = differences(recorded, listed)
    assert not lines, "\n".join(lines)
    assert {uuid: task_by_id(scene.exporter, uuid) for uuid in recorded} == listed


@pytest.mark.parametrize("arguments", [(), ("--history-file", "history")], ids=["memory", "file"])
@pytest.mark.parametrize("pool", ["prefork", "threads"])
def test_history(scene: Scene, pool: str, arguments: tuple[str, ...]) -> None:
    start(scene, pool, *arguments)
    run_all_kinds(scene, pool)
    assert_same(scene)


@pytest.mark.parametrize("pool", ["prefork", "threads"])
def test_history_across_a_restart(scene: Scene, pool: str) -> None:
    """Some tasks run and others wait while the exporter is down. RabbitMQ keeps the events of that time."""
    is_durable = scene.broker.kind == "rabbitmq"
    durable = ("--event-queue-durable",) if is_durable else ()
    start(scene, pool, "--history-file", "history", "--state-file", "state", *durable)
    run_all_kinds(scene, pool)
    started, received = scene.total("STARTED"), scene.total("RECEIVED")
    scene.send("tasks.retry_and_hold", "gate", times=CONCURRENCY)
    scene.await_total(started + 2 * CONCURRENCY, "STARTED")
    scene.send("tasks.retry_and_hold", "gate", times=PREFETCHED)
    scene.await_total(received + 2 * CONCURRENCY + PREFETCHED, "RECEIVED")
    scene.await_flush()
    scene.await_counted()
    scene.exporter.stop_cleanly()
    if is_durable:
        scene.outcomes.open_gate("gate")
        run_all_kinds(scene, pool)
    scene.start(scene.exporter)
    scene.outcomes.open_gate("gate")
    run_all_kinds(scene, pool)
    assert_same(scene)
