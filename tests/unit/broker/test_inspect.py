"""Replies of workers to inspection become their pools, queues and tasks."""

from __future__ import annotations

from collections.abc import Callable, Collection

import kombu
import msgspec
import pytest

from celery_exporter.broker import inspect as inspect_module
from celery_exporter.broker.codecs import CONTENT_TYPES, UndecodableError
from celery_exporter.broker.inspect import WorkerInspector, _checked, _from_stats, _Stats
from celery_exporter.broker.message import Message, RefusedError, object_of

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
