"""Streams of events that other exporters were fed with, and we are: one made up, one of a real worker.

    python -m data.compat.streams          # in tests/: write all of them again

What the originals made of them is in the folders that are named after their versions; record.py made these.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from datetime import datetime, timezone
from operator import itemgetter
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
FOLDER = HERE / "streams"
TAPE = HERE.parent / "recordings" / "redis-prefork.jsonl"
T0 = 1_750_000_000.0

Events = list[dict[str, Any]]

ONE, TWO = "celery@box-1", "celery@box-2"
WEB, ON_BOX_1 = "gen11@web-1", "gen12@box-1"
#: Seconds that are sums of powers of two, so that their sum is the same in any order; some are on a bound.
RUNTIMES = (0.00390625, 0.0078125, 0.03125, 0.0625, 0.25, 0.5, 1.0, 2.25, 7.5, 12.0)
#: Seconds between two events of the stream, and those by which a worker is silent that is to be purged.
STEP, SILENCE = 1 / 64, 500.0
#: Seconds between sent and started, of one task each.
WAITS = (16.0, 45.0, 90.0)


def sent(name: str, queue: str, client: str, retries: int = 0, **fields: Any) -> dict[str, Any]:
    usual = {"type": "task-sent", "hostname": client, "name": name, "queue": queue, "retries": retries}
    return {**usual, **fields}


def received(name: str, worker: str, retries: int = 0, **fields: Any) -> dict[str, Any]:
    return {"type": "task-received", "hostname": worker, "name": name, "retries": retries, **fields}


def of_task(kind: str, worker: str, **fields: Any) -> dict[str, Any]:
    return {"type": f"task-{kind}", "hostname": worker, **fields}


def begun(name: str, queue: str, client: str, worker: str) -> Events:
    return [sent(name, queue, client), received(name, worker), of_task("started", worker)]


def of_worker(kind: str, worker: str, active: int = 0, processed: int = 0, after: float = 0.0) -> Events:
    known = {"freq": 2.0, "active": active, "processed": processed, "loadavg": [0.1, 0.2, 0.3]}
    return [{"type": f"worker-{kind}", "hostname": worker, "after": after, **known}]


def lives() -> Iterator[Events]:
    """Tell of each task from sent to its end, and of the workers in between."""
    for worker in (ONE, TWO):
        yield of_worker("online", worker)
        yield of_worker("heartbeat", worker)
    for number, seconds in enumerate(RUNTIMES):
        client, worker = (WEB, ON_BOX_1)[number % 2], (ONE, TWO)[number // 2 % 2]
        done = of_task("succeeded", worker, runtime=seconds, result="None")
        yield [*begun("shop.pay", "celery", client, worker), done]
    yield of_worker("heartbeat", ONE, active=3, processed=6)
    for name, exception in (
        ("shop.mail", "ValueError('x')"),
        ("shop.mail", "KeyError('y')"),
        ("shop.mail", "ValueError('z')"),
        ("shop.pay", "TimeLimitExceeded(300)"),
        ("shop.pay", "1 validation error for Order"),
    ):
        yield [*begun(name, "mail", WEB, TWO), of_task("failed", TWO, exception=exception, traceback="…")]
    for worker in (ONE, TWO):  # a retry is sent by a process of the worker, before the worker says so
        again = sent("shop.mail", "mail", f"gen40@{worker.partition('@')[2]}", 1)
        yield [
            *begun("shop.mail", "mail", WEB, worker),
            again,
            of_task("retried", worker, exception="ConnectionError()", traceback="…"),
            received("shop.mail", TWO, 1),
            of_task("started", TWO),
            of_task("succeeded", TWO, runtime=0.125, result="None"),
        ]
    yield [*begun("shop.refund", "celery", ON_BOX_1, TWO), of_task("rejected", TWO, requeue=False)]
    yield [
        sent("shop.late", "celery", WEB),
        received("shop.late", ONE),
        of_task("revoked", ONE, terminated=False, signum=None, expired=True),
    ]
    yield from waiting()
    yield begun("shop.pay", "mail", WEB, ONE)  # runs on
    yield [sent("shop.never", "mail", WEB)]  # no worker takes it
    yield of_worker("heartbeat", ONE, active=1, processed=9)
    yield of_worker("heartbeat", TWO, active=2, processed=17)
    yield of_worker("offline", TWO, processed=17)


def waiting() -> Iterator[Events]:
    """Tell of tasks that wait in a queue for long, and of one that is to wait: until its eta."""
    for wait in WAITS:
        yield [
            sent("shop.report", "slow", WEB),
            received("shop.report", ONE),
            of_task("started", ONE, after=wait),
            of_task("succeeded", ONE, runtime=0.25, result="None"),
        ]
        yield [*of_worker("heartbeat", ONE), *of_worker("heartbeat", TWO)]
    yield [
        sent("shop.remind", "slow", WEB, eta=32.0),
        received("shop.remind", ONE, eta=32.0),
        of_task("started", ONE, after=34.0),
        of_task("succeeded", ONE, runtime=0.25, result="None"),
    ]


def purged() -> Iterator[Events]:
    """Tell the same, until the worker that left is given up, and of its last word, which comes late."""
    yield from lives()
    for _ in range(4):
        yield of_worker("heartbeat", ONE, active=1, processed=9, after=SILENCE)
    yield of_worker("offline", TWO, processed=17)


def timed(told: Iterable[Events]) -> Iterator[dict[str, Any]]:
    """Return the events with ids and times, as they are on the wire; `after` seconds more than usual."""
    clock, now, eta = 0, T0, ""
    for number, life in enumerate(told):
        for event in life:
            clock, now = clock + 1, now + STEP + event.pop("after", 0.0)
            if "eta" in event:
                eta = eta or datetime.fromtimestamp(now + event["eta"], timezone.utc).isoformat()
                event["eta"] = eta
            usual = {"utcoffset": 0, "pid": 1, "clock": clock, "timestamp": now}
            task = {"uuid": f"task-{number}"} if event["type"].startswith("task-") else {}
            yield {**event, **task, **usual}


def recorded() -> Events:
    """Return the events of the tape, in the order in which they happened, without tasks that were retried."""
    loaded = (json.loads(json.loads(line)["body"]) for line in TAPE.read_text().splitlines())
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
    """Return a stream, as listening times in seconds and message bodies; with its sendings or without."""
    for line in (FOLDER / f"{name}.jsonl").read_text().splitlines():
        message = json.loads(line)
        if sendings or '"task-sent"' not in message["body"]:
            yield message["at"], message["body"].encode()


def samples(page: str) -> str:
    """Return a page's samples, sorted, and nothing else."""
    lines = (line for line in page.splitlines() if line and not line.startswith("#"))
    return "\n".join(sorted(line for line in lines if "_created" not in line)) + "\n"


if __name__ == "__main__":
    write("made-up", timed(lives()))
    write("purged", timed(purged()))
    write("recorded", recorded())
