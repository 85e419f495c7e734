"""Queue lengths: priorities, what is unacked, what is absent, and one queue's trouble staying its own."""

import kombu
from harness.exporter import Exporter
from harness.waiting import until_equal


def publish(url, queue, priorities, **transport_options):
    """Put one message on the queue for each priority; nobody is there to consume it."""
    with kombu.Connection(url, transport_options=transport_options) as connection:
        producer = connection.Producer()
        for priority in priorities:
            producer.publish({}, routing_key=queue.name, declare=[queue], priority=priority, retry=True)


def lengths(app):
    return app.samples().by("celery_queue_length", "queue_name")


def test_redis_priorities_are_summed(running, tmp_path, redis_broker):
    """Redis keeps one list for each priority step: the length of the queue is the sum of them."""
    publish(redis_broker.url, kombu.Queue("jobs"), [0, 0, 0, 3, 3, 6, 9, 9])
    app = running(Exporter(tmp_path / "exporter", redis_broker.url, "-Q", "jobs")).connected()
    until_equal(lambda: lengths(app), {("jobs",): 8})


def test_redis_transport_options_reach_the_depths(running, tmp_path, redis_broker):
    """`sep`, `priority_steps` and `global_keyprefix` are the transport's; lengths follow them."""
    steps, sep, prefix = list(range(10)), ":", "{shop}"
    options = {"priority_steps": steps, "sep": sep, "global_keyprefix": prefix}
    publish(redis_broker.url, kombu.Queue("jobs"), [0, 1, 1, 5, 9], **options)
    app = running(
        Exporter(
            tmp_path / "exporter",
            redis_broker.url,
            *("--queues", "jobs"),
            *("--broker-transport-option", f"priority_steps={steps}"),
            *("--broker-transport-option", f"sep={sep}"),
            *("--broker-transport-option", f"global_keyprefix={prefix}"),
        )
    ).connected()
    until_equal(lambda: lengths(app), {("jobs",): 5})


def test_redis_unacked(running, tmp_path, redis_broker):
    """What consumers hold without having acknowledged it is neither lost nor in the queue."""
    queue = kombu.Queue("jobs")
    publish(redis_broker.url, queue, [None] * 5)
    with kombu.Connection(redis_broker.url) as connection:
        held = [queue(connection.default_channel).get() for _ in range(3)]
        app = running(Exporter(tmp_path / "exporter", redis_broker.url, "-Q", "jobs")).connected()
        until_equal(lambda: app.value("celery_broker_unacked_messages"), 3)
        assert lengths(app) == {("jobs",): 2}
        for message in held:
            message.ack()
        until_equal(lambda: app.value("celery_broker_unacked_messages"), 0)
        assert lengths(app) == {("jobs",): 2}


def test_rabbitmq_one_queue_cannot_spoil_another(running, tmp_path, rabbit_broker):
    """Priorities count; a queue that is not there is absent, one that is locked too; the third is right."""
    publish(rabbit_broker.url, kombu.Queue("jobs", max_priority=10), [0, 1, 5, 9, None])
    with kombu.Connection(rabbit_broker.url) as other:
        kombu.Queue("mine", exclusive=True)(other.default_channel).declare()
        app = running(
            Exporter(tmp_path / "exporter", rabbit_broker.url, "-Q", "nosuch,mine,jobs")
        ).connected()
        until_equal(lambda: lengths(app), {("jobs",): 5})
        assert app.value("celery_queue_consumers", queue_name="jobs") == 0
        assert app.value("celery_queue_consumers", queue_name="nosuch") is None
        publish(rabbit_broker.url, kombu.Queue("jobs", max_priority=10), [2])
        until_equal(lambda: lengths(app), {("jobs",): 6})
    assert app.value("celery_broker_up") == 1
    assert app.total("celery_exporter_reconnects_total") == 0


def test_queues_of_workers_are_seen_unasked_and_stay_without_them(running, exporter, worker, client):
    """Known from its worker, a queue's length is still there, and grows, when no worker is left."""
    app = running(exporter()).connected()
    only = running(worker(queues="jobs", pool="solo"))
    until_equal(lambda: lengths(app), {("jobs",): 0})
    until_equal(lambda: app.value("celery_queue_consumers", queue_name="jobs"), 1)
    only.stop()
    for _ in range(4):
        client.send_task("tasks.succeed", queue="jobs")
    until_equal(lambda: lengths(app), {("jobs",): 4})
    until_equal(lambda: app.value("celery_queue_consumers", queue_name="jobs"), 0)
    assert app.value("celery_workers_online") == 0
    oldest = app.value("celery_queue_oldest_timestamp_seconds", queue_name="jobs")
    started = app.value("process_start_time_seconds")
    assert oldest is None or started < oldest < started + 240


def test_a_backlog_is_pending_since_it_was_sent(running, exporter, client):
    """Tasks that nobody takes are PENDING, and the age of the oldest can be told."""
    app = running(exporter("-Q", "jobs")).connected()
    for _ in range(3):
        client.send_task("tasks.succeed", queue="jobs")
    labels = {"state": "PENDING", "task_name": "tasks.succeed"}
    until_equal(lambda: app.value("celery_tasks", **labels, queue_name="jobs"), 3)
    started = app.value("process_start_time_seconds")
    assert started < app.value("celery_task_oldest_timestamp_seconds", **labels) < started + 60
    until_equal(lambda: app.value("celery_queue_length", queue_name="jobs"), 3)
