"""Generates an event stream: the messages of clients and workers of a busy cluster, the same in each run.

Fields, their order and the envelopes are those of Celery 5.7 and kombu 5.7. Events are built in
celery/events/dispatcher.py, the envelope and the channel of Redis in kombu/transport/virtual/base.py and
redis.py, and the properties of AMQP in kombu/transport/pyamqp.py. A message of the stream has the bytes that
a client writes to the socket of the broker.
"""

from __future__ import annotations

import base64
import json
import random
import uuid
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from struct import pack
from typing import Any, NamedTuple

import hiredis
from amqp.basic_message import Message

Event = dict[str, Any]

#: Start of the event stream in epoch seconds; constant, so that each run replays the same bytes.
START = 1_750_000_000.0
#: Tasks that are sent in a second. A task ends within 0.1 s, so about 50 are open at a time.
TASKS_PER_SECOND = 1_000
#: Seconds between two heartbeats of a worker.
HEARTBEAT_SECONDS = 2.0
#: The exchange of Celery's events.
EXCHANGE = "celeryev"


class Cluster(NamedTuple):
    """The cluster on the event stream, with four events for each task, and heartbeats."""

    tasks: int
    names: int = 10
    queues: int = 2
    workers: int = 10


class Form(NamedTuple):
    """The number of events in a message of clients and of workers. A heartbeat has its own message."""

    client: int
    worker: int


class EventStream(NamedTuple):
    """Messages as bytes for the socket, the number of events in each, and the number of events by type."""

    messages: list[bytes]
    sizes: list[int]
    kinds: Counter[str]


def record(cluster: Cluster, form: Form, wire: str) -> EventStream:
    """Return the event stream of a cluster that publishes in a form, on "redis" or "amqp"."""
    events = make_events(cluster)
    messages = list(pack_messages(events, form))
    return EventStream(
        [WIRES[wire](*message) for message in messages],
        [len(body) if isinstance(body, list) else 1 for _, body in messages],
        Counter(event["type"] for event in events),
    )


# -- events ------------------------------------------------------------------------------------------------


def make_events(cluster: Cluster) -> list[Event]:
    """Return all events sorted by timestamp, with consistent clocks and counts of each sender."""
    rng = random.Random(20)
    workers = [f"celery@worker-{number}.example.org" for number in range(cluster.workers)]
    beats = range(1, int(cluster.tasks / TASKS_PER_SECOND / HEARTBEAT_SECONDS) + 1)
    events = [_beat(worker, START, "worker-online") for worker in workers]
    events += [
        _beat(worker, START + beat * HEARTBEAT_SECONDS, "worker-heartbeat")
        for beat in beats
        for worker in workers
    ]
    for number in range(cluster.tasks):
        events += _task_events(number, cluster, rng, rng.choice(workers))
    events.sort(key=lambda event: event["timestamp"])
    clocks: Counter[str] = Counter()
    started: Counter[str] = Counter()
    for event in events:
        sender = event["hostname"]
        clocks[sender] += 1
        started[sender] += event["type"] == "task-started"
        event["clock"] = clocks[sender]
        if "processed" in event:
            event["processed"] = started[sender]
    return events


def _task_events(number: int, cluster: Cluster, rng: random.Random, worker: str) -> Iterator[Event]:
    """Yield the four events of a task that succeeds."""
    task = str(uuid.UUID(int=rng.getrandbits(128), version=4))
    name = f"shop.tasks.handle_{number % cluster.names:02}"
    queue = f"queue-{number // cluster.names % cluster.queues}"
    client = f"gen{4_000 + number % 2}@web-{number % 2}.example.org"
    arguments = {"args": f"({number}, 'EUR')", "kwargs": f"{{'customer': {rng.randrange(10**6)}}}"}
    ancestry = {"root_id": task, "parent_id": None}
    plan = {"retries": 0, "eta": None, "expires": None}
    route = {"queue": queue, "exchange": "", "routing_key": queue}
    at = START + number / TASKS_PER_SECOND + rng.random() / TASKS_PER_SECOND
    yield _event("task-sent", client, at, uuid=task, **ancestry, name=name, **arguments, **plan, **route)
    at += rng.uniform(0.001, 0.005)
    yield _event("task-received", worker, at, uuid=task, name=name, **arguments, **ancestry, **plan)
    at += rng.uniform(0.001, 0.01)
    yield _event("task-started", worker, at, uuid=task)
    runtime = rng.uniform(0.001, 0.08)
    result = f"'order {number} handled'"
    yield _event("task-succeeded", worker, at + runtime, uuid=task, result=result, runtime=runtime)


def _beat(worker: str, at: float, kind: str) -> Event:
    software = {"sw_ident": "py-celery", "sw_ver": "5.7.0", "sw_sys": "Linux"}
    load = [0.52, 0.58, 0.59]
    return _event(kind, worker, at, freq=HEARTBEAT_SECONDS, active=8, processed=0, loadavg=load, **software)


def _event(kind: str, sender: str, at: float, **fields: Any) -> Event:
    head = {"hostname": sender, "utcoffset": 0.0, "pid": 1_000 + sum(sender.encode()), "clock": 0}
    return {**head, **fields, "timestamp": at, "type": kind}


# -- messages ----------------------------------------------------------------------------------------------


def pack_messages(events: list[Event], form: Form) -> Iterator[tuple[str, Event | list[Event]]]:
    """Yield messages with their routing keys. Each sender buffers events until a message is full."""
    buffers: defaultdict[str, list[Event]] = defaultdict(list)
    for event in events:
        size = form.client if event["type"] == "task-sent" else form.worker
        if size == 1 or event["type"].startswith("worker-"):
            yield event["type"].replace("-", "."), event
            continue
        buffer = buffers[event["hostname"]]
        buffer.append(event)
        if len(buffer) == size:
            yield "task.multi", buffers.pop(event["hostname"])
    for buffer in buffers.values():
        yield "task.multi", buffer


def _on_redis(routing_key: str, body: Event | list[Event]) -> bytes:
    """Return the Redis command that publishes a message."""
    text = json.dumps(body).encode()
    envelope = {
        "body": base64.b64encode(text).decode(),
        "content-encoding": "utf-8",
        "content-type": "application/json",
        "headers": {"hostname": _sender(body)},
        "properties": {
            "delivery_mode": 1,
            "delivery_info": {"exchange": EXCHANGE, "routing_key": routing_key},
            "priority": 0,
            "body_encoding": "base64",
            "delivery_tag": str(uuid.uuid5(uuid.NAMESPACE_OID, text.decode())),
        },
    }
    return hiredis.pack_command(("PUBLISH", f"/0.{EXCHANGE}/{routing_key}", json.dumps(envelope)))


def _on_amqp(routing_key: str, body: Event | list[Event]) -> bytes:
    """Return the frames of a message on channel 1: basic.publish (60, 40), header, body."""
    text = json.dumps(body).encode()
    message = Message(
        text,
        content_type="application/json",
        content_encoding="utf-8",
        application_headers={"hostname": _sender(body)},
        delivery_mode=1,
        priority=0,
    )
    names = b"".join(pack("B", len(name)) + name.encode() for name in (EXCHANGE, routing_key))
    return (
        _frame(1, pack(">HHH", 60, 40, 0) + names + b"\0")
        + _frame(2, pack(">HHQ", 60, 0, len(text)) + message._serialize_properties())  # noqa: SLF001
        + _frame(3, text)
    )


def _frame(kind: int, payload: bytes) -> bytes:
    return pack(">BHI", kind, 1, len(payload)) + payload + b"\xce"


def _sender(body: Event | list[Event]) -> str:
    return (body[0] if isinstance(body, list) else body)["hostname"]


WIRES: dict[str, Callable[[str, Event | list[Event]], bytes]] = {"redis": _on_redis, "amqp": _on_amqp}
