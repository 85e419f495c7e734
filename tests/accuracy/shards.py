"""Several exporters that are asked as if they were one, and killed in turn."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from harness.exporter import Exporter, Response, Samples
from harness.processes import Process

from celery_exporter.core.shards import Shard

from .scene import FULL, Scene, size

#: Numbers of shards, kills, and tasks that are sent for each of these.
COUNTS = [1, 2, 4, 8] if FULL else [2]
KILLS, TASKS = size(3, 20), size(150, 300)


class Shards:
    """Several exporters, and the sums of their samples, as Prometheus adds up the targets of a job."""

    def __init__(self, exporters: list[Exporter]) -> None:
        self.exporters = exporters

    def alive(self) -> bool:
        """Return whether all run."""
        return all(exporter.alive() for exporter in self.exporters)

    def connected(self) -> None:
        """Wait until all receive events."""
        for exporter in self.exporters:
            exporter.connected()

    def get(self, path: str = "/metrics", *arguments: Any, **options: Any) -> Response:
        """Request a page about a task, whose uuid is the end of the path, from its shard."""
        uuid = path.rpartition("/")[2]
        shards = (Shard(index, len(self.exporters)) for index in range(len(self.exporters)))
        index = next(shard.index for shard in shards if shard.has(uuid))
        return self.exporters[index].get(path, *arguments, **options)

    def samples(self, **_: Any) -> Samples:
        """Return the sum of each series."""
        total = Samples()
        for exporter in self.exporters:
            for series, value in exporter.samples().items():
                total[series] = total.get(series, 0.0) + value
        return total


def start_shards(
    scene: Scene, folder: Path, running: Any, arguments: list[tuple[str, ...]]
) -> list[Exporter]:
    """Start shards with these arguments, which have state files, and let the scene ask all of them."""
    exporters = [
        Exporter(
            folder / f"shard-{index}",
            scene.broker.url,
            *("--task-labels", "queue_name,worker", "--state-file", "state", *own),
        )
        for index, own in enumerate(arguments)
    ]
    running(*exporters)
    scene.exporter = Shards(exporters)  # type: ignore[assignment]
    return exporters


def kill_under_load(scene: Scene, running: Any, groups: Iterable[tuple[Process, ...]]) -> None:
    """Kill one group of processes after the other while tasks run, and start each again at once."""
    for number, group in enumerate(groups):
        scene.send("tasks.succeed", 0.02, times=TASKS)
        scene.await_total(number * TASKS + TASKS // 3, "SUCCESS")
        for process in group:
            process.kill()
        running(*group)
    scene.await_ends()
    scene.exporter.connected()
