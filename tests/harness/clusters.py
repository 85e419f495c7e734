"""Statuses and charts of made-up clusters that look like real ones, of any size."""

from __future__ import annotations

import math
import random
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import ClassVar

from celery_exporter.config.loader import load
from celery_exporter.core.task_info import AttemptInfo, TaskInfo
from celery_exporter.core.task_search import TaskFilter
from celery_exporter.history.store import HistoryStore
from celery_exporter.monitor.cluster_state import ClusterState, new_cluster
from celery_exporter.monitor.task_finder import TaskFinder
from celery_exporter.status.chart_history import Mark
from celery_exporter.status.charts import ChartQuery, Charts, charts_of
from celery_exporter.status.finding import Finding
from celery_exporter.status.model import (
    BrokerStatus,
    FailureGroup,
    FailureStatus,
    QueueStatus,
    Status,
    TaskStatus,
    WorkerStatus,
)
from celery_exporter.status.rings import POINTS, RANGES, Key

AT = 1_795_300_000.0  # 2026-11-21 22:26:40 UTC
MONOTONIC = 500_000.0  # at that time
KINDS = ("emails", "reports", "thumbnails", "search", "billing", "imports", "webhooks", "sync")
VERBS = ("send", "build", "resize", "index", "charge", "fetch", "deliver", "refresh")
EXCEPTIONS = ("SMTPServerDisconnected", "OperationalError", "TimeoutError", "KeyError", "CardDeclined")


def cluster(workers: int, queues: int, tasks: int = 40, failures: int = 50, at: float = AT) -> Status:
    """Return a status: two problems, one worker down, and one queue that grows."""
    rng = random.Random(7)
    queue_names = [_name(KINDS, number) for number in range(queues)]
    worker_names = [f"{queue_names[number % queues]}@web-{number + 1}" for number in range(workers)]
    task_names = [
        f"shop.{KINDS[number % 8]}.{_name(VERBS, number // 8, number % 8)}" for number in range(tasks)
    ]
    down = worker_names[-1]
    return Status(
        version=1,
        exporter_version="0.1.0",
        at=at,
        started=at - 8_300,
        window=300.0,
        broker=BrokerStatus("redis://exporter:***@redis:6379/0", True, 1, at - 0.2, 0.004, 812.4, 117),
        findings=[
            Finding("subscription", "ok", "the event subscription is open"),
            Finding(
                "workers-down",
                "warning",
                f"workers down: {down}",
                "celery -A yourapp status",
                "CeleryWorkerDown",
            ),
            Finding(
                "unconsumed-messages",
                "critical",
                f"messages wait in queues without consumers: {queue_names[-1]} (1,250)",
                f"celery -A yourapp worker -E -Q {queue_names[-1]}",
                "CeleryQueueWithoutConsumers",
            ),
        ],
        workers=sorted(
            (
                _worker(rng, name, queue_names[index % queues], at, up=name != down)
                for index, name in enumerate(worker_names)
            ),
            key=lambda worker: worker.name,
        ),
        queues=[_queue(rng, name, at, grows=name == queue_names[-1]) for name in sorted(queue_names)],
        tasks=[_task(rng, name, at) for name in sorted(task_names)],
        failures=[_failure(rng, number, task_names, worker_names, at) for number in range(failures)],
        failure_groups=[
            FailureGroup(
                exception, task_names[index], 4_000 // (index + 1) ** 2, 9 - index, at - 30 * index**3 - 4,
                worker_names[0], _uuid(rng),
            )
            for index, exception in enumerate(EXCEPTIONS[: min(5, tasks)])
        ],
    )  # fmt: skip


def charts(query: ChartQuery, at: float = AT) -> Charts:
    """Return charts of such a cluster."""
    return charts_of(query, MadeUpHistory(), MONOTONIC, at)  # type: ignore[arg-type]


class MadeUpTasks(TaskFinder):
    """Finds tasks of such a cluster, in a history file of its own; others may be added.

    With `started`, the exporter started then, and has seen nothing of those that are open.
    """

    def __init__(self, status: Status, count: int = 120, started: float | None = None) -> None:
        config = load({"broker_url": "redis://"}, {}).monitor
        self._folder = TemporaryDirectory()  # removed together with this object
        self._store = HistoryStore(Path(self._folder.name) / "history")
        self._store.open()
        super().__init__(
            ClusterState(new_cluster(config), config), self._store, started=started, arguments=True
        )
        rng = random.Random(3)
        names = [task.name for task in status.tasks]
        workers = [worker.name for worker in status.workers]
        self.add(*(_task_info(rng, number, names, workers, status.at) for number in range(count)))

    def add(self, *tasks: TaskInfo) -> None:
        self._store.write(tasks)

    def close(self, why: str) -> None:
        """Close the file, so that it cannot be searched any more."""
        self._store.close(why)

    @property
    def tasks(self) -> list[TaskInfo]:
        """All tasks, the newest first."""
        return self.search(TaskFilter(), 1_000).tasks


class MadeUpHistory:
    """Waves, with gaps, a failure and a deployment; it answers as a `ChartHistory` does.

    The newest run times are unknown, as in a cluster that has little to do.
    """

    # kind and name → mean and height of the wave
    LEVELS: ClassVar[dict[Key, tuple[float, float]]] = {
        ("rate", "SUCCESS"): (310.0, 90.0), ("rate", "FAILURE"): (4.0, 2.0), ("rate", "RETRY"): (7.0, 3.0),
        ("rate", "REVOKED"): (0.0, 0.0), ("rate", "REJECTED"): (0.0, 0.0),
        ("total", "failure share"): (0.012, 0.006), ("runtime", "p50"): (0.09, 0.02),
        ("runtime", "p95"): (0.8, 0.25), ("wait", "p50"): (0.4, 0.3), ("wait", "p95"): (2.1, 1.4),
        ("total", "length"): (900.0, 300.0), ("total", "active"): (190.0, 70.0),
        ("total", "processes"): (320.0, 0.0), ("total", "workers"): (79.0, 0.0),
    }  # fmt: skip

    def values(self, range_name: str, key: Key, _now: float) -> list[float | None]:
        mean, height = self.LEVELS.get(key, (120.0, 60.0))
        rng = random.Random(f"{key}{range_name}")
        phase = rng.uniform(0, 6)
        values: list[float | None] = [
            round(max(0.0, mean + height * (math.sin(phase + index / 19) + rng.uniform(-0.2, 0.2))), 4)
            for index in range(POINTS)
        ]
        if key[1] in {"FAILURE", "failure share"}:
            values = [
                value and value * (9 if 120 <= index < 134 else 1) for index, value in enumerate(values)
            ]
        unknown = {*range(40, 46), *(range(POINTS - 9, POINTS) if key[0] == "runtime" else ())}
        return [None if index in unknown else value for index, value in enumerate(values)]

    def names(self, _kind: str, _range_name: str = "24h") -> list[str]:
        return [*KINDS]

    def marks(self, range_name: str, _now: float) -> list[Mark]:
        seconds = RANGES[range_name]
        deployed = MONOTONIC - seconds / 2.2
        return [
            *(Mark(deployed, "restart", f"emails@web-{number}") for number in range(12)),
            *(Mark(deployed, "version", f"emails@web-{number}", "5.5.3 → 5.6.0") for number in range(12)),
            Mark(MONOTONIC - seconds / 9, "restart", "reports@web-2"),
        ]


STATES = ("SUCCESS", "SUCCESS", "STARTED", "FAILURE", "SUCCESS", "RETRY", "PENDING", "LOST", "RECEIVED")


#: The number of the task in its workflow that sent each one, the oldest first: a root, two that it sent, and
#: one that the second one sent.
SENDERS = (None, 0, 0, 1)


def _task_info(rng: random.Random, number: int, names: list[str], workers: list[str], at: float) -> TaskInfo:
    state, since = STATES[number % len(STATES)], at - 7 * number - rng.random()
    worker = None if state == "PENDING" else rng.choice(workers)
    runtime = 10 ** rng.uniform(-2, 2) if state in {"SUCCESS", "FAILURE", "RETRY"} else None
    exception = rng.choice(EXCEPTIONS) if state in {"FAILURE", "RETRY"} else None
    reason = "not_running" if state == "LOST" else None
    sent = since - (runtime or 0) - 1.5
    workflow, position = divmod(number, len(SENDERS))
    sender = SENDERS[-1 - position]
    first = AttemptInfo(
        "RETRY", 0, 0, "emails", worker, sent - 30, None, sent - 29.9, sent - 29.5, sent - 20, 0.5, 0.4, 9.5,
        "TimeoutError",
    )  # fmt: skip
    newest = AttemptInfo(
        state, 1, 0, "emails", worker, sent, sent + 1, worker and sent + 0.2, worker and sent + 1.5,
        runtime and since, worker and 0.5, worker and 0.5, runtime, exception, reason,
    )  # fmt: skip
    return TaskInfo(
        _member(workflow, len(SENDERS) - 1 - position), rng.choice(names), "emails", state, since, worker,
        "web-1@gunicorn", _member(workflow, 0), None if sender is None else _member(workflow, sender),
        sent - 30, runtime, exception, reason, [first, newest], "('order-4711', {'express': True})", "{}",
        "None" if state == "SUCCESS" else None,
    )  # fmt: skip


def _member(workflow: int, position: int) -> str:
    """Return the id of a task of a workflow; the root is at 0."""
    return _uuid(random.Random(1_000 * workflow + position))


def _name(words: tuple[str, ...], number: int, first: int = 0) -> str:
    word = words[(first + number) % len(words)]
    return word if number < len(words) else f"{word}-{number // len(words) + 1}"


def _uuid(rng: random.Random) -> str:
    digits = f"{rng.getrandbits(128):032x}"
    return "-".join(digits[begin:end] for begin, end in ((0, 8), (8, 12), (12, 16), (16, 20), (20, 32)))


def _worker(rng: random.Random, name: str, queue: str, at: float, *, up: bool) -> WorkerStatus:
    processed = rng.randrange(1_000, 90_000)
    if not up:
        return WorkerStatus(
            name, False, None, None, processed, None, None, True, at - 400, "5.6.0", queues=[queue]
        )
    return WorkerStatus(
        name, True, rng.randrange(5), 4, processed, rng.uniform(0.1, 3.0), rng.uniform(-0.02, 0.02), True,
        at - rng.uniform(0, 2), "5.6.0", None, "prefork", 16, rng.randrange(3), 212_000_000, [queue],
    )  # fmt: skip


def _queue(rng: random.Random, name: str, at: float, *, grows: bool) -> QueueStatus:
    peak = 1_250 if grows else rng.choice((0, 3, 40, 200))
    lengths = [
        (at - 900 + 15 * step, round(peak * (step / 60 if grows else abs(math.sin(step / 9 + peak)))))
        for step in range(61)
    ]
    length = lengths[-1][1]
    consumers, processes = (0, 0) if grows else (3, 12)
    return QueueStatus(name, length, at - 42 if length else None, consumers, processes, lengths)


def _task(rng: random.Random, name: str, at: float) -> TaskStatus:
    rate, failed = 10 ** rng.uniform(-2, 2), 0.0
    if rng.random() < 0.25:
        failed = rate * rng.uniform(0.001, 0.1)
    rates = dict.fromkeys(("PENDING", "RECEIVED", "STARTED"), rate)
    rates |= {
        "SUCCESS": rate - failed,
        "FAILURE": failed,
        "RETRY": failed / 2,
        "REVOKED": 0.0,
        "REJECTED": 0.0,
    }
    runtime, wait = 10 ** rng.uniform(-2, 1), 10 ** rng.uniform(-2, 0.5)
    open_ = {"PENDING": rng.randrange(20), "STARTED": rng.randrange(4)}
    return TaskStatus(
        name, rates, failed / rate, runtime, runtime * 6, wait, wait * 5, open_, at - rng.uniform(1, 90)
    )


def _failure(
    rng: random.Random, number: int, tasks: list[str], workers: list[str], at: float
) -> FailureStatus:
    return FailureStatus(
        at - 9 * number - 4, rng.choice(tasks), rng.choice(workers), rng.choice(EXCEPTIONS), _uuid(rng)
    )
