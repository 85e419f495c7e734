"""A tape: what clients and workers of a busy cluster publish on Redis, made up, and the same each time.

Fields, their order and the envelope are those that Celery 5.7 and kombu 5.7 were seen to send: events are made
in celery/events/dispatcher.py, the envelope in kombu/transport/virtual/base.py, the channel in
kombu/transport/redis.py.
"""

import base64
import json
import random
import uuid
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import hiredis

Event = dict[str, Any]

#: Epoch seconds at which the tape starts: fixed, so that each run replays the same bytes.
START = 1_750_000_000.0
#: Tasks sent in a second of tape. A task ends within 0.1 s, so that some 50 of them are open at a time.
RATE = 1_000
#: Seconds between two heartbeats of a worker.
FREQ = 2.0
#: Messages published in one go; small enough that the reader's backlog is bounded closely.
CHUNK = 200


class Cluster(NamedTuple):
    """How much of what is on the tape: four events a task, and heartbeats."""

    tasks: int
    names: int = 10
    queues: int = 2
    workers: int = 4


class Form(NamedTuple):
    """How many events clients and workers put into a message; heartbeats always travel alone."""

    client: int
    worker: int


class Tape(NamedTuple):
    """Redis commands, ready to be written to a socket, and how many events of each type they carry."""

    chunks: list[tuple[bytes, int]]  # bytes, number of commands in them
    kinds: Counter[str]

    @property
    def events(self) -> int:
        return sum(self.kinds.values())


def record(cluster: Cluster, form: Form) -> Tape:
    """Return the tape of a cluster whose clients and workers publish in this form."""
    events = _events(cluster)
    chunks, commands = [], []
    for command in _commands(events, form):
        commands.append(command)
        if len(commands) == CHUNK:
            chunks.append((b"".join(commands), CHUNK))
            commands = []
    chunks.append((b"".join(commands), len(commands)))
    return Tape(chunks, Counter(event["type"] for event in events))


# -- events ------------------------------------------------------------------------------------------------


def _events(cluster: Cluster) -> list[Event]:
    """Return all events in the order of their timestamps, each sender's clock and counts in step."""
    rng = random.Random(20)
    workers = [f"celery@worker-{number}.example.org" for number in range(cluster.workers)]
    events = [_beat(worker, START, "worker-online") for worker in workers]
    for number in range(cluster.tasks):
        events += _life(number, cluster, rng, rng.choice(workers))
    end = max(event["timestamp"] for event in events)
    for worker in workers:
        events += [_beat(worker, START + beat * FREQ) for beat in range(1, int((end - START) / FREQ) + 1)]
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


def _event(kind: str, sender: str, at: float, **fields: Any) -> Event:
    pid = 1_000 + sum(sender.encode())
    head = {"hostname": sender, "utcoffset": 0.0, "pid": pid, "clock": 0}
    return {**head, **fields, "timestamp": at, "type": kind}


def _life(number: int, cluster: Cluster, rng: random.Random, worker: str) -> list[Event]:
    """Return the four events of a task that succeeds."""
    task = str(uuid.UUID(int=rng.getrandbits(128), version=4))
    queue = f"queue-{number // cluster.names % cluster.queues}"
    name = f"shop.tasks.handle_{number % cluster.names:02}"
    arguments = {"args": f"({number}, 'EUR')", "kwargs": f"{{'customer': {rng.randrange(10**6)}}}"}
    ancestry = {"root_id": task, "parent_id": None}
    plan = {"retries": 0, "eta": None, "expires": None}
    route = {"queue": queue, "exchange": "", "routing_key": queue}
    runtime = rng.uniform(0.001, 0.08)
    sent = START + number / RATE + rng.random() / RATE
    received = sent + rng.uniform(0.001, 0.005)
    started = received + rng.uniform(0.001, 0.01)
    done = {"result": f"'order {number} handled'", "runtime": runtime}
    client = f"gen{4_000 + number % 2}@web-{number % 2}.example.org"
    return [
        _event("task-sent", client, sent, uuid=task, **ancestry, name=name, **arguments, **plan, **route),
        _event("task-received", worker, received, uuid=task, name=name, **arguments, **ancestry, **plan),
        _event("task-started", worker, started, uuid=task),
        _event("task-succeeded", worker, started + runtime, uuid=task, **done),
    ]


def _beat(worker: str, at: float, kind: str = "worker-heartbeat") -> Event:
    load = [0.52, 0.58, 0.59]
    software = {"sw_ident": "py-celery", "sw_ver": "5.7.0", "sw_sys": "Linux"}
    return _event(kind, worker, at, freq=FREQ, active=8, processed=0, loadavg=load, **software)


# -- messages ----------------------------------------------------------------------------------------------


def _commands(events: Iterable[Event], form: Form) -> Iterator[bytes]:
    """Yield PUBLISH commands: each sender fills its message, then sends it."""
    buffers: defaultdict[str, list[Event]] = defaultdict(list)
    tags = random.Random(21)
    for event in events:
        size = {"task-sent": form.client}.get(event["type"], form.worker)
        if size == 1 or event["type"].startswith("worker-"):
            yield _publish(event, event["hostname"], event["type"].replace("-", "."), tags)
            continue
        buffer = buffers[event["hostname"]]
        buffer.append(event)
        if len(buffer) == size:
            yield _publish(buffer, event["hostname"], "task.multi", tags)
            buffer.clear()
    for sender, buffer in buffers.items():
        if buffer:
            yield _publish(buffer, sender, "task.multi", tags)


def _publish(body: Event | list[Event], sender: str, routing_key: str, tags: random.Random) -> bytes:
    envelope = {
        "body": base64.b64encode(json.dumps(body).encode()).decode(),
        "content-encoding": "utf-8",
        "content-type": "application/json",
        "headers": {"hostname": sender},
        "properties": {
            "delivery_mode": 1,
            "delivery_info": {"exchange": "celeryev", "routing_key": routing_key},
            "priority": 0,
            "body_encoding": "base64",
            "delivery_tag": str(uuid.UUID(int=tags.getrandbits(128), version=4)),
        },
    }
    return hiredis.pack_command(("PUBLISH", f"/0.celeryev/{routing_key}", json.dumps(envelope)))
