"""Commands to workers, and which of their replies are read; over kombu's transport in memory."""

from __future__ import annotations

import json
import pickle
import uuid
import zlib
from collections.abc import Iterator
from typing import Any

import kombu
import pytest
from harness.time_spans import TimeSpan
from kombu.pidbox import Mailbox

from celery_exporter.broker.codecs import CONTENT_TYPES, MAX_BODY
from celery_exporter.broker.mailbox import ControlClient

JSON, PICKLE = CONTENT_TYPES["json"], CONTENT_TYPES["pickle"]


@pytest.fixture
def connection() -> Iterator[kombu.Connection]:
    with kombu.Connection(f"memory://{uuid.uuid4()}") as connection:
        yield connection


def worker(connection: kombu.Connection, name: str, *replies: dict[str, Any]) -> list[str]:
    """Start a worker that replies to each command with these; return the commands that it receives.

    A reply is a body, and whatever else `Producer.publish` takes; by default the worker replies that it is
    ok.
    """
    node = Mailbox("celery", type="fanout")(connection).Node(name, channel=connection.channel())
    commands: list[str] = []

    def on_command(command: dict[str, Any], _: object) -> None:
        if command["destination"] is not None and name not in command["destination"]:
            return
        commands.append(command["method"])
        for reply in (replies or (readable(name),)) if "reply_to" in command else ():
            message = {"content_type": JSON, "content_encoding": "utf-8", "headers": {}, **reply}
            message["headers"] = {"ticket": command["ticket"], **message["headers"]}
            connection.Producer().publish(**message, **command["reply_to"])

    node.listen(callback=on_command)
    return commands


def readable(name: str) -> dict[str, Any]:
    return {"body": json.dumps({name: "ok"}).encode()}


def client(connection: kombu.Connection, *accept: str) -> ControlClient:
    return ControlClient(connection, "celery", accept or ("json",))


def test_every_worker_is_asked_and_the_wait_ends_with_the_last_expected_reply(connection):
    for name in ("a@h", "b@h"):
        worker(connection, name)
    with TimeSpan() as span:
        replies = client(connection).call("ping", limit=2)
    assert sorted(map(str, replies)) == ["{'a@h': 'ok'}", "{'b@h': 'ok'}"]
    assert span.seconds < 0.9


def test_only_the_named_workers_are_asked(connection):
    commands = [worker(connection, name) for name in ("a@h", "b@h")]
    assert client(connection).call("ping", 5, ["b@h"]) == [{"b@h": "ok"}]
    assert commands == [[], ["ping"]]


def test_a_command_without_a_reply_does_not_wait(connection):
    commands = worker(connection, "a@h")
    with TimeSpan() as span:
        client(connection).cast("enable_events", ["a@h"])
    connection.drain_events(timeout=1)
    assert commands == ["enable_events"]
    assert span.seconds < 0.5


UNREADABLE = {
    "no JSON": {"body": b"{"},
    "no UTF-8": {"body": b"\xff"},
    "an unknown content type": {"body": b"x", "content_type": "text/plain"},
    "a bomb": {"body": zlib.compress(b" " * (MAX_BODY + 1)), "headers": {"compression": "gzip"}},
    "an unknown compression": {"body": b"{}", "headers": {"compression": "rot13"}},
    "the reply to another command": {"body": b'{"a@h": "late"}', "headers": {"ticket": "another"}},
}


@pytest.mark.parametrize("reply", UNREADABLE.values(), ids=UNREADABLE)
def test_a_reply_that_cannot_be_read_costs_no_other(connection, reply):
    worker(connection, "a@h", reply, readable("a@h"))
    assert client(connection).call("ping", limit=1) == [{"a@h": "ok"}]


class Armed:
    """Unpickling it is a failure of the test."""

    def __reduce__(self):
        return pytest.fail, ("unpickled",)


def test_a_reply_in_a_serializer_that_is_not_accepted_is_not_read_and_its_name_is_known(connection):
    armed = {"body": pickle.dumps(Armed()), "content_type": PICKLE, "content_encoding": "binary"}
    worker(connection, "a@h", armed, readable("a@h"))
    control = client(connection)
    assert control.call("ping", limit=1) == [{"a@h": "ok"}]
    assert control.refused == {"pickle"}


def test_an_accepted_serializer_is_read(connection):
    body = pickle.dumps({"a@h": "ok"})
    worker(connection, "a@h", {"body": body, "content_type": PICKLE, "content_encoding": "binary"})
    assert client(connection, "json", "pickle").call("ping", limit=1) == [{"a@h": "ok"}]


def test_refused_serializers_are_those_of_the_newest_command(connection):
    worker(connection, "a@h", {"body": b"x", "content_type": "text/plain"}, readable("a@h"))
    control = client(connection)
    control.call("ping", limit=1)
    assert control.refused == {"text/plain"}
    control.call("ping", 1, ["absent@h"])
    assert control.refused == set()


def test_other_control_exchanges_can_be_found_on_redis_only(connection):
    assert not client(connection).search_exchanges()
