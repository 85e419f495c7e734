"""Fixtures of the accuracy scenarios. Each scenario is a row of a table."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from harness.outcomes import RedisOutcomes
from harness.servers import RedisServer
from harness.tables import add_row

from .scene import FULL, Scene


@pytest.fixture(scope="session")
def outcome_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """Yield a Redis for the recorded outcomes, which is not the broker."""
    with RedisServer(tmp_path_factory.mktemp("outcomes")) as server:
        yield server


@pytest.fixture
def scene(
    request: pytest.FixtureRequest,
    tmp_path: Path,
    broker: Any,
    outcome_server: RedisServer,
    running: Callable[..., Any],
) -> Iterator[Scene]:
    with Scene(tmp_path, broker, RedisOutcomes(outcome_server.clean()), running) as scene:
        yield scene
        add_results(request.node, scene)


def add_results(item: pytest.Item, scene: Scene) -> None:
    """Add the results of a scene to the table."""
    for result in scene.results:
        add_row(item, "truth", {"scenario": title(item), "broker": scene.broker.kind, **result.cells()})


def title(item: pytest.Item) -> str:
    """Return the name of a scenario in the table: the name of its row, or that of its function."""
    parameters = getattr(item, "callspec", None)
    row = parameters.params.get("scenario") if parameters else None
    return row.name if row else item.originalname.removeprefix("test_").replace("_", " ")  # type: ignore[attr-defined]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Increase the timeout of the full form, in which some scenarios take minutes."""
    for item in items:
        if FULL and item.path.is_relative_to(Path(__file__).parent):
            item.add_marker(pytest.mark.timeout(1_800))
