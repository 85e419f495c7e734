"""Measures the history file: bytes and CPU time a task, and the time of searches, at a million tasks.

    PYTHONPATH=tests .venv/bin/python -m benchmarks.history [TASKS]

Half of the tasks are standalone, the others are in workflows of ten. Each task is written when it has started
and again when it has ended, a thousand a transaction, as if a thousand ended a second. Searches are measured with
the file in the page cache. It takes three minutes, and 400 MB in a temporary folder.
"""

from __future__ import annotations

import random
import statistics
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from msgspec.structs import replace

from celery_exporter.core.task_info import AttemptInfo, TaskInfo, completed
from celery_exporter.core.task_search import TaskFilter
from celery_exporter.history.store import HistoryStore

TASKS, BATCH, RATE = 1_000_000, 1_000, 1_000
START = 1_790_000_000.0
NAMES, WORKERS, CLIENTS = 200, 40, 40
EXCEPTIONS = ("ValueError", "TimeoutError", "ConnectionError", "OperationalError")
#: Tasks of a workflow.
MEMBERS = 10
PAGE, MAX_PAGE = 50, 500
ROUNDS = 5
RARE, FREQUENT = 2_000, 0.3


def main() -> None:
    """Measure, and print tables."""
    tasks = int(sys.argv[1]) if len(sys.argv) > 1 else TASKS
    with tempfile.TemporaryDirectory() as folder:
        store = HistoryStore(Path(folder) / "history")
        store.open()
        known = fill(store, tasks)
        print_sizes(store, tasks)
        searches(store, known, tasks)
        steady(store, tasks)
        store.close()


def fill(store: HistoryStore, tasks: int) -> list[TaskInfo]:
    """Write tasks; return some of them."""
    maker, kept, seconds, wall = Maker(), [], 0.0, time.monotonic()
    for first in range(0, tasks, BATCH):
        ended = [maker.make(number) for number in range(first, first + BATCH)]
        started = [before_end(info) for info in ended]
        begin = time.thread_time()
        store.write(started)
        store.write(ended)
        seconds += time.thread_time() - begin
        kept += ended[:1]
    print(
        f"written in {time.monotonic() - wall:.0f} s; writer, each task written twice: {seconds / tasks * 1e6:.1f} us a task"
    )
    return kept


def steady(store: HistoryStore, tasks: int) -> None:
    """Measure writing and pruning at the maximum number of tasks."""
    maker, seconds, count = Maker(), 0.0, 0
    for first in range(tasks, tasks + tasks // 5, BATCH):
        ended = [maker.make(number) for number in range(first, first + BATCH)]
        begin = time.thread_time()
        store.write(ended)
        while store.prune(START, 1e9, tasks):
            pass
        seconds += time.thread_time() - begin
        count += BATCH
    print(f"written once, and one removed for each: {seconds / count * 1e6:.1f} us a task")
    print(f"then: {store.count:,} tasks, {store.size_bytes / store.count:.0f} bytes a task")


class Maker:
    """Makes tasks as they are once they have ended."""

    def __init__(self) -> None:
        self._random = random.Random(1)
        self._root, self._parent = "", ""

    def make(self, number: int) -> TaskInfo:
        pick = self._random
        own = str(uuid.UUID(int=pick.getrandbits(128), version=4))
        place = number % (2 * MEMBERS)
        root: str | None = own
        parent = None
        if place >= MEMBERS:
            if place == MEMBERS:
                self._root = own
            else:
                root, parent = self._root, pick.choice((self._root, self._parent))
            self._parent = own
        name = min(int(pick.expovariate(8.0) * NAMES), NAMES - 1)
        sent = START + number / RATE + pick.random() / RATE
        received = sent + pick.expovariate(20.0)
        started = received + pick.expovariate(5.0)
        runtime = pick.expovariate(1.0)
        state, exception = ("SUCCESS", None) if pick.random() < 0.95 else ("FAILURE", pick.choice(EXCEPTIONS))
        queue, worker = f"queue-{name % 5}", f"celery@worker-{pick.randrange(WORKERS)}"
        if number % RARE == 0:
            name, queue, worker, exception = NAMES, "rare", "celery@rare", "RareError"
            state = "REVOKED"
        attempt = AttemptInfo(
            state,
            0,
            0,
            queue,
            worker,
            sent,
            None,
            received,
            started,
            started + runtime,
            None,
            None,
            runtime,
            exception,
        )
        attempts = [completed(attempt)]
        if pick.random() < 0.05:
            earlier = replace(
                attempt,
                state="RETRY",
                sent=sent - 20,
                received=received - 20,
                started=started - 20,
                ended=started - 19,
                runtime_seconds=1.0,
                exception="TimeoutError",
            )
            attempts = [completed(earlier), replace(attempts[0], retries=1)]
        return TaskInfo(
            own,
            f"app.tasks.task_{name}",
            queue,
            state,
            started + runtime,
            worker,
            f"gen{pick.randrange(CLIENTS)}@web",
            root,
            parent,
            attempts[0].sent,
            runtime,
            exception,
            None,
            attempts,
        )


def before_end(info: TaskInfo) -> TaskInfo:
    newest = info.attempts[-1]
    started = replace(newest, state="STARTED", ended=None, runtime_seconds=None, exception=None)
    return replace(
        info,
        state="STARTED",
        since=newest.started,
        runtime_seconds=None,
        exception=None,
        attempts=[*info.attempts[:-1], started],
    )


def print_sizes(store: HistoryStore, tasks: int) -> None:
    connection = store._writer
    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    print(f"{store.count:,} tasks, {store.size_bytes:,} bytes: {store.size_bytes / tasks:.1f} a task")
    try:
        rows = connection.execute(
            "SELECT name, sum(pgsize), sum(payload) FROM dbstat GROUP BY name ORDER BY 2 DESC"
        ).fetchall()
    except Exception:
        return
    for name, size, payload in rows:
        print(f"  {name:20} {size / tasks:6.1f} bytes a task, {payload / size:4.0%} used")


def timed(function: Any) -> tuple[float, float, Any]:
    """Return the median and the maximum of a call's milliseconds, and its result."""
    times = []
    for _ in range(ROUNDS):
        begin = time.perf_counter()
        result = function()
        times.append((time.perf_counter() - begin) * 1e3)
    return statistics.median(times), max(times), result


def searches(store: HistoryStore, known: Sequence[TaskInfo], tasks: int) -> None:
    middle = known[len(known) // 2]
    for label, prefix in (
        ("a whole id", middle.uuid),
        ("the first 8 letters", middle.uuid[:8]),
        ("3 letters", middle.uuid[:3]),
        ("an unknown id", str(uuid.UUID(int=7))),
        ("an unknown text", "import-7"),
    ):
        median, worst, found = timed(lambda: store.find(prefix, 20))
        print(f"  find {label:30} {median:8.2f} ms, at most {worst:8.2f}, {len(found)} tasks")
    for label, filter_ in filters(middle, tasks):
        for size in (PAGE, MAX_PAGE):
            median, worst, page = timed(lambda: store.search(filter_, size))
            print(f"  {label:35} {size:4} {median:8.2f} ms, at most {worst:8.2f}, {len(page.tasks)} tasks")
        before, pages = page.next, 0
        if before is not None:
            for _ in range(20):
                page = store.search(filter_, size, before)
                if page.next is None:
                    break
                before, pages = page.next, pages + 1
            median, worst, page = timed(lambda: store.search(filter_, PAGE, before))
            print(
                f"    after page {pages:3} {'':28} {median:8.2f} ms, at most {worst:8.2f}, {len(page.tasks)} tasks"
            )


def filters(middle: TaskInfo, tasks: int) -> Iterator[tuple[str, TaskFilter]]:
    end = START + tasks / RATE
    member = next
    yield "no filter", TaskFilter()
    for key, frequent, rare in (
        ("task_name", "app.tasks.task_0", f"app.tasks.task_{NAMES}"),
        ("queue_name", "queue-0", "rare"),
        ("worker", "celery@worker-0", "celery@rare"),
        ("exception", "ValueError", "RareError"),
        ("states", frozenset({"SUCCESS"}), frozenset({"REVOKED"})),
    ):
        yield f"{key}, frequent", TaskFilter(**{key: frequent})
        yield f"{key}, rare", TaskFilter(**{key: rare})
    yield "states, none found", TaskFilter(states=frozenset({"LOST"}))
    yield "states, all but SUCCESS", TaskFilter(states=frozenset({"FAILURE", "RETRY", "REVOKED", "STARTED"}))
    yield "worker, unknown", TaskFilter(worker="nobody")
    yield "min_runtime, frequent", TaskFilter(min_runtime=1.0)
    yield "min_runtime, rare", TaskFilter(min_runtime=11.0)
    yield "min_runtime, none found", TaskFilter(min_runtime=1e6)
    yield "until the middle", TaskFilter(until=(START + end) / 2)
    yield (
        "a minute in the middle, rare",
        TaskFilter(since=(START + end) / 2, until=(START + end) / 2 + 60, states=frozenset({"REVOKED"})),
    )
    yield "root_id", TaskFilter(root_id=middle.root_id)
    yield "root_id, unknown", TaskFilter(root_id=str(uuid.UUID(int=7)))
    yield "parent_id, unknown", TaskFilter(parent_id=str(uuid.UUID(int=7)))
    yield (
        "name and worker, each frequent, none",
        TaskFilter(task_name="app.tasks.task_0", worker="celery@worker-0", states=frozenset({"LOST"})),
    )
    yield (
        "name and queue that exclude each other",
        TaskFilter(task_name="app.tasks.task_0", queue_name="queue-1"),
    )
    yield (
        "name, exception and min_runtime",
        TaskFilter(task_name="app.tasks.task_0", exception="ValueError", min_runtime=8.0),
    )


if __name__ == "__main__":
    main()
