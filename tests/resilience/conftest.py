"""Fixtures of the faults. Each fault is a row of a table."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import kombu
import pytest
from harness.proxy import Proxy
from harness.servers import RabbitServer, RedisServer
from harness.tables import add_row

from resilience.availability_contract import Availability, Watched, check
from resilience.explained import Explained

Start = Callable[..., Any]
Check = Callable[..., AbstractContextManager[Availability]]


@pytest.fixture
def watched(request: pytest.FixtureRequest) -> Iterator[Check]:
    """Return a context manager that checks the availability of an exporter during a fault.

    The fault gets a row in the table. `is_connected=False`: the fault is present from the start, so no events
    arrive before it, and the numbers of threads and connections are not compared.
    """
    availabilities: list[Availability] = []
    name = request.node.originalname.removeprefix("test_").replace("_", " ")
    callspec = getattr(request.node, "callspec", None)
    parameters = callspec.id.split("-") if callspec else []
    variant = [parameter for parameter in parameters if parameter not in {"redis", "rabbitmq", ""}]

    def watch(app: Watched, *, is_connected: bool = True) -> AbstractContextManager[Availability]:
        kind = "redis" if app.broker_url.startswith("redis") else "rabbitmq"
        fault = f"{name}: {' '.join(variant)}" if variant else name
        availability = Availability(app, fault, kind, Explained(app, is_connected=is_connected))
        availabilities.append(availability)
        return check(availability, is_connected=is_connected)

    yield watch
    for availability in availabilities:
        add_row(request.node, "faults", availability.cells())


@pytest.fixture
def proxy(broker: Any) -> Iterator[Proxy]:
    """Yield a proxy to the broker of the test."""
    with Proxy(broker.server.port) as proxy:
        yield proxy


@pytest.fixture
def behind(running: Start, broker: Any, proxy: Proxy, tmp_path: Path) -> Callable[..., Watched]:
    """Return a function that starts an exporter behind the proxy; tests publish directly."""

    def start(*arguments: str) -> Watched:
        url = broker.url.replace(f":{broker.server.port}", f":{proxy.port}")
        app = Watched(tmp_path / "exporter", broker.url, *arguments, url=url)
        running(app).connected()
        return app

    return start


@pytest.fixture(scope="module", params=["redis", "rabbitmq"])
def own(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Yield a running broker that a test may stop, freeze and start again."""
    kind = {"redis": RedisServer, "rabbitmq": RabbitServer}[request.param]
    with kind(tmp_path_factory.mktemp("own")) as server:
        yield server


@pytest.fixture
def served(running: Start, own: Any, tmp_path: Path) -> Callable[..., Watched]:
    """Return a function that starts an exporter on that broker, which has a queue."""
    with kombu.Connection(own.url) as connection:
        kombu.Queue("celery", kombu.Exchange("celery"), "celery")(connection.default_channel).declare()

    def start(*arguments: str, **options: Any) -> Watched:
        app = Watched(tmp_path / "exporter", own.url, *arguments, **options)
        running(app).connected()
        return app

    return start
