"""The assertions of the original exporters' test suites, for our profiles, with real workers.

From danihodovic's exporter: src/test_cli.py, test_metrics.py and test_http_server.py of 0.12.2. From Flower:
tests/unit/views/test_monitor.py of 2.2.0. Their assertions on event streams are in
tests/unit/metrics/profiles/. docs/how-to/ lists the differences.
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
DEADLINE_SECONDS = 60.0
#: A worker is down and removed within seconds.
SHORT_TIMEOUTS = ("--worker-timeout", "5", "--purge-offline-worker-metrics", "8")
FROM_COMMAND_LINE = "queue_from_command_line"


@pytest.fixture
def scene(request, running, redis_broker, tmp_path):
    """Return an exporter, a function that starts a worker, and a client."""
    url, outcomes = redis_broker.url, RedisOutcomes(redis_broker.url.removesuffix("/0") + "/5")
    app = running(Exporter(tmp_path / "exporter", url, *request.param))
    until_equal(lambda: app.get("/-/ready").status, 200, DEADLINE_SECONDS)

    def start_worker() -> Worker:
        folder = tmp_path / f"worker-{time.monotonic_ns()}"
        return running(Worker(folder, url, NODE, concurrency=1, outcomes=outcomes))

    with make_client(url) as client:
        yield SimpleNamespace(
            app=app, start_worker=start_worker, send=client.send_task, url=url, open_gate=outcomes.open_gate
        )


def with_options(*options: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("scene", [options], indirect=True, ids=[" ".join(options)])


def task_metric(app: Exporter, name: str, /, **labels: str) -> float | None:
    return app.value(f"celery_task_{name}", **labels)


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
def test_queue_and_task_metrics_before_during_and_after_a_worker(scene, static):
    """As test_integration and test_integration_static_labels."""
    app = scene.app
    queue_metrics = ("celery_queue_length", "celery_active_worker_count", "celery_active_process_count")

    def values(queue: str) -> list[float | None]:
        return [app.value(name, queue_name=queue, **static) for name in queue_metrics]

    until_equal(lambda: values(FROM_COMMAND_LINE), [0.0, 0.0, 0.0], DEADLINE_SECONDS)
    assert values("celery") == [None, None, None]
    worker = scene.start_worker()
    until_equal(lambda: values("celery"), [0.0, 1.0, 1.0], DEADLINE_SECONDS)
    assert worker.stop() == 0
    until_equal(lambda: values("celery"), [0.0, 0.0, 0.0], DEADLINE_SECONDS)
    for task in ("succeed", "succeed", "fail_with_value_error"):
        scene.send(f"tasks.{task}", queue="celery")
    until_equal(lambda: values("celery"), [3.0, 0.0, 0.0], DEADLINE_SECONDS)
    worker = scene.start_worker()
    good, bad = ({"name": f"tasks.{task}", **static} for task in ("succeed", "fail_with_value_error"))
    until_equal(lambda: task_metric(app, "succeeded_total", **good), 2.0, DEADLINE_SECONDS)
    until_equal(
        lambda: task_metric(app, "failed_total", exception="ValueError", **bad), 1.0, DEADLINE_SECONDS
    )
    for name in ("sent_total", "received_total", "started_total", "runtime_count", "queue_wait_time_count"):
        at = {} if name == "sent_total" else {"hostname": HOST}
        assert task_metric(app, name, queue_name="celery", **good, **at) == 2.0, name
    for name in ("sent_total", "received_total", "started_total"):
        assert task_metric(app, name, queue_name="celery", **bad) == 1.0, name
    assert worker.stop() == 0
    until_equal(lambda: values("celery"), [0.0, 0.0, 0.0], DEADLINE_SECONDS)


@with_options("--profile", "danihodovic", *SHORT_TIMEOUTS)
def test_a_killed_worker_is_down_and_then_removed(scene):
    """As test_worker_status, test_worker_tasks_active, test_worker_timeout_status and the purge."""
    app = scene.app
    worker = scene.start_worker()
    until_equal(lambda: app.value("celery_worker_up", hostname=HOST), 1.0, DEADLINE_SECONDS)
    scene.send("tasks.hold", ("gate",), queue="celery")
    until_equal(
        lambda: task_metric(app, "started_total", hostname=HOST, name="tasks.hold"), 1.0, DEADLINE_SECONDS
    )
    scene.open_gate("gate")
    until_equal(
        lambda: task_metric(app, "succeeded_total", hostname=HOST, name="tasks.hold"), 1.0, DEADLINE_SECONDS
    )
    worker.kill()  # without worker-offline
    until_equal(lambda: app.value("celery_worker_up", hostname=HOST), 0.0, DEADLINE_SECONDS)
    assert task_metric(app, "succeeded_total", hostname=HOST, name="tasks.hold") == 1.0
    until_equal(lambda: app.value("celery_worker_up", hostname=HOST), None, DEADLINE_SECONDS)
    for name in ("succeeded_total", "runtime_count", "queue_wait_time_count"):
        assert task_metric(app, name, hostname=HOST, name="tasks.hold") is None, name
    now = time.time()
    publish_events(scene.url, {"type": "worker-offline", "hostname": NODE, "pid": 1, "timestamp": now})
    publish_events(
        scene.url, {"type": "worker-heartbeat", "hostname": "celery@other", "pid": 1, "timestamp": now}
    )
    until_equal(lambda: app.value("celery_worker_up", hostname="other"), 1.0, DEADLINE_SECONDS)
    assert app.value("celery_worker_up", hostname=HOST) is None


@pytest.mark.parametrize(
    ("scene", "sender", "runner"),
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
def test_generic_hostname_options_replace_hosts(scene, sender, runner):
    """As test_worker_generic_task_sent_hostname and test_worker_generic_task_hostname."""
    app, task = scene.app, {"name": "tasks.succeed", "queue_name": "celery"}
    scene.start_worker()
    scene.send("tasks.succeed", queue="celery")
    until_equal(lambda: task_metric(app, "succeeded_total", hostname=runner, **task), 1.0, DEADLINE_SECONDS)
    assert task_metric(app, "runtime_count", hostname=runner, **task) == 1.0
    senders = app.samples().by("celery_task_sent_total", "hostname", **task)
    assert [host for (host,), count in senders.items() if count] == [sender]
    until_equal(lambda: app.value("celery_worker_up", hostname=HOST), 1.0, DEADLINE_SECONDS)
    assert app.value("celery_worker_up", hostname="generic") is None


@with_options("--profile", "flower", *SHORT_TIMEOUTS)
def test_flower_metrics_of_a_worker_and_its_tasks(scene):
    """As test_metrics, the four on prefetch, test_worker_online_metric and the three on purging."""
    app, here = scene.app, {"worker": NODE}
    worker = scene.start_worker()
    scene.send("tasks.hold", ("gate",), queue="celery")
    until_equal(
        lambda: app.value("flower_worker_number_of_currently_executing_tasks", **here), 1.0, DEADLINE_SECONDS
    )
    eventually(
        lambda: app.value("flower_task_prefetch_time_seconds", task="tasks.hold", **here), DEADLINE_SECONDS
    )
    scene.send("tasks.succeed", queue="celery")
    until_equal(
        lambda: app.value("flower_worker_prefetched_tasks", task="tasks.succeed", **here),
        1.0,
        DEADLINE_SECONDS,
    )
    scene.open_gate("gate")
    for task in ("tasks.hold", "tasks.succeed"):
        for kind in ("received", "started", "succeeded"):
            events = {"task": task, "type": f"task-{kind}", **here}
            until_equal(
                lambda events=events: app.value("flower_events_total", **events), 1.0, DEADLINE_SECONDS
            )
        assert app.value("flower_task_prefetch_time_seconds", task=task, **here) == 0.0
        assert app.value("flower_worker_prefetched_tasks", task=task, **here) == 0.0
    assert app.value("flower_worker_online", **here) == 1.0
    assert worker.stop() == 0
    until_equal(lambda: app.value("flower_worker_online", **here), 0.0, DEADLINE_SECONDS)
    until_equal(lambda: app.value("flower_worker_online", **here), None, DEADLINE_SECONDS)
    assert not [labels for _, labels in app.samples() if ("worker", NODE) in labels]
    assert app.get("/healthcheck").text == "OK"


@with_options("--profile", "danihodovic")
def test_health_returns_whether_the_broker_is_up(scene, redis_broker):
    """As test_health…: 200 with a broker, an error without, 200 after its restart, and the index."""
    app = scene.app
    assert app.get("/health").status == 200
    assert "metrics" in app.get("/").text
    redis_broker.server.kill()
    until_equal(lambda: app.get("/health").status, 503, DEADLINE_SECONDS)
    redis_broker.server.start()
    until_equal(lambda: app.get("/health").status, 200, DEADLINE_SECONDS)
