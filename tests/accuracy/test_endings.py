"""All ways in which a task can end, in each pool."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple
from uuid import uuid4

import pytest
from harness.waiting import ANSWER_TIMEOUT

from .jobs import BACK_OFF, KILLED, LATER, PLAIN, Job, send_shuffled
from .scene import Scene, size

ALL = (*PLAIN, *LATER)
REVOKED = 4  # tasks that are revoked before they are sent


class Row(NamedTuple):
    """A scenario: workers by node name, and the jobs that are sent to each of their queues."""

    name: str
    jobs: tuple[Job, ...] = ALL
    workers: tuple[tuple[str, dict[str, Any]], ...] = (("worker@test", {}),)


def pool(name: str, **options: Any) -> tuple[tuple[str, dict[str, Any]], ...]:
    """Return one worker with this pool."""
    return (("worker@test", {"pool": name, **options}),)


ROWS = (
    Row(
        "steady, two queues", PLAIN, (("left@test", {"queues": "left"}), ("right@test", {"queues": "right"}))
    ),
    Row("every ending, prefork", (*ALL, *BACK_OFF, *KILLED), pool("prefork", worker_lost_wait=0.1)),
    Row("every ending, threads", ALL, pool("threads")),
    Row("every ending, solo", ALL, pool("solo", concurrency=1)),
)


def send_revoked(scene: Scene, queues: tuple[str, ...], workers: int) -> None:
    """Revoke tasks on all workers, and send them afterwards."""
    ids = [str(uuid4()) for _ in range(REVOKED)]
    answers = scene.client.control.revoke(ids, reply=True, timeout=ANSWER_TIMEOUT, limit=workers)
    assert len(answers) == workers, answers
    for number, task_id in enumerate(ids):
        scene.send("tasks.succeed", queue=queues[number % len(queues)], task_id=task_id)


def send_expired(scene: Scene, queues: tuple[str, ...]) -> None:
    """Send tasks that expire in a worker before they are due.

    They are sent first, because RabbitMQ discards messages that expire in a queue, without an event.
    """
    for queue in queues:
        scene.send("tasks.succeed", times=2, queue=queue, countdown=1, expires=0.5)
    scene.await_total(2 * len(queues), "RECEIVED")


@pytest.mark.parametrize("scenario", ROWS, ids=lambda row: row.name)
def test_every_ending_is_counted(scene: Scene, scenario: Row) -> None:
    """All sums equal the recorded outcomes, no label is unknown, and no task stays in a gauge."""
    scene.start(scene.exporter, *(scene.make_worker(node, **options) for node, options in scenario.workers))
    queues = tuple(options.get("queues", "celery") for _, options in scenario.workers)
    send_expired(scene, queues)
    send_revoked(scene, queues, len(scenario.workers))
    scene.send("tasks.succeed", queue=queues[0], eta=datetime.now(UTC) + timedelta(seconds=1))
    send_shuffled(scene, scenario.jobs, queues)
    scene.await_ends()
    samples = scene.assert_exact()
    for label in ("task_name", "queue_name"):
        assert "unknown" not in samples.label_values(label)
    assert not any(samples.by("celery_exporter_label_fallbacks_total", "label").values())
    assert scene.total("REVOKED") == REVOKED + 2 * len(queues)
    # heartbeats have the number of tasks that the pool accepted, independent of task events
    assert samples.total("celery_worker_processed_tasks_total") == scene.total("STARTED")


def test_retries_to_another_queue(scene: Scene) -> None:
    """Each attempt is counted in its own queue."""
    workers = (scene.make_worker(f"{queue}@test", queues=queue) for queue in ("left", "right"))
    scene.start(scene.exporter, *workers)
    scene.send("tasks.retry_elsewhere", "right", times=size(20, 500), queue="left")
    scene.await_ends()
    scene.assert_exact()
