"""Queue lengths: priorities, unacked messages, missing queues, and errors of single queues."""

import json
import uuid

import kombu
import pytest
from harness.events import publish_events
from harness.exporter import Exporter
from harness.waiting import eventually, until_equal

from celery_exporter.core.queues import MAX_QUEUES


def publish(url, queue, priorities, **transport_options):
    """Publish one message for each priority to a queue without consumers."""
    with kombu.Connection(url, transport_options=transport_options) as connection:
        producer = connection.Producer()
        for priority in priorities:
            producer.publish({}, routing_key=queue.name, declare=[queue], priority=priority, retry=True)


def lengths(app):
    return app.samples().by("celery_queue_length", "queue_name")


def lengths_by_priority(app):
    return app.samples().by("celery_queue_priority_length", "queue_name", "priority")


def test_a_redis_queue_length_is_the_sum_over_priorities(running, tmp_path, redis_broker):
    """kombu has one list for each priority step on Redis."""
    publish(redis_broker.url, kombu.Queue("jobs"), [0, 0, 0, 3, 3, 6, 9, 9])
    app = running(Exporter(tmp_path / "exporter", redis_broker.url, "-Q", "jobs")).connected()
    until_equal(lambda: lengths(app), {("jobs",): 8})
    assert lengths_by_priority(app) == {
        ("jobs", "0"): 3,
        ("jobs", "3"): 2,
        ("jobs", "6"): 1,
        ("jobs", "9"): 2,
    }


def test_redis_queue_lengths_follow_transport_options(running, tmp_path, redis_broker):
    """`sep`, `priority_steps` and `global_keyprefix` change the keys of queues."""
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
    by_priority = {priority: length for (_, priority), length in lengths_by_priority(app).items()}
    assert by_priority == {str(step): [0, 1, 1, 5, 9].count(step) for step in steps}


def test_priorities_have_series_from_the_first_message_with_one(running, tmp_path, redis_broker):
    """A queue without priorities has one length."""
    publish(redis_broker.url, kombu.Queue("plain"), [None, 0])
    publish(redis_broker.url, kombu.Queue("jobs"), [None])
    app = running(Exporter(tmp_path / "exporter", redis_broker.url, "-Q", "plain,jobs")).connected()
    until_equal(lambda: lengths(app), {("plain",): 2, ("jobs",): 1})
    assert lengths_by_priority(app) == {}
    publish(redis_broker.url, kombu.Queue("jobs"), [9])
    expected = {("jobs", "0"): 1, ("jobs", "3"): 0, ("jobs", "6"): 0, ("jobs", "9"): 1}
    until_equal(lambda: lengths_by_priority(app), expected)
    with kombu.Connection(redis_broker.url) as connection:
        kombu.Queue("jobs")(connection.default_channel).purge()
    until_equal(lambda: lengths_by_priority(app), dict.fromkeys(expected, 0))


def test_redis_unacked_messages_are_not_in_the_queue_length(running, tmp_path, redis_broker):
    """They have a metric of their own."""
    queue = kombu.Queue("jobs")
    publish(redis_broker.url, queue, [None] * 5)
    with kombu.Connection(redis_broker.url) as connection:
        unacked = [queue(connection.default_channel).get() for _ in range(3)]
        app = running(Exporter(tmp_path / "exporter", redis_broker.url, "-Q", "jobs")).connected()
        until_equal(lambda: app.value("celery_broker_unacked_messages"), 3)
        assert lengths(app) == {("jobs",): 2}
        for message in unacked:
            message.ack()
        until_equal(lambda: app.value("celery_broker_unacked_messages"), 0)
        assert lengths(app) == {("jobs",): 2}


def test_rabbitmq_queues_are_measured_beside_a_missing_and_an_exclusive_one(running, tmp_path, rabbit_broker):
    """A requested queue that does not exist has length 0; the exclusive one has no length."""
    publish(rabbit_broker.url, kombu.Queue("jobs", max_priority=10), [0, 1, 5, 9, None])
    with kombu.Connection(rabbit_broker.url) as other:
        kombu.Queue("mine", exclusive=True)(other.default_channel).declare()
        app = running(
            Exporter(tmp_path / "exporter", rabbit_broker.url, "-Q", "nosuch,mine,jobs")
        ).connected()
        until_equal(lambda: lengths(app), {("jobs",): 5, ("nosuch",): 0})
        assert app.value("celery_queue_consumers", queue_name="jobs") == 0
        assert app.value("celery_queue_consumers", queue_name="nosuch") == 0
        publish(rabbit_broker.url, kombu.Queue("jobs", max_priority=10), [2])
        until_equal(lambda: lengths(app), {("jobs",): 6, ("nosuch",): 0})
    assert app.value("celery_broker_up") == 1
    assert app.total("celery_exporter_reconnects_total") == 0


def test_the_queue_of_a_worker_is_measured_after_the_worker_stops(running, exporter, worker, client):
    """No option names the queue."""
    app = running(exporter()).connected()
    only_worker = running(worker(queues="jobs", pool="solo"))
    until_equal(lambda: lengths(app), {("jobs",): 0})
    until_equal(lambda: app.value("celery_queue_consumers", queue_name="jobs"), 1)
    only_worker.stop()
    for _ in range(4):
        client.send_task("tasks.succeed", queue="jobs")
    until_equal(lambda: lengths(app), {("jobs",): 4})
    until_equal(lambda: app.value("celery_queue_consumers", queue_name="jobs"), 0)
    assert app.value("celery_workers_online") == 0
    oldest = app.value("celery_queue_oldest_timestamp_seconds", queue_name="jobs")
    started = app.value("process_start_time_seconds")
    assert oldest is None or started < oldest < started + 240


def test_tasks_in_a_queue_without_workers_are_pending(running, exporter, client):
    """The time of the oldest one is exposed."""
    app = running(exporter("-Q", "jobs")).connected()
    for _ in range(3):
        client.send_task("tasks.succeed", queue="jobs")
    labels = {"state": "PENDING", "task_name": "tasks.succeed"}
    until_equal(lambda: app.value("celery_tasks_in_flight", **labels, queue_name="jobs"), 3)
    started = app.value("process_start_time_seconds")
    assert started < app.value("celery_task_oldest_timestamp_seconds", **labels) < started + 60
    until_equal(lambda: app.value("celery_queue_length", queue_name="jobs"), 3)


# -- dynamic queue names -----------------------------------------------------------------------------------


def sent(queue: str) -> dict:
    """Return a task-sent event for a queue."""
    common = {"uuid": str(uuid.uuid4()), "pid": 1, "timestamp": 1_700_000_000.0, "hostname": "c@box"}
    return {**common, "type": "task-sent", "name": "made.up", "queue": queue, "retries": 0}


def problems(app) -> dict[str, str]:
    """Return the messages of findings with problems, by check."""
    findings = json.loads(app.get("/api/v1/status").text)["findings"]
    return {finding["check"]: finding["message"] for finding in findings if finding["severity"] != "ok"}


def delete(broker, *queues: str) -> None:
    if broker.kind == "redis":
        for queue in queues:
            broker.server.client().delete(queue, f"_kombu.binding.{queue}")
        return
    with kombu.Connection(broker.url) as connection:
        for queue in queues:
            kombu.Queue(queue)(connection.default_channel).delete()


def test_a_requested_queue_has_length_0_before_it_is_declared(running, exporter, broker):
    """Autoscalers that scale from zero need the 0."""
    app = running(exporter("-Q", "jobs")).connected()
    until_equal(lambda: lengths(app), {("jobs",): 0})
    # On Redis the number is unknown until workers have had the time for some heartbeats.
    until_equal(lambda: app.value("celery_queue_consumers", queue_name="jobs"), 0, 30)
    publish(broker.url, kombu.Queue("jobs"), [None])
    until_equal(lambda: lengths(app), {("jobs",): 1})


def test_a_new_queue_is_measured_after_too_many_deleted_ones(running, exporter, broker):
    """There are more names than the limit. Deleted queues have no length, and a finding reports the limit."""
    app = running(exporter()).connected()
    publish(broker.url, kombu.Queue("job-0"), [None])
    publish_events(broker.url, sent("job-0"))
    until_equal(lambda: lengths(app), {("job-0",): 1})
    delete(broker, "job-0")
    publish_events(broker.url, *(sent(f"job-{number}") for number in range(1, MAX_QUEUES + 5)))
    publish(broker.url, kombu.Queue("payments"), [None] * 3)
    publish_events(broker.url, sent("payments"))
    until_equal(lambda: lengths(app), {("payments",): 3}, 60)
    assert {name for (name,) in app.samples().by("celery_queue_consumers", "queue_name")} <= {"payments"}
    assert app.total("celery_exporter_limit_rejections_total", kind="queue") >= 5
    eventually(lambda: "queue-names" in problems(app), 60)


def test_rabbitmq_is_polled_less_often_for_a_deleted_queue(running, tmp_path, rabbit_broker):
    """Each passive declaration of it is an error in the log of RabbitMQ."""
    deleted = f"deleted-{uuid.uuid4()}"
    publish(rabbit_broker.url, kombu.Queue("existing"), [None])
    app = running(Exporter(tmp_path / "exporter", rabbit_broker.url)).connected()
    publish_events(rabbit_broker.url, sent(deleted), sent("existing"))
    success = "celery_exporter_collector_last_success_timestamp_seconds"
    until_equal(lambda: lengths(app), {("existing",): 1})
    polls = {app.value(success, collector="queues")}

    def has_polled_often() -> bool:
        polls.add(app.value(success, collector="queues"))
        return len(polls) >= 8

    eventually(has_polled_often, 120)
    errors = rabbit_broker.server.text().count(deleted)
    assert 1 <= errors <= 4, f"{errors} errors in {len(polls)} polls"


def test_queues_with_generated_names_are_one_series_with_sums(running, exporter, broker):
    names = [f"customer-{uuid.uuid4()}" for _ in range(3)]
    for name in names:
        publish(broker.url, kombu.Queue(name), [None, None])
    app = running(exporter("-Q", "jobs")).connected()
    publish_events(broker.url, *map(sent, names))
    until_equal(lambda: lengths(app), {("customer-*",): 6, ("jobs",): 0})
    tasks = {"task_name": "made.up", "state": "PENDING"}
    assert app.value("celery_tasks_total", **tasks, queue_name="customer-*") == 3


def test_queue_name_rules_replace_the_default_ones_after_an_empty_rule(running, exporter, broker):
    """An excluded queue has no length; its tasks are counted under `other`."""
    customer = f"customer-{uuid.uuid4()}"
    for name in (customer, "shop-1", "shop-2", "secret"):
        publish(broker.url, kombu.Queue(name), [None])
    rules = ("--queue-name-rule", "shop-[0-9]+=shops", "--queue-name-rule", "")
    app = running(exporter(*rules, "--queue-exclude", "secret")).connected()
    publish_events(broker.url, *map(sent, (customer, "shop-1", "shop-2", "secret")))
    until_equal(lambda: lengths(app), {("shops",): 2, (customer,): 1})
    pending = app.samples().by("celery_tasks_in_flight", "queue_name", "state")
    assert {queue: count for (queue, state), count in pending.items() if state == "PENDING" and count} == {
        "shops": 2,
        customer: 1,
        "other": 1,
    }


@pytest.mark.parametrize("name", [f"bcast.{uuid.UUID(int=7)}", "temporary"])
def test_auto_delete_queues_are_no_finding_without_consumers(running, exporter, worker, client, broker, name):
    """A broadcast queue, and another one. RabbitMQ deletes them with the last consumer; Redis does not."""
    app = running(exporter()).connected()
    only_worker = running(worker("w@box", pool="solo"))
    client.control.add_consumer(name, options={"auto_delete": True}, destination=["w@box"])
    label = "bcast.*" if name.startswith("bcast") else name
    until_equal(lambda: app.value("celery_queue_consumers", queue_name=label), 1, 60)
    only_worker.stop()
    until_equal(lambda: app.value("celery_workers_online"), 0, 60)
    publish(broker.url, kombu.Queue(name, auto_delete=True), [None])
    until_equal(lambda: app.value("celery_queue_length", queue_name=label), 1, 60)
    assert app.value("celery_queue_consumers", queue_name=label) is None
    assert not any(label in message or name in message for message in problems(app).values())
