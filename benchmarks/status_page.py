"""What open status pages cost: `PYTHONPATH=tests .venv/bin/python -m benchmarks.status_page`, two minutes.

It is the CPU time of an exporter to which nothing happens, with ten pages open and without, as a share of one
core. The two take turns, and medians of three rounds are printed.
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

API = "/api/v1/status"
#: Pages, and the seconds after which each asks again, as status.js does.
PAGES, INTERVAL_SECONDS = 10, 2.0
#: Task names: a few, and as many as fit.
NAMES = (50, 2_499)
#: Task names of which events are published at a time.
BATCH = 100
ROUNDS, WATCHED_SECONDS = 3, 10.0


def main() -> None:
    """Measure and print a table."""
    sys.stdout.write("pages  task names  CPU without  CPU with    cost\n")
    for names in NAMES:
        with tempfile.TemporaryDirectory() as folder:
            without, beside = measure(Path(folder), names)
        cost = beside - without
        sys.stdout.write(f"{PAGES:5}  {names:10}  {without:11.2%}  {beside:8.2%}  {cost:6.2%}\n")


def measure(folder: Path, names: int) -> tuple[float, float]:
    """Return the shares of a core that are used without open pages and with them."""
    with RedisServer(folder / "redis") as redis, Exporter(folder / "exporter", redis.url) as exporter:
        exporter.connected()
        numbers = itertools.count()
        for first in [*range(0, names, BATCH)] * 3:
            made = (make_events(name, next(numbers)) for name in range(first, min(first + BATCH, names)))
            publish_events(redis.url, *itertools.chain.from_iterable(made))
        until_equal(lambda: exporter.total("celery_tasks_total", state="SUCCESS"), 3 * names, 60)
        found = json.loads(exporter.get(API).text)["tasks"]
        if len(found) != names or not all(one["rates"]["SUCCESS"] and one["runtime_p95"] for one in found):
            raise SystemExit("the page does not show what was published: there is nothing to measure")
        shares = []
        for _ in range(ROUNDS):
            without = cpu_share(exporter)
            with open_pages(exporter):
                shares.append((without, cpu_share(exporter)))
    return statistics.median(each[0] for each in shares), statistics.median(each[1] for each in shares)


def make_events(name: int, number: int) -> list[dict[str, Any]]:
    """Return the events of a task that ran for some time after some other."""
    now, about = time.time() - 10, {"uuid": f"task-{number}", "hostname": "w@box"}
    wait, ran = number * 7 % 1009 / 100, number * 11 % 1013 / 1000
    task = {"name": f"app.module.task_number_{name}", "queue": "made"}
    return [
        {**about, "type": "task-sent", "timestamp": now - wait, **task, "hostname": "client@box"},
        {**about, "type": "task-received", "timestamp": now - wait, **task},
        {**about, "type": "task-started", "timestamp": now},
        {**about, "type": "task-succeeded", "timestamp": now + ran, "runtime": ran},
    ]


def cpu_share(exporter: Exporter) -> float:
    """Return the share of a core that the exporter uses, over some seconds."""
    process = psutil.Process(exporter.pid)
    begin, before = time.monotonic(), process.cpu_times()
    time.sleep(WATCHED_SECONDS)
    after, took = process.cpu_times(), time.monotonic() - begin
    return (after.user + after.system - before.user - before.system) / took


@contextmanager
def open_pages(exporter: Exporter) -> Iterator[None]:
    """Ask as so many open pages do, which were opened one after the other."""
    over = threading.Event()
    pages = [threading.Thread(target=look, args=(exporter, over, at / PAGES)) for at in range(PAGES)]
    for page in pages:
        page.start()
    try:
        yield
    finally:
        over.set()
        for page in pages:
            page.join()


def look(exporter: Exporter, over: threading.Event, phase: float) -> None:
    """Ask as an open page does, on one connection."""
    over.wait(phase * INTERVAL_SECONDS)
    connection = http.client.HTTPConnection("127.0.0.1", exporter.port, timeout=ANSWER_TIMEOUT)
    while not over.is_set():
        if send_request(connection, API, {"Accept-Encoding": "gzip, deflate, br"}).status != 200:
            raise SystemExit("the exporter does not answer: there is nothing to measure")
        over.wait(INTERVAL_SECONDS)
    connection.close()


if __name__ == "__main__":
    main()
