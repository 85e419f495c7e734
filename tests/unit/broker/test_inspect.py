"""Replies of workers to inspection become their pools, queues and tasks."""

from __future__ import annotations

from collections.abc import Callable, Collection

import kombu
import msgspec
import pytest

from celery_exporter.broker import inspect as inspect_module
from celery_exporter.broker.codecs import CONTENT_TYPES, JSON, MAX_BODY, UndecodableError
from celery_exporter.broker.inspect import (
    WorkerInspector,
    _checked,
    _from_stats,
    _started_at,
    _Stats,
    tasks_in_reply,
)
from celery_exporter.broker.message import Message, RefusedError, object_of
from celery_exporter.core.task_counts import TaskCounts

#: The reply of a worker of Celery 5.2.7 to `inspect stats`, as far as it is used.
SOLO_52 = {
    "pid": 17966,
    "pool": {
        "max-concurrency": 1,
        "processes": [17966],
        "max-tasks-per-child": None,
        "put-guarded-by-semaphore": True,
        "timeouts": [],
    },
    "prefetch_count": 4,
}
PREFORK_52 = {
    "pid": 17967,
    "pool": {
        "max-concurrency": 1,
        "processes": [17996],
        "max-tasks-per-child": "N/A",
        "put-guarded-by-semaphore": False,
        "timeouts": [0, 0],
        "writes": {"total": 0, "avg": "0.00", "all": "", "raw": "", "strategy": "fair", "inqueues": {}},
    },
    "prefetch_count": 4,
}
THREADS_52 = {"pid": 17968, "pool": {"max-concurrency": 1, "threads": 0}, "prefetch_count": 4}


def pool_of(stats: dict) -> str | None:
    ((_, reply),) = _checked([{"w@h": stats}], _Stats)
    pool: str | None = _from_stats(reply)["pool"]
    return pool


@pytest.mark.parametrize(
    ("stats", "pool"),
    [
        (SOLO_52, "solo"),
        (PREFORK_52, None),
        (THREADS_52, None),
        ({"pid": 1, "pool": {"implementation": "celery.concurrency.solo:TaskPool"}}, "solo"),
        ({"pid": 1, "pool": {"implementation": "a.gevent:TaskPool", "processes": [1]}}, "gevent"),
        ({"pid": 1, "pool": {"processes": ["1"]}}, None),
        ({"pid": 1, "pool": {"processes": {"1": 1}}}, None),
        ({"pool": {"processes": [None]}}, None),
    ],
)  # fmt: skip
def test_a_solo_pool_before_celery_5_3_is_known_by_its_process(stats, pool):
    assert pool_of(stats) == pool


def test_an_answer_is_read_by_the_rules_of_accept_content():
    body = b'{"w@h": {"ok": 1}}'
    accept = {CONTENT_TYPES["json"]}
    assert object_of(Message(body, "application/json", "utf-8"), accept) == {"w@h": {"ok": 1}}
    with pytest.raises(RefusedError) as refused:
        object_of(Message(b"\x80\x04.", CONTENT_TYPES["pickle"], "binary"), accept)
    assert refused.value.content_type == CONTENT_TYPES["pickle"]
    for broken in (b"{", b"\xff", b"[" * 100_000):
        with pytest.raises(UndecodableError):
            object_of(Message(broken), accept)
    packed = Message(msgspec.msgpack.encode({"a": 1}), CONTENT_TYPES["msgpack"], "binary")
    assert object_of(packed, {CONTENT_TYPES["msgpack"]}) == {"a": 1}


class ReplyingWorkers:
    """A control client of workers that send these replies to each command."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, replies: Callable[[str], list[dict]]) -> None:
        self.commands: list[str] = []

        def call(command: str, limit: int, only: Collection[str], _: object) -> list[dict]:
            self.commands.append(command)
            assert limit == len(only), "kombu waits for as many"
            return replies(command)[:limit]

        self.call = call
        monkeypatch.setattr(inspect_module, "ControlClient", lambda *_: self)


def held_tasks(monkeypatch: pytest.MonkeyPatch, workers: dict, replies: Callable[[str], list[dict]]) -> dict:
    ReplyingWorkers(monkeypatch, replies)
    return WorkerInspector(kombu.Connection("memory://")).held_tasks(workers)


def test_a_task_that_goes_on_while_its_worker_is_asked_is_held(monkeypatch):
    moves = {"scheduled": "reserved", "reserved": "active", "active": None}
    has = {"scheduled": ["a"], "reserved": ["b"], "active": ["c"]}

    def reply(command: str) -> list[dict]:
        uuids, into = has[command], moves[command]
        has[command] = []
        if into:
            has[into] = has[into] + uuids
        wrapped = [{"request": {"id": uuid}} for uuid in uuids]
        return [{"w@h": wrapped if command == "scheduled" else [task["request"] for task in wrapped]}]

    assert held_tasks(monkeypatch, {"w@h": 1}, reply) == {"w@h": {"a", "b", "c"}}


def test_processes_that_share_a_name_hold_what_all_of_them_answer(monkeypatch):
    def reply(command: str) -> list[dict]:
        return [{"w@h": [{"id": "a"}] if command == "active" else []}, {"w@h": []}]

    assert held_tasks(monkeypatch, {"w@h": 2}, reply) == {"w@h": {"a"}}


@pytest.mark.parametrize("silent_at", ["scheduled", "reserved", "active"])
def test_tasks_of_a_worker_with_a_missing_answer_are_unknown(silent_at, monkeypatch):
    def reply(command: str) -> list[dict]:
        rest = [] if command == silent_at else [{"w@h": []}]
        return [{"w@h": []}, *rest, {"v@h": []}]

    assert held_tasks(monkeypatch, {"w@h": 2, "v@h": 1}, reply) == {"v@h": set()}
    assert held_tasks(monkeypatch, {"w@h": 1, "v@h": 2}, reply) == {}, "more processes than were known"


# -- counts of tasks -------------------------------------------------------------------------------------


def counted(monkeypatch: pytest.MonkeyPatch, workers: dict[str, int], replies: dict[str, list[dict]]) -> dict:
    class Control:
        def call(self, command: str, limit: int, only: list[str], _: None, read: Callable) -> list[dict]:
            assert limit == len(only) == sum(workers.values())
            return [read(Message(msgspec.json.encode(reply)), {JSON}) for reply in replies[command]]

    monkeypatch.setattr(inspect_module, "ControlClient", lambda *_: Control())
    return WorkerInspector(kombu.Connection("memory://")).count_tasks(workers)


def test_tasks_are_counted_by_command_and_processes_that_share_a_name_add_up(monkeypatch):
    replies = {
        "scheduled": [{"w@h": [{"request": {"id": "a"}}]}, {"w@h": []}, {"other@h": [{}]}],
        "reserved": [{"w@h": [{"id": "b"}, {"id": "c"}]}, {"w@h": [{"id": "d"}]}],
        "active": [{"w@h": []}, {"w@h": []}],
    }
    assert counted(monkeypatch, {"w@h": 2}, replies) == {"w@h": TaskCounts(1, 3, 0)}
    replies["active"].pop()
    assert counted(monkeypatch, {"w@h": 2}, replies) == {}, "a reply is missing"


@pytest.mark.parametrize(
    ("reply", "counts"),
    [
        ({"w@h": [{"id": "a", "args": [{"b": 1}, "\u00e4"]}, {}]}, {"w@h": 2}),
        ({"w@h": []}, {"w@h": 0}),
        ({}, {}),
    ],
)
@pytest.mark.parametrize("serializer", ["json", "msgpack"])
def test_tasks_in_a_reply_are_counted(reply, counts, serializer):
    encode = {"json": msgspec.json.encode, "msgpack": msgspec.msgpack.encode}[serializer]
    content_type = CONTENT_TYPES[serializer]
    assert tasks_in_reply(Message(encode(reply), content_type), {content_type}) == counts


@pytest.mark.parametrize("body", [b"", b"{", b"\xff", b" " * (MAX_BODY + 1)])
def test_a_reply_that_cannot_be_read_is_refused(body):
    with pytest.raises(UndecodableError):
        tasks_in_reply(Message(body), {JSON})


@pytest.mark.parametrize("reply", [[], 1, {"w@h": {"error": "x"}}, {"w@h": [1]}])
def test_another_reply_has_no_tasks(reply):
    """It is a reply all the same, and the exporter does not wait for another one."""
    assert tasks_in_reply(Message(msgspec.json.encode(reply)), {JSON}) == {}


@pytest.mark.parametrize("reply", [[], {"w@h": 1}, {1: []}])
def test_another_reply_in_another_serializer_has_no_tasks(reply):
    content_type = CONTENT_TYPES["msgpack"]
    assert tasks_in_reply(Message(msgspec.msgpack.encode(reply), content_type), {content_type}) == {}


def test_a_serializer_that_is_not_accepted_is_not_counted():
    for content_type in (JSON, CONTENT_TYPES["pickle"]):
        with pytest.raises(RefusedError):
            tasks_in_reply(Message(b"{}", content_type), {CONTENT_TYPES["msgpack"]})


# -- the start of a worker -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("before", "uptime", "expected"),
    [
        (None, 10.0, 90.0),
        (90.0, 10.0, 90.0),
        (86.0, 10.0, 86.0),  # the reply took time
        (80.0, 10.0, 90.0),  # it was restarted
        (90.0, None, None),  # by an older version
    ],
)
def test_the_start_of_a_worker_follows_from_its_uptime(before, uptime, expected):
    assert _started_at(before, uptime, 100.0) == expected
