"""Records of one run add up to exactly what /metrics says, and to what the tasks recorded themselves."""

from __future__ import annotations

import gzip
import json
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from harness.receiver import Receiver
from harness.waiting import until_equal

from celery_exporter.core.events import epoch
from celery_exporter.sinks.loki import PUSH_PATH

from .jobs import BACK_OFF, KILLED, LATER, PLAIN, send_shuffled
from .scene import Scene
from .sums import FAILURES, PREFETCH_WAITS, QUEUE_WAITS, RUNTIMES, TASKS, Sums, exposed_sums

#: Metrics that records add up to. Redeliveries are none: they are receipts like others.
ADDED_UP = {metric[0] for metric in (TASKS, FAILURES, RUNTIMES, QUEUE_WAITS, PREFETCH_WAITS)}
#: State → the measurements of its points.
MEASUREMENTS = {
    "RECEIVED": ("worker_requests",),
    "STARTED": ("worker_queue",),
    "FAILURE": ("subtask_errors", "subtask_final"),
    **dict.fromkeys(("SUCCESS", "REVOKED", "REJECTED"), ("subtask_final",)),
}
#: Field of a line → the histogram that observed it.
DURATIONS = {"queue_wait_seconds": QUEUE_WAITS[0], "prefetch_wait_seconds": PREFETCH_WAITS[0]}


def sums_of(lines: Iterable[dict[str, Any]]) -> Sums:
    """Return what the lines of an event log add up to, in the form of `exposed_sums`."""
    sums: Counter[tuple[str, ...]] = Counter()
    for line in lines:
        labels = (line["task_name"], line["queue_name"], line.get("worker", ""))
        sums[(TASKS[0], *labels, line["state"])] += 1
        if line["state"] == "FAILURE":
            sums[(FAILURES[0], *labels, line["exception"])] += 1
        if "runtime_seconds" in line:
            sums[(RUNTIMES[0], *labels, line["state"])] += 1
        for field, metric in DURATIONS.items():
            if field in line:
                sums[(metric, *labels)] += 1
    return dict(sums)


#: What the time of a line is rounded to. The counter adds up times that are not rounded.
TIME_PRECISION_SECONDS = 1e-6


def execution_seconds(lines: Iterable[dict[str, Any]]) -> float:
    """Return the seconds of all executions; a rejection of a task that failed ends none."""
    lines = list(lines)
    failed = {line["uuid"] for line in lines if line["state"] == "FAILURE"}
    rejected = [line for line in lines if line["state"] == "REJECTED" and line["uuid"] not in failed]
    runtimes = sum(line.get("runtime_seconds", 0.0) for line in lines)
    return runtimes + sum(epoch(line["time"]) - line["started"] for line in rejected)


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def exposed(scene: Scene) -> Sums:
    return {key: count for key, count in exposed_sums(scene.exporter.samples()).items() if key[0] in ADDED_UP}


def loki_lines(receiver: Receiver) -> list[dict[str, Any]]:
    """Return the lines of the payloads that Loki got, with what labels and metadata have instead of them."""
    lines = []
    for request in list(receiver.requests):
        if request.path != PUSH_PATH:
            continue
        for stream in json.loads(gzip.decompress(request.body))["streams"]:
            labels = stream["stream"]
            for _, text, metadata in stream["values"]:
                line = json.loads(text)
                assert line["state"] == labels["state"]
                lines.append({"queue_name": labels["queue"], **metadata, **line})
    return lines


def points(receiver: Receiver) -> Counter[tuple[str, ...]]:
    """Return how many points InfluxDB got, by measurement, task and queue, and by status of final ones."""
    counts: Counter[tuple[str, ...]] = Counter()
    seen = set()
    for request in list(receiver.requests):
        for line in request.body.decode().splitlines() if request.path.startswith("/api/v2/write") else ():
            series, time = line.split(" ")[0], line.rsplit(" ")[-1]
            assert (series, time) not in seen, "it would overwrite a point"
            seen.add((series, time))
            measurement, *pairs = series.split(",")
            tags = dict(pair.split("=") for pair in pairs)
            counts[measurement, tags.get("task_type", ""), tags.get("queue", ""), tags.get("status", "")] += 1
    return counts


def expected_points(sums: Sums) -> Counter[tuple[str, ...]]:
    """Return the points that follow from the metrics. A rejection that requeues its task ends nothing."""
    counts: Counter[tuple[str, ...]] = Counter()
    for (metric, task, queue, _, *state), count in sums.items():
        if metric == TASKS[0] and (task, *state) != ("tasks.requeue_once", "REJECTED"):
            for measurement in MEASUREMENTS.get(state[0], ()):
                status = state[0] if measurement == "subtask_final" else ""
                counts[measurement, task, queue, status] += count
    return counts


@pytest.mark.parametrize("pool", ["prefork", "threads"])
def test_lines_payloads_and_points_add_up_to_the_metrics(scene: Scene, tmp_path: Path, pool: str) -> None:
    path = tmp_path / "events.jsonl"
    with Receiver() as receiver:
        influx = ("--influx-url", receiver.url, "--influx-bucket", "celery", "--influx-org", "test")
        scene.make_exporter("--event-log", str(path), "--loki-url", receiver.url, *influx)
        options = {"worker_lost_wait": 0.1} if pool == "prefork" else {}
        scene.start(scene.exporter, scene.make_worker(pool=pool, **options))
        jobs = (*PLAIN, *LATER, *BACK_OFF, *(KILLED if pool == "prefork" else ()))
        send_shuffled(scene, jobs, ("celery",))
        scene.await_ends()
        samples = scene.assert_exact()
        sums = exposed(scene)
        until_equal(lambda: sums_of(lines_of(path)), sums, 60)
        until_equal(lambda: sums_of(loki_lines(receiver)), sums, 60)
        until_equal(lambda: task_points(points(receiver)), expected_points(sums), 60)
        lines = lines_of(path)
        for field, metric in (*DURATIONS.items(), ("runtime_seconds", RUNTIMES[0])):
            total = samples.total(metric.replace("_count", "_sum"))
            assert sum(line.get(field, 0.0) for line in lines) == pytest.approx(total)
        total = samples.total("celery_task_execution_seconds_total")
        assert execution_seconds(lines) == pytest.approx(total, abs=len(lines) * TIME_PRECISION_SECONDS)
        delivered = {"event_log": len(lines), "loki": len(lines)}
        until_equal(lambda: {sink: delivered_to(scene, sink) for sink in delivered}, delivered, 60)
        scene.exporter.stop_cleanly()  # while its receivers are there
    assert {line["root_id"] for line in lines if line["root_id"] == line["uuid"]}


def task_points(counts: Counter[tuple[str, ...]]) -> Counter[tuple[str, ...]]:
    """Return the points of tasks, without those of HTTP requests."""
    return Counter({key: count for key, count in counts.items() if key[0] not in {"requests", "errors"}})


def delivered_to(scene: Scene, sink: str) -> float | None:
    labels = {"sink": sink, "outcome": "delivered"}
    return scene.exporter.samples().value("celery_exporter_sink_records_total", **labels)
