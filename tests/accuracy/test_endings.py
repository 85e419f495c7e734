"""Every way in which a task can end, in each pool."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from typing import Any, NamedTuple
from uuid import uuid4

import pytest
from harness.waiting import ANSWER_TIMEOUT

from .jobs import BACK_OFF, KILLED, LATER, PLAIN, Job, send_shuffled
from .scene import Scene, size

EVERY = (*PLAIN, *LATER)
REVOKED = 4  # tasks of which the workers are told before they come


class Row(NamedTuple):
    """A scenario: workers by node name, and what is sent to each of their queues."""

    name: str
    jobs: tuple[Job, ...] = EVERY
    workers: tuple[tuple[str, dict[str, Any]], ...] = (("worker@test", {}),)


def pool(name: str, **options: Any) -> tuple[tuple[str, dict[str, Any]], ...]:
    return (("worker@test", {"pool": name, **options}),)


ROWS = (
    Row(
        "steady, two queues", PLAIN, (("left@test", {"queues": "left"}), ("right@test", {"queues": "right"}))
    ),
    Row("every ending, prefork", (*EVERY, *BACK_OFF, *KILLED), pool("prefork", worker_lost_wait=0.1)),
    Row("every ending, threads", EVERY, pool("threads")),
    Row("every ending, solo", EVERY, pool("solo", concurrency=1)),
)


def send_revoked(scene: Scene, queues: tuple[str, ...], workers: int) -> None:
    """Have all workers refuse tasks that are sent later, and send them."""
    ids = [str(uuid4()) for _ in range(REVOKED)]
    answers = scene.client.control.revoke(ids, reply=True, timeout=ANSWER_TIMEOUT, limit=workers)
    assert len(answers) == workers, answers
    for number, task_id in enumerate(ids):
        scene.send("tasks.succeed", queue=queues[number % len(queues)], task_id=task_id)


def send_expired(scene: Scene, queues: tuple[str, ...]) -> None:
    """Send tasks that expire in a worker before they are due.

    They go ahead of all others: what expires in RabbitMQ's queue is thrown away, and nobody says so.
    """
    for queue in queues:
        scene.send("tasks.succeed", times=2, queue=queue, countdown=1, expires=0.5)
    scene.await_total(2 * len(queues), "RECEIVED")


@pytest.mark.parametrize("scenario", ROWS, ids=lambda row: row.name)
def test_each_ending_is_counted(scene: Scene, scenario: Row) -> None:
    """Each sum and each number of waits is the ledger's, nothing is unknown, nothing is left in a gauge."""
    scene.start(scene.exporter, *(scene.make_worker(node, **options) for node, options in scenario.workers))
    queues = tuple(options.get("queues", "celery") for _, options in scenario.workers)
    send_expired(scene, queues)
    send_revoked(scene, queues, len(scenario.workers))
    scene.send("tasks.succeed", queue=queues[0], eta=datetime.now(timezone.utc) + timedelta(seconds=1))
    send_shuffled(scene, scenario.jobs, queues)
    scene.await_ends()
    samples = scene.holds()
    for label in ("task_name", "queue_name"):
        assert "unknown" not in samples.label_values(label)
    assert not any(samples.by("celery_exporter_label_fallbacks_total", "label").values())
    assert scene.total("REVOKED") == REVOKED + 2 * len(queues)
    # by its heartbeats a worker tells how many tasks its pool took, whatever events said
    assert samples.total("celery_worker_processed_tasks_total") == scene.total("STARTED")


def test_retries_to_another_queue(scene: Scene) -> None:
    """Each attempt is counted where it took place."""
    workers = (scene.make_worker(f"{queue}@test", queues=queue) for queue in ("left", "right"))
    scene.start(scene.exporter, *workers)
    scene.send("tasks.retry_elsewhere", "right", times=size(20, 500), queue="left")
    scene.await_ends()
    scene.holds()
