"""Fixtures of the faults, each of which is a row of a table."""

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

from resilience.availability_contract import Availability, Watched, hold

Start = Callable[..., Any]
Hold = Callable[..., AbstractContextManager[Availability]]


@pytest.fixture
def watched(request: pytest.FixtureRequest) -> Iterator[Hold]:
    """`with watched(app) as availability:` holds the availability over a fault, which gets a line in the
    table.

    `deaf`: the fault is there already, so nothing is heard, and nothing known of threads and connections.
    """
    availabilities: list[Availability] = []
    name = request.node.originalname.removeprefix("test_").replace("_", " ")
    callspec = getattr(request.node, "callspec", None)
    choices = callspec.id.split("-") if callspec else []
    more = [choice for choice in choices if choice not in {"redis", "rabbitmq", ""}]

    def watch(app: Watched, *, deaf: bool = False) -> AbstractContextManager[Availability]:
        kind = "redis" if app.broker_url.startswith("redis") else "rabbitmq"
        availability = Availability(app, f"{name}: {' '.join(more)}" if more else name, kind)
        availabilities.append(availability)
        return hold(availability, deaf=deaf)

    yield watch
    for availability in availabilities:
        add_row(request.node, "faults", availability.cells())


@pytest.fixture
def proxy(broker: Any) -> Iterator[Proxy]:
    """A way to the test's broker."""
    with Proxy(broker.server.port) as proxy:
        yield proxy


@pytest.fixture
def behind(running: Start, broker: Any, proxy: Proxy, tmp_path: Path) -> Callable[..., Watched]:
    """`behind(*arguments)` starts an exporter behind the proxy; the tests publish beside it."""

    def start(*arguments: str) -> Watched:
        url = broker.url.replace(f":{broker.server.port}", f":{proxy.port}")
        app = Watched(tmp_path / "exporter", broker.url, *arguments, url=url)
        running(app).connected()
        return app

    return start


@pytest.fixture(scope="module", params=["redis", "rabbitmq"])
def own(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A broker that runs, and that a test may stop, freeze and start again."""
    kind = {"redis": RedisServer, "rabbitmq": RabbitServer}[request.param]
    with kind(tmp_path_factory.mktemp("own")) as server:
        yield server


@pytest.fixture
def served(running: Start, own: Any, tmp_path: Path) -> Callable[..., Watched]:
    """`served(*arguments)` starts an exporter on that broker, which has a queue."""
    with kombu.Connection(own.url) as connection:
        kombu.Queue("celery", kombu.Exchange("celery"), "celery")(connection.default_channel).declare()

    def start(*arguments: str, **options: Any) -> Watched:
        app = Watched(tmp_path / "exporter", own.url, *arguments, **options)
        running(app).connected()
        return app

    return start
