"""Fixtures over `harness`: brokers, and a hand that starts processes and ends them after the test."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hypothesis
import pytest
from harness import processes, workers
from harness.exporter import Exporter
from harness.processes import TESTS, Process
from harness.servers import VHOSTS, RabbitServer, RedisServer
from harness.workers import Ledger, Worker

pytest_plugins = ["harness.tables"]

# Two cores are shared; what may not take long has tests of its own.
hypothesis.settings.register_profile("shared", deadline=None)
hypothesis.settings.load_profile("shared")


#: What waits for processes, the longest first. `make test` gives out files in this order, so that its end is
#: made of short ones, which the processes take in turn.
LONGEST = (
    *("integration/test_demo.py", "integration/test_doctor.py", "integration", "documentation"),
    *("accuracy", "resilience", "alerts", "dashboards", "distribution"),
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the longest first; the order is otherwise kept."""

    def place(item: pytest.Item) -> int:
        path = item.path.relative_to(TESTS)
        return next((at for at, part in enumerate(LONGEST) if path.is_relative_to(part)), len(LONGEST))

    items.sort(key=place)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(call: pytest.CallInfo[None]) -> Any:
    """Show the logs of the processes that run, under a test that failed."""
    report = yield
    if report.failed and call.when in {"setup", "call"}:
        for process in processes.running:
            report.sections.append((f"log of {process.name} ({process.log})", process.tail()))
    return report


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Say at once what failed: a run that is ended from outside never comes to its summary."""
    if report.failed and (crash := getattr(report.longrepr, "reprcrash", None)):
        where = f"{crash.path}:{crash.lineno}"
        print(f"\n{report.when} of {report.nodeid} failed at {where}: {crash.message[:2000]}")


@dataclass(frozen=True)
class Broker:
    """A broker that holds nothing yet."""

    kind: str  # "redis" or "rabbitmq"
    url: str
    server: RedisServer | RabbitServer


@pytest.fixture(scope="session")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with RedisServer(tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture(scope="session")
def rabbit_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RabbitServer]:
    with RabbitServer(tmp_path_factory.mktemp("rabbitmq"), vhosts=VHOSTS) as server:
        yield server


@pytest.fixture
def redis_broker(redis_server: RedisServer) -> Broker:
    return Broker("redis", redis_server.clean(), redis_server)


@pytest.fixture
def rabbit_broker(rabbit_server: RabbitServer) -> Broker:
    return Broker("rabbitmq", rabbit_server.clean(), rabbit_server)


@pytest.fixture(params=["redis", "rabbitmq"])
def broker(request: pytest.FixtureRequest) -> Broker:
    """Run the test once over each broker."""
    fixture = {"redis": "redis_broker", "rabbitmq": "rabbit_broker"}[request.param]
    found: Broker = request.getfixturevalue(fixture)
    return found


@pytest.fixture
def running() -> Iterator[Callable[..., Any]]:
    """`running(process, ...)` starts them side by side, waits until all are ready, ends them after the test.

    An exporter has to end well: with exit code 0 when asked to, and without a traceback in its log.
    """
    with ExitStack() as stack:

        def start(*started: Process) -> Any:
            for process in started:
                stack.callback(_end, process)
                process.start()
            for process in started:
                process.wait_ready()
            return started[0] if len(started) == 1 else started

        yield start


def _end(process: Process) -> None:
    try:
        if isinstance(process, Exporter) and process.alive():
            process.end_well()
    finally:
        process.__exit__(None, None, None)


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger(tmp_path / "ledger")


@pytest.fixture
def worker(tmp_path: Path, broker: Broker, ledger: Ledger) -> Callable[..., Worker]:
    """`worker(node, queues=..., pool=...)` makes one on the test's broker; `running` starts it."""

    def make(node: str = "worker@test", **options: Any) -> Worker:
        return Worker(tmp_path / f"worker-{node}", broker.url, node, ledger=ledger, **options)

    return make


@pytest.fixture
def exporter(tmp_path: Path, broker: Broker) -> Callable[..., Exporter]:
    """`exporter(*arguments)` makes one on the test's broker; `running` starts it."""

    def make(*arguments: str, **options: Any) -> Exporter:
        return Exporter(tmp_path / "exporter", broker.url, *arguments, **options)

    return make


@pytest.fixture
def client(broker: Broker) -> Iterator[Any]:
    """Return a Celery app that sends tasks, and says so, to the test's broker."""
    with workers.client(broker.url) as app:
        yield app
