"""The sums over shards behind a relay, of which each receives only its own events, are exact."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
from harness.broker_marks import on_rabbitmq
from harness.exporter import Exporter
from harness.relay import Relay, shard_arguments

from .jobs import BACK_OFF, KILLED, LATER, PLAIN, send_shuffled
from .scene import Scene
from .shards import COUNTS, KILLS, kill_under_load, start_shards

CELERY = ("celery",)


def start(scene: Scene, tmp_path: Path, running: Any, count: int) -> tuple[Relay, list[Exporter]]:
    """Start a relay and the shards behind it, which have state files."""
    relay = Relay(tmp_path / "relay", scene.broker.url, count)
    running(relay)
    own = [shard_arguments(index, count) for index in range(count)]
    exporters = start_shards(scene, tmp_path, running, own)
    return relay, exporters


def findings(exporter: Exporter, check: str) -> list[dict[str, str]]:
    """Return the results of a health check."""
    status = json.loads(exporter.get("/api/v1/status").text)
    return [finding for finding in status["findings"] if finding["check"] == check]


@on_rabbitmq
@pytest.mark.parametrize("count", COUNTS)
def test_shards_behind_a_relay(scene: Scene, tmp_path: Path, running: Any, count: int) -> None:
    _, exporters = start(scene, tmp_path, running, count)
    scene.start(scene.make_worker("one@test", concurrency=2), scene.make_worker("two@test", concurrency=1))
    send_shuffled(scene, (*PLAIN, *LATER, *BACK_OFF, *KILLED), CELERY)
    scene.await_ends()
    missed = [finding for exporter in exporters for finding in findings(exporter, "missed-events")]
    assert {finding["severity"] for finding in missed} <= {"ok"}, missed
    samples = scene.assert_exact()
    assert samples.by("celery_worker_up", "worker") == {("one@test",): 0.0, ("two@test",): 0.0}
    parts = [exporter.total("celery_tasks_total", state="SUCCESS") for exporter in exporters]
    assert min(parts) > 0, "each shard has tasks"


@on_rabbitmq
@pytest.mark.parametrize("count", COUNTS)
def test_relay_and_shards_are_killed(scene: Scene, tmp_path: Path, running: Any, count: int) -> None:
    """Two relays and the shards are killed in turn under load. No event is lost, and none counts twice."""
    first, exporters = start(scene, tmp_path, running, count)
    second = Relay(tmp_path / "second", scene.broker.url, count)
    running(second)
    scene.start(scene.make_worker("one@test", pool="threads", concurrency=4))
    pairs = zip(itertools.cycle([first, second]), itertools.cycle(exporters), strict=False)
    kill_under_load(scene, running, itertools.islice(pairs, KILLS))
    scene.assert_exact()
