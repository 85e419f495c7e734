"""The files in which an exporter keeps what it counted, with the same content each time they are written.

`write` runs the monitor without a broker, and with a wall clock that stands still. `read` reads the files of
any release as the exporter does after a restart.
"""

from __future__ import annotations

import json
import shutil
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import patch

from celery_exporter.core.events import EventWithAncestry, decode
from celery_exporter.core.task_info import TaskInfo
from celery_exporter.core.task_search import TaskFilter
from celery_exporter.core.workers import WorkerInfo
from celery_exporter.history.store import HistoryStore
from celery_exporter.metrics.exposition.text import Exposition
from celery_exporter.monitor.monitor import Monitor
from harness.configs import monitor_config

#: Epoch seconds at which the files are written, and how long no exporter runs afterwards.
SAVED_AT, AWAY_SECONDS = 1_790_000_000.0, 60.0
STATE, HISTORY = "state", "history"
#: What a later release has to read from them: samples, and one line of JSON for each task.
METRICS, TASKS = "metrics.txt", "tasks.jsonl"
#: Beginnings of the names of metrics that do not change by a restart.
KEPT = (
    "celery_exporter_events",
    "celery_task",
    "celery_worker_processed",
    "celery_worker_restarts",
)
FIELDS = ("uuid", "task_name", "queue_name", "state", "since", "worker", "runtime_seconds", "exception")
DEADLINE_SECONDS = 60.0
WORKER, CLIENT = "w@box", "web@box"


def write(folder: Path) -> None:
    """Write the files of today's code, and what a later release has to read from them."""
    with _monitor(folder, SAVED_AT) as monitor:
        _receive(monitor, _events())
        info = WorkerInfo(queues=("celery", "mail"), registered=("app.add",), pool="prefork", pool_size=2)
        monitor.state.cluster.record_inspection({WORKER: info}, monitor.state.now())
        monitor.checkpoint.save()
        (folder / METRICS).write_text("".join(f"{line}\n" for line in _metrics(monitor)))
    (folder / TASKS).write_text("".join(f"{line}\n" for line in _tasks(folder / HISTORY)))


def read(saved: Path, folder: Path) -> tuple[list[str], list[str]]:
    """Return the samples and the tasks of an exporter that starts with copies of saved files in a folder."""
    for name in (STATE, HISTORY):
        shutil.copy(saved / name, folder / name)
    with _monitor(folder, SAVED_AT + AWAY_SECONDS) as monitor:
        metrics = _metrics(monitor)
    return metrics, _tasks(folder / HISTORY)


def history_dump(path: Path) -> list[str]:
    """Return the content of a history file as SQL: its bytes depend on the version of SQLite."""
    connection = sqlite3.connect(path)
    try:
        version = connection.execute("PRAGMA user_version").fetchone()
        return [f"version {version}", *connection.iterdump()]
    finally:
        connection.close()


@contextmanager
def _monitor(folder: Path, wall: float) -> Iterator[Monitor]:
    """Yield a monitor of which only the thread of the history file runs."""
    config = monitor_config(
        "redis://127.0.0.1:1/0",
        state_file=str(folder / STATE),
        history_file=str(folder / HISTORY),
    )
    with patch("time.time", lambda: wall):
        monitor = Monitor(config)
        monitor.history.start()
        try:
            yield monitor
        finally:
            monitor.discard()
            monitor.history.stop()
            monitor.history.join(time.monotonic() + DEADLINE_SECONDS)


def _receive(monitor: Monitor, events: list[dict]) -> None:
    """Apply each event at its own time."""
    for event in events:
        monitor.state.listening = event["timestamp"] - SAVED_AT + 200.0
        monitor.subscription.apply_events(decode(json.dumps([event]).encode(), EventWithAncestry))
        with monitor.state.lock:
            monitor.state.cluster.expire(monitor.state.now())
    monitor.state.listening += 5.0  # the reorder window ends
    with monitor.state.lock:
        monitor.state.cluster.expire(monitor.state.now())


def _events() -> list[dict]:
    """Return events of tasks in all states, in their order."""
    beat = {"freq": 2.0, "active": 1, "processed": 7, "loadavg": [0.1, 0.2, 0.3], "sw_ver": "5.5.3"}
    events = [_event("worker-online", WORKER, -100.0, pid=1, **beat)]
    for number, (name, ends) in enumerate(_TASKS):
        at, uuid = -90.0 + number, f"00000000-0000-4000-8000-{number:012}"
        sent = {"name": name, "queue": "mail" if name == "app.mail" else "celery", "retries": 0}
        events.append(_event("task-sent", CLIENT, at, uuid=uuid, root_id=uuid, **sent))
        for step, (kind, fields) in enumerate(ends, 1):
            events.append(_event(f"task-{kind}", WORKER, at + step / 8, uuid=uuid, pid=1, **fields))
    events.append(_event("worker-heartbeat", WORKER, -1.0, pid=1, **{**beat, "processed": 9}))
    return sorted(events, key=lambda event: event["timestamp"])


def _event(kind: str, host: str, at: float, **fields: object) -> dict:
    return {"type": kind, "hostname": host, "timestamp": SAVED_AT + at, "clock": 1, **fields}


_RECEIVED = ("received", {"retries": 0})
_STARTED = ("started", {})
_ERROR = {"exception": "ValueError('x')", "traceback": ""}
#: Name of a task, and the events of its worker with their fields.
_TASKS = [
    *[("app.add", [_RECEIVED, _STARTED, ("succeeded", {"runtime": 0.125, "result": "3"})])] * 3,
    ("app.add", [_RECEIVED, _STARTED, ("failed", _ERROR)]),
    ("app.add", [_RECEIVED, _STARTED, ("retried", _ERROR), ("received", {"retries": 1})]),
    ("app.mail", [_RECEIVED, _STARTED]),
    ("app.mail", [_RECEIVED]),
    ("app.mail", []),
    ("app.mail", [_RECEIVED, ("revoked", {"terminated": False, "signum": None, "expired": True})]),
    (
        "app.measure",
        [
            _RECEIVED,
            _STARTED,
            ("measured", {"fields": {"rows": 12}}),
            ("succeeded", {"runtime": 1.5, "result": "None"}),
        ],
    ),
]


def _metrics(monitor: Monitor) -> list[str]:
    selection = monitor_config("redis://").metrics.selection
    text = Exposition(selection.rows).render(monitor.snapshot(), selection).decode()
    return [line for line in text.splitlines() if line.startswith(KEPT)]


def _tasks(path: Path) -> list[str]:
    store = HistoryStore(path)
    store.open()
    try:
        tasks = store.search(TaskFilter(), 1_000).tasks
        return sorted(map(_line, tasks))
    finally:
        store.close()


def _line(task: TaskInfo) -> str:
    return json.dumps({name: getattr(task, name) for name in FIELDS})
