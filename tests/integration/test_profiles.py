"""The tests of other exporters, repeated for our profiles with real workers.

From danihodovic/celery-exporter 0.12.2: src/test_cli.py, test_metrics.py and test_http_server.py. From Flower
2.2.0: tests/unit/views/test_monitor.py. Their tests of event streams are in tests/unit/metrics/profiles. The
pages docs/how-to/migrate-from-*.md list the differences.
"""

from __future__ import annotations

import socket
import time
from types import SimpleNamespace

import pytest
from harness.events import publish_events
from harness.exporter import Exporter
from harness.outcomes import RedisOutcomes
from harness.waiting import eventually, until_equal
from harness.workers import Worker
from harness.workers import client as make_client

NODE, HOST = "celery@box", "box"
WAITS = 60.0
#: Seconds: a worker is down and removed soon.
SHORT_TIMEOUTS = ("--worker-timeout", "5", "--purge-offline-worker-metrics", "8")
FROM_COMMAND_LINE = "queue_from_command_line"


@pytest.fixture
def scene(request, running, redis_broker, tmp_path):
    """Return an exporter, a way to start a worker, and a client."""
    url, outcomes = redis_broker.url, RedisOutcomes(redis_broker.url.removesuffix("/0") + "/5")
    app = running(Exporter(tmp_path / "exporter", url, *request.param))
    until_equal(lambda: app.get("/-/ready").status, 200, WAITS)

    def work() -> Worker:
        folder = tmp_path / f"worker-{time.monotonic_ns()}"
        return running(Worker(folder, url, NODE, concurrency=1, outcomes=outcomes))

    with make_client(url) as client:
        yield SimpleNamespace(app=app, work=work, send=client.send_task, url=url, open=outcomes.open_gate)


def with_options(*options: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("scene", [options], indirect=True, ids=[" ".join(options)])


def counted(app: Exporter, what: str, /, **labels: str) -> float | None:
    return app.value(f"celery_task_{what}", **labels)


@pytest.mark.parametrize(
    ("scene", "static"),
    [
        (("--profile", "danihodovic", "-Q", FROM_COMMAND_LINE), {}),
        (
            (
                *("--profile", "danihodovic", "-Q", FROM_COMMAND_LINE),
                *("--static-label", "env=test", "--static-label", "team=jobs"),
            ),
            {"env": "test", "team": "jobs"},
        ),
    ],
    indirect=["scene"],
    ids=["plain", "static-labels"],
)
def test_queues_and_tasks_before_during_and_after_a_worker(scene, static):
    """test_integration and test_integration_static_labels."""
    app = scene.app
    of_queue = ("celery_queue_length", "celery_active_worker_count", "celery_active_process_count")

    def shown(queue: str) -> list[float | None]:
        return [app.value(name, queue_name=queue, **static) for name in of_queue]

    until_equal(lambda: shown(FROM_COMMAND_LINE), [0.0, 0.0, 0.0], WAITS)
    assert shown("celery") == [None, None, None]
    worker = scene.work()
    until_equal(lambda: shown("celery"), [0.0, 1.0, 1.0], WAITS)
    assert worker.stop() == 0
    until_equal(lambda: shown("celery"), [0.0, 0.0, 0.0], WAITS)
    for task in ("succeed", "succeed", "fail_with_value_error"):
        scene.send(f"tasks.{task}", queue="celery")
    until_equal(lambda: shown("celery"), [3.0, 0.0, 0.0], WAITS)
    worker = scene.work()
    good, bad = ({"name": f"tasks.{task}", **static} for task in ("succeed", "fail_with_value_error"))
    until_equal(lambda: counted(app, "succeeded_total", **good), 2.0, WAITS)
    until_equal(lambda: counted(app, "failed_total", exception="ValueError", **bad), 1.0, WAITS)
    for name in ("sent_total", "received_total", "started_total", "runtime_count", "queue_wait_time_count"):
        at = {} if name == "sent_total" else {"hostname": HOST}
        assert counted(app, name, queue_name="celery", **good, **at) == 2.0, name
    for name in ("sent_total", "received_total", "started_total"):
        assert counted(app, name, queue_name="celery", **bad) == 1.0, name
    assert worker.stop() == 0
    until_equal(lambda: shown("celery"), [0.0, 0.0, 0.0], WAITS)


@with_options("--profile", "danihodovic", *SHORT_TIMEOUTS)
def test_worker_is_up_down_and_removed(scene):
    """test_worker_status, test_worker_tasks_active, test_worker_timeout_status and the purge."""
    app = scene.app
    worker = scene.work()
    until_equal(lambda: app.value("celery_worker_up", hostname=HOST), 1.0, WAITS)
    scene.send("tasks.hold", ("gate",), queue="celery")
    until_equal(lambda: counted(app, "started_total", hostname=HOST, name="tasks.hold"), 1.0, WAITS)
    scene.open("gate")
    until_equal(lambda: counted(app, "succeeded_total", hostname=HOST, name="tasks.hold"), 1.0, WAITS)
    worker.kill()  # it says no goodbye: it is silent
    until_equal(lambda: app.value("celery_worker_up", hostname=HOST), 0.0, WAITS)
    assert counted(app, "succeeded_total", hostname=HOST, name="tasks.hold") == 1.0
    until_equal(lambda: app.value("celery_worker_up", hostname=HOST), None, WAITS)
    for name in ("succeeded_total", "runtime_count", "queue_wait_time_count"):
        assert counted(app, name, hostname=HOST, name="tasks.hold") is None, name
    now = time.time()
    publish_events(scene.url, {"type": "worker-offline", "hostname": NODE, "pid": 1, "timestamp": now})
    publish_events(
        scene.url, {"type": "worker-heartbeat", "hostname": "celery@other", "pid": 1, "timestamp": now}
    )
    until_equal(lambda: app.value("celery_worker_up", hostname="other"), 1.0, WAITS)
    assert app.value("celery_worker_up", hostname=HOST) is None


@pytest.mark.parametrize(
    ("scene", "sent_at", "done_at"),
    [
        (("--profile", "danihodovic", "--generic-hostname-task-sent-metric"), "generic", HOST),
        (
            ("--profile", "danihodovic", "--generic-hostname-worker-task-metric"),
            socket.gethostname(),
            "generic",
        ),
    ],
    indirect=["scene"],
    ids=["sent", "worker"],
)
def test_hosts_are_generic_with_the_options(scene, sent_at, done_at):
    """test_worker_generic_task_sent_hostname and test_worker_generic_task_hostname."""
    app, task = scene.app, {"name": "tasks.succeed", "queue_name": "celery"}
    scene.work()
    scene.send("tasks.succeed", queue="celery")
    until_equal(lambda: counted(app, "succeeded_total", hostname=done_at, **task), 1.0, WAITS)
    assert counted(app, "runtime_count", hostname=done_at, **task) == 1.0
    senders = app.samples().by("celery_task_sent_total", "hostname", **task)
    assert [at for (at,), count in senders.items() if count] == [sent_at]
    until_equal(lambda: app.value("celery_worker_up", hostname=HOST), 1.0, WAITS)
    assert app.value("celery_worker_up", hostname="generic") is None


@with_options("--profile", "flower", *SHORT_TIMEOUTS)
def test_flower_metrics_of_a_worker_and_its_tasks(scene):
    """test_metrics, the four on prefetch, test_worker_online_metric and the three on purging."""
    app, here = scene.app, {"worker": NODE}
    worker = scene.work()
    scene.send("tasks.hold", ("gate",), queue="celery")
    until_equal(lambda: app.value("flower_worker_number_of_currently_executing_tasks", **here), 1.0, WAITS)
    eventually(lambda: app.value("flower_task_prefetch_time_seconds", task="tasks.hold", **here), WAITS)
    scene.send("tasks.succeed", queue="celery")
    until_equal(lambda: app.value("flower_worker_prefetched_tasks", task="tasks.succeed", **here), 1.0, WAITS)
    scene.open("gate")
    for task in ("tasks.hold", "tasks.succeed"):
        for kind in ("received", "started", "succeeded"):
            events = {"task": task, "type": f"task-{kind}", **here}
            until_equal(lambda events=events: app.value("flower_events_total", **events), 1.0, WAITS)
        assert app.value("flower_task_prefetch_time_seconds", task=task, **here) == 0.0
        assert app.value("flower_worker_prefetched_tasks", task=task, **here) == 0.0
    assert app.value("flower_worker_online", **here) == 1.0
    assert worker.stop() == 0
    until_equal(lambda: app.value("flower_worker_online", **here), 0.0, WAITS)
    until_equal(lambda: app.value("flower_worker_online", **here), None, WAITS)
    assert not [labels for _, labels in app.samples() if ("worker", NODE) in labels]
    assert app.get("/healthcheck").text == "OK"


@with_options("--profile", "danihodovic")
def test_health_follows_the_broker(scene, redis_broker):
    """test_health…: 200 with a broker, an error without, 200 when it is back; and what the index links to."""
    app = scene.app
    assert app.get("/health").status == 200
    assert "metrics" in app.get("/").text
    redis_broker.server.kill()
    until_equal(lambda: app.get("/health").status, 503, WAITS)
    redis_broker.server.start()
    until_equal(lambda: app.get("/health").status, 200, WAITS)
