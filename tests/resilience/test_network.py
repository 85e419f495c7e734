"""What networks do to the connections between the exporter and a broker that is well."""

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
    """Bytes are swallowed both ways, and connections stay open."""
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
            availability.comes_back(getattr(proxy, fault))


@pytest.mark.parametrize("broker", [on_redis_in_full, on_rabbitmq_in_full], indirect=True)
def test_half_open(behind, proxy, watched):
    """The broker has forgotten all connections, and nobody told us."""
    with watched(behind()) as availability:
        availability.comes_back(proxy.close_server_side)


@pytest.mark.parametrize("broker", [on_redis, on_rabbitmq_in_full], indirect=True)
def test_only_the_subscription_half_open(behind, proxy, watched):
    """Nothing comes on it, and nothing is the matter on the others."""
    app = behind()
    with watched(app) as availability:
        availability.comes_back(lambda: proxy.close_server_side(only=SUBSCRIPTION))
        assert app.value("celery_exporter_collector_success", collector="queues") == 1


@pytest.mark.parametrize("broker", ["redis", "rabbitmq"], indirect=True)
def test_broker_not_told_of_the_end(behind, proxy, watched):
    """Only our side has ended: the broker keeps the old subscription, and what is locked by it."""
    with watched(behind()) as availability:
        availability.comes_back(lambda: proxy.close_client_side(only=SUBSCRIPTION))
        assert availability.green is not None
        assert availability.green.seconds < 3
        proxy.cut()


def test_stall_in_the_middle_of_a_message(behind, broker, proxy, watched):
    """The connection stays, the rest of the message never comes; it may not be waited for, nor spun on."""
    app = behind()

    def stall():
        proxy.stall(after=20_000, only=SUBSCRIPTION)
        publish(broker.url, *[b"small"] * 10, b"x" * 100_000)

    with watched(app) as availability:
        before = app.value("process_cpu_seconds_total")
        availability.comes_back(stall)
        assert app.value("process_cpu_seconds_total") - before < availability.green.elapsed_seconds / 2
        assert app.total("celery_exporter_events_malformed_total") == 10


@pytest.mark.parametrize("broker", [on_redis, on_rabbitmq_in_full], indirect=True)
def test_slow_way(behind, proxy, watched):
    """Half a second each way is no fault: it stays ready, and events are counted."""
    app = behind()
    with watched(app):
        proxy.delay(0.5)
        app.counted(3)
        assert app.is_ready()
        assert app.reconnects() == 0
        proxy.forward()


#: No name server can be asked for a name of more than 253 letters, so what is not in the file is nowhere.
NAME = ".".join(["a-name-that-no-name-server-can-be-asked-for-as-it-is-too-long"] * 5)


def test_name_that_stops_resolving(running, broker, proxy, watched, tmp_path):
    """The name is gone and the connections end; both come back, without a restart."""
    library = next(Path("/usr/lib").glob("*/libnss_wrapper.so"), None) or missing("libnss-wrapper")
    names = tmp_path / "hosts"
    url = broker.url.replace(f"127.0.0.1:{broker.server.port}", f"{NAME}:{proxy.port}")
    environment = {"LD_PRELOAD": str(library), "NSS_WRAPPER_HOSTS": str(names)}
    # The library sees by the file's time, to the second, that it was changed.
    moment = iter(range(int(time.time()), 2**31, 2))

    def write(text):
        names.write_text(text)
        os.utime(names, times=(now := next(moment), now))

    def forget():
        write("")
        proxy.cut()

    write(f"127.0.0.1 {NAME}\n")
    app = Watched(tmp_path / "exporter", broker.url, url=url, environment=environment)
    running(app).connected()
    with watched(app) as availability:
        availability.turns_red(forget)
        stays(lambda: not app.is_ready(), 3)
        availability.turns_green(lambda: write(f"127.0.0.1 {NAME}\n"))
    assert "Name or service not known" in app.text()


@pytest.mark.parametrize("scheme", ["redis", "amqp"])
def test_name_that_cannot_be_one(running, tmp_path, scheme):
    """It is said in a line, not with a traceback."""
    app = running(Watched(tmp_path / "exporter", f"{scheme}://a..b//"))
    eventually(lambda: "no event subscription" in app.text())
    assert not app.is_ready()


def publish(url: str, *bodies: bytes) -> None:
    """Put bytes on the event channel, one message right after the other."""
    with kombu.Connection(url) as connection:
        producer = connection.Producer(exchange=get_exchange(connection))
        for body in bodies:
            producer.publish(
                body, routing_key="task.multi", content_type="application/json", content_encoding="utf-8"
            )
