"""What is sampled for charts: rates, shares, quantiles, lengths and workers, and what is unknown."""

from __future__ import annotations

import itertools
import tracemalloc

import msgspec
import pytest

from celery_exporter.core.snapshot import QueueStats
from celery_exporter.core.workers import WorkerInfo
from celery_exporter.status.chart_history import MAX_MARKS, MAX_NAMES, MAX_REPLACED, ChartHistory
from celery_exporter.status.rings import POINTS, RANGES, SAMPLE_SECONDS
from unit.core.cluster_driver import ClusterDriver, failed, heartbeat

from .scenario import task_events

STEP = SAMPLE_SECONDS


class Sampler:
    """A cluster whose snapshots are stored in a history; by default, it listens all the time."""

    def __init__(self) -> None:
        self.driver, self.history, self.uuids = ClusterDriver(), ChartHistory(), itertools.count()

    def sample(self, seconds: float = STEP, **exporter) -> None:
        values = {"listening": self.driver.now, **exporter}
        self.history.add(self.driver.shown(**values), self.driver.now)
        self.driver.now += seconds

    def tasks(self, count: int, **options) -> None:
        for _ in range(count):
            self.driver.apply(*task_events(next(self.uuids), self.driver.now, **options))

    def last(self, kind: str, name: str, range_name: str = "15m", points: int = 1) -> list[float | None]:
        return self.history.values(range_name, (kind, name), self.driver.now - STEP)[-points:]


@pytest.fixture
def sampler() -> Sampler:
    return Sampler()


def test_rates_are_those_of_each_step(sampler):
    sampler.sample()
    for count in (10, 0, 5):
        sampler.tasks(count)
        sampler.sample()
    assert sampler.last("rate", "SUCCESS", points=5) == [None, None, 10 / STEP, 0.0, 5 / STEP]
    assert sampler.last("rate", "FAILURE", points=4) == [None, 0.0, 0.0, 0.0]


def test_counts_before_the_first_sample_are_in_no_rate(sampler):
    """They may be those of an earlier process."""
    sampler.tasks(100)
    sampler.sample()
    assert sampler.last("rate", "SUCCESS") == [None]
    sampler.sample()
    assert sampler.last("rate", "SUCCESS") == [0.0]


def test_a_longer_range_has_the_mean_of_its_steps(sampler):
    for step in range(8 * 24):
        sampler.tasks(4 if step % 2 else 0)
        sampler.sample()
    for name in ("1h", "6h"):
        rates = [rate for rate in sampler.last("rate", "SUCCESS", name, POINTS)[:-1] if rate is not None]
        assert rates[1:] == pytest.approx([2 / STEP] * len(rates[1:]))


def test_rates_are_unknown_while_events_are_not_received(sampler):
    sampler.sample()
    sampler.tasks(5)
    sampler.sample()
    listening = sampler.driver.now - STEP
    for _ in range(4):
        sampler.sample(listening=listening, broker_up=False)
    assert sampler.last("rate", "SUCCESS", points=5) == [1.0, None, None, None, None]
    for name in ("active", "processes", "workers"):
        assert sampler.last("total", name) == [None]


def test_a_rate_is_per_second_of_listening(sampler):
    sampler.sample(listening=0.0)
    sampler.tasks(6)
    sampler.sample(listening=3.0)
    assert sampler.last("rate", "SUCCESS") == [2.0]


def test_shares_and_quantiles_cover_a_minute(sampler):
    sampler.sample()
    sampler.tasks(3, runtime=0.05)
    sampler.tasks(1, runtime=5.0, end=failed)
    sampler.sample()
    for _ in range(5):
        sampler.sample()
    assert sampler.last("total", "failure share") == [0.25]
    assert sampler.last("runtime", "p50") == [pytest.approx(0.0667, abs=1e-3)]
    assert sampler.last("wait", "p95")[0] > 0.1
    for _ in range(12):
        sampler.sample()
    assert sampler.last("total", "failure share") == sampler.last("runtime", "p95") == [None]


def test_sums_of_expired_and_merged_label_sets_are_no_growth():
    sampler = Sampler()
    sampler.sample()
    sampler.tasks(10)
    sampler.sample()
    totals = sampler.history._totals
    before = totals.sums
    aggregates = sampler.driver.aggregates
    (label_set,) = aggregates.snapshot()
    aggregates.merge(label_set, msgspec.structs.replace(label_set, task_name="other"))
    sampler.sample()
    assert totals.sums == before
    assert sampler.last("rate", "SUCCESS") == [0.0]


def test_lengths_of_queues_are_peaks_and_unknown_if_the_broker_does_not_answer(sampler):
    for stats in ({"q": QueueStats(5), "r": QueueStats(1)}, {"q": QueueStats(2)}, {}):
        sampler.sample(queue_stats=stats)
    assert sampler.last("queue", "q", points=3) == [5.0, 2.0, None]
    assert sampler.last("total", "length", points=3) == [6.0, 2.0, None]
    assert sampler.last("queue", "q", "6h") == [5.0]


def test_workers_are_counted_after_each_had_time_to_send_an_event(sampler):
    sampler.driver.apply(heartbeat("w@h", 100, active=3))
    sampler.driver.cluster.record_inspection({"w@h": WorkerInfo(pool_size=4)}, sampler.driver.timestamp())
    sampler.sample(listening=1.0)
    sampler.sample(listening=100.0)
    assert sampler.last("total", "workers", points=2) == [None, 1.0]
    assert sampler.last("total", "active", points=2) == [None, 3.0]
    assert sampler.last("total", "processes", points=2) == [None, 4.0]
    assert sampler.last("worker", "w@h") == [3.0]


def test_accepted_tasks_of_a_worker(sampler):
    sampler.driver.apply(heartbeat("w@h", 100, processed=1_000))
    sampler.sample()
    sampler.driver.apply(heartbeat("w@h", 105, processed=1_010))
    sampler.sample()
    assert sampler.last("worker rate", "w@h", points=2) == [None, 2.0]


# -- marks -----------------------------------------------------------------------------------------------


def test_restarts_and_new_versions_are_marked(sampler):
    sampler.driver.apply(heartbeat("w@h", 100, sw_ver="5.5.0"))
    sampler.sample()
    assert sampler.history.marks("15m", sampler.driver.now) == [], "the first process is no restart"
    sampler.driver.apply(heartbeat("w@h", 105, sw_ver="5.6.0"))
    sampler.sample()
    (mark,) = sampler.history.marks("15m", sampler.driver.now)
    assert (mark.kind, mark.worker, mark.change) == ("version", "w@h", "5.5.0 → 5.6.0")
    sampler.driver.cluster.workers["w@h"].restarts += 1
    sampler.sample()
    assert [mark.kind for mark in sampler.history.marks("15m", sampler.driver.now)] == ["version", "restart"]
    assert sampler.history.marks("15m", sampler.driver.now + 1_000) == []
    assert len(sampler.history.marks("1h", sampler.driver.now + 1_000)) == 2


# -- bounds ----------------------------------------------------------------------------------------------


def lengths(count: int, longest: int = 0, base: int = 1) -> dict[str, QueueStats]:
    return {f"q{number:04}": QueueStats(1_000 if number < longest else base) for number in range(count)}


def test_the_number_of_names_is_bounded_and_the_longest_queues_have_series(sampler):
    sampler.sample(queue_stats=lengths(MAX_NAMES + 50))
    assert len(sampler.history.names("queue")) == MAX_NAMES
    stats = {**lengths(MAX_NAMES + 50), **{f"z{number}": QueueStats(500) for number in range(20)}}
    for step in range(1, 5):
        sampler.sample(queue_stats=stats)
        names = sampler.history.names("queue")
        assert len(names) == MAX_NAMES
        assert sum(name.startswith("z") for name in names) == step * MAX_REPLACED
    assert sampler.last("queue", "z3") == [500.0]
    assert sampler.history.names("queue")[0].startswith("z"), "the longest is first"


def test_memory_is_bounded():
    """Of 300 workers and 300 queues over a day."""
    sampler = Sampler()
    stats = lengths(300)
    for number in range(300):
        sampler.driver.apply(heartbeat(f"w{number}@h", 100, processed=5, active=2))
    snapshot = sampler.driver.shown(queue_stats=stats, listening=100.0)
    tracemalloc.start()
    try:
        for step in range(10):
            shown = msgspec.structs.replace(
                snapshot, exporter=msgspec.structs.replace(snapshot.exporter, listening=100.0 + 9_600 * step)
            )
            sampler.history.add(shown, 100.0 + 9_600 * step)
        memory, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert memory < 2_500_000


def test_the_number_of_marks_is_bounded(sampler):
    for version in range(MAX_MARKS + 10):
        sampler.driver.apply(heartbeat("w@h", 100 + version, sw_ver=str(version)))
        sampler.sample(1.0)
    assert len(sampler.history.marks("24h", sampler.driver.now)) == MAX_MARKS
    assert RANGES["24h"] / POINTS == 480
