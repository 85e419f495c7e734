"""Labels of task metrics: a queue is correct or `unknown`, and the options that change labels."""

from harness.broker_marks import on_redis
from harness.waiting import eventually, until_equal
from harness.workers import client as make_client


def send(broker, queue, count=5, task="tasks.succeed"):
    with make_client(broker.url, task_send_sent_event=False) as client:
        for _ in range(count):
            client.send_task(task, queue=queue)


def test_without_task_sent_the_queue_is_that_of_a_worker_with_one_queue(running, exporter, worker, broker):
    """The fall-back is counted. For a worker with two queues, the queue is `unknown`."""
    app = running(exporter()).connected()
    running(
        worker("one@box", queues="left", task_send_sent_event=False),
        worker("two@box", queues="right,more", task_send_sent_event=False),
    )
    until_equal(
        lambda: app.samples().label_values("queue_name", "celery_queue_consumers"), {"left", "right", "more"}
    )
    assert app.total("celery_exporter_label_fallbacks_total") == 0
    send(broker, "left", 5)
    send(broker, "right", 3)
    send(broker, "right", 2, "tasks.fail_with_value_error")

    def counts():
        sums = app.samples().by("celery_tasks_total", "task_name", "queue_name", "state")
        return {
            key: count for key, count in sums.items() if count and key[2] in {"SUCCESS", "FAILURE", "PENDING"}
        }

    until_equal(
        counts,
        {
            ("tasks.succeed", "left", "SUCCESS"): 5,
            ("tasks.succeed", "unknown", "SUCCESS"): 3,
            ("tasks.fail_with_value_error", "unknown", "FAILURE"): 2,
        },
        15,
    )
    samples = app.samples()
    assert samples.value("celery_exporter_label_fallbacks_total", label="queue_name") >= 10
    assert samples.label_values("queue_name", "celery_queue_length") == {"left", "right", "more"}


@on_redis
def test_task_labels_sets_the_labels_of_task_metrics(running, exporter, worker, client):
    """`--task-labels worker` adds the node name and removes the queue."""
    app = running(exporter("--task-labels", "worker")).connected()
    running(worker("w@box", queues="left"))
    client.send_task("tasks.succeed", queue="left")
    until_equal(lambda: app.total("celery_tasks_total", state="SUCCESS", worker="w@box"), 1)
    samples = app.samples()
    assert samples.label_values("queue_name", "celery_tasks_total") == set()
    assert (
        samples.value("celery_tasks_total", state="SUCCESS", worker="w@box", task_name="tasks.succeed") == 1
    )


@on_redis
def test_metric_prefix_and_static_labels_are_on_all_own_metrics(running, exporter, worker, client):
    """The metrics of the process keep their names."""
    options = ("--metric-prefix", "shop_", "--static-label", "site=north", "--static-label", "tier=a b")
    app = running(exporter(*options))
    eventually(lambda: app.get("/-/ready").status == 200)
    running(worker(queues="left", pool="solo"))
    client.send_task("tasks.succeed", queue="left")
    series = {"state": "SUCCESS", "task_name": "tasks.succeed", "site": "north", "tier": "a b"}
    until_equal(lambda: app.value("shop_tasks_total", **series), 1)
    own = {
        name: dict(labels) for name, labels in app.samples() if not name.startswith(("process_", "python_"))
    }
    assert all(name.startswith("shop_") for name in own)
    assert all(labels.get("site") == "north" for labels in own.values())


@on_redis
def test_series_of_registered_tasks_start_at_0(running, exporter, worker):
    """So `increase()` includes the first failure."""
    app = running(exporter()).connected()
    running(worker(queues="left", pool="solo"))
    labels = {"state": "FAILURE", "task_name": "tasks.fail_with_value_error"}
    until_equal(lambda: app.value("celery_tasks_total", **labels), 0)
