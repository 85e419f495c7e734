"""The queue, name and worker of a task, where its events do not have them."""

from __future__ import annotations

import json
import signal
import subprocess
from pathlib import Path

import psutil
import pytest
from harness import workers
from harness.broker_marks import on_rabbitmq
from harness.exporter import Exporter
from harness.waiting import eventually, stays, until_equal
from harness.workers import Worker
from kombu import Exchange, Queue

QUEUES = {
    "celery": {"exchange": "celery", "binding_key": "celery"},
    "videos": {"exchange": "media", "exchange_type": "direct", "binding_key": "video"},
    "feeds": {"exchange": "topics", "exchange_type": "topic", "binding_key": "feed.#"},
}
#: Declared before publishing: on Redis, a kombu process knows the types of declared exchanges only.
VIDEOS = Queue("videos", Exchange("media", "direct"), "video")
FEEDS = Queue("feeds", Exchange("topics", "topic"), "feed.#")
QUORUM = {
    "task_default_queue_type": "quorum",
    "task_default_queue": "mails",
    "task_default_exchange": "mails",
    "task_default_exchange_type": "topic",
    "task_default_routing_key": "mails",
}
#: The defaults before Celery 5.7. With those of 5.7, two workers of one name cannot start on RabbitMQ.
SHARED = {"control_queue_exclusive": False, "event_queue_exclusive": False}
IN_PID_NAMESPACE = ("unshare", "--user", "--map-root-user", "--pid", "--fork", "--kill-child")


def wait_for_inspection(app: Exporter, *nodes: str) -> None:
    """Wait until these workers have replied to an inspection."""
    eventually(lambda: set(nodes) <= app.samples().label_values("worker", "celery_worker_pool_size"), 60)


def successes(app: Exporter, label: str = "queue_name") -> dict[str, float]:
    """Return the numbers of successful tasks by a label."""
    sums = app.samples().by("celery_tasks_total", label, state="SUCCESS")
    return {value: count for (value,), count in sums.items() if count}


def severity(app: Exporter, check: str) -> str:
    """Return the severity of a check in the status; "" if it has no finding."""
    findings = json.loads(app.get("/api/v1/status").body)["findings"]
    return next((finding["severity"] for finding in findings if finding["check"] == check), "")


def test_the_queue_follows_from_exchange_and_routing_key(running, exporter, broker, worker):
    """`task-sent` always has the default queue."""
    app = running(exporter()).connected()
    running(worker("w@box", queues="celery,videos,feeds", pool="solo", task_queues=QUEUES))
    wait_for_inspection(app, "w@box")
    with workers.client(broker.url, task_queues=QUEUES) as client:
        for _ in range(3):
            client.send_task("tasks.succeed", exchange="media", routing_key="video", declare=[VIDEOS])
        for _ in range(2):
            client.send_task("tasks.succeed", exchange="topics", routing_key="feed.a.b", declare=[FEEDS])
        client.send_task("tasks.retry_once", exchange="media", routing_key="video", declare=[VIDEOS])
        client.send_task("tasks.succeed", queue="videos")
        client.send_task("tasks.succeed")
    until_equal(lambda: successes(app), {"videos": 5, "feeds": 2, "celery": 1}, 60)
    queues = app.samples().by("celery_tasks_total", "queue_name", state="PENDING")
    assert {queue: count for (queue,), count in queues.items() if count} == {
        "videos": 6,
        "feeds": 2,
        "celery": 1,
    }
    assert app.value("celery_exporter_label_fallbacks_total", label="queue_name") == 0


def test_a_broadcast_is_sent_once_and_succeeds_on_each_worker(running, exporter, broker, worker):
    app = running(exporter()).connected()
    nodes = ("a@box", "b@box")
    running(*(worker(node, queues="bulletin", pool="solo", broadcast="bulletin") for node in nodes))
    wait_for_inspection(app, *nodes)
    with workers.client(broker.url, broadcast="bulletin") as client:
        for _ in range(3):
            client.send_task("tasks.succeed", queue="bulletin", declare=[client.amqp.queues["bulletin"]])
    until_equal(lambda: successes(app), {"bulletin": 6}, 60)
    samples = app.samples()
    assert samples.total("celery_tasks_total", state="PENDING", queue_name="bulletin") == 3
    assert samples.total("celery_task_redeliveries_total") == 0
    until_equal(lambda: app.total("celery_tasks_in_flight"), 0)


@on_rabbitmq
def test_a_task_with_native_delayed_delivery_has_its_final_queue(running, exporter, broker, worker):
    app = running(exporter()).connected()
    running(worker("w@box", queues="mails", pool="solo", **QUORUM))
    wait_for_inspection(app, "w@box")
    with workers.client(broker.url, **QUORUM) as client:
        client.send_task("tasks.succeed")
        client.send_task("tasks.succeed", countdown=2)
        client.send_task("tasks.retry_once", (2,))
    until_equal(lambda: app.total("celery_tasks_total", state="PENDING", queue_name="mails"), 4, 60)
    until_equal(lambda: successes(app), {"mails": 3}, 60)
    assert app.value("celery_exporter_label_fallbacks_total", label="queue_name") == 0


def test_a_worker_that_restarts_with_another_queue_is_inspected_early(running, exporter, broker, worker):
    """There are no task-sent events, and the update interval is long."""
    app = running(exporter(update_interval="300")).connected()
    with workers.client(broker.url, task_send_sent_event=False) as client:
        for queue, expected in (("left", {"left": 3}), ("right", {"left": 3, "right": 3})):
            for _ in range(3):
                client.send_task("tasks.succeed", queue=queue)
            process = running(worker("w@box", queues=queue, pool="solo", task_send_sent_event=False))
            until_equal(lambda: successes(app), expected, 60)
            assert process.stop() == 0


class ContainerWorker(Worker):
    """A worker with pid 1, as in a container."""

    def command(self) -> list[str]:
        return [*IN_PID_NAMESPACE, *super().command()]

    def stop(self, sig: signal.Signals = signal.SIGTERM, deadline: float = 15.0) -> int:
        (worker,) = psutil.Process(self.pid).children()
        worker.send_signal(sig)
        return self.wait(deadline)


@pytest.mark.parametrize("kind", [Worker, ContainerWorker])
def test_two_workers_of_one_name_are_a_finding_and_all_their_tasks_are_counted(
    running, exporter, broker, tmp_path: Path, kind: type[Worker]
):
    if kind is ContainerWorker and subprocess.run([*IN_PID_NAMESPACE, "true"], check=False).returncode:
        pytest.skip("the user must not create namespaces")
    app = running(exporter()).connected()
    pair = [
        kind(tmp_path / queue, broker.url, "w@box", queues=queue, pool="solo", **SHARED)
        for queue in ("left", "right")
    ]
    running(*pair)
    with workers.client(broker.url) as client:
        for count, queue in ((14, "left"), (6, "right")):
            for _ in range(count):
                client.send_task("tasks.succeed", queue=queue)
    until_equal(lambda: successes(app), {"left": 14, "right": 6}, 60)
    until_equal(lambda: app.value("celery_worker_processed_tasks_total", worker="w@box"), 20, 60)
    eventually(lambda: severity(app, "duplicate-node-names") == "critical", 60)
    stays(
        lambda: (
            app.value("celery_worker_processed_tasks_total", worker="w@box") == 20
            and app.value("celery_worker_restarts_total", worker="w@box") == 0
        ),
        6,
    )
    assert app.value("celery_exporter_events_missed_total", worker="w@box") == 0
    assert pair[0].stop() == 0
    until_equal(lambda: severity(app, "duplicate-node-names"), "ok", 60)
    assert app.value("celery_worker_up", worker="w@box") == 1


@pytest.mark.parametrize("shadow", ["shown.in.logs"])
def test_a_task_with_a_shadow_name_is_counted_under_its_own_name(running, exporter, broker, worker, shadow):
    """`task-sent` has the name of the task, and `task-received` the shadow name."""
    app = running(exporter()).connected()
    running(worker("w@box", pool="solo", task_send_sent_event=False))
    wait_for_inspection(app, "w@box")
    for sends_event in (True, False):
        with workers.client(broker.url, task_send_sent_event=sends_event) as client:
            client.send_task("tasks.succeed", queue="celery", shadow=shadow)
            client.send_task("tasks.retry_once", queue="celery", shadow=f"{shadow}.retry")
        count = 2 - sends_event
        expected = {"tasks.succeed": count, "tasks.retry_once": count}
        until_equal(lambda: successes(app, "task_name"), expected, 60)
    assert shadow not in app.samples().label_values("task_name")
