"""Measures the history file: bytes and CPU time a task, and the time of searches, with a million tasks.

    PYTHONPATH=tests .venv/bin/python -m benchmarks.history [TASKS]

Half of the tasks are standalone, the others are in workflows of ten. One in twenty fails, and one in twenty
was retried. Each task is written once it has started and again once it has ended, a thousand in a
transaction. Then a third as many follow, and each removes the oldest. A second file has the other half in one
workflow. Searches find the file in the page cache, as it is after a write. CPU time is that of the thread,
since other processes disturb wall times. It takes eight minutes, and 400 MB in a temporary folder.
"""

from __future__ import annotations

import random
import sqlite3
import statistics
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from msgspec.structs import replace

from celery_exporter.core.task_info import AttemptInfo, TaskInfo, completed
from celery_exporter.core.task_search import TaskFilter
from celery_exporter.history.store import HistoryStore

TASKS, BATCH = 1_000_000, 1_000
#: Tasks of a second, whose times are written.
RATE = 1_000
START = 1_790_000_000.0
NAMES, QUEUES, WORKERS, CLIENTS, MEMBERS = 200, 5, 40, 40, 10
EXCEPTIONS = ("ValueError", "TimeoutError", "ConnectionError", "OperationalError")
#: One task of so many has a name, queue, worker, exception and state that are rare.
RARE = 20_000
PAGE, MAX_PAGE, PAGES, ROUNDS = 50, 500, 20, 5
UNKNOWN = str(uuid.UUID(int=7))


def main() -> None:
    """Measure, and print."""
    tasks = int(sys.argv[1]) if len(sys.argv) > 1 else TASKS
    with opened() as store:
        maker = Maker(MEMBERS)
        print(f"{tasks:,} tasks, written when they start and when they end")
        print(f"  {fill(store, maker, tasks):.1f} us CPU a task")
        print_sizes(store)
        cost = churn(store, maker, tasks)
        print(f"after as many were removed as a third of them\n  {size(store)}")
        print(f"  written once it has ended, the oldest removed  {cost:.1f} us CPU a task")
        print(f"{'search with ' + format(store.count, ',') + ' tasks':46}   wall      CPU    longest  tasks")
        until = TaskFilter(until=START + tasks / RATE)
        middle = next(task for task in store.search(until, PAGE).tasks if task.root_id != task.uuid)
        filters = [*plain_filters(middle), *ancestry_filters(middle)]
        for label, search in [*searches_by_id(store, middle.uuid), *searches(store, filters)]:
            print(timed(label, search))
    with opened() as store:
        maker = Maker(tasks)
        print(f"{tasks:,} tasks, half of them in one workflow")
        print(f"  {fill(store, maker, tasks):.1f} us CPU a task")
        print_sizes(store)
        member = store.search(TaskFilter(root_id=maker.root), 1).tasks[0]
        for label, search in searches(store, [*workflow_filters(maker), *ancestry_filters(member)]):
            print(timed(label, search))


@contextmanager
def opened() -> Iterator[HistoryStore]:
    """Yield a store with a new file."""
    with tempfile.TemporaryDirectory() as folder:
        store = HistoryStore(Path(folder) / "history")
        store.open()
        yield store
        store.close()


def fill(store: HistoryStore, maker: Maker, tasks: int) -> float:
    """Write tasks when they start and when they end; return the microseconds of CPU time a task."""
    seconds = 0.0
    for first in range(0, tasks, BATCH):
        ended = [maker.make(number) for number in range(first, first + BATCH)]
        started = [before_end(info) for info in ended]
        begin = time.thread_time()
        store.write(started)
        store.write(ended)
        seconds += time.thread_time() - begin
    return seconds / tasks * 1e6


def churn(store: HistoryStore, maker: Maker, tasks: int) -> float:
    """Write tasks and remove the oldest; return the microseconds of CPU time for each."""
    seconds, count = 0.0, 0
    for first in range(tasks, tasks + tasks // 3, BATCH):
        ended = [maker.make(number) for number in range(first, first + BATCH)]
        begin = time.thread_time()
        store.write(ended)
        while store.prune(START, 1e9, tasks):
            pass
        seconds, count = seconds + time.thread_time() - begin, count + BATCH
    return seconds / max(1, count) * 1e6


class Maker:
    """Makes tasks as they are once they have ended: every other one is in a workflow of so many."""

    def __init__(self, members: int) -> None:
        self._random = random.Random(1)
        self._members = members
        self.root = self.spawner = self._previous = ""

    def make(self, number: int) -> TaskInfo:
        """Return the task of this number."""
        pick = self._random
        own = str(uuid.UUID(int=pick.getrandbits(128), version=4))
        root, parent = self._ancestry(own, number)
        name = min(int(pick.expovariate(8.0) * NAMES), NAMES - 1)
        queue, worker = f"queue-{name % QUEUES}", f"celery@worker-{pick.randrange(WORKERS)}"
        state, exception = ("FAILURE", pick.choice(EXCEPTIONS)) if pick.random() < 0.05 else ("SUCCESS", None)
        if number % RARE == 0:
            name, queue, worker, state, exception = NAMES, "rare", "celery@rare", "REVOKED", "RareError"
        sent = START + (number + pick.random()) / RATE
        received = sent + pick.expovariate(20.0)
        started = received + pick.expovariate(5.0)
        runtime = pick.expovariate(1.0)
        ended = started + runtime
        times = {"sent": sent, "received": received, "started": started, "ended": ended}
        attempts = [
            AttemptInfo(state, 0, 0, queue, worker, **times, runtime_seconds=runtime, exception=exception)
        ]
        if pick.random() < 0.05:
            before = {name: moment - 20 for name, moment in times.items()}
            attempts = [
                AttemptInfo("RETRY", 0, 0, queue, worker, **before, exception="TimeoutError"),
                replace(attempts[0], retries=1),
            ]
        return TaskInfo(
            own,
            f"app.tasks.task_{name}",
            queue,
            state,
            ended,
            worker,
            f"gen{pick.randrange(CLIENTS)}@web",
            root,
            parent,
            attempts[0].sent,
            runtime,
            exception,
            None,
            [completed(attempt) for attempt in attempts],
        )

    def _ancestry(self, own: str, number: int) -> tuple[str, str | None]:
        """Return the root and the parent of a task. Some tasks of a workflow send many others."""
        member, is_standalone = divmod(number, 2)
        if is_standalone:
            return own, None
        place = member % self._members
        if place == 0:
            self.root = self._previous = own
            return own, None
        if place == 1:
            self.spawner = own
        parent = self._random.choice((self.root, self.spawner, self._previous)) if place > 1 else self.root
        self._previous = own
        return self.root, parent


def before_end(info: TaskInfo) -> TaskInfo:
    """Return what was known of a task when it had started."""
    newest = info.attempts[-1]
    open_attempt = replace(newest, state="STARTED", ended=None, runtime_seconds=None, exception=None)
    attempts = [*info.attempts[:-1], open_attempt]
    since = newest.started or 0.0
    return replace(
        info, state="STARTED", since=since, runtime_seconds=None, exception=None, attempts=attempts
    )


def size(store: HistoryStore) -> str:
    store._writer.execute("PRAGMA wal_checkpoint(TRUNCATE)")  # noqa: SLF001
    return f"{store.size_bytes / store.count:.1f} bytes a task on disk"


def print_sizes(store: HistoryStore) -> None:
    """Print the size of the file, and that of its tables and indexes if SQLite can tell."""
    print(f"  {size(store)}")
    try:
        sql = "SELECT name, sum(pgsize), sum(payload) FROM dbstat GROUP BY name ORDER BY 2 DESC LIMIT 5"
        rows = store._writer.execute(sql).fetchall()  # noqa: SLF001
    except sqlite3.OperationalError:
        return
    for name, bytes_, payload in rows:
        print(f"    {name:16} {bytes_ / store.count:6.1f}, of which {payload / bytes_:.0%} is used")


def timed(label: str, search: Callable[[], list[TaskInfo]]) -> str:
    """Return a line with the milliseconds of a search."""
    wall, cpu, tasks = [], [], []
    for _ in range(ROUNDS):
        begin, cpu_begin = time.perf_counter(), time.thread_time()
        tasks = search()
        cpu.append((time.thread_time() - cpu_begin) * 1e3)
        wall.append((time.perf_counter() - begin) * 1e3)
    median, cpu_median = statistics.median(wall), statistics.median(cpu)
    return f"  {label:42} {median:6.1f} ms {cpu_median:6.1f} ms {max(wall):6.1f} ms  {len(tasks):5}"


Searches = Iterator[tuple[str, Callable[[], list[TaskInfo]]]]
Filters = Iterator[tuple[str, TaskFilter]]


def searches_by_id(store: HistoryStore, own: str) -> Searches:
    """Yield searches by id with their labels."""
    for label, prefix in (
        ("whole id", own),
        ("first 8 letters of an id", own[:8]),
        ("first 3 letters of an id", own[:3]),
        ("unknown id", UNKNOWN),
    ):
        yield label, lambda prefix=prefix: store.find(prefix, 20)
    yield "no filter, 500 tasks", lambda: store.search(TaskFilter(), MAX_PAGE).tasks


def searches(store: HistoryStore, filters: Iterable[tuple[str, TaskFilter]]) -> Searches:
    """Yield searches with their labels: the first page of each filter, and a later one."""
    for label, filter_ in filters:
        yield label, lambda filter_=filter_: store.search(filter_, PAGE).tasks
        before = None
        for _ in range(PAGES):
            page = store.search(filter_, PAGE, before)
            if page.next is None:
                break
            before = page.next
        else:
            yield f"page {PAGES + 1}: {label}", lambda f=filter_, b=before: store.search(f, PAGE, b).tasks


def plain_filters(middle: TaskInfo) -> Filters:
    """Yield filters by what tasks have, with their labels."""
    yield "no filter", TaskFilter()
    pairs: dict[str, tuple[Any, Any]] = {
        "task_name": ("app.tasks.task_0", f"app.tasks.task_{NAMES}"),
        "queue_name": ("queue-0", "rare"),
        "worker": ("celery@worker-0", "celery@rare"),
        "exception": ("ValueError", "RareError"),
        "states": (frozenset({"SUCCESS"}), frozenset({"REVOKED"})),
        "min_runtime": (1.0, 13.0),
    }
    for name, (frequent, rare) in pairs.items():
        yield f"{name}, frequent", TaskFilter(**{name: frequent})
        yield f"{name}, rare", TaskFilter(**{name: rare})
    yield "states, none found", TaskFilter(states=frozenset({"LOST"}))
    yield "worker that is unknown", TaskFilter(worker="no worker")
    yield "min_runtime, none found", TaskFilter(min_runtime=1e6)
    yield "all states but SUCCESS", TaskFilter(states=frozenset({"FAILURE", "RETRY", "REVOKED", "LOST"}))
    yield "until the middle", TaskFilter(until=middle.since - 100)
    minute = {"since": middle.since - 160, "until": middle.since - 100}
    yield "a minute in the middle, rare state", TaskFilter(**minute, states=frozenset({"REVOKED"}))
    yield (
        "name and queue, frequent, none together",
        TaskFilter(task_name="app.tasks.task_0", queue_name="queue-1"),
    )
    yield (
        "name, exception and min_runtime",
        TaskFilter("app.tasks.task_0", exception="ValueError", min_runtime=9.0),
    )


def ancestry_filters(task: TaskInfo) -> Filters:
    """Yield filters by what a task has in common with others of its workflow, with their labels."""
    yield "root_id", TaskFilter(root_id=task.root_id)
    yield "root_id that is unknown", TaskFilter(root_id=UNKNOWN)
    yield "parent_id", TaskFilter(parent_id=task.parent_id or task.root_id)
    yield "parent_id that is unknown", TaskFilter(parent_id=UNKNOWN)


def workflow_filters(maker: Maker) -> Filters:
    """Yield filters that many tasks of one workflow are like, with their labels."""
    root, rare = maker.root, frozenset({"REVOKED"})
    yield "root_id, and a rare state", TaskFilter(root_id=root, states=rare)
    yield "root_id, and none found", TaskFilter(root_id=root, states=frozenset({"LOST"}))
    yield "root_id, the first minute", TaskFilter(root_id=root, until=START + 60)
    yield "parent_id, the root", TaskFilter(parent_id=root)
    yield "parent_id, the root, and none found", TaskFilter(parent_id=root, states=frozenset({"LOST"}))
    yield "parent_id, another task", TaskFilter(parent_id=maker.spawner)
    yield "parent_id, another task, none found", TaskFilter(parent_id=maker.spawner, min_runtime=1e6)


if __name__ == "__main__":
    main()
