"""Workers without task events: the metric that shows them, and --enable-events."""

from harness.broker_marks import on_redis
from harness.waiting import eventually, until_equal


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
