"""The numbers of a broker are exact while the exporter monitors others: one flooded, and one that is down."""

from __future__ import annotations

import itertools
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from harness.events import publish_event_bytes, publish_events, task_events
from harness.exporter import Exporter, Response
from harness.waiting import eventually

from .jobs import BACK_OFF, LATER, PLAIN, send_shuffled
from .scene import Scene

CELERY = ("celery",)


class OneOfSeveral(Exporter):
    """An exporter of several brokers, and the pages of one of them."""

    def __init__(self, folder: Path, urls: dict[str, str], *arguments: str) -> None:
        super().__init__(folder, None, "--config.file", str(folder / "config.yml"), *arguments)
        brokers = {name: {"url": url} for name, url in urls.items()}
        (folder / "config.yml").write_text(json.dumps({"brokers": brokers}))  # JSON is YAML
        self.broker = next(iter(urls))

    def get(self, path: str = "/metrics", headers: dict[str, str] | None = None, **options: Any) -> Response:
        """Request a page of the first broker."""
        return super().get(f"/brokers/{self.broker}{path}", headers, **options)

    def of(self, broker: str, path: str = "/metrics") -> Response:
        """Request a page of another broker."""
        return super().get(f"/brokers/{broker}{path}")


@contextmanager
def flood(url: str) -> Iterator[None]:
    """Publish events, and bytes that are none, as fast as possible."""
    stopping = threading.Event()

    def publish() -> None:
        for number in itertools.count():
            if stopping.is_set():
                return
            publish_events(url, *(event for n in range(50) for event in task_events(50 * number + n)))
            publish_event_bytes(url, b"[{" * 1_000)

    thread = threading.Thread(target=publish)
    thread.start()
    try:
        yield
    finally:
        stopping.set()
        thread.join()


def test_several_brokers(scene: Scene, tmp_path: Path, outcome_server: Any) -> None:
    flooded = f"{outcome_server.url.removesuffix('/0')}/1"
    urls = {"main": scene.broker.url, "flooded": flooded, "down": "redis://127.0.0.1:1/0"}
    scene.exporter = OneOfSeveral(tmp_path / "several", urls, "--task-labels", "queue_name,worker")
    scene.start(scene.exporter, scene.make_worker(concurrency=2))
    eventually(lambda: scene.exporter.of("flooded", "/-/ready").status == 200, 30)
    with flood(flooded):
        send_shuffled(scene, (*PLAIN, *LATER, *BACK_OFF), CELERY)
        scene.await_ends()
        scene.assert_exact()
    text = scene.exporter.of("flooded").text
    assert 'celery_tasks_total{queue_name="made",state="SUCCESS",task_name="made.up",worker="w@box"}' in text
    assert "celery_broker_up 0.0" in scene.exporter.of("down").text
