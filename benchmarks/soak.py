"""Hours under load with churn, until every bound is reached: `make soak`, an hour (SOAK_SECONDS=3600).

1,000 events a second: names of tasks, queues and workers that are always new, and one task in ten that never
finishes. Prometheus and a status page look on, and there is a state file. Twelve times what the process holds
is printed; the run fails if it holds more memory, threads or descriptors at the end than in the middle.
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
LOOKS = 12
TASKS_A_SECOND, NEVER_FINISHED = 270, 10
#: Seconds after which there is another name of each kind, of tasks, queues, workers.
NEW_TASK, NEW_QUEUE, NEW_WORKER = 0.5, 2.0, 4.0
SCRAPE_SECONDS = 5.0
#: That have a message at a time.
QUEUES = 100
#: Bounds that are reached within a third of the time.
BOUNDS = (
    "--max-tasks",
    "5000",
    "--max-series",
    "4000",
    "--worker-timeout",
    "20",
    "--purge-offline-worker-metrics",
    "30",
)
#: What may be more at the end than in the middle: part of the memory, and threads and descriptors.
MORE_MEMORY, MORE_OTHERS = 0.05, 2

HEADS = ("seconds", "MB", "threads", "descriptors", "state MB", "tasks", "label sets", "queues", "workers")


def main() -> int:
    """Run it; return the exit code."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        state = folder / "state"
        with (
            RedisServer(folder / "redis") as server,
            Exporter(folder / "exporter", server.url, "--state-file", str(state), *BOUNDS) as exporter,
        ):
            exporter.connected()
            say(HEADS)
            rows = [row for row in watch(server.url, exporter, state) if say(row) is None]
            exporter.stop_cleanly()
    return judge(rows)


def watch(url: str, exporter: Exporter, state: Path) -> Iterator[tuple[float, ...]]:
    """Publish for the whole time; yield what the exporter holds, now and then."""
    begin, looked, scraped = time.monotonic(), 0, 0.0
    for turn in itertools.count():
        second = time.monotonic() - begin
        publish_second(url, turn, second)
        now = time.monotonic() - begin
        if now >= scraped + SCRAPE_SECONDS:
            scraped = now
            exporter.samples(SCRAPER)
            exporter.get("/")
        if now >= (looked + 1) * SECONDS / LOOKS:
            looked += 1
            yield look(now, exporter, state)
        if looked == LOOKS:
            return
        time.sleep(max(0.0, second + 1 - now))  # what was missed on a busy machine is not made up for


def publish_second(url: str, turn: int, second: float) -> None:
    """Publish the events of one second, in messages of some tasks each, and a message to each new queue."""
    queue = int(second / NEW_QUEUE)
    with redis.Redis.from_url(url) as client:
        client.rpush(f"queue-{queue}", "{}")
        old = range(max(0, queue - 2 * QUEUES), max(1, queue - QUEUES))  # some turns are missed
        client.delete(*(f"queue-{number}" for number in old))
    ids = range(turn * TASKS_A_SECOND, (turn + 1) * TASKS_A_SECOND)
    for start in range(0, TASKS_A_SECOND, 27):
        some = ids[start : start + 27]
        publish_events(url, *itertools.chain.from_iterable(life(number, second) for number in some))
    beat = {"type": "worker-heartbeat", "timestamp": time.time(), "freq": 2.0, "pid": 1, "processed": 0}
    publish_events(url, {**beat, "hostname": worker_at(second)})


def life(number: int, second: float) -> tuple[dict[str, Any], ...]:
    """Return the events of a task; of one in ten only the first two."""
    now = time.time()
    name = {"name": f"tasks.number_{int(second / NEW_TASK)}", "queue": f"queue-{int(second / NEW_QUEUE)}"}
    worker = {"uuid": f"task-{number}", "hostname": worker_at(second), "pid": 1}
    events = (
        {**worker, "type": "task-sent", "hostname": "client@box", "timestamp": now, "retries": 0, **name},
        {**worker, "type": "task-received", "timestamp": now, "name": name["name"], "retries": 0},
        {**worker, "type": "task-started", "timestamp": now},
        {**worker, "type": "task-failed", "timestamp": now, "exception": f"Error{number % 97}('x')"},
    )
    return events if number % NEVER_FINISHED else events[: 1 + number % 4 // 2]  # they wait, or are received


def worker_at(second: float) -> str:
    """Return which worker is at work."""
    return f"worker-{int(second / NEW_WORKER)}@box"


def look(now: float, exporter: Exporter, state: Path) -> tuple[float, ...]:
    """Return a row of the table."""
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


def say(row: tuple[Any, ...]) -> None:
    """Print a row."""
    cells = (
        f"{cell if isinstance(cell, str) else f'{cell:.0f}':>{len(head)}}"
        for head, cell in zip(HEADS, row, strict=True)
    )
    sys.stdout.write("  ".join(cells) + "\n")
    sys.stdout.flush()


def judge(rows: list[tuple[float, ...]]) -> int:
    """Compare the last third of the time with the one before."""
    third = LOOKS // 3
    before, after = rows[third : 2 * third], rows[2 * third :]
    failed = False
    for index in (1, 2, 3):
        middle, end = (max(row[index] for row in some) for some in (before, after))
        most = middle * (1 + MORE_MEMORY) if index == 1 else middle + MORE_OTHERS
        if end > most:
            failed = True
            sys.stdout.write(f"{HEADS[index]}: {end:.0f} at the end, {middle:.0f} in the middle\n")
    sys.stdout.write("flat\n" if not failed else "not flat\n")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
