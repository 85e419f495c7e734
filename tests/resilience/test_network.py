"""Network faults between the exporter and a healthy broker."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import kombu
import pytest
from celery.events.event import get_exchange
from harness.processes import missing
from harness.proxy import SUBSCRIPTION
from harness.waiting import eventually, stays

from resilience.availability_contract import Watched

Start = Callable[..., Any]

on_redis = pytest.param("redis")
on_rabbitmq = pytest.param("rabbitmq")
on_redis_in_full = pytest.param("redis", marks=pytest.mark.long)
on_rabbitmq_in_full = pytest.param("rabbitmq", marks=pytest.mark.long)


@pytest.mark.parametrize("broker", [on_redis_in_full, on_rabbitmq], indirect=True)
def test_black_hole(behind, proxy, watched):
    """Bytes are dropped in both directions, and connections stay open."""
    with watched(behind()) as availability:
        availability.turns_red(proxy.black_hole)
        availability.turns_green(proxy.forward)


@pytest.mark.parametrize("fault", ["refuse", "cut", "half_close"])
def test_connections_end(behind, proxy, watched, fault):
    with watched(behind()) as availability:
        if fault == "refuse":
            availability.turns_red(proxy.refuse)
            availability.turns_green(proxy.forward)
        else:
            availability.resubscribes(getattr(proxy, fault))


@pytest.mark.parametrize("broker", [on_redis_in_full, on_rabbitmq_in_full], indirect=True)
def test_half_open(behind, proxy, watched):
    """The broker has dropped all connections, and the exporter receives no notice."""
    with watched(behind()) as availability:
        availability.resubscribes(proxy.close_server_side)


@pytest.mark.parametrize("broker", [on_redis, on_rabbitmq_in_full], indirect=True)
def test_only_the_subscription_half_open(behind, proxy, watched):
    """No bytes arrive on the subscription, and other connections work."""
    app = behind()
    with watched(app) as availability:
        availability.resubscribes(lambda: proxy.close_server_side(only=SUBSCRIPTION))
        assert app.value("celery_exporter_collector_success", collector="queues") == 1


@pytest.mark.parametrize("broker", ["redis", "rabbitmq"], indirect=True)
def test_broker_keeps_the_old_connection(behind, proxy, watched):
    """Only the exporter's side is closed: the broker keeps the old subscription and its locks."""
    with watched(behind()) as availability:
        availability.resubscribes(lambda: proxy.close_client_side(only=SUBSCRIPTION))
        assert availability.green is not None
        assert availability.green.seconds < 3
        proxy.cut()


def test_stall_in_the_middle_of_a_message(behind, broker, proxy, watched):
    """The rest of a message never arrives on an open connection; the exporter must not wait or spin."""
    app = behind()

    def stall():
        proxy.stall(after=20_000, only=SUBSCRIPTION)
        publish(broker.url, *[b"small"] * 10, b"x" * 100_000)

    with watched(app) as availability:
        before = app.value("process_cpu_seconds_total")
        availability.resubscribes(stall)
        assert app.value("process_cpu_seconds_total") - before < availability.green.elapsed_seconds / 2
        assert app.total("celery_exporter_events_malformed_total") == 10


@pytest.mark.parametrize("broker", [on_redis, on_rabbitmq_in_full], indirect=True)
def test_slow_network(behind, proxy, watched):
    """With a delay of 0.5 s in each direction, the exporter stays ready and counts events."""
    app = behind()
    with watched(app):
        proxy.delay(0.5)
        app.counts_events(3)
        assert app.is_ready()
        assert app.reconnects() == 0
        proxy.forward()


#: DNS does not support names of more than 253 characters, so this name exists in the hosts file only.
NAME = ".".join(["a-name-that-no-name-server-can-be-asked-for-as-it-is-too-long"] * 5)


def test_name_that_stops_resolving(running, broker, proxy, watched, tmp_path):
    """The name is removed and the connections end; after the name is back, no restart is needed."""
    library = next(Path("/usr/lib").glob("*/libnss_wrapper.so"), None) or missing("libnss-wrapper")
    names = tmp_path / "hosts"
    url = broker.url.replace(f"127.0.0.1:{broker.server.port}", f"{NAME}:{proxy.port}")
    environment = {"LD_PRELOAD": str(library), "NSS_WRAPPER_HOSTS": str(names)}
    # The library detects a change by the modification time in seconds.
    mtimes = iter(range(int(time.time()), 2**31, 2))

    def write(text):
        names.write_text(text)
        os.utime(names, times=(mtime := next(mtimes), mtime))

    def remove():
        write("")
        proxy.cut()

    write(f"127.0.0.1 {NAME}\n")
    app = Watched(tmp_path / "exporter", broker.url, url=url, environment=environment)
    running(app).connected()
    with watched(app) as availability:
        availability.turns_red(remove)
        stays(lambda: not app.is_ready(), 3)
        availability.turns_green(lambda: write(f"127.0.0.1 {NAME}\n"))
    assert "Name or service not known" in app.text()


@pytest.mark.parametrize("scheme", ["redis", "amqp"])
def test_invalid_name(running, tmp_path, scheme):
    """The error is logged in one line, without a traceback."""
    app = running(Watched(tmp_path / "exporter", f"{scheme}://a..b//"))
    eventually(lambda: "no event subscription" in app.text())
    assert not app.is_ready()


def publish(url: str, *bodies: bytes) -> None:
    """Publish bytes as messages of the event exchange, without a pause."""
    with kombu.Connection(url) as connection:
        producer = connection.Producer(exchange=get_exchange(connection))
        for body in bodies:
            producer.publish(
                body, routing_key="task.multi", content_type="application/json", content_encoding="utf-8"
            )
