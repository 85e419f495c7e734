"""One exporter for several brokers: databases of Redis, virtual hosts of RabbitMQ."""

from __future__ import annotations

import json
import os
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from harness.events import publish_events, task_events
from harness.exporter import Exporter, run_cli
from harness.servers import PROMETHEUSES, RedisServer
from harness.time_spans import TimeSpan
from harness.waiting import eventually, until_equal
from harness.workers import Worker
from harness.workers import client as make_client

from celery_exporter.sinks.pusher import LAST_FLUSH_SECONDS

#: Tasks of each broker; different numbers, so that none can be mistaken for another.
TASKS = {"shop": 3, "billing": 5, "emails": 7, "reports": 11}
#: The longest answer while a broker does not answer.
MAX_SCRAPE_SECONDS = 0.5


class Brokers:
    """Brokers by name, in a configuration file."""

    def __init__(self, path: Path, urls: dict[str, str]) -> None:
        self.path, self.urls = path, urls
        self.write(urls)

    def write(self, urls: dict[str, str], **more: Any) -> None:
        brokers = {name: {"url": url, "queues": ["celery"]} for name, url in urls.items()}
        self.path.write_text(json.dumps({"brokers": brokers, **more}))  # JSON is YAML

    def exporter(self, folder: Path, *arguments: str) -> Exporter:
        return Exporter(folder, None, "--config.file", str(self.path), *arguments)


@pytest.fixture
def brokers(tmp_path, redis_server, rabbit_server) -> Brokers:
    """Return two databases and two virtual hosts."""
    redis = redis_server.clean()
    assert redis.endswith("/0")
    urls = [redis, f"{redis.removesuffix('/0')}/1", rabbit_server.clean(), rabbit_server.clean()]
    return Brokers(tmp_path / "config.yml", dict(zip(TASKS, urls, strict=True)))


@pytest.fixture
def clients() -> Iterator[Callable[[str], Any]]:
    with ExitStack() as stack:
        yield lambda url: stack.enter_context(make_client(url))


def await_ready(app: Exporter, *names: str) -> None:
    """Wait until the exporter receives events of these brokers."""
    for name in names:
        eventually(lambda name=name: app.get(f"/-/ready?broker={name}").status == 200, 30, what=name)


def counted(app: Exporter) -> dict[str, float]:
    """Return how many tasks succeeded, by broker."""
    samples = app.samples()
    return {
        name: n for (name,), n in samples.by("celery_tasks_total", "broker", state="SUCCESS").items() if n
    }


def uuids(app: Exporter, broker: str) -> set[str]:
    response = app.get(f"/brokers/{broker}/api/v1/tasks")
    assert response.status == 200, response.text
    return {task["uuid"] for task in json.loads(response.text)["tasks"]}


def test_each_broker_has_its_own_numbers(tmp_path, running, brokers, clients, outcomes):
    """Workers of all brokers have one name, and no number of one is in that of another."""
    app = running(brokers.exporter(tmp_path / "exporter"))
    await_ready(app, *TASKS)
    workers = [
        Worker(tmp_path / name, url, "worker@test", pool="solo", outcomes=outcomes)
        for name, url in brokers.urls.items()
    ]
    running(*workers)
    sent = {
        name: {clients(url).send_task("tasks.succeed").id for _ in range(TASKS[name])}
        for name, url in brokers.urls.items()
    }
    until_equal(lambda: counted(app), TASKS, 60)
    assert {name: uuids(app, name) for name in TASKS} == sent
    for name, count in TASKS.items():
        one = app.samples(path=f"/metrics?broker={name}")
        assert one.total("celery_tasks_total", state="SUCCESS") == count
        assert one.label_values("broker") == set()
        assert one.by("celery_worker_up", "worker") == {("worker@test",): 1.0}
    task = next(iter(sent["emails"]))
    found = run_cli("find", task, "--url", f"http://127.0.0.1:{app.port}")
    assert found.returncode == 0
    assert found.stdout.startswith("broker emails:\n")
    missing = run_cli("find", task, "--broker", "shop", "--url", f"http://127.0.0.1:{app.port}")
    assert missing.returncode == 1
    listed = run_cli("find", "--state", "SUCCESS", "--json", "--url", f"http://127.0.0.1:{app.port}")
    assert {name: len(page["tasks"]) for name, page in json.loads(listed.stdout).items()} == TASKS


def test_a_broker_that_hangs_or_is_down_changes_nothing_of_another(
    tmp_path, running, redis_server, clients, outcomes
):
    frozen = running(RedisServer(tmp_path / "redis"))
    healthy = redis_server.clean()
    brokers = Brokers(
        tmp_path / "config.yml",
        {"frozen": frozen.url, "down": "redis://127.0.0.1:1/0", "healthy": healthy},
    )
    app = running(brokers.exporter(tmp_path / "exporter"))
    await_ready(app, "frozen", "healthy")
    running(Worker(tmp_path / "worker", healthy, pool="solo", outcomes=outcomes))
    client = clients(healthy)
    client.send_task("tasks.succeed")
    until_equal(lambda: counted(app), {"healthy": 1}, 60)
    frozen.pause()
    try:
        eventually(lambda: app.get("/-/ready?broker=frozen").status == 503, 30, what="frozen is not ready")
        for number in range(2, 6):
            client.send_task("tasks.succeed")
            until_equal(lambda: counted(app), {"healthy": number}, 30)
            with TimeSpan(app.pid) as span:
                samples = app.samples()
            assert span.seconds < MAX_SCRAPE_SECONDS, span
        up = {name: up for (name,), up in samples.by("celery_broker_up", "broker").items()}
        assert up == {"frozen": 0.0, "down": 0.0, "healthy": 1.0}
        assert app.get("/-/ready").status == 200
    finally:
        frozen.resume()
    await_ready(app, "frozen")


def test_a_reload_changes_only_what_the_file_changes(tmp_path, running, brokers, clients, outcomes):
    first = {name: brokers.urls[name] for name in ("shop", "emails")}
    state = str(tmp_path / "state")
    brokers.write(first, state_file=state)
    app = running(brokers.exporter(tmp_path / "exporter", "--web.enable-lifecycle"))
    await_ready(app, *first)
    running(Worker(tmp_path / "worker", brokers.urls["shop"], pool="solo", outcomes=outcomes))
    clients(brokers.urls["shop"]).send_task("tasks.succeed")
    until_equal(lambda: counted(app), {"shop": 1}, 60)

    brokers.write({**first, "billing": brokers.urls["billing"]}, state_file=state)
    assert app.get("/-/reload", method="POST").status == 200
    await_ready(app, "billing")
    assert app.value("celery_exporter_reconnects_total", broker="shop") == 0
    clients(brokers.urls["shop"]).send_task("tasks.succeed")
    until_equal(lambda: counted(app), {"shop": 2}, 60)

    brokers.path.write_text('{"brokers": {"shop": {"ulr": "redis://"}}}')
    refused = app.get("/-/reload", method="POST")
    assert (refused.status, "brokers.shop.ulr: unknown key; did you mean url?" in refused.text) == (500, True)
    assert app.samples().by("celery_exporter_config_last_reload_successful", "broker") == {
        ("shop",): 0.0,
        ("emails",): 0.0,
        ("billing",): 0.0,
    }

    brokers.write({"shop": brokers.urls["shop"]}, state_file=state, task_ttl=1000)
    os.kill(app.pid, signal.SIGHUP)
    eventually(lambda: app.samples().label_values("broker") == {"shop"}, 30, what="only shop")
    assert app.value("celery_exporter_config_last_reload_successful", broker="shop") == 1
    assert counted(app) == {"shop": 2}, "it was restarted with its state file"
    app.stop_cleanly()
    assert sorted(path.name for path in tmp_path.glob("state.*") if path.suffix != ".lock")


@pytest.mark.parametrize("prometheus", PROMETHEUSES)
def test_prometheus_finds_a_job_for_each_broker(tmp_path, running, brokers, clients, outcomes, prometheus):
    app = running(brokers.exporter(tmp_path / "exporter"))
    await_ready(app, *TASKS)
    server = running(prometheus(tmp_path / "prometheus", f"127.0.0.1:{app.port}", discovery="/sd"))
    running(Worker(tmp_path / "worker", brokers.urls["emails"], pool="solo", outcomes=outcomes))
    eventually(lambda: len(server.query("up == 1")) == len(TASKS), 60, what="all targets up")
    for _ in range(TASKS["emails"]):
        clients(brokers.urls["emails"]).send_task("tasks.succeed")
    query = 'sum by (job) (celery_tasks_total{state="SUCCESS"}) > 0'
    until_equal(
        lambda: {row["metric"]["job"]: float(row["value"][1]) for row in server.query(query)},
        {"emails": TASKS["emails"]},
        60,
    )
    assert {row["metric"]["job"] for row in server.query("celery_broker_up == 1")} == TASKS.keys()
    assert not server.query('celery_broker_up{broker!=""}')


def test_the_configuration_is_checked_before_it_is_used(brokers):
    result = run_cli("check-config", str(brokers.path))
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.startswith(f"{brokers.path}: valid, 4 brokers\n  shop: redis://127.0.0.1:")
    assert "guest:***@" in result.stdout
    brokers.path.write_text("brokers: {a: {ulr: x}}")
    result = run_cli("check-config", str(brokers.path))
    assert (result.returncode, result.stdout) == (2, "")
    assert "brokers.a.ulr: unknown key; did you mean url?" in result.stderr


def test_a_reload_that_fails_gives_the_files_of_new_brokers_back(tmp_path, running, brokers):
    """The next one, with the mistake corrected, opens them."""
    app = running(brokers.exporter(tmp_path / "exporter", "--web.enable-lifecycle"))
    await_ready(app, *TASKS)
    added = {"first": str(tmp_path / "first"), "second": str(tmp_path / "missing" / "second")}
    url = brokers.urls["shop"]
    sections = {name: {"url": broker, "queues": ["celery"]} for name, broker in brokers.urls.items()}
    new = {name: {"url": url, "state_file": path} for name, path in added.items()}
    brokers.path.write_text(json.dumps({"brokers": {**sections, **new}}))
    refused = app.get("/-/reload", method="POST")
    assert (refused.status, "does not exist" in refused.text) == (500, True)
    (tmp_path / "missing").mkdir()
    assert app.get("/-/reload", method="POST").text == "reloaded\n"
    await_ready(app, *TASKS, *added)
    assert app.value("celery_exporter_reconnects_total", broker="shop") == 0


def test_sinks_that_do_not_answer_delay_the_end_once(tmp_path, running, brokers):
    """Each waits for the last flush as long as one does, at the same time."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        influx = {"influx_url": f"http://127.0.0.1:{port}", "influx_org": "o", "influx_bucket": "b"}
        brokers.write(brokers.urls, **influx)
        app = running(brokers.exporter(tmp_path / "exporter"))
        await_ready(app, *TASKS)
        for number, url in enumerate(brokers.urls.values()):
            publish_events(url, *task_events(number))
        until_equal(lambda: counted(app), dict.fromkeys(TASKS, 1), 30)
        os.kill(app.pid, signal.SIGTERM)
        assert app.wait() == 0
        assert app.ending.seconds < 2 * LAST_FLUSH_SECONDS, app.ending
