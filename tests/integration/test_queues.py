"""Queue lengths: priorities, what is unacked, what is absent, and one queue's trouble staying its own."""

import json
import uuid

import kombu
import pytest
from harness.events import publish_events
from harness.exporter import Exporter
from harness.waiting import eventually, until_equal

from celery_exporter.core.queues import MAX_QUEUES


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
    """Priorities count; a requested queue that is not there is empty, one that is locked absent."""
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
    until_equal(lambda: app.value("celery_tasks_in_flight", **labels, queue_name="jobs"), 3)
    started = app.value("process_start_time_seconds")
    assert started < app.value("celery_task_oldest_timestamp_seconds", **labels) < started + 60
    until_equal(lambda: app.value("celery_queue_length", queue_name="jobs"), 3)


# -- names that come and go ------------------------------------------------------------------------------


def sent(queue: str) -> dict:
    """Return the event of a client that sent a task to a queue."""
    common = {"uuid": str(uuid.uuid4()), "pid": 1, "timestamp": 1_700_000_000.0, "hostname": "c@box"}
    return {**common, "type": "task-sent", "name": "made.up", "queue": queue, "retries": 0}


def problems(app) -> dict[str, str]:
    """Return what the status page finds wrong, by check."""
    findings = json.loads(app.get("/api/v1/status").text)["findings"]
    return {each["check"]: each["message"] for each in findings if each["severity"] != "ok"}


def delete(broker, *queues: str) -> None:
    if broker.kind == "redis":
        for queue in queues:
            broker.server.client().delete(queue, f"_kombu.binding.{queue}")
        return
    with kombu.Connection(broker.url) as connection:
        for queue in queues:
            kombu.Queue(queue)(connection.default_channel).delete()


def test_a_queue_that_was_requested_is_empty_before_anybody_declared_it(running, exporter, broker):
    """Whoever scales from zero needs the 0, and the length as soon as there is one."""
    app = running(exporter("-Q", "jobs")).connected()
    until_equal(lambda: lengths(app), {("jobs",): 0})
    if broker.kind == "rabbitmq":  # Redis does not count them: no worker was heard for --worker-timeout
        assert app.value("celery_queue_consumers", queue_name="jobs") == 0
    publish(broker.url, kombu.Queue("jobs"), [None])
    until_equal(lambda: lengths(app), {("jobs",): 1})


def test_a_dead_queue_has_no_length_and_a_new_one_has(running, exporter, broker):
    """More names than there is room for, of queues that are gone: what is new is measured, and it is told."""
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


def test_rabbitmq_is_not_asked_about_a_dead_queue_in_each_round(running, tmp_path, rabbit_broker):
    """Each question about it is an error in the broker's log; a queue that exists is still asked about."""
    dead = f"dead-{uuid.uuid4()}"
    publish(rabbit_broker.url, kombu.Queue("alive"), [None])
    app = running(Exporter(tmp_path / "exporter", rabbit_broker.url)).connected()
    publish_events(rabbit_broker.url, sent(dead), sent("alive"))
    success = "celery_exporter_collector_last_success_timestamp_seconds"
    until_equal(lambda: lengths(app), {("alive",): 1})
    rounds = {app.value(success, collector="queues")}

    def asked_often() -> bool:
        rounds.add(app.value(success, collector="queues"))
        return len(rounds) >= 8

    eventually(asked_often, 120)
    errors = rabbit_broker.server.text().count(dead)
    assert 1 <= errors <= 4, f"{errors} errors in {len(rounds)} rounds"


def test_names_made_at_run_time_are_one_series_whose_numbers_are_sums(running, exporter, broker):
    names = [f"customer-{uuid.uuid4()}" for _ in range(3)]
    for name in names:
        publish(broker.url, kombu.Queue(name), [None, None])
    app = running(exporter("-Q", "jobs")).connected()
    publish_events(broker.url, *map(sent, names))
    until_equal(lambda: lengths(app), {("customer-*",): 6, ("jobs",): 0})
    tasks = {"task_name": "made.up", "state": "PENDING"}
    assert app.value("celery_tasks_total", **tasks, queue_name="customer-*") == 3


def test_own_rules_for_queues_and_an_empty_one_for_no_others(running, exporter, broker):
    """An excluded queue has no length, and its tasks still count, as other."""
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


@pytest.mark.parametrize("name", [f"bcast.{uuid.UUID(int=7)}", "passing"])
def test_queues_of_one_process_are_not_queues_without_consumers(
    running, exporter, worker, client, broker, name
):
    """A broadcast queue, and any that the broker deletes with its last consumer, which Redis does not do."""
    app = running(exporter()).connected()
    only = running(worker("w@box", pool="solo"))
    client.control.add_consumer(name, options={"auto_delete": True}, destination=["w@box"])
    label = "bcast.*" if name.startswith("bcast") else name
    until_equal(lambda: app.value("celery_queue_consumers", queue_name=label), 1, 60)
    only.stop()
    until_equal(lambda: app.value("celery_workers_online"), 0, 60)
    publish(broker.url, kombu.Queue(name, auto_delete=True), [None])
    until_equal(lambda: app.value("celery_queue_length", queue_name=label), 1, 60)
    assert app.value("celery_queue_consumers", queue_name=label) is None
    assert not any(label in found or name in found for found in problems(app).values())
