"""Recordings of real workers, replayed through the pure core and compared with golden texts.

After an intended change, run `make golden` and review the difference.
"""

from __future__ import annotations

import json
import os
import random
import re
import subprocess
from collections.abc import Iterator
from operator import attrgetter
from pathlib import Path

import pytest
from harness.processes import need

from celery_exporter.core.aggregates import Aggregates
from celery_exporter.core.cluster import Cluster
from celery_exporter.core.events import Event, decode
from celery_exporter.core.limits import Limits
from celery_exporter.core.snapshot import ExporterState, JobView, QueueStats, Snapshot, take_snapshot
from celery_exporter.core.types import State, Timestamp
from celery_exporter.core.workers import WorkerInfo
from celery_exporter.metrics.exposition.text import Exposition
from celery_exporter.metrics.model import MetricOptions
from celery_exporter.metrics.registry import PROFILES, Selection, select

DATA = Path(__file__).parents[1] / "data"
RECORDINGS = sorted((DATA / "recordings").glob("*.jsonl"))
GOLDEN = DATA / "golden"
#: The exit code of promtool for a valid page with metric names that violate its conventions.
LINT_EXIT_CODE = 3
UPDATE = "UPDATE_GOLDEN" in os.environ
(RECORDING,) = [recording for recording in RECORDINGS if recording.stem == "redis-prefork"]


def read(recording: Path) -> Iterator[tuple[float, bytes]]:
    for line in recording.read_text().splitlines():
        message = json.loads(line)
        yield message["at"], message["body"].encode()


def replay(messages, selection: Selection | None = None, apply_to=attrgetter("apply")) -> Snapshot:
    """Return a snapshot after these messages; `apply_to` returns what applies an event to a cluster."""
    selection = selection or select(("native",), MetricOptions())
    aggregates = Aggregates(selection.runtime_bounds, selection.wait_bounds, latency=selection.latency)
    cluster = Cluster(
        Limits(), aggregates, selection.labels, clients=selection.clients, hosts=selection.hosts
    )
    wall, apply = 0.0, apply_to(cluster)
    for at, body in messages:
        events = decode(body)
        assert all(isinstance(event, Event) for event in events), "events of real workers are well-formed"
        wall = max(wall, *(event.timestamp for event in events))
        now = Timestamp(at, wall + 0.001)
        for event in events:
            apply(event, now)
        cluster.expire(now)
    infos = {
        name: WorkerInfo(
            queues=("celery",), registered=("tasks.idle",), pool="prefork", pool_size=2, prefetch_count=8
        )
        for name in cluster.workers
    }
    cluster.record_inspection(infos, now)
    cluster.expire(Timestamp(at + 5, wall + 5))
    return take_snapshot(cluster, exporter_state(wall + 5), prefetched=selection.prefetched)


def exporter_state(at: float) -> ExporterState:
    return ExporterState(
        at=at,
        started=at,
        version="0.0.0",
        broker_up=True,
        queue_stats={"celery": QueueStats(3, None, unacked=2)},
        unacked=2,
        workers_known=True,
        jobs=[JobView("queues", True, 0.5, at)],
        malformed={"undecodable": 1},
        event_lag=0.001,
        last_event=at,
        reconnects=0,
        state_errors={},
        web_config_up_to_date=None,
    )


def render(recording: Path, selection: Selection) -> str:
    text = Exposition(selection.rows).render(replay(read(recording), selection)).decode()
    return text.partition("# HELP process_")[0]


def compare(text: str, golden: Path) -> None:
    """Compare a text with a golden file, or update the file."""
    if UPDATE:
        golden.write_text(text)
    assert golden.read_text() == text


@pytest.mark.parametrize("recording", RECORDINGS, ids=lambda recording: recording.stem)
def test_native_profile_of_a_recording(recording):
    compare(render(recording, select(("native",), MetricOptions())), GOLDEN / f"native-{recording.stem}.txt")


def test_native_profile_with_the_worker_label():
    selection = select(("native",), MetricOptions(task_labels=("queue_name", "worker")))
    compare(render(RECORDING, selection), GOLDEN / "native-worker-label.txt")


@pytest.mark.parametrize("profile", [name for name in PROFILES if name != "native"])
def test_other_profiles_of_a_recording(profile):
    text = render(RECORDING, select((profile,), MetricOptions()))
    compare(text.partition("# HELP celery_exporter_")[0], GOLDEN / f"{profile}.txt")


@pytest.mark.parametrize("others", [("triton",), ("triss", "triton", "flower"), ("flower",)], ids="+".join)
def test_native_profile_is_the_same_with_other_profiles(others):
    """The others need aggregates with more labels, and histograms with more buckets."""
    alone = render(RECORDING, select(("native",), MetricOptions())).splitlines()
    combined = render(RECORDING, select(("native", *others), MetricOptions())).splitlines()
    native_names = {row.name for row in select(("native",), MetricOptions()).rows} - {
        "celery_exporter_series"
    }
    shown = [line for line in combined if _family(line) in native_names]
    assert shown == [line for line in alone if _family(line) in native_names]


def _family(line: str) -> str:
    name = line.split(" ")[2] if line.startswith("# ") else re.split("[{ ]", line, maxsplit=1)[0]
    return re.sub("_(bucket|count|sum)$", "", name)


@pytest.mark.parametrize("golden", sorted(GOLDEN.glob("*.txt")), ids=lambda path: path.stem)
def test_promtool_accepts_the_golden_texts(golden):
    promtool = need("promtool")
    command = [promtool, "check", "metrics"]
    done = subprocess.run(command, input=golden.read_bytes(), capture_output=True, check=False)
    if golden.stem.startswith("native"):
        assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
    else:  # the names of other exporters violate some conventions
        assert done.returncode in (0, LINT_EXIT_CODE), done.stderr


@pytest.mark.parametrize("recording", RECORDINGS, ids=lambda recording: recording.stem)
def test_counts_are_those_of_the_recorded_tasks(recording):
    """The numbers follow from tests/data/recordings/record.py. No fallback or negative wait is counted."""
    snapshot = replay(read(recording))
    counts = {
        (label_set.task_name.removeprefix("tasks."), state.name): aggregate.transitions[state]
        for label_set, aggregate in snapshot.aggregates.items()
        for state in (State.PENDING, State.SUCCESS, State.FAILURE, State.RETRY, State.REVOKED, State.REJECTED)
        if aggregate.transitions[state]
    }
    assert counts == {
        ("succeed", "PENDING"): 10,
        ("succeed", "SUCCESS"): 8,
        ("succeed", "REVOKED"): 2,
        ("fail_with_value_error", "PENDING"): 2,
        ("fail_with_value_error", "FAILURE"): 2,
        ("fail_with_inner_error", "PENDING"): 1,
        ("fail_with_inner_error", "FAILURE"): 1,
        ("retry_once", "PENDING"): 6,
        ("retry_once", "RETRY"): 3,
        ("retry_once", "SUCCESS"): 3,
        ("retry_and_fail", "PENDING"): 2,
        ("retry_and_fail", "RETRY"): 1,
        ("retry_and_fail", "FAILURE"): 1,
        ("reject", "PENDING"): 1,
        ("reject", "REJECTED"): 1,
        ("reject", "FAILURE"): 1,  # Celery also sends task-failed for a rejected task
        ("nobody_registered", "PENDING"): 1,
        ("nobody_registered", "FAILURE"): 1,
    }
    for label_set, aggregate in snapshot.aggregates.items():
        waits = sum(aggregate.queue_wait.counts) if aggregate.queue_wait else 0
        assert waits == aggregate.transitions[State.STARTED], label_set
        runs = sum(sum(histogram.counts) for histogram in aggregate.runtime.values())
        ended = (
            aggregate.transitions[State.SUCCESS]
            + aggregate.transitions[State.FAILURE]
            + aggregate.transitions[State.RETRY]
        )
        assert runs == (0 if label_set.task_name.endswith("nobody_registered") else ended), label_set
    assert (snapshot.tasks_tracked, snapshot.negative_waits) == (0, 0)
    assert set(snapshot.fallbacks.values()) == {0}
    assert {worker.missed for worker in snapshot.workers} == {0}


@pytest.mark.parametrize("recording", RECORDINGS, ids=lambda recording: recording.stem)
@pytest.mark.parametrize("seed", range(20))
def test_invariant_1_sums_are_independent_of_the_order_between_senders(recording, seed):
    """Messages are delayed by up to 1.5 s at random; those of one sender stay in order."""
    delays = random.Random(seed)
    by_sender: dict[str, list[tuple[float, bytes]]] = {}
    for at, body in read(recording):
        first = decode(body)[0]
        sender = f"{first.hostname} {first.type == 'task-sent'}"
        delayed = by_sender.setdefault(sender, [])
        delayed.append((max(at + delays.uniform(0, 1.5), delayed[-1][0] if delayed else 0.0), body))
    reordered = sorted(
        (message for messages in by_sender.values() for message in messages), key=lambda pair: pair[0]
    )
    assert sums(replay(reordered)) == sums(replay(read(recording)))


def sums(snapshot: Snapshot):
    return {
        label_set: (
            aggregate.transitions,
            aggregate.exceptions,
            aggregate.queue_wait and aggregate.queue_wait.counts,
            aggregate.prefetch_wait and aggregate.prefetch_wait.counts,
            {state: histogram.counts for state, histogram in aggregate.runtime.items()},
        )
        for label_set, aggregate in snapshot.aggregates.items()
    }
