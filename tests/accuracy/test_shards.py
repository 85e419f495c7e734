"""The sums over shards are exact: each of several exporters keeps a part of the tasks (--shard)."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
from harness.broker_marks import on_rabbitmq
from harness.exporter import Exporter

from .jobs import BACK_OFF, KILLED, LATER, PLAIN, send_shuffled
from .scene import Scene
from .shards import COUNTS, KILLS, Shards, kill_under_load, start_shards
from .test_endings import send_expired, send_revoked

CELERY = ("celery",)


@pytest.mark.parametrize("count", COUNTS)
def test_shards(scene: Scene, tmp_path: Path, running: Any, count: int) -> None:
    labels = ("--task-labels", "queue_name,worker")
    exporters = [
        Exporter(tmp_path / f"shard-{index}", scene.broker.url, *labels, "--shard", f"{index}/{count}")
        for index in range(count)
    ]
    running(*exporters)
    scene.exporter = Shards(exporters)  # type: ignore[assignment]
    scene.start(scene.make_worker("one@test", concurrency=2), scene.make_worker("two@test", concurrency=1))
    send_expired(scene, CELERY)
    send_revoked(scene, CELERY, 2)
    send_shuffled(scene, (*PLAIN, *LATER, *BACK_OFF, *KILLED), CELERY)
    scene.await_ends()
    samples = scene.assert_exact()
    assert samples.by("celery_worker_up", "worker") == {("one@test",): 0.0, ("two@test",): 0.0}
    parts = [exporter.total("celery_tasks_total", state="SUCCESS") for exporter in exporters]
    assert min(parts) > 0, "each shard has tasks"


@on_rabbitmq
@pytest.mark.parametrize("count", COUNTS)
def test_shards_are_killed(scene: Scene, tmp_path: Path, running: Any, count: int) -> None:
    """Each has a durable queue and a state file. No event is lost, and none counts twice."""
    own = [("--shard", f"{index}/{count}", "--event-queue-durable") for index in range(count)]
    exporters = start_shards(scene, tmp_path, running, own)
    scene.start(scene.make_worker("one@test", pool="threads", concurrency=4))
    victims = itertools.islice(itertools.cycle(exporters), KILLS)
    kill_under_load(scene, running, ((victim,) for victim in victims))
    scene.assert_exact()
