"""Worker metrics: pools, several workers on one host, shutdown, failure and restart."""

import time

import celery
from harness.broker_marks import on_redis
from harness.waiting import eventually, stays, until_equal

POOLS = {"fork@box": ("prefork", 2), "thread@box": ("threads", 3), "solo@box": ("solo", 1)}


def test_workers_of_one_host_have_separate_series(running, exporter, worker):
    """One of three workers shuts down; the others stay up."""
    app = running(exporter()).connected()
    fork, thread, _ = running(
        worker("fork@box", queues="left,right", pool="prefork", concurrency=2),
        worker("thread@box", queues="right", pool="threads", concurrency=3),
        worker("solo@box", queues="right", pool="solo", concurrency=1),
    )
    until_equal(
        lambda: app.samples().by("celery_worker_pool_size", "worker"),
        {(node,): size for node, (_, size) in POOLS.items()},
        20,
    )
    samples = app.samples()
    assert samples.by("celery_worker_up", "worker", "hostname") == {(node, "box"): 1 for node in POOLS}
    assert samples.value("celery_workers_online") == 3
    for node, (pool, _) in POOLS.items():
        info = samples.matching("celery_worker_info", worker=node)
        assert list(info.values()) == [1], node
        labels = dict(next(iter(info))[1])
        assert labels["pool"].startswith(pool.removesuffix("s")), labels
        assert (labels["software"], labels["version"], labels["system"]) == (
            "py-celery",
            celery.__version__,
            "Linux",
        )
        assert samples.value("celery_worker_max_resident_memory_bytes", worker=node) > 10e6
        assert samples.value("celery_worker_prefetch_limit", worker=node) >= 1
        assert abs(samples.value("celery_worker_clock_skew_seconds", worker=node)) < 1
    assert samples.by("celery_queue_consumers", "queue_name") == {("left",): 1, ("right",): 3}
    assert samples.by("celery_queue_worker_processes", "queue_name") == {("left",): 2, ("right",): 6}

    assert thread.stop() == 0
    until_equal(
        lambda: app.samples().by("celery_worker_up", "worker"),
        {("fork@box",): 1, ("thread@box",): 0, ("solo@box",): 1},
    )
    assert app.value("celery_workers_online") == 2
    assert fork.alive()
    stays(lambda: app.value("celery_worker_up", worker="solo@box") == 1, 3)


def test_pool_size_follows_autoscale_and_pool_grow(running, exporter, worker, client):
    """`celery_worker_pool_max` exists only with --autoscale."""
    app = running(exporter()).connected()
    options = {"pool": "prefork", "concurrency": 2}
    running(
        worker("auto@box", queues="auto", arguments=("--autoscale=4,1",), **options),
        worker("grown@box", queues="grown", **options),
    )
    sizes = lambda: app.samples().by("celery_worker_pool_size", "worker")  # noqa: E731
    until_equal(sizes, {("auto@box",): 1, ("grown@box",): 2}, 60)
    assert app.samples().by("celery_worker_pool_max", "worker") == {("auto@box",): 4}
    client.control.pool_grow(3, destination=["grown@box"])
    for _ in range(4):
        client.send_task("tasks.succeed", (60,), queue="auto")
    until_equal(sizes, {("auto@box",): 4, ("grown@box",): 5}, 60)
    processes = app.samples().by("celery_queue_worker_processes", "queue_name")
    assert processes == {("auto",): 4, ("grown",): 5}
    client.control.autoscale(6, 1, destination=["auto@box"])
    until_equal(lambda: app.value("celery_worker_pool_max", worker="auto@box"), 6, 60)


@on_redis
def test_a_killed_worker_is_down_and_then_removed(running, exporter, worker, client, outcomes):
    """Its heartbeats stop, so it is down, and later has no series. Its tasks stay counted."""
    app = running(exporter("--worker-timeout", "6", "--purge-offline-worker-metrics", "12")).connected()
    killed, _ = running(worker("killed@box", queues="left"), worker("other@box", queues="right"))
    eventually(lambda: app.value("celery_workers_online") == 2)
    client.send_task("tasks.succeed", queue="left")
    until_equal(lambda: app.total("celery_tasks_total", state="SUCCESS", queue_name="left"), 1)

    killed.kill()
    until_equal(lambda: app.value("celery_worker_up", worker="killed@box"), 0, 30)
    assert app.value("celery_worker_up", worker="other@box") == 1
    eventually(lambda: "killed@box" not in app.samples().label_values("worker"), 30)
    assert app.value("celery_worker_up", worker="other@box") == 1
    assert app.total("celery_tasks_total", state="SUCCESS", queue_name="left") == 1
    assert outcomes.total("SUCCESS") == 1


@on_redis
def test_a_restart_of_a_worker_is_counted(running, exporter, worker, client):
    """A new process with the same node name: one restart, and its processed count continues."""
    app = running(exporter()).connected()
    first = running(worker("w@box", pool="solo"))
    client.send_task("tasks.succeed", queue="celery")
    until_equal(lambda: app.value("celery_worker_processed_tasks_total", worker="w@box"), 1, 15)
    assert app.value("celery_worker_restarts_total", worker="w@box") == 0
    first.stop()
    running(worker("w@box", pool="solo"))
    client.send_task("tasks.succeed", queue="celery")
    until_equal(lambda: app.value("celery_worker_processed_tasks_total", worker="w@box"), 2, 15)
    assert app.value("celery_worker_restarts_total", worker="w@box") == 1
    assert app.value("celery_worker_up", worker="w@box") == 1


def test_tasks_are_counted_as_celery_inspect_shows_them(running, exporter, worker, client, outcomes):
    """Two of four that are due run; three wait for their eta. The last counts are zeros."""
    app = running(exporter("--update-interval", "0.5")).connected()
    running(worker("held@box", concurrency=2))
    client.send_task("tasks.succeed", countdown=30)
    for _ in range(2):
        client.send_task("tasks.succeed", countdown=5)
    for _ in range(4):
        client.send_task("tasks.hold", ["gate"])
    until_equal(lambda: inspected(app), {"scheduled": 3, "reserved": 2, "active": 2})
    outcomes.open_gate("gate")
    until_equal(lambda: inspected(app), {"scheduled": 1, "reserved": 0, "active": 0}, 30)


def inspected(app):
    counts = app.samples().by("celery_worker_inspected_tasks", "command", worker="held@box")
    return {command: count for (command,), count in counts.items()}


def test_the_start_of_a_worker_is_that_of_its_newest_process(running, exporter, worker):
    """It does not change from one inspection to the next, and is absent while the worker is down."""
    app = running(exporter("--update-interval", "0.5")).connected()
    begin = time.time()
    first = running(worker("w@box", pool="solo"))
    eventually(lambda: app.value("celery_worker_start_timestamp_seconds", worker="w@box"))
    ready = time.time()
    at = app.value("celery_worker_start_timestamp_seconds", worker="w@box")
    assert begin - 2 < at < ready + 2
    first.stop()
    until_equal(lambda: app.value("celery_worker_start_timestamp_seconds", worker="w@box"), None)
    running(worker("w@box", pool="solo"))
    eventually(lambda: (app.value("celery_worker_start_timestamp_seconds", worker="w@box") or 0) > ready, 20)
