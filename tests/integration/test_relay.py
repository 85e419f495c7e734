"""`celery-exporter relay`: what it declares, how it survives faults, and what it refuses."""

from __future__ import annotations

import json
import re
import signal
import sys
from contextlib import ExitStack
from pathlib import Path

import kombu
import pytest
from celery.events.event import get_exchange
from harness.events import publish_event_bytes, publish_events, task_events
from harness.exporter import Exporter, run_cli
from harness.proxy import Proxy
from harness.relay import Relay, shard_arguments
from harness.servers import RabbitServer4
from harness.waiting import eventually, stays, until_equal

QUEUES = ("celeryev.0-of-2", "celeryev.1-of-2")


@pytest.fixture
def shards(running, tmp_path):
    """Return a function that starts the two shards behind a relay."""
    return lambda url: start_shards(running, tmp_path, url, 2)


def start_shards(running, folder: Path, url: str, count: int) -> list[Exporter]:
    """Start the shards behind a relay."""
    exporters = [
        Exporter(folder / f"shard-{index}", url, *shard_arguments(index, count)) for index in range(count)
    ]
    running(*exporters)
    return [exporter.connected() for exporter in exporters]


def publish(url: str, *numbers: int) -> None:
    """Publish the events of these tasks."""
    publish_events(url, *(event for number in numbers for event in task_events(number)))


def successes(exporters: list[Exporter]) -> float:
    return sum(exporter.total("celery_tasks_total", state="SUCCESS") for exporter in exporters)


def lengths(url: str) -> dict[str, int]:
    """Return the numbers of messages in the queues of the shards."""
    with kombu.Connection(url) as connection:
        channel = connection.default_channel
        return {name: channel.queue_declare(name, passive=True).message_count for name in QUEUES}


def test_its_log_has_what_it_declares_and_relays(running, tmp_path, rabbit_broker):
    relay = running(Relay(tmp_path / "relay", rabbit_broker.url, 2, "--log-format", "json"))
    publish(rabbit_broker.url, *range(20))
    eventually(lambda: min(lengths(rabbit_broker.url).values()) > 0, 20)
    assert relay.stop(signal.SIGTERM) == 0
    lines = [json.loads(line) for line in relay.text().splitlines()]
    assert {(line["level"], line["logger"]) for line in lines} == {("info", "celery_exporter.relay.command")}
    assert all(line["time"] for line in lines)
    messages = [re.sub(r" (on|in) .*", "", line["msg"]) for line in lines]
    assert messages[:3] == [
        "declares the queue celeryev.relay",
        "declares the exchange celeryev.of-2 and the queues celeryev.0-of-2, celeryev.1-of-2",
        "active: this relay receives the events",
    ]
    assert re.fullmatch(r"relayed \d+ messages with events as \d+ messages to shards", messages[3])
    assert messages[4:] == ["stopped"]
    assert "guest:***@" in lines[0]["msg"], "no password in the log"
    assert "guest:guest" not in relay.text()


def test_a_second_relay_is_on_standby(running, tmp_path, rabbit_broker):
    first = running(Relay(tmp_path / "first", rabbit_broker.url, 2))
    second = running(Relay(tmp_path / "second", rabbit_broker.url, 2))
    assert "standby: another relay receives the events" in second.text()
    assert "active: " not in second.text()
    first.kill()
    eventually(lambda: "active: this relay receives the events" in second.text(), 20)
    assert second.stop(signal.SIGTERM) == 0
    assert "relayed" not in second.text(), "no line about nothing"


def test_events_wait_while_no_relay_and_no_shard_runs(running, shards, tmp_path, rabbit_broker):
    relay = running(Relay(tmp_path / "relay", rabbit_broker.url, 2))
    relay.kill()
    publish(rabbit_broker.url, *range(40))
    running(relay)
    eventually(lambda: min(lengths(rabbit_broker.url).values()) > 0, 20)
    exporters = shards(rabbit_broker.url)
    until_equal(lambda: successes(exporters), 40, 20)
    parts = [exporter.total("celery_tasks_total", state="SUCCESS") for exporter in exporters]
    assert min(parts) > 0
    assert [exporter.value("celery_exporter_active") for exporter in exporters] == [1, 1]


def test_events_go_to_another_broker(running, shards, tmp_path, rabbit_broker, rabbit_server):
    """The events of the workers are at one virtual host, and the queues of the shards at another one."""
    other = rabbit_server.clean()
    (tmp_path / "url").write_text(f"{other}\n")
    running(Relay(tmp_path / "relay", rabbit_broker.url, 2, "--to-file", str(tmp_path / "url")))
    exporters = shards(other)
    publish(rabbit_broker.url, *range(20))
    until_equal(lambda: successes(exporters), 20, 20)


def test_a_broker_that_is_away_is_waited_for(running, shards, tmp_path, rabbit_broker, rabbit_server):
    """What was received and not published is published later, once."""
    other = rabbit_server.clean()
    exporters: list[Exporter] = []
    with Proxy(rabbit_server.port) as proxy:
        behind = other.replace(f":{rabbit_server.port}", f":{proxy.port}")
        relay = running(Relay(tmp_path / "relay", rabbit_broker.url, 2, "--to", behind))
        publish(rabbit_broker.url, *range(10))
        exporters += shards(other)
        until_equal(lambda: successes(exporters), 10, 20)
        proxy.refuse()
        publish(rabbit_broker.url, *range(10, 20))
        eventually(lambda: "cannot publish to amqp://guest:***@" in relay.text(), 30)
        proxy.forward()
        until_equal(lambda: successes(exporters), 20, 30)
        eventually(lambda: "publishes again to amqp://guest:***@" in relay.text(), 20)
        texts = re.findall("cannot publish to .*", relay.text())
        assert len(texts) == len(set(texts)), "no text repeats"


def test_a_queue_that_was_deleted_is_declared_again(running, shards, tmp_path, rabbit_broker):
    relay = running(Relay(tmp_path / "relay", rabbit_broker.url, 2))
    with kombu.Connection(rabbit_broker.url) as connection:
        connection.default_channel.queue_delete(QUEUES[0])
    publish(rabbit_broker.url, *range(20))
    eventually(lambda: "the queue of shard 0 is gone" in relay.text(), 20)
    exporters = shards(rabbit_broker.url)
    until_equal(lambda: successes(exporters), 20, 20)


def test_another_number_of_shards_takes_over_where_the_old_one_ended(running, tmp_path, rabbit_broker):
    relay = running(Relay(tmp_path / "two", rabbit_broker.url, 2))
    old = start_shards(running, tmp_path / "two", rabbit_broker.url, 2)
    publish(rabbit_broker.url, *range(20))
    until_equal(lambda: successes(old), 20, 20)
    assert relay.stop(signal.SIGTERM) == 0
    publish(rabbit_broker.url, *range(20, 40))
    running(Relay(tmp_path / "three", rabbit_broker.url, 3))
    new = start_shards(running, tmp_path / "three", rabbit_broker.url, 3)
    publish(rabbit_broker.url, *range(40, 60))
    until_equal(lambda: successes(new), 40, 20)
    assert successes(old) == 20


def test_a_queue_with_other_arguments_is_an_error(tmp_path, rabbit_broker):
    names = ("celeryev.relay", QUEUES[1])
    with kombu.Connection(rabbit_broker.url) as connection:
        for name in names:
            kombu.Queue(name, durable=True)(connection.default_channel).queue_declare()
        relay = Relay(tmp_path / "relay", rabbit_broker.url, 2)
        with ExitStack() as stack:
            stack.callback(relay.kill)
            relay.start()
            for name in names:
                eventually(lambda name=name: f"the queue '{name}' exists with other" in relay.text(), 20)
                connection.default_channel.queue_delete(name)
            relay.wait_ready()


def test_a_header_that_cannot_be_published_does_not_end_the_relay(running, shards, rabbit_broker, tmp_path):
    """Each next relay would receive that message again."""
    running(Relay(tmp_path / "relay", rabbit_broker.url, 2))
    exporters = shards(rabbit_broker.url)
    table: object = 1
    for _ in range(700):
        table = [table]  # py-amqp needs one call for each level when it reads, and two when it writes
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(10_000)
    try:
        with kombu.Connection(rabbit_broker.url) as connection:
            producer = connection.Producer(exchange=get_exchange(connection))
            producer.publish("[]", headers={"compression": table}, content_type="application/json")
    finally:
        sys.setrecursionlimit(limit)
    publish(rabbit_broker.url, *range(20))
    until_equal(lambda: successes(exporters), 20, 20)
    malformed = "celery_exporter_events_malformed_total"
    until_equal(lambda: [exporter.total(malformed) for exporter in exporters], [1, 0], 20)


def test_a_malformed_event_counts_in_one_shard(running, shards, tmp_path, rabbit_broker):
    running(Relay(tmp_path / "relay", rabbit_broker.url, 2))
    exporters = shards(rabbit_broker.url)
    types = ("task-received", "task-started")  # the latter is for the shard of the worker, too
    lacks_a_time = [
        {"type": kind, "uuid": str(number), "hostname": "w@h"} for kind in types for number in range(10)
    ]
    publish_events(rabbit_broker.url, *lacks_a_time)
    for event in lacks_a_time:
        publish_event_bytes(rabbit_broker.url, json.dumps(event).encode())
    publish_event_bytes(rabbit_broker.url, b"no event")
    malformed = "celery_exporter_events_malformed_total"
    until_equal(lambda: sum(exporter.total(malformed) for exporter in exporters), 41, 20)
    assert min(exporter.total(malformed) for exporter in exporters) > 0


def test_a_connection_without_events_stays_open(running, tmp_path, rabbit_broker):
    """RabbitMQ closes a connection without heartbeats: after 4 s, if there should be one in 2 s."""
    options = ("--broker-transport-option", "heartbeat=2")
    relay = running(Relay(tmp_path / "relay", rabbit_broker.url, 2, *options))
    stays(lambda: "level=warning" not in relay.text(), 7)
    publish(rabbit_broker.url, *range(20))
    eventually(lambda: min(lengths(rabbit_broker.url).values()) > 0, 20)
    assert "level=warning" not in relay.text()


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (["--broker-url", "redis://127.0.0.1:1/0", "--shards", "2"], "needs amqp:// or amqps://"),
        (["--broker-url", "amqp://127.0.0.1:1", "--to", "redis://127.0.0.1", "--shards", "2"], "redis://"),
        (["--broker-url", "amqp://127.0.0.1:1", "--shards", "0"], "--shards"),
        (["--broker-url", "amqp://127.0.0.1:1"], "--shards"),
        (
            ["--broker-url", "amqp://127.0.0.1:1", "--shards", "2", "--to", "amqp://a", "--to-file", "b"],
            "--to and --to-file: got both",
        ),
        (
            ["--broker-url", "amqp://127.0.0.1:1", "--shards", "2", "--to-file", "nowhere"],
            "--to-file: cannot read 'nowhere'",
        ),
    ],
)
def test_what_it_cannot_do_is_a_usage_error(arguments, error):
    result = run_cli("relay", *arguments)
    assert result.returncode == 2
    assert error in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_an_exporter_of_a_queue_needs_rabbitmq_and_the_queue(running, tmp_path, rabbit_broker):
    result = run_cli("--broker-url", "redis://127.0.0.1:1/0", "--event-queue", "mine")
    assert result.returncode == 2
    assert "--event-queue needs amqp:// or amqps://, and the broker URL is redis://" in result.stderr
    app = running(Exporter(tmp_path / "exporter", rabbit_broker.url, "--event-queue", "nowhere"))
    eventually(lambda: "no queue 'nowhere'" in app.text(), 20)
    assert app.get("/-/ready").status == 503


def test_rabbitmq_4(running, shards, tmp_path, tmp_path_factory):
    with RabbitServer4(tmp_path_factory.mktemp("rabbitmq-4"), vhosts=1) as server:
        url = server.clean()
        running(Relay(tmp_path / "relay", url, 2))
        exporters = shards(url)
        publish(url, *range(20))
        until_equal(lambda: successes(exporters), 20, 20)
        for exporter in exporters:
            exporter.stop_cleanly()
