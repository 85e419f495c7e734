"""A label is right or says `unknown`: what happens when clients or workers don't say all."""

from harness.broker_marks import on_redis
from harness.waiting import eventually, until_equal
from harness.workers import client as make_client


def send(broker, queue, count=5, task="tasks.succeed"):
    with make_client(broker.url, task_send_sent_event=False) as silent:
        for _ in range(count):
            silent.send_task(task, queue=queue)


def test_without_sent_events_the_only_queue_of_a_worker_is_the_queue(running, exporter, worker, broker):
    """One queue consumed: that is it, and the fall-back is counted. Two: `unknown`, never a guess."""
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

    def done():
        by = app.samples().by("celery_tasks_total", "task_name", "queue_name", "state")
        return {key: n for key, n in by.items() if n and key[2] in {"SUCCESS", "FAILURE", "PENDING"}}

    until_equal(
        done,
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
def test_task_labels_choose_what_task_metrics_carry(running, exporter, worker, client):
    """`--task-labels worker` adds the node name and takes the queue away."""
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
def test_prefix_and_static_labels_are_on_every_metric_of_ours(running, exporter, worker, client):
    """`--metric-prefix` and `--static-label` name a whole installation."""
    options = ("--metric-prefix", "shop_", "--static-label", "site=north", "--static-label", "tier=a b")
    app = running(exporter(*options))
    eventually(lambda: app.get("/-/ready").status == 200)
    running(worker(queues="left", pool="solo"))
    client.send_task("tasks.succeed", queue="left")
    series = {"state": "SUCCESS", "task_name": "tasks.succeed", "site": "north", "tier": "a b"}
    until_equal(lambda: app.value("shop_tasks_total", **series), 1)
    ours = {
        name: dict(labels) for name, labels in app.samples() if not name.startswith(("process_", "python_"))
    }
    assert all(name.startswith("shop_") for name in ours)
    assert all(labels.get("site") == "north" for labels in ours.values())


@on_redis
def test_task_names_that_workers_registered_start_at_zero(running, exporter, worker):
    """Before the first failure its series is there, at 0, so that `increase()` sees the first one."""
    app = running(exporter()).connected()
    running(worker(queues="left", pool="solo"))
    labels = {"state": "FAILURE", "task_name": "tasks.fail_with_value_error"}
    until_equal(lambda: app.value("celery_tasks_total", **labels), 0)
