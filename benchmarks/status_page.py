"""Measures the CPU usage of open pages.

    PYTHONPATH=tests .venv/bin/python -m benchmarks.status_page

It compares an exporter without events, with ten open pages and without pages. The two take turns. The table
has medians of three rounds, as shares of one core. It takes two minutes.
"""

from __future__ import annotations

import http.client
import itertools
import json
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
from harness.events import publish_events
from harness.exporter import Exporter, send_request
from harness.servers import RedisServer
from harness.waiting import ANSWER_TIMEOUT, until_equal

API, CHARTS = "/api/v1/status", "/api/v1/charts?page=overview"
#: Open overviews, and seconds between two requests of each, as in refresh.js.
PAGES, INTERVAL_SECONDS = 10, 2.0
#: Requests for the status for each one for charts.
CHART_INTERVALS = 3
#: Task names: a few, and the maximum.
NAMES = (50, 2_499)
#: Task names whose events are published in one message.
BATCH_NAMES = 100
ROUNDS, MEASURE_SECONDS = 3, 10.0


def main() -> None:
    """Measure, and print a table."""
    sys.stdout.write("pages  task names  CPU without  CPU with    cost\n")
    for names in NAMES:
        with tempfile.TemporaryDirectory() as folder:
            without_pages, with_pages = measure(Path(folder), names)
        cost = with_pages - without_pages
        sys.stdout.write(f"{PAGES:5}  {names:10}  {without_pages:11.2%}  {with_pages:8.2%}  {cost:6.2%}\n")


def measure(folder: Path, names: int) -> tuple[float, float]:
    """Return the CPU usage without open pages and with them, as shares of a core."""
    with RedisServer(folder / "redis") as redis, Exporter(folder / "exporter", redis.url) as exporter:
        exporter.connected()
        numbers = itertools.count()
        for first in [*range(0, names, BATCH_NAMES)] * 3:
            batch = range(first, min(first + BATCH_NAMES, names))
            events = (make_events(name, next(numbers)) for name in batch)
            publish_events(redis.url, *itertools.chain.from_iterable(events))
        until_equal(lambda: exporter.total("celery_tasks_total", state="SUCCESS"), 3 * names, 60)
        tasks = json.loads(exporter.get(API).text)["tasks"]
        if len(tasks) != names or not all(task["rates"]["SUCCESS"] and task["runtime_p95"] for task in tasks):
            raise SystemExit("the status does not contain the published tasks, so there is no result")
        shares = []
        for _ in range(ROUNDS):
            without = cpu_share(exporter)
            with open_pages(exporter):
                shares.append((without, cpu_share(exporter)))
    without_pages, with_pages = zip(*shares, strict=True)
    return statistics.median(without_pages), statistics.median(with_pages)


def make_events(name: int, number: int) -> list[dict[str, Any]]:
    """Return the events of a task whose wait and run time depend on its number."""
    now, fields = time.time() - 10, {"uuid": f"task-{number}", "hostname": "w@box"}
    wait, runtime = number * 7 % 1009 / 100, number * 11 % 1013 / 1000
    task = {"name": f"app.module.task_number_{name}", "queue": "made"}
    return [
        {**fields, "type": "task-sent", "timestamp": now - wait, **task, "hostname": "client@box"},
        {**fields, "type": "task-received", "timestamp": now - wait, **task},
        {**fields, "type": "task-started", "timestamp": now},
        {**fields, "type": "task-succeeded", "timestamp": now + runtime, "runtime": runtime},
    ]


def cpu_share(exporter: Exporter) -> float:
    """Return the CPU usage of the exporter over `MEASURE_SECONDS`, as a share of a core."""
    process = psutil.Process(exporter.pid)
    begin, before = time.monotonic(), process.cpu_times()
    time.sleep(MEASURE_SECONDS)
    after, seconds = process.cpu_times(), time.monotonic() - begin
    return (after.user + after.system - before.user - before.system) / seconds


@contextmanager
def open_pages(exporter: Exporter) -> Iterator[None]:
    """Send the requests of open pages, which were opened one after the other."""
    closed = threading.Event()
    pages = [
        threading.Thread(target=send_requests, args=(exporter, closed, number / PAGES))
        for number in range(PAGES)
    ]
    for page in pages:
        page.start()
    try:
        yield
    finally:
        closed.set()
        for page in pages:
            page.join()


def send_requests(exporter: Exporter, closed: threading.Event, phase: float) -> None:
    """Send the requests of an open page, on one connection."""
    closed.wait(phase * INTERVAL_SECONDS)
    connection = http.client.HTTPConnection("127.0.0.1", exporter.port, timeout=ANSWER_TIMEOUT)
    for number in itertools.count():
        if closed.is_set():
            break
        for path in (API, CHARTS) if number % CHART_INTERVALS == 0 else (API,):
            if send_request(connection, path, {"Accept-Encoding": "gzip, deflate, br"}).status != 200:
                raise SystemExit("the exporter does not answer, so there is no result")
        closed.wait(INTERVAL_SECONDS)
    connection.close()


if __name__ == "__main__":
    main()
