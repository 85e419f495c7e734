"""The numbers of a broker are exact while the exporter monitors others: busy, flooded, or down."""

from __future__ import annotations

import copy
import itertools
import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple, Self

import pytest
from harness.events import publish_event_bytes, publish_events, task_events
from harness.exporter import Exporter, Response, Samples
from harness.outcomes import Attempt, Outcome, RedisOutcomes
from harness.servers import RabbitServer, RedisServer
from harness.waiting import eventually
from prometheus_client.parser import text_string_to_metric_families as parse_text

from .conftest import add_results
from .jobs import BACK_OFF, KILLED, LATER, PLAIN, send_shuffled
from .scene import Scene, size
from .test_endings import send_expired, send_revoked

CELERY = ("celery",)
LABELS = ("--task-labels", "queue_name,worker")


class OneOfSeveral(Exporter):
    """An exporter of several brokers, and the pages of one of them."""

    def __init__(self, folder: Path, urls: dict[str, str], *arguments: str) -> None:
        super().__init__(folder, None, "--config.file", str(folder / "config.yml"), *arguments)
        brokers = {name: {"url": url} for name, url in urls.items()}
        (folder / "config.yml").write_text(json.dumps({"brokers": brokers}))  # JSON is YAML
        self.broker = next(iter(urls))

    def get(self, path: str = "/metrics", headers: dict[str, str] | None = None, **options: Any) -> Response:
        """Request a page of the broker."""
        return super().get(f"/brokers/{self.broker}{path}", headers, **options)

    def of(self, broker: str) -> Self:
        """Return the same exporter, which has started, with the pages of another broker."""
        other = copy.copy(self)
        other.broker = broker
        return other

    def samples_by_broker(self) -> dict[str, Samples]:
        """Return the samples of the page of all brokers, by the label `broker`."""
        by_broker: dict[str, Samples] = {}
        for (name, labels), value in Samples.of(parse_text(Exporter.get(self).text)).items():
            rest = dict(labels)
            broker = rest.pop("broker", "")
            by_broker.setdefault(broker, Samples())[name, frozenset(rest.items())] = value
        return by_broker


# -- four brokers at once ------------------------------------------------------------------------------------


class OutcomesOfThread(RedisOutcomes):
    """The outcomes of the client in one thread: Celery's signals are those of all clients of a process."""

    thread: int | None = None

    def record(
        self, outcome: Outcome, attempt: Attempt, *, exception: str | None = None, eta: str | None = None
    ) -> None:
        if threading.get_ident() == self.thread:
            super().record(outcome, attempt, exception=exception, eta=eta)


class Server(NamedTuple):
    """A database or a virtual host."""

    kind: str
    url: str
    pool: str


@pytest.fixture
def scenes(
    request: pytest.FixtureRequest,
    tmp_path: Path,
    redis_server: RedisServer,
    rabbit_server: RabbitServer,
    outcome_server: RedisServer,
    running: Any,
) -> Iterator[dict[str, Scene]]:
    """Yield a scene on each of two databases and two virtual hosts, by the name of the broker."""
    redis, outcomes = (server.clean().removesuffix("/0") for server in (redis_server, outcome_server))
    servers = {
        "shop": Server("redis", f"{redis}/0", "prefork"),
        "billing": Server("redis", f"{redis}/1", "threads"),
        "emails": Server("rabbitmq", rabbit_server.clean(), "prefork"),
        "reports": Server("rabbitmq", rabbit_server.clean(), "threads"),
    }
    with ExitStack() as stack:
        scenes: dict[str, Scene] = {}
        for number, (name, server) in enumerate(servers.items()):
            own = OutcomesOfThread(f"{outcomes}/{number}")
            scenes[name] = stack.enter_context(Scene(tmp_path / name, server, own, running))
        yield scenes
        for scene in scenes.values():
            add_results(request.node, scene)


def use(scene: Scene, more: int) -> Samples:
    """Send tasks of all kinds, and `more` of one; return the last scrape, which is exact."""
    scene.outcomes.thread = threading.get_ident()  # type: ignore[attr-defined]
    send_expired(scene, CELERY)
    send_revoked(scene, CELERY, 1)
    killed = KILLED if scene.broker.pool == "prefork" else ()
    send_shuffled(scene, (*PLAIN, *LATER, *BACK_OFF, *killed), CELERY)
    scene.send("tasks.succeed", times=more)
    scene.await_ends()
    return scene.assert_exact()


def test_four_brokers_in_one_process(scenes: dict[str, Scene], tmp_path: Path, running: Any) -> None:
    """Workers of all brokers have one name. Each broker has another number of tasks."""
    urls = {name: scene.broker.url for name, scene in scenes.items()}
    app = OneOfSeveral(tmp_path / "several", urls, *LABELS)
    running(app, *(scene.make_worker(pool=scene.broker.pool) for scene in scenes.values()))
    for name, scene in scenes.items():
        scene.exporter = app.of(name)
        scene.await_inspection(is_new=True)
    counts = [number * size(7, 70) for number, _ in enumerate(scenes)]
    with ThreadPoolExecutor(len(scenes)) as threads:
        exact = dict(zip(scenes, threads.map(use, scenes.values(), counts), strict=True))
    assert len({scene.sent for scene in scenes.values()}) == len(scenes), "one could pass for another"
    pages = app.samples_by_broker()
    for name, scene in scenes.items():
        for samples in (exact[name], scene.exporter.samples(), pages[name]):
            assert scene.differences(samples) == {}, f"{name} was exact before"
            assert samples.by("celery_worker_up", "worker") == {("worker@test",): 0.0}
            assert "unknown" not in samples.label_values("task_name") | samples.label_values("queue_name")
            # heartbeats have the number of tasks that the pool accepted, independent of task events
            assert samples.total("celery_worker_processed_tasks_total") == scene.total("STARTED")


# -- a broker that is flooded, and one that is down ----------------------------------------------------------


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
    app = scene.exporter = OneOfSeveral(tmp_path / "several", urls, *LABELS)
    scene.start(app, scene.make_worker(concurrency=2))
    eventually(lambda: app.of("flooded").get("/-/ready").status == 200, 30)
    with flood(flooded):
        send_shuffled(scene, (*PLAIN, *LATER, *BACK_OFF), CELERY)
        scene.await_ends()
        scene.assert_exact()
    text = app.of("flooded").get().text
    assert 'celery_tasks_total{queue_name="made",state="SUCCESS",task_name="made.up",worker="w@box"}' in text
    assert "celery_broker_up 0.0" in app.of("down").get().text
