"""Runs the exporter under load with churn until all limits are reached (make soak).

There are 1,000 events per second, with new names of tasks, queues and workers all the time, and 10 % of the
tasks never finish. The metrics and the overview are requested regularly, and there is a state file. Twelve
rows show the resources of the process. The run fails if memory, threads or descriptors are higher at the end
than in the middle.
"""

from __future__ import annotations

import itertools
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import redis
from harness.events import publish_events
from harness.exporter import SCRAPER, Exporter
from harness.servers import RedisServer

SECONDS = float(os.environ.get("SOAK_SECONDS", "3600"))
ROWS = 12
TASKS_PER_SECOND = 270
#: One of so many tasks does not finish.
UNFINISHED_EVERY = 10
#: Seconds between two new names of tasks, queues and workers.
NEW_TASK_SECONDS, NEW_QUEUE_SECONDS, NEW_WORKER_SECONDS = 0.5, 2.0, 4.0
SCRAPE_SECONDS = 5.0
#: Queues with a message at the same time.
QUEUES = 100
#: Limits that are reached in the first third of the time.
LIMITS = (
    "--max-tasks",
    "5000",
    "--max-series",
    "4000",
    "--worker-timeout",
    "20",
    "--purge-offline-worker-metrics",
    "30",
)
#: Accepted growth from the middle to the end: share of the memory, and number of threads or descriptors.
MAX_MEMORY_GROWTH, MAX_COUNT_GROWTH = 0.05, 2

COLUMNS = ("seconds", "MB", "threads", "descriptors", "state MB", "tasks", "label sets", "queues", "workers")


def main() -> int:
    """Run the test, and return the exit code."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        state = folder / "state"
        with (
            RedisServer(folder / "redis") as server,
            Exporter(folder / "exporter", server.url, "--state-file", str(state), *LIMITS) as exporter,
        ):
            exporter.connected()
            print_row(COLUMNS)
            rows = [row for row in run(server.url, exporter, state) if print_row(row) is None]
            exporter.stop_cleanly()
    return compare(rows)


def run(url: str, exporter: Exporter, state: Path) -> Iterator[tuple[float, ...]]:
    """Publish for the whole time, and yield a row of figures at intervals."""
    begin, rows, scraped = time.monotonic(), 0, 0.0
    for turn in itertools.count():
        second = time.monotonic() - begin
        publish_second(url, turn, second)
        now = time.monotonic() - begin
        if now >= scraped + SCRAPE_SECONDS:
            scraped = now
            exporter.samples(SCRAPER)
            exporter.get("/")
        if now >= (rows + 1) * SECONDS / ROWS:
            rows += 1
            yield measure(now, exporter, state)
        if rows == ROWS:
            return
        time.sleep(max(0.0, second + 1 - now))  # a busy machine publishes less


def publish_second(url: str, turn: int, second: float) -> None:
    """Publish the events of one second in messages of several tasks, and a message to each new queue."""
    queue = int(second / NEW_QUEUE_SECONDS)
    with redis.Redis.from_url(url) as client:
        client.rpush(f"queue-{queue}", "{}")
        old = range(max(0, queue - 2 * QUEUES), max(1, queue - QUEUES))  # a busy machine skips some seconds
        client.delete(*(f"queue-{number}" for number in old))
    ids = range(turn * TASKS_PER_SECOND, (turn + 1) * TASKS_PER_SECOND)
    for start in range(0, TASKS_PER_SECOND, 27):
        chunk = ids[start : start + 27]
        publish_events(url, *itertools.chain.from_iterable(task_events(number, second) for number in chunk))
    heartbeat = {"type": "worker-heartbeat", "timestamp": time.time(), "freq": 2.0, "pid": 1, "processed": 0}
    publish_events(url, {**heartbeat, "hostname": worker_at(second)})


def task_events(number: int, second: float) -> tuple[dict[str, Any], ...]:
    """Return the events of a task; for an unfinished task, only the first one or two."""
    now = time.time()
    name = {
        "name": f"tasks.number_{int(second / NEW_TASK_SECONDS)}",
        "queue": f"queue-{int(second / NEW_QUEUE_SECONDS)}",
    }
    worker = {"uuid": f"task-{number}", "hostname": worker_at(second), "pid": 1}
    events = (
        {**worker, "type": "task-sent", "hostname": "client@box", "timestamp": now, "retries": 0, **name},
        {**worker, "type": "task-received", "timestamp": now, "name": name["name"], "retries": 0},
        {**worker, "type": "task-started", "timestamp": now},
        {**worker, "type": "task-failed", "timestamp": now, "exception": f"Error{number % 97}('x')"},
    )
    return events if number % UNFINISHED_EVERY else events[: 1 + number % 4 // 2]  # sent, or received


def worker_at(second: float) -> str:
    """Return the name of the worker at a second."""
    return f"worker-{int(second / NEW_WORKER_SECONDS)}@box"


def measure(now: float, exporter: Exporter, state: Path) -> tuple[float, ...]:
    """Return a row of figures."""
    process = psutil.Process(exporter.pid)
    samples = exporter.samples()
    return (
        round(now),
        process.memory_info().rss / 1e6,
        process.num_threads(),
        process.num_fds(),
        state.stat().st_size / 1e6,
        samples.total("celery_tasks_in_flight"),
        samples.value("celery_exporter_series") or 0,
        len(samples.label_values("queue_name", "celery_queue_length")),
        len(samples.label_values("worker", "celery_worker_up")),
    )


def print_row(row: tuple[Any, ...]) -> None:
    """Print a row."""
    cells = (
        f"{cell if isinstance(cell, str) else f'{cell:.0f}':>{len(column)}}"
        for column, cell in zip(COLUMNS, row, strict=True)
    )
    sys.stdout.write("  ".join(cells) + "\n")
    sys.stdout.flush()


def compare(rows: list[tuple[float, ...]]) -> int:
    """Compare the last third of the time with the second, and return the exit code."""
    third = ROWS // 3
    before, after = rows[third : 2 * third], rows[2 * third :]
    failed = False
    for index in (1, 2, 3):
        middle, end = (max(row[index] for row in part) for part in (before, after))
        limit = middle * (1 + MAX_MEMORY_GROWTH) if index == 1 else middle + MAX_COUNT_GROWTH
        if end > limit:
            failed = True
            sys.stdout.write(f"{COLUMNS[index]}: {end:.0f} at the end, {middle:.0f} in the middle\n")
    sys.stdout.write("grew\n" if failed else "stable\n")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
