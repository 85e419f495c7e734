"""The sums over shards are exact: each of several exporters keeps a part of the tasks (--shard)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from harness.exporter import Exporter

from .jobs import BACK_OFF, KILLED, LATER, PLAIN, send_shuffled
from .scene import FULL, Scene
from .shards import Shards
from .test_endings import send_expired, send_revoked

CELERY = ("celery",)


@pytest.mark.parametrize("count", [1, 2, 4, 8] if FULL else [2])
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
