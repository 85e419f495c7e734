"""Statuses made by hand, and a server that shows them: every page there is, without a cluster."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from celery_exporter.metrics.exposition.series_tracker import SeriesTracker
from celery_exporter.metrics.exposition.text import Exposition
from celery_exporter.status.finding import Finding
from celery_exporter.status.model import (
    BrokerStatus,
    FailureStatus,
    QueueStatus,
    Status,
    TaskStatus,
    WorkerStatus,
)
from celery_exporter.web.app import build
from celery_exporter.web.render import MetricsPage
from celery_exporter.web.server import Server, bind

NOW = 1_800_000_000.25
HOSTILE = (
    "<script>alert(1)</script>",
    "\"'><img src=x onerror=alert(1)>",
    "&lt;b&gt; {0} %s </td></table>",
    "x" * 250,
    "ünï \N{SNOWMAN} \N{RIGHT-TO-LEFT OVERRIDE}cod",
)
FINDINGS = (
    Finding("subscription", "ok", "the event subscription is open"),
    Finding("clock-skew", "warning", "clocks differ: <b>w@h</b> by +9 s", "timedatectl set-ntp true"),
    Finding(
        "unconsumed-messages",
        "critical",
        "messages wait: x (3)",
        "celery -A yourapp worker -E -Q 'x & y'",
        "CeleryQueueWithoutConsumers",
    ),
)
#: Where texts change their unit or their length, halves, and numbers that are no halves in binary.
AWKWARD = (
    *(0.0, 0.0004, 0.0005, 0.001, 0.0049999, 0.005, 0.05, 0.125, 0.25, 0.375, 0.5, 0.995, 0.9994, 0.9995),
    *(0.99999, 1.0, 1.005, 1.25, 2.675, 9.95, 59.0, 59.94, 59.95, 59.96, 59.999, 60.0, 61.5, 3599.0, 3599.99),
    *(3600.0, 86_399.0, 86_399.99, 86_400.0, 1e6, 1_234_567.891, 1e9, 99_999_999_999.0, 1e-9, 0.1 + 0.2),
)


def awkward(count: int) -> list[float]:
    """Return so many values that are not negative: the awkward ones first, then some by chance."""
    dice = random.Random(1)
    return [*AWKWARD, *(10 ** dice.uniform(-4, 9) for _ in range(count))][:count]


def status(**changed: Any) -> Status:
    """Return one of a cluster that has nothing, or what is given."""
    nothing: dict[str, Any] = {
        "version": 1,
        "exporter_version": "0.1.0",
        "at": NOW,
        "started": NOW - 3_700,
        "window": 300.0,
        "broker": broker(),
        "findings": (),
        "workers": (),
        "queues": (),
        "tasks": (),
        "failures": (),
    }
    return Status(**nothing | changed)


def broker(up: bool = True, value: float | None = None) -> BrokerStatus:
    whole = None if value is None else int(value)
    return BrokerStatus("redis://127.0.0.1:6379/0", up, 0, value, value, value, whole)


def worker(name: str = "w@h", value: float | None = None, up: bool = True) -> WorkerStatus:
    whole = None if value is None else int(value)
    skew = None if value is None else (value if whole and whole % 2 else -value)
    since = None if value is None else NOW - value
    sends = None if whole is None else whole % 2 == 0
    return WorkerStatus(name, up, whole, whole, whole or 0, value, skew, sends, since, "5.6.3")


def queue(name: str = "q", value: float | None = None) -> QueueStatus:
    whole = None if value is None else int(value)
    since = None if value is None else NOW - value
    lengths = [(NOW - 15.125 * step, None if step == 3 else (whole or 0) * step // 7) for step in range(61)]
    return QueueStatus(name, whole, since, whole, whole, lengths[::-1] if whole is not None else [])


def task(name: str = "t", value: float | None = None) -> TaskStatus:
    if value is None:
        return TaskStatus(name, {}, None, None, None, None, None, {}, None)
    states = ("PENDING", "RECEIVED", "STARTED", "SUCCESS", "FAILURE", "RETRY", "REVOKED", "REJECTED")
    rates = {state: value / (place + 1) for place, state in enumerate(states)}
    open_ = {"PENDING": int(value), "STARTED": 1}
    return TaskStatus(name, rates, value % 1, value, value * 2, value / 3, value * 7, open_, NOW - value)


def failure(name: str = "t", value: float = 0.0, exception: str = "KeyError") -> FailureStatus:
    return FailureStatus(NOW - value, name, "w@h", exception, "7e5d0a8f-5a3f-4ca1-9f5e-0d6a0b1c2d3e")


def everything(rows: int = 260) -> Status:
    """Return one with everything in it that a text can be made of, and more rows than are shown."""
    values: Sequence[float | None] = [*[1.5] * len(HOSTILE), None, *awkward(rows - 1 - len(HOSTILE))]
    names = [*HOSTILE, *(f"name-{place:03}" for place in range(rows - len(HOSTILE)))]
    named = list(zip(names, values, strict=True))
    return status(
        broker=broker(value=1234.125),
        findings=FINDINGS,
        workers=[worker(name, value, up=name != "name-003") for name, value in named],
        queues=[queue(name, value) for name, value in named],
        tasks=[task(name, value) for name, value in named],
        failures=[failure(name, value or 0.0, name) for name, value in named],
    )


def ordinary() -> Status:
    """Return one of a small cluster that is well but for its findings."""
    return status(
        broker=broker(value=12.5),
        findings=FINDINGS,
        workers=[worker("one@host", 2.5), worker("two@host", up=False), worker("three@host", 1.25)],
        queues=[queue("celery", 70.0), queue("idle", 0.0)],
        tasks=[task("app.add", 1.5), task("app.mul", 0.25), task("app.idle")],
        failures=[failure("app.add", 10.0), failure("app.mul", 70.0, "ValueError")],
    )


@dataclass
class Shown:
    """Where the pages are, and the status they show from now on."""

    port: int
    status: Status
    asked: list[float] = field(default_factory=list)  # when, of the status

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/"

    def __call__(self) -> Status:
        self.asked.append(time.monotonic())
        return self.status


@contextmanager
def shown(first: Status) -> Iterator[Shown]:
    """Serve the pages of a status, which may be changed meanwhile."""
    bound = bind("127.0.0.1", 0)
    source = Shown(bound.getsockname()[1], first)
    metrics = MetricsPage(no_snapshot, Exposition([]), SeriesTracker(0.0, 0.0))
    app = build(metrics, lambda: True, str, status=source)
    server = Server(app, bound)
    server.start()
    try:
        yield source
    finally:
        server.stop()
        server.join(time.monotonic() + 5)


def no_snapshot() -> Any:
    raise AssertionError("nobody asks for metrics here")
