"""Servers that several modules of integration tests use."""

from collections.abc import Iterator

import pytest
from harness.servers import RedisServer, ValkeyServer


@pytest.fixture(scope="session")
def valkey_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ValkeyServer]:
    with ValkeyServer(tmp_path_factory.mktemp("valkey")) as server:
        yield server


@pytest.fixture(params=["redis_server", "valkey_server"])
def server(request: pytest.FixtureRequest) -> RedisServer | ValkeyServer:
    """Return a server with the protocol of Redis, empty."""
    server: RedisServer | ValkeyServer = request.getfixturevalue(request.param)
    server.clean()
    return server
