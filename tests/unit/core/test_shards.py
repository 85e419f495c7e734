"""The sums over the shards of a cluster are those of one exporter."""

from __future__ import annotations

from collections import Counter

import pytest
from harness.exporter import Samples
from prometheus_client.parser import text_string_to_metric_families as parse

from celery_exporter.core.shards import Shard, ShardOfCluster, part_of
from celery_exporter.core.snapshot import Snapshot
from celery_exporter.metrics.exposition.text import Exposition
from celery_exporter.metrics.model import MetricOptions
from celery_exporter.metrics.registry import PROFILES, Selection, select
from unit.test_golden_replay import RECORDINGS, read, replay

#: Metrics that are no parts of a whole: of the exporter process and its subscription, and times.
OF_EACH = ("celery_broker_up", "celery_exporter_", "celery_task_oldest_", "celery_worker_info")
NATIVE = select(("native",), MetricOptions(task_labels=("queue_name", "worker")))


def samples(snapshot: Snapshot, selection: Selection) -> Counter:
    """Return the samples of a page that can be added up."""
    text = Exposition(selection.rows).render(snapshot).decode().partition("# HELP process_")[0]
    families = [family for family in parse(text) if family.type in {"counter", "histogram"}]
    values = Samples.of(families)
    return Counter(
        {series: value for series, value in values.items() if not series[0].startswith(OF_EACH) and value}
    )


@pytest.mark.parametrize("count", [1, 2, 4, 8])
@pytest.mark.parametrize("recording", RECORDINGS, ids=lambda recording: recording.stem)
def test_sums_over_shards_are_those_of_one_exporter(recording, count):
    whole = replay(read(recording), NATIVE)
    parts = []
    for index in range(count):
        shard = Shard(index, count)
        snapshot = replay(
            read(recording), NATIVE, lambda cluster, shard=shard: ShardOfCluster(cluster, shard).apply
        )
        parts.append(part_of(snapshot, shard))
    total: Counter = Counter()
    for part in parts:
        total.update(samples(part, NATIVE))
    expected = samples(whole, NATIVE)
    assert total.keys() == expected.keys()
    assert dict(total) == pytest.approx(dict(expected))
    assert sorted(worker.name for part in parts for worker in part.workers) == sorted(
        worker.name for worker in whole.workers
    )
    assert [queue for part in parts for queue in part.queues] == list(whole.queues)
    assert sum((Counter(part.events) for part in parts), Counter()) == Counter(whole.events)
    gauges = [sum(part.tasks_tracked for part in parts), *(part.exporter.unacked for part in parts)]
    assert gauges == [whole.tasks_tracked, whole.exporter.unacked, *[None] * (count - 1)]


def test_a_key_belongs_to_one_shard():
    keys = [f"task-{number}" for number in range(1_000)]
    counts = [sum(Shard(index, 4).has(key) for key in keys) for index in range(4)]
    assert sum(counts) == 1_000
    assert min(counts) > 200


def test_shards_are_written_as_in_the_option():
    assert str(Shard(1, 4)) == "1/4"


def test_every_shard_knows_all_workers_and_queues():
    """What is known of a task follows from them."""
    recording = RECORDINGS[0]
    shard = Shard(1, 2)
    whole = replay(read(recording), NATIVE)
    snapshot = replay(read(recording), NATIVE, lambda cluster: ShardOfCluster(cluster, shard).apply)
    assert [worker.name for worker in snapshot.workers] == [worker.name for worker in whole.workers]
    assert [(worker.up, worker.missed) for worker in snapshot.workers] == [
        (worker.up, worker.missed) for worker in whole.workers
    ]
    assert [queue.name for queue in snapshot.queues] == [queue.name for queue in whole.queues]


def test_other_profiles_add_up_too():
    names = [name for name in PROFILES if name not in {"danihodovic", "ovalmoney", "zerok"}]
    selection = select(tuple(names), MetricOptions())
    whole = samples(replay(read(RECORDINGS[0]), selection), selection)
    total: Counter = Counter()
    for index in range(3):
        shard = Shard(index, 3)
        part = replay(
            read(RECORDINGS[0]), selection, lambda cluster, shard=shard: ShardOfCluster(cluster, shard).apply
        )
        total.update(samples(part_of(part, shard), selection))
    assert dict(total) == pytest.approx(dict(whole))
