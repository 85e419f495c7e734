"""Streams of events for this exporter and others: an artificial one, and one of a real worker.

    python -m data.compat.streams          # in tests/: write all streams again

The folders with the versions of the other exporters have their metrics after these streams, written by
record.py.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from operator import itemgetter
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
FOLDER = HERE / "streams"
RECORDING = HERE.parent / "recordings" / "redis-prefork.jsonl"
T0 = 1_750_000_000.0

Events = list[dict[str, Any]]

ONE, TWO = "celery@box-1", "celery@box-2"
WEB, ON_BOX_1 = "gen11@web-1", "gen12@box-1"
#: Seconds whose sum is exact in any order; some of them are bucket bounds.
RUNTIMES = (0.00390625, 0.0078125, 0.03125, 0.0625, 0.25, 0.5, 1.0, 2.25, 7.5, 12.0)
#: Seconds between two events of the stream, and seconds of silence before a worker is purged.
STEP_SECONDS, SILENCE_SECONDS = 1 / 64, 500.0
#: Seconds between sent and started, of one task each.
WAITS = (16.0, 45.0, 90.0)


def sent(name: str, queue: str, client: str, retries: int = 0, **fields: Any) -> dict[str, Any]:
    """Return a task-sent event."""
    event = {"type": "task-sent", "hostname": client, "name": name, "queue": queue, "retries": retries}
    return {**event, **fields}


def received(name: str, worker: str, retries: int = 0, **fields: Any) -> dict[str, Any]:
    """Return a task-received event."""
    return {"type": "task-received", "hostname": worker, "name": name, "retries": retries, **fields}


def task_event(kind: str, worker: str, **fields: Any) -> dict[str, Any]:
    """Return any other task event."""
    return {"type": f"task-{kind}", "hostname": worker, **fields}


def until_started(name: str, queue: str, client: str, worker: str) -> Events:
    """Return the events of a task up to its start."""
    return [sent(name, queue, client), received(name, worker), task_event("started", worker)]


def worker_event(kind: str, worker: str, active: int = 0, processed: int = 0, after: float = 0.0) -> Events:
    """Return a worker event, `after` seconds later than usual."""
    fields = {"freq": 2.0, "active": active, "processed": processed, "loadavg": [0.1, 0.2, 0.3]}
    return [{"type": f"worker-{kind}", "hostname": worker, "after": after, **fields}]


def artificial() -> Iterator[Events]:
    """Yield the events of each task, and worker events between them."""
    for worker in (ONE, TWO):
        yield worker_event("online", worker)
        yield worker_event("heartbeat", worker)
    for number, seconds in enumerate(RUNTIMES):
        client, worker = (WEB, ON_BOX_1)[number % 2], (ONE, TWO)[number // 2 % 2]
        end = task_event("succeeded", worker, runtime=seconds, result="None")
        yield [*until_started("shop.pay", "celery", client, worker), end]
    yield worker_event("heartbeat", ONE, active=3, processed=6)
    for name, exception in (
        ("shop.mail", "ValueError('x')"),
        ("shop.mail", "KeyError('y')"),
        ("shop.mail", "ValueError('z')"),
        ("shop.pay", "TimeLimitExceeded(300)"),
        ("shop.pay", "1 validation error for Order"),
    ):
        yield [
            *until_started(name, "mail", WEB, TWO),
            task_event("failed", TWO, exception=exception, traceback="…"),
        ]
    for worker in (ONE, TWO):  # a process of the worker sends the retry before task-retried
        retry = sent("shop.mail", "mail", f"gen40@{worker.partition('@')[2]}", 1)
        yield [
            *until_started("shop.mail", "mail", WEB, worker),
            retry,
            task_event("retried", worker, exception="ConnectionError()", traceback="…"),
            received("shop.mail", TWO, 1),
            task_event("started", TWO),
            task_event("succeeded", TWO, runtime=0.125, result="None"),
        ]
    yield [*until_started("shop.refund", "celery", ON_BOX_1, TWO), task_event("rejected", TWO, requeue=False)]
    yield [
        sent("shop.late", "celery", WEB),
        received("shop.late", ONE),
        task_event("revoked", ONE, terminated=False, signum=None, expired=True),
    ]
    yield from waiting()
    yield until_started("shop.pay", "mail", WEB, ONE)  # stays running
    yield [sent("shop.never", "mail", WEB)]  # no worker receives it
    yield worker_event("heartbeat", ONE, active=1, processed=9)
    yield worker_event("heartbeat", TWO, active=2, processed=17)
    yield worker_event("offline", TWO, processed=17)


def waiting() -> Iterator[Events]:
    """Yield tasks with long waits in a queue, and one with an eta."""
    for wait in WAITS:
        yield [
            sent("shop.report", "slow", WEB),
            received("shop.report", ONE),
            task_event("started", ONE, after=wait),
            task_event("succeeded", ONE, runtime=0.25, result="None"),
        ]
        yield [*worker_event("heartbeat", ONE), *worker_event("heartbeat", TWO)]
    yield [
        sent("shop.remind", "slow", WEB, eta=32.0),
        received("shop.remind", ONE, eta=32.0),
        task_event("started", ONE, after=34.0),
        task_event("succeeded", ONE, runtime=0.25, result="None"),
    ]


def purged() -> Iterator[Events]:
    """Yield the same, until the stopped worker is purged, and a late worker-offline of it."""
    yield from artificial()
    for _ in range(4):
        yield worker_event("heartbeat", ONE, active=1, processed=9, after=SILENCE_SECONDS)
    yield worker_event("offline", TWO, processed=17)


def timed(groups: Iterable[Events]) -> Iterator[dict[str, Any]]:
    """Yield the events with ids and timestamps, as they are published."""
    clock, now, eta = 0, T0, ""
    for number, group in enumerate(groups):
        for event in group:
            clock, now = clock + 1, now + STEP_SECONDS + event.pop("after", 0.0)
            if "eta" in event:
                eta = eta or datetime.fromtimestamp(now + event["eta"], UTC).isoformat()
                event["eta"] = eta
            common = {"utcoffset": 0, "pid": 1, "clock": clock, "timestamp": now}
            task = {"uuid": f"task-{number}"} if event["type"].startswith("task-") else {}
            yield {**event, **task, **common}


def recorded() -> Events:
    """Return the events of the recording by timestamp, without retried tasks."""
    loaded = (json.loads(json.loads(line)["body"]) for line in RECORDING.read_text().splitlines())
    events = [event for body in loaded for event in (body if isinstance(body, list) else [body])]
    retried = {event["uuid"] for event in events if event["type"] == "task-retried"}
    return sorted(
        (event for event in events if event.get("uuid") not in retried), key=itemgetter("timestamp")
    )


def write(name: str, events: Iterable[dict[str, Any]]) -> None:
    first, lines = None, []
    for event in events:
        first = first if first is not None else event["timestamp"]
        at = event["timestamp"] - first
        lines.append(json.dumps({"at": at, "type": "application/json", "body": json.dumps(event)}))
    (FOLDER / f"{name}.jsonl").write_text("\n".join(lines) + "\n")


def messages(name: str, *, sendings: bool = True) -> Iterator[tuple[float, bytes]]:
    """Yield listening times in seconds and message bodies of a stream, with or without task-sent."""
    for line in (FOLDER / f"{name}.jsonl").read_text().splitlines():
        message = json.loads(line)
        if sendings or '"task-sent"' not in message["body"]:
            yield message["at"], message["body"].encode()


def samples(page: str) -> str:
    """Return the sorted samples of a page, without comments and `_created`."""
    lines = (line for line in page.splitlines() if line and not line.startswith("#"))
    return "\n".join(sorted(line for line in lines if "_created" not in line)) + "\n"


if __name__ == "__main__":
    write("made-up", timed(artificial()))
    write("purged", timed(purged()))
    write("recorded", recorded())
