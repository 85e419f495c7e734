"""What RabbitMQ does to a client that it is otherwise well disposed to: queues, channels and connections that
it takes away, refuses or forgets, and heartbeats that it wants to have.
"""

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

DURABLE = "celeryev.celery-exporter"


@pytest.fixture
def app(running, rabbit_broker, tmp_path):
    """`app(*arguments)` starts an exporter on RabbitMQ."""

    def start(*arguments, url="", **options):
        exporter = Watched(tmp_path / "exporter", url or rabbit_broker.url, *arguments, **options)
        running(exporter).connected()
        return exporter

    return start


@pytest.fixture(scope="module")
def impatient(tmp_path_factory):
    """RabbitMQ that takes a channel from who holds a message for two seconds without acknowledging it."""
    advanced = "[{rabbit, [{consumer_timeout, 2000}, {channel_tick_interval, 500}]}]."  # milliseconds
    with RabbitServer(tmp_path_factory.mktemp("impatient"), advanced=advanced) as server:
        yield server


def test_queue_deleted(app, rabbit_broker, watched):
    """RabbitMQ cancels the consumer."""
    with (
        watched(app("--event-queue-durable")) as availability,
        kombu.Connection(rabbit_broker.url) as connection,
    ):
        availability.comes_back(lambda: connection.default_channel.queue_delete(DURABLE))


def test_channel_closed(running, impatient, watched, tmp_path):
    """And nothing but the channel, as our acknowledgements take too long on their way. None counts twice."""
    with Proxy(impatient.port) as proxy:
        url = impatient.url.replace(f":{impatient.port}", f":{proxy.port}")
        app = Watched(tmp_path / "exporter", impatient.url, "--event-queue-durable", url=url)
        running(app).connected()

        def dawdle():
            proxy.delay(3)
            for _ in range(100):
                publish_events(impatient.url, *task_events(next(numbers)))
            eventually(lambda: "delivery acknowledgement on channel" in impatient.text(), 20)
            proxy.forward()

        with watched(app) as availability:
            before = app.successes()
            availability.comes_back(dawdle)
            until_equal(app.successes, before + 100)
        assert "delivery acknowledgement on channel" in app.text()


def test_connections_closed(app, rabbit_broker, watched):
    """By an operator: all of them, with a reason, which is said."""
    vhost = rabbit_broker.url.rpartition("/")[2]
    exporter = app()
    with watched(exporter) as availability:
        availability.comes_back(
            lambda: rabbit_broker.server.control("close_all_connections", "--vhost", vhost, "so it is")
        )
    assert "so it is" in exporter.text()


def test_exchange_deleted(app, rabbit_broker, watched):
    """With its bindings; workers make it anew, nothing on the way here is broken, and nothing comes."""
    exporter = app()
    with watched(exporter) as availability, kombu.Connection(rabbit_broker.url) as connection:
        availability.hears_again(lambda: connection.default_channel.exchange_delete("celeryev"))


def test_queues_refused(app, rabbit_broker, watched):
    """One is another's alone (405), one is not there (404), one cannot be: the others keep their length."""
    mine = ("mine", "é" * 100, "x" + "é" * 100)  # RabbitMQ cuts what it says of one of them within a letter
    names = (*mine, "nowhere", "much-too-long" * 20, "é" * 120, "jobs")
    with kombu.Connection(rabbit_broker.url) as other:
        for name in mine:
            kombu.Queue(name, exclusive=True)(other.default_channel).declare()
        queue = kombu.Queue("jobs")(other.default_channel)
        queue.declare()
        for _ in range(3):
            other.Producer().publish({}, routing_key="jobs")
        exporter = app("-Q", ",".join(names))
        lengths = {("jobs",): 3, ("nowhere",): 0, ("celery",): 0}  # of -Q, and not declared: as if empty
        until_equal(lambda: exporter.samples().by("celery_queue_length", "queue_name"), lengths)
        with watched(exporter):
            ports = connections(exporter)
            stays(lambda: exporter.value("celery_exporter_collector_success", collector="queues") == 1, 5)
            assert exporter.value("celery_queue_length", queue_name="jobs") == 3
            assert connections(exporter) == ports, "a refusal costs a channel, not the connection"
            assert exporter.reconnects() == 0
            vhost = rabbit_broker.url.rpartition("/")[2]
            listed = rabbit_broker.server.control("list_channels", "--vhost", vhost, "number").split()
            assert max(map(int, listed[1:])) <= 2, "and the channel is opened again, not left behind"


@pytest.mark.long
def test_two_share_a_durable_queue(app, rabbit_broker, running, tmp_path):
    """Each event reaches one of them: both say so, when the other cannot be a dead connection of theirs."""
    first = app("--event-queue-durable")
    second = running(Watched(tmp_path / "second", rabbit_broker.url, "--event-queue-durable")).connected()
    for each in (first, second):
        eventually(lambda each=each: "2 consumers share the queue" in each.text(), 45)


@pytest.mark.parametrize(
    ("seconds", "replaced"), [(12, 0), pytest.param(60, 1, marks=pytest.mark.long)], ids=["", "a minute"]
)
def test_heartbeats_under_steady_traffic(app, rabbit_broker, watched, seconds, replaced):
    """With a heartbeat of 4 s RabbitMQ ends a silent client within 12 s, however much it sends to it.

    The connection on which workers are asked is idle for longer and longer, for none answers here: it is made
    again at the next question. No other one may be.
    """
    exporter = app("--broker-transport-option", "heartbeat=4")
    with watched(exporter):
        ports = connections(exporter)
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            publish_events(rabbit_broker.url, *task_events(next(numbers)))
        assert exporter.reconnects() == 0
        assert len(ports - connections(exporter)) <= replaced


@pytest.mark.parametrize("heartbeat", ["0", pytest.param("60", marks=pytest.mark.long)])
def test_silence_with_another_heartbeat(app, watched, heartbeat):
    """Without traffic, and with rare heartbeats or none, life is shown by RabbitMQ's answers."""
    exporter = app("--broker-transport-option", f"heartbeat={heartbeat}")
    with watched(exporter):
        stays(exporter.is_ready, 14)
        assert exporter.reconnects() == 0


def test_connections_that_are_seldom_used(app, watched):
    """RabbitMQ ends a connection after two silent heartbeats: that of the queues is made anew unasked."""
    exporter = app("--broker-transport-option", "heartbeat=2", update_interval="7")
    with watched(exporter):
        stays(lambda: exporter.value("celery_exporter_collector_success", collector="queues") == 1, 16)


class RawMessage(amqp.Message):
    """A message whose properties are bytes as they are."""

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


#: Flags of the properties, as AMQP has them, and what stands behind them.
PROPERTIES = {
    "a content type that is not UTF-8": (1 << 15, short(b"\xff\xfe")),
    "a header in the far future": (1 << 13, table(x=b"T" + struct.pack(">Q", 2**62))),
    "a header that is not UTF-8": (1 << 13, table(compression=b"S" + struct.pack(">I", 1) + b"\xff")),
    "headers 1,500 deep": (1 << 13, nested(1_500)),
    "a timestamp in the far future": (1 << 6, struct.pack(">Q", 2**62)),
    "an id that is not UTF-8": (1 << 7, short(b"\xff")),
}


@pytest.mark.parametrize("durable", [False, True], ids=["", "durable"])
def test_properties_that_cannot_be_read(app, rabbit_broker, watched, durable):
    """RabbitMQ passes on what a sender wrote: it costs that message only, and does not come again."""
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
            exporter.counted(1)
        assert exporter.reconnects() == 0


def test_body_of_any_size(app, rabbit_broker, watched):
    """Three of 100 MB, one after the other: counted, thrown away as they come, and no scrape waits for it."""
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
    """Return the local ports of its connections to the broker."""
    return {
        one.laddr.port
        for one in psutil.Process(app.pid).net_connections()
        if one.raddr and one.laddr.port != app.port
    }
