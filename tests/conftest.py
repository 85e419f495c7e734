"""Fixtures: brokers, and functions that start processes and end them after the test."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hypothesis
import pytest
from harness import processes, workers
from harness.exporter import Exporter
from harness.outcomes import FileOutcomes
from harness.processes import TESTS, Process
from harness.servers import VHOSTS, RabbitServer, RedisServer
from harness.workers import Worker

pytest_plugins = ["harness.tables"]

# Parallel tests share the processors, so an example may take long. Other tests check durations.
hypothesis.settings.register_profile("shared", deadline=None)
hypothesis.settings.load_profile("shared")


#: The longest files and folders, in the order in which `make test` assigns them to its processes: short files
#: at the end keep all processes busy.
LONGEST_FIRST = (
    *("integration/test_demo.py", "integration/test_explain.py", "integration/test_status_page.py"),
    *("distribution/test_image.py", "distribution/test_compose_podman.py"),
    *("integration/test_doctor.py", "alerts", "integration", "documentation", "accuracy", "resilience"),
    *("distribution/test_stack.py", "fuzz", "distribution", "dashboards"),
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Move the longest to the front; the rest keep their order."""

    def rank(item: pytest.Item) -> int:
        path = item.path.relative_to(TESTS)
        ranks = (rank for rank, part in enumerate(LONGEST_FIRST) if path.is_relative_to(part))
        return next(ranks, len(LONGEST_FIRST))

    items.sort(key=rank)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(call: pytest.CallInfo[None]) -> Any:
    """Add the logs of running processes to the report of a failed test."""
    report = yield
    if report.failed and call.when in {"setup", "call"}:
        for process in processes.running:
            report.sections.append((f"log of {process.name} ({process.log})", process.tail()))
    return report


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Print each failure immediately: a run that is killed prints no summary."""
    if report.failed and (crash := getattr(report.longrepr, "reprcrash", None)):
        location = f"{crash.path}:{crash.lineno}"
        print(f"\n{report.when} of {report.nodeid} failed at {location}: {crash.message[:2000]}")


@dataclass(frozen=True)
class Broker:
    """An empty broker."""

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
    """Run the test on each broker."""
    fixture = {"redis": "redis_broker", "rabbitmq": "rabbit_broker"}[request.param]
    broker: Broker = request.getfixturevalue(fixture)
    return broker


@pytest.fixture
def running() -> Iterator[Callable[..., Any]]:
    """`running(process, ...)` starts processes, waits until all are ready, and ends them after the test.

    An exporter must end with exit code 0 after SIGTERM, without a traceback in its log.
    """
    with ExitStack() as stack:

        def start(*processes: Process) -> Any:
            for process in processes:
                stack.callback(_end, process)
                process.start()
            for process in processes:
                process.wait_ready()
            return processes[0] if len(processes) == 1 else processes

        yield start


def _end(process: Process) -> None:
    try:
        if isinstance(process, Exporter) and process.alive():
            process.stop_cleanly()
    finally:
        process.__exit__(None, None, None)


@pytest.fixture
def outcomes(tmp_path: Path) -> FileOutcomes:
    return FileOutcomes(tmp_path / "outcomes")


@pytest.fixture
def worker(tmp_path: Path, broker: Broker, outcomes: FileOutcomes) -> Callable[..., Worker]:
    """`worker(node, queues=..., pool=...)` returns a worker on the test's broker; `running` starts it."""

    def make(node: str = "worker@test", **options: Any) -> Worker:
        return Worker(tmp_path / f"worker-{node}", broker.url, node, outcomes=outcomes, **options)

    return make


@pytest.fixture
def exporter(tmp_path: Path, broker: Broker) -> Callable[..., Exporter]:
    """`exporter(*arguments)` returns an exporter on the test's broker; `running` starts it."""

    def make(*arguments: str, **options: Any) -> Exporter:
        return Exporter(tmp_path / "exporter", broker.url, *arguments, **options)

    return make


@pytest.fixture
def client(broker: Broker) -> Iterator[Any]:
    """Return a Celery app that sends tasks and task-sent events to the broker of the test."""
    with workers.client(broker.url) as app:
        yield app
