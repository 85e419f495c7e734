"""Sample statuses, and a server for their pages, without a broker."""

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
from celery_exporter.web.render import MetricsPage, PageSource
from celery_exporter.web.server import Server, bind
from celery_exporter.web.status_routes import Sources
from celery_exporter.web.task_api import Tasks
from harness import clusters

NOW = 1_800_000_000.25
HOSTILE_NAMES = (
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
#: Values at which formatted numbers change their unit or length, and values that are hard to round.
EDGE_VALUES = (
    *(0.0, 0.0004, 0.0005, 0.001, 0.0049999, 0.005, 0.05, 0.125, 0.25, 0.375, 0.5, 0.995, 0.9994, 0.9995),
    *(0.99999, 1.0, 1.005, 1.25, 2.675, 9.95, 59.0, 59.94, 59.95, 59.96, 59.999, 60.0, 61.5, 3599.0, 3599.99),
    *(3600.0, 86_399.0, 86_399.99, 86_400.0, 1e6, 1_234_567.891, 1e9, 99_999_999_999.0, 1e-9, 0.1 + 0.2),
)


def sample_values(count: int) -> list[float]:
    """Return this many values of at least 0: the edge values first, then random ones."""
    rng = random.Random(1)
    return [*EDGE_VALUES, *(10 ** rng.uniform(-4, 9) for _ in range(count))][:count]


def status(**fields: Any) -> Status:
    """Return the status of an empty cluster, with these fields replaced."""
    empty: dict[str, Any] = {
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
    return Status(**empty | fields)


def broker(up: bool = True, value: float | None = None) -> BrokerStatus:
    whole = None if value is None else int(value)
    since, error = (None, None) if up else (NOW - 75.25, "<b>Connection refused</b>")
    return BrokerStatus(
        "redis://127.0.0.1:6379/0", up, 0, value, value, value, whole, down_since=since, error=error
    )


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
    states = ("PENDING", "RECEIVED", "STARTED", "SUCCESS", "FAILURE", "RETRY", "REVOKED", "REJECTED")
    if value is None:
        return TaskStatus(name, dict.fromkeys(states), None, None, None, None, None, {}, None)
    rates = {state: value / (index + 1) for index, state in enumerate(states)}
    open_ = {"PENDING": int(value), "STARTED": 1}
    return TaskStatus(name, rates, value % 1, value, value * 2, value / 3, value * 7, open_, NOW - value)


def failure(name: str = "t", value: float = 0.0, exception: str = "KeyError") -> FailureStatus:
    return FailureStatus(NOW - value, name, "w@h", exception, "7e5d0a8f-5a3f-4ca1-9f5e-0d6a0b1c2d3e")


def full_status(rows: int = 260) -> Status:
    """Return a status with all kinds of values and names, and more rows than a page shows."""
    count = rows - 1 - len(HOSTILE_NAMES)
    values: Sequence[float | None] = [
        *[1.5] * len(HOSTILE_NAMES),
        None,
        *sample_values(count),
    ]
    names = [*HOSTILE_NAMES, *(f"name-{index:03}" for index in range(rows - len(HOSTILE_NAMES)))]
    named = list(zip(names, values, strict=True))
    return status(
        broker=broker(value=1234.125),
        findings=FINDINGS,
        workers=[worker(name, value, up=name != "name-003") for name, value in named],
        queues=[queue(name, value) for name, value in named],
        tasks=[task(name, value) for name, value in named],
        failures=[failure(name, value or 0.0, name) for name, value in named],
    )


def small_status() -> Status:
    """Return the status of a small cluster with some findings."""
    return status(
        broker=broker(value=12.5),
        findings=FINDINGS,
        workers=[worker("one@host", 2.5), worker("two@host", up=False), worker("three@host", 1.25)],
        queues=[queue("celery", 70.0), queue("idle", 0.0)],
        tasks=[task("app.add", 1.5), task("app.mul", 0.25), task("app.idle")],
        failures=[failure("app.add", 10.0), failure("app.mul", 70.0, "ValueError")],
    )


@dataclass
class StatusPages:
    """The port of the pages, and the status that they show. `requests` has the monotonic times of reads."""

    port: int
    status: Status
    requests: list[float] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/"

    def __call__(self) -> Status:
        self.requests.append(time.monotonic())
        return self.status


@contextmanager
def serve_status(first: Status, tasks: Any = None) -> Iterator[StatusPages]:
    """Serve the pages of a status, and those of single tasks. A test may replace the status."""
    listener = bind("127.0.0.1", 0)
    pages = StatusPages(listener.getsockname()[1], first)
    metrics = MetricsPage(lambda: [PageSource(no_snapshot, Exposition([]), SeriesTracker(0.0, 0.0))])
    app = build(
        metrics, lambda: True, str, sources=Sources(pages, clusters.charts), tasks=tasks and Tasks(tasks)
    )
    server = Server(app, listener)
    server.start()
    try:
        yield pages
    finally:
        server.stop()
        server.join(time.monotonic() + 5)


def no_snapshot() -> Any:
    raise AssertionError("a test of pages must not request metrics")
