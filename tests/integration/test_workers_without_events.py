"""Workers without task events: the metric that shows them, and --enable-events."""

import json

from harness.broker_marks import on_redis
from harness.waiting import eventually, until_equal

NODE = "w@box"
ENABLED, PROCESSED = "celery_worker_task_events_enabled", "celery_worker_processed_tasks_total"


def finding(app, check):
    """Return the finding of a check on the overview; None while it has not decided."""
    findings = json.loads(app.get("/api/v1/status").text)["findings"]
    return next((item for item in findings if item["check"] == check), None)


def send(client, tasks=10):
    for _ in range(tasks):
        client.send_task("tasks.succeed", queue="celery")


def await_heartbeats(app, count=3):
    """Wait for that many heartbeats: after two of them, missed events have been counted."""
    name = "celery_exporter_events_total"
    before = app.value(name, kind="worker-heartbeat")
    eventually(lambda: app.value(name, kind="worker-heartbeat") >= before + count, 20)


def test_one_batch_of_tasks_shows_that_a_worker_sends_no_task_events(running, exporter, worker, client):
    app = running(exporter()).connected()
    running(worker(NODE, events=False))
    eventually(lambda: app.value(PROCESSED, worker=NODE) == 0, 20)
    send(client)
    until_equal(lambda: app.value(PROCESSED, worker=NODE), 10, 20)
    until_equal(lambda: app.value(ENABLED, worker=NODE), 0, 10)
    eventually(lambda: finding(app, "task-events")["severity"] == "critical", 10)
    assert app.total("celery_exporter_events_missed_total") == 0


@on_redis
def test_tasks_that_ran_before_task_events_were_enabled_are_not_missed(running, exporter, worker, client):
    """celery control enable_events before the exporter has decided that task events are off, and after."""
    app = running(exporter()).connected()
    running(worker(NODE, events=False))
    eventually(lambda: app.value(PROCESSED, worker=NODE) == 0, 20)
    send(client)
    until_equal(lambda: app.value(PROCESSED, worker=NODE), 10, 20)
    client.control.enable_events(reply=True, destination=[NODE])
    send(client)
    until_equal(lambda: app.value(PROCESSED, worker=NODE), 20, 20)
    until_equal(lambda: app.value(ENABLED, worker=NODE), 1, 10)
    await_heartbeats(app)
    client.control.disable_events(reply=True, destination=[NODE])
    send(client)
    until_equal(lambda: app.value(PROCESSED, worker=NODE), 30, 20)
    await_heartbeats(app)
    assert app.total("celery_exporter_events_missed_total") == 0


@on_redis
def test_a_worker_that_restarts_with_task_events_has_none_missed(running, exporter, worker, client):
    app = running(exporter()).connected()
    without = running(worker(NODE, events=False))
    eventually(lambda: app.value(PROCESSED, worker=NODE) == 0, 20)
    send(client)
    until_equal(lambda: app.value(PROCESSED, worker=NODE), 10, 20)
    without.stop()
    running(worker(NODE))
    send(client)
    until_equal(lambda: app.value(PROCESSED, worker=NODE), 20, 20)
    until_equal(lambda: app.value(ENABLED, worker=NODE), 1, 10)
    await_heartbeats(app)
    assert app.total("celery_exporter_events_missed_total") == 0


@on_redis
def test_a_worker_that_restarts_without_task_events_shows_it_after_one_batch(
    running, exporter, worker, client
):
    app = running(exporter()).connected()
    with_events = running(worker(NODE))
    send(client)
    until_equal(lambda: app.value(ENABLED, worker=NODE), 1, 20)
    with_events.stop()
    running(worker(NODE, events=False))
    send(client)
    until_equal(lambda: app.value(PROCESSED, worker=NODE), 20, 20)
    until_equal(lambda: app.value(ENABLED, worker=NODE), 0, 10)
    assert app.total("celery_exporter_events_missed_total") == 0


@on_redis
def test_task_events_enabled_is_0_for_a_worker_without_task_events(
    running, exporter, worker, client, outcomes
):
    """Its heartbeats count processed tasks for which no task event arrives."""
    app = running(exporter()).connected()
    running(worker("without@box", events=False), worker("with@box", queues="with-events"))

    def is_disabled():
        client.send_task("tasks.succeed", queue="celery")
        client.send_task("tasks.succeed", queue="with-events")
        return app.value("celery_worker_task_events_enabled", worker="without@box") == 0

    eventually(is_disabled, 25, every=0.5)
    assert app.value("celery_worker_task_events_enabled", worker="with@box") == 1
    assert app.value("celery_worker_up", worker="without@box") == 1
    assert outcomes.total("SUCCESS") > 0
    # Events that are not sent do not count as missed.
    assert app.total("celery_exporter_events_missed_total") == 0


def test_enable_events_makes_a_worker_send_task_events(running, exporter, worker, client):
    """A worker that was started without -E sends them within some update intervals."""
    app = running(exporter("--enable-events")).connected()
    running(worker("without@box", events=False))

    def success_total():
        client.send_task("tasks.succeed", queue="celery")
        return app.total("celery_tasks_total", state="SUCCESS", task_name="tasks.succeed")

    eventually(success_total, 20, every=0.5)
    until_equal(lambda: app.value("celery_worker_task_events_enabled", worker="without@box"), 1)
