"""Record what danihodovic's exporter makes of a stream of events; its numbers are our contract.

    make bench                                               # installs it, see benchmarks/peer.py
    .venv-peer/bin/python tests/contracts/record_danihodovic.py

writes two streams beside this file, one made up and one of a real worker, feeds them to the original and
writes what that exposes: the sorted samples, `_created` lines aside. An interpreter that does not have the
original writes the streams alone.

Left out is what the profile's remarks say the original gets wrong: exceptions that are written with their
module (`module.Class(...)`), which it calls UnknownException, as it does `Reject`, which a real
worker told; and that worker's retries, which were received anew before the worker said that it retries.
"""

from __future__ import annotations

import importlib.util
import json
import time
from collections.abc import Iterable, Iterator
from operator import itemgetter
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
MADE_UP, RECORDED = HERE / "danihodovic.jsonl", HERE / "danihodovic-recorded.jsonl"
TAPE = HERE.parent / "tapes" / "redis-prefork.jsonl"
T0 = 1_750_000_000.0

Events = list[dict[str, Any]]

ONE, TWO = "celery@box-1", "celery@box-2"
WEB, ON_BOX_1 = "gen11@web-1", "gen12@box-1"
#: Seconds that are sums of powers of two, so that their sum is the same in any order; some are on a bound.
RUNTIMES = (0.00390625, 0.0078125, 0.03125, 0.0625, 0.25, 0.5, 1.0, 2.25, 7.5, 12.0)

#: Golden file → the stream, what the original is told besides, and whether it hears of sendings.
CASES: dict[str, tuple[Path, dict[str, Any], bool]] = {
    "danihodovic": (MADE_UP, {}, True),
    "danihodovic-recorded": (RECORDED, {}, True),
    "danihodovic-generic-sent": (MADE_UP, {"generic_hostname_task_sent_metric": True}, True),
    "danihodovic-buckets": (MADE_UP, {"buckets": [0.25, 1.0, 30.0]}, True),
    "danihodovic-unsent": (MADE_UP, {}, False),
}


def sent(name: str, queue: str, client: str, retries: int = 0) -> dict[str, Any]:
    return {"type": "task-sent", "hostname": client, "name": name, "queue": queue, "retries": retries}


def received(name: str, worker: str, retries: int = 0) -> dict[str, Any]:
    return {"type": "task-received", "hostname": worker, "name": name, "retries": retries}


def of_task(kind: str, worker: str, **fields: Any) -> dict[str, Any]:
    return {"type": f"task-{kind}", "hostname": worker, **fields}


def begun(name: str, queue: str, client: str, worker: str) -> Events:
    return [sent(name, queue, client), received(name, worker), of_task("started", worker)]


def of_worker(kind: str, worker: str, active: int = 0, processed: int = 0) -> Events:
    heard = {"freq": 2.0, "active": active, "processed": processed, "loadavg": [0.1, 0.2, 0.3]}
    return [{"type": f"worker-{kind}", "hostname": worker, **heard}]


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
    yield begun("shop.pay", "mail", WEB, ONE)  # runs on
    yield [sent("shop.never", "mail", WEB)]  # nobody takes it
    yield of_worker("heartbeat", ONE, active=1, processed=9)
    yield of_worker("heartbeat", TWO, active=2, processed=17)
    yield of_worker("offline", TWO, processed=17)


def made_up() -> Iterator[dict[str, Any]]:
    """Return the events with ids and times, as they are on the wire."""
    clock = 0
    for number, life in enumerate(lives()):
        for event in life:
            clock += 1
            usual = {"utcoffset": 0, "pid": 1, "clock": clock, "timestamp": T0 + clock / 64}
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


def write(path: Path, events: Iterable[dict[str, Any]]) -> None:
    lines = (
        json.dumps({"at": clock / 64, "type": "application/json", "body": json.dumps(event)})
        for clock, event in enumerate(events)
    )
    path.write_text("\n".join(lines) + "\n")


def messages(case: str) -> Iterator[tuple[float, bytes]]:
    """Return a case's stream, as listening times and message bodies."""
    path, _, sendings = CASES[case]
    for line in path.read_text().splitlines():
        message = json.loads(line)
        if sendings or '"task-sent"' not in message["body"]:
            yield message["at"], message["body"].encode()


def samples(page: str) -> str:
    """Return a page's samples, sorted, and nothing else."""
    lines = (line for line in page.splitlines() if line and not line.startswith("#"))
    return "\n".join(sorted(line for line in lines if "_created" not in line)) + "\n"


def of_the_original(events: Iterable[dict[str, Any]], options: dict[str, Any]) -> str:
    from celery import Celery  # noqa: PLC0415
    from prometheus_client import generate_latest  # noqa: PLC0415
    from src.exporter import Exporter  # noqa: PLC0415

    exporter = Exporter(**options)
    exporter.state = Celery().events.State()
    for event in events:
        kind = event["type"]
        heard = {**event, "local_received": time.time()}  # as Celery's receiver notes
        if kind == "worker-heartbeat":
            exporter.track_worker_heartbeat(heard)
        elif kind.startswith("worker-"):
            exporter.track_worker_status(heard, kind == "worker-online")
        else:
            exporter.track_task_event(heard)
    return samples(generate_latest(exporter.registry).decode())


def main() -> None:
    write(MADE_UP, made_up())
    write(RECORDED, recorded())
    if importlib.util.find_spec("src") is None:
        print("the original is not installed here, so only the streams were written")
        return
    for name, (_, options, _) in CASES.items():
        events = (json.loads(body) for _, body in messages(name))
        (HERE / f"{name}.txt").write_text(of_the_original(events, options))


if __name__ == "__main__":
    main()
