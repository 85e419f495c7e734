"""RabbitMQ deletes, closes or refuses queues, channels and connections, and requires heartbeats."""

from __future__ import annotations

import struct
import time

import amqp
import kombu
import psutil
import pytest
from harness.events import publish_events, task_events
from harness.proxy import Proxy
from harness.servers import RabbitServer
from harness.waiting import eventually, stays, until_equal

from resilience.availability_contract import Watched, numbers

DURABLE_QUEUE = "celeryev.celery-exporter"


@pytest.fixture
def app(running, rabbit_broker, tmp_path):
    """Return a function that starts an exporter on RabbitMQ."""

    def start(*arguments, url="", **options):
        exporter = Watched(tmp_path / "exporter", url or rabbit_broker.url, *arguments, **options)
        running(exporter).connected()
        return exporter

    return start


@pytest.fixture(scope="module")
def short_consumer_timeout(tmp_path_factory):
    """Yield a RabbitMQ that closes a channel if a message is not acknowledged within two seconds."""
    advanced = "[{rabbit, [{consumer_timeout, 2000}, {channel_tick_interval, 500}]}]."  # milliseconds
    with RabbitServer(tmp_path_factory.mktemp("rabbitmq"), advanced=advanced) as server:
        yield server


def test_queue_deleted(app, rabbit_broker, watched):
    """RabbitMQ cancels the consumer if the queue is deleted."""
    exporter = app("--event-queue-durable")
    with watched(exporter) as availability, kombu.Connection(rabbit_broker.url) as connection:
        availability.resubscribes(lambda: connection.default_channel.queue_delete(DURABLE_QUEUE))
    assert f"the queue '{DURABLE_QUEUE}' was deleted" in exporter.text()


def test_queue_with_other_arguments(running, rabbit_broker, tmp_path):
    """The error has a command that helps."""
    with kombu.Connection(rabbit_broker.url) as connection:
        kombu.Queue(DURABLE_QUEUE, durable=True)(connection.default_channel).declare()
    exporter = running(Watched(tmp_path / "exporter", rabbit_broker.url, "--event-queue-durable"))
    eventually(lambda: f"the queue '{DURABLE_QUEUE}' exists with other arguments" in exporter.text(), 20)
    vhost = rabbit_broker.url.rpartition("/")[2]
    command = f"delete_queue -p {vhost} {DURABLE_QUEUE}"
    assert f"rabbitmqctl {command}" in exporter.text()
    rabbit_broker.server.control(*command.split())
    exporter.connected()


def test_channel_closed(running, short_consumer_timeout, watched, tmp_path):
    """RabbitMQ closes the channel only, because acknowledgements are late. No event is counted twice."""
    with Proxy(short_consumer_timeout.port) as proxy:
        url = short_consumer_timeout.url.replace(f":{short_consumer_timeout.port}", f":{proxy.port}")
        app = Watched(tmp_path / "exporter", short_consumer_timeout.url, "--event-queue-durable", url=url)
        running(app).connected()

        def delay_acknowledgements():
            proxy.delay(3)
            for _ in range(100):
                publish_events(short_consumer_timeout.url, *task_events(next(numbers)))
            eventually(lambda: "delivery acknowledgement on channel" in short_consumer_timeout.text(), 20)
            proxy.forward()

        with watched(app) as availability:
            before = app.successes()
            availability.resubscribes(delay_acknowledgements)
            until_equal(app.successes, before + 100)
        assert "delivery acknowledgement on channel" in app.text()


def test_connections_closed(app, rabbit_broker, watched):
    """An operator closes all connections with a reason, which is logged."""
    vhost = rabbit_broker.url.rpartition("/")[2]
    exporter = app()
    with watched(exporter) as availability:
        availability.resubscribes(
            lambda: rabbit_broker.server.control("close_all_connections", "--vhost", vhost, "maintenance")
        )
    assert "maintenance" in exporter.text()


def test_exchange_deleted(app, rabbit_broker, watched):
    """The bindings are deleted, too. Workers declare the exchange again, and no error occurs."""
    exporter = app()
    with watched(exporter) as availability, kombu.Connection(rabbit_broker.url) as connection:
        availability.counts_again(lambda: connection.default_channel.exchange_delete("celeryev"))


def test_queues_refused(app, rabbit_broker, watched):
    """Exclusive (405), missing (404) and invalid queues do not affect the lengths of others."""
    exclusive = ("mine", "é" * 100, "x" + "é" * 100)  # RabbitMQ cuts one error message within a character
    names = (*exclusive, "nowhere", "much-too-long" * 20, "é" * 120, "jobs")
    with kombu.Connection(rabbit_broker.url) as other:
        for name in exclusive:
            kombu.Queue(name, exclusive=True)(other.default_channel).declare()
        queue = kombu.Queue("jobs")(other.default_channel)
        queue.declare()
        for _ in range(3):
            other.Producer().publish({}, routing_key="jobs")
        exporter = app("-Q", ",".join(names))
        lengths = {("jobs",): 3, ("nowhere",): 0, ("celery",): 0}  # undeclared queues of -Q count as empty
        until_equal(lambda: exporter.samples().by("celery_queue_length", "queue_name"), lengths)
        ports = connections(exporter)
        with watched(exporter):
            stays(lambda: exporter.value("celery_exporter_collector_success", collector="queues") == 1, 5)
            assert exporter.value("celery_queue_length", queue_name="jobs") == 3
            assert ports <= connections(exporter), "an error closes the channel, not the connection"
            assert exporter.reconnects() == 0
            vhost = rabbit_broker.url.rpartition("/")[2]
            channels = rabbit_broker.server.control("list_channels", "--vhost", vhost, "number").split()
            assert max(map(int, channels[1:])) <= 2, "a closed channel is reopened, and none stays behind"


@pytest.mark.parametrize(
    ("seconds", "replaced"), [(12, 0), pytest.param(60, 1, marks=pytest.mark.long)], ids=["", "a minute"]
)
def test_heartbeats_under_steady_traffic(app, rabbit_broker, watched, seconds, replaced):
    """With a heartbeat of 4 s, RabbitMQ closes the connection of a silent client within 12 s.

    The connection for inspection is idle for longer and longer, because no worker answers. It is replaced at
    the next inspection. No other connection may be replaced.
    """
    exporter = app("--broker-transport-option", "heartbeat=4")
    ports = connections(exporter)
    with watched(exporter):
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            publish_events(rabbit_broker.url, *task_events(next(numbers)))
        assert exporter.reconnects() == 0
        assert len(ports - connections(exporter)) <= replaced


@pytest.mark.parametrize("heartbeat", ["0", pytest.param("60", marks=pytest.mark.long)])
def test_silence_with_another_heartbeat(app, watched, heartbeat):
    """Without traffic and with rare heartbeats or none, responses of RabbitMQ show that it is alive."""
    exporter = app("--broker-transport-option", f"heartbeat={heartbeat}")
    with watched(exporter):
        stays(exporter.is_ready, 14)
        assert exporter.reconnects() == 0


def test_connections_that_are_seldom_used(app, watched):
    """After two missed heartbeats RabbitMQ closes the queues' connection; it is reopened."""
    exporter = app("--broker-transport-option", "heartbeat=2", update_interval="7")
    with watched(exporter):
        stays(lambda: exporter.value("celery_exporter_collector_success", collector="queues") == 1, 16)


class RawMessage(amqp.Message):
    """A message with raw bytes as properties."""

    raw = b""

    def _serialize_properties(self) -> bytes:
        return self.raw


def short(text: bytes) -> bytes:
    return bytes([len(text)]) + text


def table(**values: bytes) -> bytes:
    items = b"".join(short(key.encode()) + value for key, value in values.items())
    return struct.pack(">I", len(items)) + items


def nested(depth: int) -> bytes:
    value = b"F" + table()
    for _ in range(depth):
        value = b"F" + table(a=value)
    return table(a=value)


#: AMQP flags of the properties, and the bytes of the properties.
PROPERTIES = {
    "a content type that is not UTF-8": (1 << 15, short(b"\xff\xfe")),
    "a header in the far future": (1 << 13, table(x=b"T" + struct.pack(">Q", 2**62))),
    "a header that is not UTF-8": (1 << 13, table(compression=b"S" + struct.pack(">I", 1) + b"\xff")),
    "headers 1,500 deep": (1 << 13, nested(1_500)),
    "a timestamp in the far future": (1 << 6, struct.pack(">Q", 2**62)),
    "an id that is not UTF-8": (1 << 7, short(b"\xff")),
}


@pytest.mark.parametrize("durable", [False, True], ids=["", "durable"])
def test_unreadable_properties(app, rabbit_broker, watched, durable):
    """RabbitMQ delivers properties unchecked. Only that message is lost, and it is not redelivered."""
    exporter = app(*["--event-queue-durable"] * durable)
    host = rabbit_broker.url.rpartition("@")[2]
    address, _, vhost = host.partition("/")
    with watched(exporter), amqp.Connection(address, virtual_host=vhost) as connection:
        channel = connection.channel()
        for number, (flag, values) in enumerate(PROPERTIES.values(), 1):
            message = RawMessage(b"{")
            message.raw = struct.pack(">H", flag) + values
            channel.basic_publish(message, exchange="celeryev", routing_key="task.multi")
            until_equal(lambda: exporter.total("celery_exporter_events_malformed_total"), number)
            exporter.counts_events(1)
        assert exporter.reconnects() == 0


def test_body_of_any_size(app, rabbit_broker, watched):
    """Three messages of 100 MB are counted and discarded, and scrapes do not wait for them."""
    exporter = app()
    with watched(exporter), kombu.Connection(rabbit_broker.url) as connection:
        before = exporter.value("process_resident_memory_bytes")
        producer = connection.Producer(exchange=kombu.Exchange("celeryev", "topic"))
        for _ in range(3):
            producer.publish(b"x" * 100_000_000, routing_key="task.multi", content_type="application/json")
        until_equal(lambda: exporter.total("celery_exporter_events_malformed_total"), 3, 60)
        assert exporter.value("process_resident_memory_bytes") - before < 20_000_000
        assert exporter.reconnects() == 0


def connections(app):
    """Return the local ports of the connections to the broker."""
    return {
        connection.laddr.port
        for connection in psutil.Process(app.pid).net_connections()
        if connection.raddr and connection.laddr.port != app.port
    }
