"""Records the metrics of other exporters after the streams. Tests compare ours with them.

    git clone https://github.com/danihodovic/celery-exporter /tmp/original   # 0.12.2: commit 95e8e49
    python3.11 -m venv /tmp/venv && /tmp/venv/bin/pip install celery==5.6.3 kombu==5.6.2 'redis>=7.1,<8' \
        prometheus-client==0.23.1 flask waitress loguru click flower==2.2.0
    cd tests
    TZ=UTC PYTHONPATH=/tmp/original /tmp/venv/bin/python -m data.compat.record danihodovic-0.12.2
    TZ=UTC /tmp/venv/bin/python -m data.compat.record flower-2.2.0

writes the sorted samples of each stream into the folder of that name, without `_created`. danihodovic-0.11.2
is the newest package of that exporter on the index (`make bench` installs it into .venv-peer), so users who
install it from there have this version.

The original runs with the timestamps of the stream as its clock, since it has timeouts.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterable
from types import SimpleNamespace
from typing import Any

from data.compat.streams import HERE, messages, samples

Event = dict[str, Any]
#: Seconds without a heartbeat after which a worker is purged, by default in all exporters.
PURGE_SECONDS = 600.0

#: Golden file → the stream, the options of the original, and whether the stream has task-sent.
CASES: dict[str, tuple[str, dict[str, Any], bool]] = {
    "made-up": ("made-up", {}, True),
    "recorded": ("recorded", {}, True),
    "purged": ("purged", {}, True),
    "unsent": ("made-up", {}, False),
    "generic-sent": ("made-up", {"generic_hostname_task_sent_metric": True}, True),
    "generic-worker": ("made-up", {"generic_hostname_worker_task_metric": True}, True),
    "buckets": ("made-up", {"buckets": [0.25, 1.0, 30.0]}, True),
    "wait-buckets": ("made-up", {"queue_wait_buckets": [1.0, 20.0, 60.0]}, True),
}
#: Folder → the recorded cases; 0.11.2 has fewer options.
FOLDERS = {
    "danihodovic-0.11.2": ("made-up", "recorded", "purged", "unsent", "generic-sent", "buckets"),
    "danihodovic-0.12.2": tuple(CASES),
    "flower-2.2.0": ("made-up", "recorded", "purged", "unsent"),
}


def of_danihodovic(events: Iterable[Event], options: dict[str, Any]) -> str:
    """Return the samples of danihodovic's exporter."""
    from celery import Celery  # noqa: PLC0415
    from prometheus_client import generate_latest  # noqa: PLC0415
    from src import exporter as module  # noqa: PLC0415

    exporter = module.Exporter(**options)
    exporter.state = Celery().events.State()
    for event in events:
        kind = event["type"]
        module.time = SimpleNamespace(time=lambda at=event["timestamp"]: at)
        exporter.track_timed_out_workers()  # as at each scrape
        event = {**event, "local_received": time.time()}  # noqa: PLW2901  Celery's State uses the system clock
        if kind == "worker-heartbeat":
            exporter.track_worker_heartbeat(event)
        elif kind.startswith("worker-"):
            exporter.track_worker_status(event, kind == "worker-online")
        else:
            exporter.track_task_event(event)
    return samples(generate_latest(exporter.registry).decode())


def of_flower(events: Iterable[Event], _: dict[str, Any]) -> str:
    """Return the samples of Flower."""
    import flower.options  # noqa: F401, PLC0415  defines the options that the next import reads
    from flower import events as module  # noqa: PLC0415
    from prometheus_client import REGISTRY, generate_latest  # noqa: PLC0415

    for collector in list(REGISTRY._collector_to_names):
        REGISTRY.unregister(collector)
    module.PROMETHEUS_METRICS = None
    state = module.EventsState()
    for event in events:
        now = event["timestamp"]
        state.event({**event, "local_received": now})
        last_seen = {
            name: max(worker.heartbeats, default=worker.timestamp) for name, worker in state.workers.items()
        }
        purged = {name for name, at in last_seen.items() if at and now - at >= PURGE_SECONDS}
        state.metrics.remove_workers(purged)  # as --purge_offline_workers=600 does at each scrape
    return samples(generate_latest(REGISTRY).decode())


ORIGINALS: dict[str, Callable[[Iterable[Event], dict[str, Any]], str]] = {
    "danihodovic": of_danihodovic,
    "flower": of_flower,
}


def main(folder: str) -> None:
    """Write the golden files of an exporter."""
    record = ORIGINALS[folder.partition("-")[0]]
    for name in FOLDERS[folder]:
        stream, options, sendings = CASES[name]
        events = [json.loads(body) for _, body in messages(stream, sendings=sendings)]
        (HERE / folder / f"{name}.txt").write_text(record(events, options))


if __name__ == "__main__":
    main(sys.argv[1])
