"""`doctor` with the command line of an exporter: it checks its queue and its state file, and only reads."""

from __future__ import annotations

import shlex
from typing import Any

import kombu
import pytest
from harness.configs import broker_config
from harness.events import publish_events, task_events
from harness.exporter import Exporter
from harness.relay import Relay, shard_arguments
from harness.waiting import until_equal

from celery_exporter.broker.consumers.amqp_consumer import DURABLE_QUEUE_ARGUMENTS
from celery_exporter.doctor.connectivity import check_connectivity
from celery_exporter.doctor.event_queue_checks import check_event_queue
from celery_exporter.doctor.rabbitmq_checks import run_rabbitmq_checks
from celery_exporter.status.finding import Finding

from .test_doctor import by_check, doctor

DURABLE = "celeryev.celery-exporter"
#: Nothing listens there, so no queue is known but by its name.
NO_MANAGEMENT = "http://127.0.0.1:1"


def finding(url: str, **options: Any) -> Finding:
    config = broker_config(url, **options)
    assert config.durable_queue is not None
    return check_event_queue(config, config.durable_queue)


@pytest.fixture
def channel(rabbit_broker):
    with kombu.Connection(rabbit_broker.url) as connection:
        yield connection.default_channel


def declare(channel: Any, name: str, messages: int = 0, **arguments: Any) -> None:
    """Declare a durable queue with messages."""
    channel.queue_declare(name, durable=True, auto_delete=False, arguments=arguments)
    for _ in range(messages):
        kombu.Producer(channel).publish("[]", routing_key=name)


def redelivered(channel: Any, name: str) -> list[bool]:
    """Take all messages of a queue; return whether each was delivered before."""
    messages = iter(lambda: channel.basic_get(name, no_ack=True), None)
    return [message.delivery_info["redelivered"] for message in messages]


def queue_exists(url: str, name: str) -> bool:
    with kombu.Connection(url) as connection:
        try:
            connection.default_channel.queue_declare(name, passive=True)
        except connection.channel_errors:
            return False
        return True


# -- the command line of an exporter -------------------------------------------------------------------------


def test_it_takes_the_command_line_of_a_shard_and_changes_nothing(rabbit_broker, tmp_path):
    state = tmp_path / "state"
    arguments = ("--event-queue-durable", "--shard", "0/2", "--state-file", str(state), "--port", "1")
    result = doctor(rabbit_broker.url, *arguments, "--log-level", "debug", "--profile", "flower")
    queue = result.findings["event-queue"]
    assert (queue.severity, f"{DURABLE}.0-of-2 does not exist yet" in queue.message) == ("ok", True)
    file = result.findings["state"]
    assert (file.severity, "does not exist yet" in file.message) == ("ok", True)
    assert not queue_exists(rabbit_broker.url, f"{DURABLE}.0-of-2")
    assert list(tmp_path.iterdir()) == []


def test_it_takes_the_command_line_of_a_shard_behind_a_relay(rabbit_broker, running, tmp_path):
    url = rabbit_broker.url
    arguments = (*shard_arguments(0, 1), "--state-file", str(tmp_path / "state"))
    app = Exporter(tmp_path / "exporter", url, *arguments)
    running(Relay(tmp_path / "relay", url, 1), app)
    app.connected()
    publish_events(url, *task_events(1))
    until_equal(lambda: app.total("celery_tasks_total", state="SUCCESS"), 1, 20)
    before = (tmp_path / "state").stat().st_ino
    result = doctor(url, *app.arguments)
    assert result.findings["event-queue"].message == "queue celeryev.0-of-1: 1 consumer, 0 messages waiting"
    assert "is that of this broker and shard" in result.findings["state"].message
    publish_events(url, *task_events(2))
    until_equal(lambda: app.total("celery_tasks_total", state="SUCCESS"), 2, 20)
    assert (app.value("celery_exporter_active"), (tmp_path / "state").stat().st_ino) == (1, before)


# -- the durable queue ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{"event_queue_durable": "true"}, {"event_queue": DURABLE}])
def test_waiting_messages_stay_where_they_are(rabbit_broker, channel, options):
    """An exporter that does not run gets them all, and none of them as redelivered."""
    declare(channel, DURABLE, 3, **DURABLE_QUEUE_ARGUMENTS)
    config = broker_config(rabbit_broker.url, **options)
    findings = [*check_connectivity(config, print), *run_rabbitmq_checks(config, NO_MANAGEMENT, print)[0]]
    queue = by_check(findings)["event-queue"]
    assert (queue.severity, queue.message) == (
        "warning",
        f"no exporter consumes the queue {DURABLE}; 3 messages waiting",
    )
    assert by_check(findings)["orphaned-queues"].severity == "ok", "its remedy would delete the events"
    assert redelivered(channel, DURABLE) == [False] * 3


def test_the_queue_of_a_relay_has_to_exist(rabbit_broker):
    missing = finding(rabbit_broker.url, event_queue="celeryev.1-of-4", shard="1/4")
    assert (missing.severity, missing.message) == (
        "critical",
        "the queue celeryev.1-of-4 does not exist on this broker",
    )
    assert "celery-exporter relay --shards 4" in missing.remedy


def test_a_standby_is_a_second_consumer(rabbit_broker, running, tmp_path):
    apps = [
        Exporter(tmp_path / f"exporter-{number}", rabbit_broker.url, "--event-queue-durable")
        for number in range(2)
    ]
    running(*apps)
    for app in apps:
        app.connected()
    message = finding(rabbit_broker.url, event_queue_durable="true").message
    assert message == f"queue {DURABLE}: 2 consumers, 0 messages waiting"


def test_the_remedy_for_a_queue_with_other_arguments_makes_it_usable(rabbit_broker, rabbit_server, channel):
    declare(channel, DURABLE)
    refused = finding(rabbit_broker.url, event_queue_durable="true")
    assert (refused.severity, "PRECONDITION_FAILED" in refused.message) == ("critical", True)
    rabbit_server.control(*shlex.split(refused.remedy[refused.remedy.index("rabbitmqctl") :])[1:])
    assert finding(rabbit_broker.url, event_queue_durable="true").severity == "ok"


def test_the_remedy_for_a_user_who_must_not_declare_it_grants_it(rabbit_broker, rabbit_server, channel):
    declare(channel, DURABLE, **DURABLE_QUEUE_ARGUMENTS)
    vhost = rabbit_broker.url.rpartition("/")[2]
    rabbit_server.control("set_permissions", "-p", vhost, "guest", "^$", ".*", ".*")
    refused = finding(rabbit_broker.url, event_queue_durable="true")
    assert (refused.severity, "ACCESS_REFUSED" in refused.message) == ("critical", True)
    rabbit_server.control(*shlex.split(refused.remedy)[1:])
    assert "0 messages" in finding(rabbit_broker.url, event_queue_durable="true").message


def test_an_exclusive_queue_of_another_program_is_refused(rabbit_broker, channel):
    channel.queue_declare("mine", exclusive=True)
    refused = finding(rabbit_broker.url, event_queue="mine")
    assert (refused.severity, "RESOURCE_LOCKED" in refused.message) == ("critical", True)
    assert refused.remedy.startswith("--event-queue with")


@pytest.mark.parametrize("name", ["é" * 120, "x" * 255, "x" * 256])
def test_a_name_that_no_queue_can_have_is_a_finding(rabbit_broker, name):
    assert finding(rabbit_broker.url, event_queue=name).severity == "critical"


def test_a_queue_on_another_kind_of_broker_is_refused(redis_broker):
    (url,) = check_connectivity(broker_config(redis_broker.url, event_queue="mine"), print)
    assert (url.check, url.severity) == ("url", "critical")
    assert "--event-queue needs amqp://" in url.message
    assert url.remedy.endswith("of RabbitMQ, or no --event-queue")
