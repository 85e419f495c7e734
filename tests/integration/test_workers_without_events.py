"""Workers that send no task events: said so, and switched on when asked to."""

from harness.broker_marks import on_redis
from harness.waiting import eventually, until_equal


@on_redis
def test_a_worker_without_events_is_pointed_out(running, exporter, worker, client, outcomes):
    """Its tasks run, its heartbeats say so, no task event comes: `celery_worker_task_events_enabled` 0."""
    app = running(exporter()).connected()
    running(worker("quiet@box", events=False), worker("loud@box", queues="loud"))

    def quiet():
        client.send_task("tasks.succeed", queue="celery")
        client.send_task("tasks.succeed", queue="loud")
        return app.value("celery_worker_task_events_enabled", worker="quiet@box") == 0

    eventually(quiet, 25, every=0.5)
    assert app.value("celery_worker_task_events_enabled", worker="loud@box") == 1
    assert app.value("celery_worker_up", worker="quiet@box") == 1
    assert outcomes.total("SUCCESS") > 0
    assert app.total("celery_exporter_events_missed_total") == 0  # not sent is not missed


def test_enable_events_switches_them_on(running, exporter, worker, client):
    """`--enable-events`: a worker started without -E sends events within some intervals."""
    app = running(exporter("--enable-events")).connected()
    running(worker("quiet@box", events=False))

    def counted():
        client.send_task("tasks.succeed", queue="celery")
        return app.total("celery_tasks_total", state="SUCCESS", task_name="tasks.succeed")

    eventually(counted, 20, every=0.5)
    until_equal(lambda: app.value("celery_worker_task_events_enabled", worker="quiet@box"), 1)
