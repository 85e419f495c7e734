"""Why a task is where it is: one test for each situation, with real brokers and real workers."""

import itertools
import json
import os
import signal
import uuid
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from conftest import Broker
from harness.exporter import Exporter
from harness.servers import RabbitServer4, RedisServer
from harness.time_spans import TimeSpan
from harness.waiting import eventually
from harness.workers import Worker
from harness.workers import client as make_client

from celery_exporter.web.explain_api import MAX_ANSWER_SECONDS

#: Seconds for events, inspections and queue lengths, on a quiet machine.
DEADLINE = 30.0


@pytest.fixture
def valkey_broker(valkey_server):
    return Broker("redis", valkey_server.clean(), valkey_server)


@pytest.fixture(params=["redis", "valkey", "rabbitmq"])
def broker(request) -> Broker:
    fixture = {"redis": "redis_broker", "valkey": "valkey_broker", "rabbitmq": "rabbit_broker"}[request.param]
    broker: Broker = request.getfixturevalue(fixture)
    return broker


@pytest.fixture
def app(exporter, running) -> Exporter:
    return running(exporter("-Q", "celery,jobs")).connected()


def explain(app: Exporter, task: str) -> dict[str, Any]:
    """Ask once more if the exporter answers that it is busy."""

    def answer() -> dict[str, Any] | None:
        response = app.get(f"/api/v1/explain/{task}")
        assert response.status in {200, 429}, response.text
        return json.loads(response.text) if response.status == 200 else None

    return eventually(answer)


def until(app: Exporter, task: str, *diagnoses: str) -> dict[str, Any]:
    """Wait for one of these diagnoses, and return the answer."""

    def answer() -> dict[str, Any]:
        explanation = explain(app, task)
        assert explanation["diagnosis"] in diagnoses, explanation
        return explanation

    return eventually(answer, DEADLINE)


def says(explanation: dict[str, Any], *texts: str) -> None:
    """Check that each text is in the sentence or in the evidence."""
    lines = "\n".join([explanation["sentence"], *explanation["evidence"]])
    for text in texts:
        assert text in lines, explanation


def is_rabbit(broker: Broker) -> bool:
    return broker.kind == "rabbitmq"


# -- it waits -----------------------------------------------------------------------------------------------


def test_a_task_in_a_queue_without_a_consumer(app, broker, client, running, worker):
    running(worker())
    first, second = (client.send_task("tasks.succeed", queue="jobs").id for _ in range(2))
    explanation = until(app, second, "queue-without-consumer" if is_rabbit(broker) else "no-consumer")
    if is_rabbit(broker):
        says(explanation, "It was sent to queue jobs, which has 2 messages and no consumer.")
        says(explanation, "queue jobs has 2 messages and 0 consumers")
        assert any("RabbitMQ does not show" in line for line in explanation["unknown"])
    else:
        says(explanation, "It waits in queue jobs at position 2 of 2, and no worker consumes this queue.")
        says(explain(app, first[:13]), "at position 1 of 2")


def test_a_task_behind_busy_workers(app, broker, client, running, worker):
    """Each task process has one task, and with a prefetch of 1 the worker reserves as many."""
    running(worker(concurrency=1, worker_prefetch_multiplier=1, task_acks_late=True))
    tasks = [client.send_task("tasks.succeed", (300,)).id for _ in range(3)]
    explanation = until(app, tasks[2], "queue-with-busy-workers" if is_rabbit(broker) else "workers-busy")
    says(explanation, "1 of 1 slot busy", "workers of the queue that are up: worker@test")
    explanation = until(app, tasks[0], "running")
    says(explanation, "By its events, worker worker@test runs it")


def test_a_reserved_task_of_a_full_worker(app, client, running, worker):
    running(worker(concurrency=1, worker_prefetch_multiplier=4))
    tasks = [client.send_task("tasks.succeed", (300,)).id for _ in range(2)]
    explanation = until(app, tasks[1], "reserved-by-full-worker")
    says(explanation, "Worker worker@test reserved it", "is full: 1 of 1 slot busy")
    assert explanation["location"]["place"] in {"unacknowledged", "unknown"}


def test_a_scheduled_task_that_a_worker_holds(app, client, running, worker):
    running(worker())
    task = client.send_task("tasks.succeed", countdown=600).id
    explanation = until(app, task, "scheduled-at-worker")
    says(explanation, "It is scheduled for 20", "Worker worker@test received it")


def test_a_scheduled_task_without_a_worker(app, broker, client):
    task = client.send_task("tasks.succeed", countdown=600, queue="jobs").id
    if is_rabbit(broker):
        says(until(app, task, "scheduled"), "and no worker has reported it", "queue jobs has 1 message")
    else:
        says(until(app, task, "scheduled-in-queue", "no-consumer"), "waits in queue jobs at position 1 of 1")


def test_a_retry_waits_for_its_countdown(app, client, running, worker):
    running(worker())
    task = client.send_task("tasks.retry_once", (600,)).id
    says(until(app, task, "scheduled-at-worker"), "this is retry 1")


def test_delayed_delivery_is_named(running, tmp_path):
    """With quorum queues, RabbitMQ holds a message until its eta."""
    server = running(RabbitServer4(tmp_path / "rabbitmq"))
    configuration = {"task_default_queue_type": "quorum", "task_default_exchange_type": "topic"}
    running(Worker(tmp_path / "worker", server.url, pool="solo", **configuration))
    app = running(Exporter(tmp_path / "exporter", server.url)).connected()
    with make_client(server.url, **configuration) as client:
        task = client.send_task("tasks.succeed", countdown=600).id
    explanation = until(app, task, "scheduled", "scheduled-unreported")
    eventually(lambda: says(explain(app, task), "1 message in the queues of delayed delivery") or True)
    assert explanation["location"]["place"] == "unknown"


# -- it runs, or has ended ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "diagnosis", "text"),
    [
        ("tasks.succeed", "finished", "It ended with SUCCESS"),
        ("tasks.fail_with_value_error", "finished", "It ended with FAILURE"),
        ("tasks.reject", "finished", "It ended with "),
        ("tasks.ignore", "not-reported", "reported no end of it"),
    ],
)
def test_a_task_that_ended(app, client, running, worker, name, diagnosis, text):
    running(worker())
    task = client.send_task(name).id
    says(until(app, task, diagnosis), text, "worker@test")


def test_a_revoked_task(app, client, running, worker):
    running(worker())
    task = client.send_task("tasks.succeed", countdown=600).id
    until(app, task, "scheduled-at-worker")
    client.control.revoke(task, terminate=False)
    client.send_task("tasks.succeed", task_id=task, countdown=1)
    says(until(app, task, "revoked"), "It was revoked")


def test_an_expired_task(app, broker, client):
    task = client.send_task("tasks.succeed", queue="jobs", expires=1).id
    if is_rabbit(broker):
        until(app, task, "expired", "message-gone")  # RabbitMQ drops it, so the queue is empty
    else:
        says(until(app, task, "expired-in-queue"), "It has expired, and its message waits in queue jobs")


def test_a_purged_task(app, client):
    task = client.send_task("tasks.succeed", queue="jobs").id
    until(app, task, "queue-without-consumer", "waiting", "no-consumer")
    with client.connection_for_write() as connection:
        connection.default_channel.queue_purge("jobs")
    explanation = until(app, task, "message-gone")
    assert "whether the queue was purged" in explanation["unknown"]
    assert explanation["location"]["place"] in {"absent", "unknown"}


# -- its worker is down -------------------------------------------------------------------------------------


@pytest.fixture
def impatient(exporter, running) -> Exporter:
    """An exporter for which a worker is down after three missed heartbeats, the minimum."""
    return running(exporter("-Q", "celery", "--worker-timeout", "6")).connected()


def test_a_worker_was_killed_with_a_message(impatient, broker, client, running, worker):
    """On Redis the message stays unacknowledged; RabbitMQ has it in the queue again."""
    app = impatient
    only_worker = running(worker())
    task = client.send_task("tasks.succeed", countdown=600).id
    until(app, task, "scheduled-at-worker")
    only_worker.kill()
    if is_rabbit(broker):
        explanation = until(app, task, "worker-down-before-start")
        says(explanation, "worker@test is down", "queue celery has 1 message and 0 consumers")
    else:
        explanation = until(app, task, "returns")
        says(explanation, "has not acknowledged it: another worker gets it after the visibility timeout")
        assert any("visibility timeout of the workers is 1 hour" in line for line in explanation["unknown"])


def test_a_worker_was_killed_while_it_ran_a_task(impatient, broker, client, running, worker):
    """By default a message is acknowledged when its task starts."""
    app = impatient
    only_worker = running(worker())
    task = client.send_task("tasks.succeed", (600,)).id
    until(app, task, "running")
    only_worker.kill()
    diagnosis = "worker-down" if is_rabbit(broker) else "worker-lost"
    says(until(app, task, diagnosis), "Worker worker@test, which started it")


def test_a_worker_was_killed_while_it_ran_a_task_with_acks_late(impatient, broker, client, running, worker):
    app = impatient
    only_worker = running(worker(task_acks_late=True))
    task = client.send_task("tasks.succeed", (600,)).id
    until(app, task, "running")
    only_worker.kill()
    says(until(app, task, "worker-down" if is_rabbit(broker) else "returns"), "which started it")


def test_a_worker_gave_its_messages_back(app, broker, client, running, worker):
    """At a warm shutdown."""
    only_worker = running(worker())
    task = client.send_task("tasks.succeed", countdown=600).id
    until(app, task, "scheduled-at-worker")
    os.kill(only_worker.pid, signal.SIGTERM)
    only_worker.wait(60)
    if is_rabbit(broker):
        until(app, task, "scheduled")
    else:
        diagnoses = ("no-consumer", "scheduled-in-queue")  # whether the exporter inspected the worker in time
        says(until(app, task, *diagnoses), "waits in queue celery at position 1 of 1")


# -- many tasks ---------------------------------------------------------------------------------------------

#: The diagnoses on tasks that nothing happens to but what should.
HEALTHY = {"waiting", "workers-busy", "scheduled-in-queue", "queue-with-messages", "queue-with-busy-workers"}
HEALTHY |= {"scheduled-at-worker", "scheduled", "reserved", "reserved-by-full-worker", "just-sent", "running"}
HEALTHY |= {"finished", "unreported"}
#: In between two events, and of a queue that the last message has left.
BRIEFLY = {"taken", "scheduled-unreported", "not-in-queue", "perhaps-unread"}


def test_no_diagnosis_is_false_while_tasks_run(app, client, running, worker):
    """Tasks of each kind, on workers with three pools, and answers about them all the time."""
    running(
        worker("prefork@test", concurrency=2),
        worker("threads@test", pool="threads", concurrency=2),
        worker("solo@test", pool="solo"),
    )
    tasks = [
        client.send_task(*call, **options).id
        for _ in range(15)
        for call, options in (
            (("tasks.succeed", (0.2,)), {}),
            (("tasks.succeed",), {"countdown": 5}),
            (("tasks.retry_once", (1,)), {}),
            (("tasks.fail_with_value_error",), {}),
        )
    ]
    diagnoses: Counter[str] = Counter()
    others = []
    for task in itertools.cycle(tasks):
        explanation = explain(app, task)
        diagnoses[explanation["diagnosis"]] += 1
        if explanation["diagnosis"] not in HEALTHY | BRIEFLY:
            others.append(explanation)
        if diagnoses.total() >= 50:
            break
    assert not others, (diagnoses, others)
    assert sum(diagnoses[diagnosis] for diagnosis in BRIEFLY) <= 5, diagnoses
    for task in tasks[:4]:
        until(app, task, "finished")


# -- no events ----------------------------------------------------------------------------------------------


def test_a_task_that_was_never_seen(app):
    explanation = explain(app, str(uuid.uuid4()))
    assert explanation["diagnosis"] == "never-seen"
    assert any("its events are off" in line for line in explanation["unknown"])


def test_a_task_without_events_is_found_on_redis(app, broker, running, worker):
    """The client sends no task-sent event."""
    with make_client(broker.url, task_send_sent_event=False) as silent:
        task = silent.send_task("tasks.succeed", queue="jobs").id
        held = silent.send_task("tasks.succeed", countdown=600).id
    expected = ("never-seen",) if is_rabbit(broker) else ("waiting", "no-consumer")
    until(app, task, *expected)
    running(worker(events=False))
    if not is_rabbit(broker):
        explanation = until(app, held, "scheduled-unreported")
        assert "which worker holds the message: Redis does not say" in explanation["unknown"]


def test_a_task_whose_events_wait_for_a_task_sent_event(broker, exporter, running, worker):
    app = running(exporter("-Q", "celery", "--reorder-window", "60")).connected()
    running(worker())
    with make_client(broker.url, task_send_sent_event=False) as silent:
        task = silent.send_task("tasks.succeed", (600,)).id
    text = "Events of it have arrived: task-received, task-started."
    eventually(lambda: says(until(app, task, "deferred"), text) or True)


def test_a_task_that_a_worker_without_events_took(app, broker, client, running, worker):
    running(worker(events=False))
    task = client.send_task("tasks.succeed", (600,)).id
    diagnoses = ("not-in-queue", "message-gone") if is_rabbit(broker) else ("no-message", "message-gone")
    explanation = until(app, task, *diagnoses)
    assert "whether a worker that sends no task events took it" in explanation["unknown"]


# -- bounds -------------------------------------------------------------------------------------------------


def test_one_look_at_a_time(app, client):
    task = client.send_task("tasks.succeed", queue="jobs").id
    with ThreadPoolExecutor(16) as threads:
        answers = list(threads.map(lambda _: app.get(f"/api/v1/explain/{task}"), range(64)))
    statuses = [answer.status for answer in answers]
    assert set(statuses) == {200, 429}
    assert all(int(answer.headers["retry-after"]) >= 1 for answer in answers if answer.status == 429)


def test_a_broker_that_does_not_answer_ends_an_answer_in_time(running, tmp_path):
    """What events say is there all the same, and /metrics does not wait."""
    server = running(RedisServer(tmp_path / "redis"))
    app = running(Exporter(tmp_path / "exporter", server.url)).connected()
    with make_client(server.url) as client:
        task = client.send_task("tasks.succeed", queue="jobs").id
        until(app, task, "waiting", "no-consumer")
        server.pause()
        try:
            with ThreadPoolExecutor(1) as thread, TimeSpan(app.pid) as span:
                answer = thread.submit(explain, app, task)
                assert app.get("/metrics").status == 200
                explanation = answer.result()
            assert span.seconds < MAX_ANSWER_SECONDS, span
        finally:
            server.resume()
        assert explanation["diagnosis"] in {"unreported", "just-sent"}
        assert any("the broker does not answer" in line for line in explanation["unknown"])


def test_the_exporter_stops_in_time_during_a_look(running, tmp_path):
    server = running(RedisServer(tmp_path / "redis"))
    app = running(Exporter(tmp_path / "exporter", server.url)).connected()
    with ThreadPoolExecutor(2) as thread:
        server.pause()
        try:
            asking = [thread.submit(app.get, "/api/v1/explain/x") for _ in range(2)]
            eventually(
                lambda: any(answer.done() for answer in asking), what="429, during the look of the other"
            )
            assert not all(answer.done() for answer in asking)
            app.stop_cleanly()
        finally:
            server.resume()
