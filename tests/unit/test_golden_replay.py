"""Tapes of real workers, replayed through the pure core in milliseconds, and held to a golden text.

After a change that is meant: make golden, and read the difference.
"""

from __future__ import annotations

import json
import os
import random
import re
import subprocess
from collections.abc import Iterator
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
TAPES = sorted((DATA / "recordings").glob("*.jsonl"))
GOLDEN = DATA / "golden"
#: What promtool ends with where it can read a page, and does not like a name on it.
LINT = 3
UPDATE = "UPDATE_GOLDEN" in os.environ
(TAPE,) = [tape for tape in TAPES if tape.stem == "redis-prefork"]


def read(tape: Path) -> Iterator[tuple[float, bytes]]:
    for line in tape.read_text().splitlines():
        message = json.loads(line)
        yield message["at"], message["body"].encode()


def replay(messages, selection: Selection | None = None) -> Snapshot:
    selection = selection or select(("native",), MetricOptions())
    ledger = Aggregates(selection.runtime_bounds, selection.wait_bounds, latency=selection.latency)
    cluster = Cluster(Limits(), ledger, selection.labels, clients=selection.clients, hosts=selection.hosts)
    wall = 0.0
    for at, body in messages:
        found = decode(body)
        assert all(isinstance(event, Event) for event in found), "a real worker's events are well-formed"
        wall = max(wall, *(event.timestamp for event in found))
        moment = Timestamp(at, wall + 0.001)
        for event in found:
            cluster.apply(event, moment)
        cluster.expire(moment)
    profiles = {
        name: WorkerInfo(
            queues=("celery",), registered=("tasks.idle",), pool="prefork", pool_size=2, prefetch_count=8
        )
        for name in cluster.workers
    }
    cluster.record_inspection(profiles, moment)
    cluster.expire(Timestamp(at + 5, wall + 5))
    return take_snapshot(cluster, surroundings(wall + 5), prefetched=selection.prefetched)


def surroundings(at: float) -> ExporterState:
    return ExporterState(
        at=at,
        started=at,
        version="0.0.0",
        broker_up=True,
        queue_stats={"celery": QueueStats(3, None)},
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


def render(tape: Path, selection: Selection) -> str:
    text = Exposition(selection.rows).render(replay(read(tape), selection)).decode()
    return text.partition("# HELP process_")[0]


def hold(text: str, golden: Path) -> None:
    if UPDATE:
        golden.write_text(text)
    assert golden.read_text() == text


@pytest.mark.parametrize("tape", TAPES, ids=lambda tape: tape.stem)
def test_the_native_profile_of_a_tape_is_the_golden_text(tape):
    hold(render(tape, select(("native",), MetricOptions())), GOLDEN / f"native-{tape.stem}.txt")


def test_the_native_profile_with_the_worker_label_is_the_golden_text():
    selection = select(("native",), MetricOptions(task_labels=("queue_name", "worker")))
    hold(render(TAPE, selection), GOLDEN / "native-worker-label.txt")


@pytest.mark.parametrize("profile", [name for name in PROFILES if name != "native"])
def test_each_profile_of_a_tape_is_the_golden_text(profile):
    text = render(TAPE, select((profile,), MetricOptions()))
    hold(text.partition("# HELP celery_exporter_")[0], GOLDEN / f"{profile}.txt")


@pytest.mark.parametrize("others", [("triton",), ("triss", "triton", "flower"), ("flower",)], ids="+".join)
def test_the_native_profile_is_the_same_beside_others(others):
    """Though sums are kept by more labels, and histograms with more buckets, for the others."""
    alone = render(TAPE, select(("native",), MetricOptions())).splitlines()
    beside = render(TAPE, select(("native", *others), MetricOptions())).splitlines()
    of_native = {row.name for row in select(("native",), MetricOptions()).rows} - {"celery_exporter_series"}
    shown = [line for line in beside if _family(line) in of_native]
    assert shown == [line for line in alone if _family(line) in of_native]


def _family(line: str) -> str:
    name = line.split(" ")[2] if line.startswith("# ") else re.split("[{ ]", line, maxsplit=1)[0]
    return re.sub("_(bucket|count|sum)$", "", name)


@pytest.mark.parametrize("golden", sorted(GOLDEN.glob("*.txt")), ids=lambda path: path.stem)
def test_promtool_has_nothing_to_say(golden):
    promtool = need("promtool")
    command = [promtool, "check", "metrics"]
    done = subprocess.run(command, input=golden.read_bytes(), capture_output=True, check=False)
    if golden.stem.startswith("native"):
        assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
    else:  # other people's names are not all what it likes
        assert done.returncode in (0, LINT), done.stderr


@pytest.mark.parametrize("tape", TAPES, ids=lambda tape: tape.stem)
def test_what_was_played_is_what_was_counted(tape):
    """The script in tapes/record.py, in numbers: no unknown, nothing lost, no wait below zero."""
    snapshot = replay(read(tape))
    counted = {
        (key.task_name.removeprefix("tasks."), state.name): aggregate.transitions[state]
        for key, aggregate in snapshot.aggregates.items()
        for state in (State.PENDING, State.SUCCESS, State.FAILURE, State.RETRY, State.REVOKED, State.REJECTED)
        if aggregate.transitions[state]
    }
    assert counted == {
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
        ("reject", "FAILURE"): 1,  # Celery says so too, for a task rejected for good
        ("nobody_registered", "PENDING"): 1,
        ("nobody_registered", "FAILURE"): 1,
    }
    for key, aggregate in snapshot.aggregates.items():
        waits = sum(aggregate.queue_wait.counts) if aggregate.queue_wait else 0
        assert waits == aggregate.transitions[State.STARTED], key
        runs = sum(sum(histogram.counts) for histogram in aggregate.runtime.values())
        ended = (
            aggregate.transitions[State.SUCCESS]
            + aggregate.transitions[State.FAILURE]
            + aggregate.transitions[State.RETRY]
        )
        assert runs == (0 if key.task_name.endswith("nobody_registered") else ended), key
    assert (snapshot.tasks_tracked, snapshot.negative_waits) == (0, 0)
    assert set(snapshot.fallbacks.values()) == {0}
    assert {worker.missed for worker in snapshot.workers} == {0}


@pytest.mark.parametrize("tape", TAPES, ids=lambda tape: tape.stem)
@pytest.mark.parametrize("seed", range(20))
def test_invariant_1_sums_do_not_change_when_the_connections_overtake_each_other(tape, seed):
    """Each sender's messages stay in order; between senders up to 1.5 s are swapped at random."""
    delays = random.Random(seed)
    by_sender: dict[str, list[tuple[float, bytes]]] = {}
    for at, body in read(tape):
        found = decode(body)
        sender = f"{found[0].hostname} {found[0].type == 'task-sent'}"
        mine = by_sender.setdefault(sender, [])
        mine.append((max(at + delays.uniform(0, 1.5), mine[-1][0] if mine else 0.0), body))
    mixed = sorted(
        (message for messages in by_sender.values() for message in messages), key=lambda pair: pair[0]
    )
    assert sums(replay(mixed)) == sums(replay(read(tape)))


def sums(snapshot: Snapshot):
    return {
        key: (
            aggregate.transitions,
            aggregate.exceptions,
            aggregate.queue_wait and aggregate.queue_wait.counts,
            aggregate.prefetch_wait and aggregate.prefetch_wait.counts,
            {state: histogram.counts for state, histogram in aggregate.runtime.items()},
        )
        for key, aggregate in snapshot.aggregates.items()
    }
