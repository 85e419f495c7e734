"""The status of the page and the API: from a snapshot, and from the growth since earlier ones."""

from __future__ import annotations

import bisect
import copy

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from celery_exporter.core.limits import Limits
from celery_exporter.core.snapshot import QueueStats
from celery_exporter.status.builder import build
from celery_exporter.status.model import Status
from celery_exporter.status.recent import SHORT_STEP_SECONDS, STEP_SECONDS, Recent, quantile
from celery_exporter.status.thresholds import LONG_WINDOW, WINDOW
from unit.core.cluster_driver import ClusterDriver, failed, heartbeat, received, sent, started, succeeded


def task_events(number: int, at: float, runtime: float = 0.5, end=succeeded, **more) -> list[dict]:
    """Return all events of a task that is sent at a time and runs for some seconds."""
    uuid = f"u{number}"
    ended = end(uuid, at=at + 1 + runtime, runtime=runtime, **more)
    return [sent(uuid, at=at), received(uuid, at=at), started(uuid, at=at + 1), ended]


def status(driver: ClusterDriver, recent: Recent, **around) -> Status:
    """Return the status as clients of the API receive it."""
    snapshot = driver.shown(**around)
    result = build(snapshot, recent.growth(snapshot, driver.now), "redis://broker/0")
    return msgspec.json.decode(msgspec.json.encode(result), type=Status)


def test_rates_and_quantiles_cover_the_last_minutes():
    driver, recent = ClusterDriver(), Recent()
    recent.add(driver.shown(), driver.now)
    for number in range(30):
        driver.apply(*task_events(number, number))
    driver.now += 60
    (task,) = status(driver, recent).tasks
    assert task.rates["SUCCESS"] == task.rates["PENDING"] == pytest.approx(0.5)
    assert task.failure_share == 0
    assert task.runtime_p50 == pytest.approx(0.1 + 0.9 / 2)
    assert task.wait_p95 == pytest.approx(0.1 + 0.9 * 0.95)


def test_the_cache_does_not_change_the_status():
    """Some names have new events in each step, and the oldest sample changes, too."""
    driver, recent = ClusterDriver(), Recent()
    for step in range(60):
        recent.add(driver.shown(), driver.now)
        for name in range(step % 4):
            at, uuid = driver.now, f"{step}-{name}"
            driver.apply(*(dict(event, name=f"t{name}") for event in task_events(uuid, at, runtime=step % 7)))
        driver.now += 20
        cached, without_cache = status(driver, recent), copy.copy(recent)
        without_cache._cache = {}
        assert status(driver, without_cache) == cached
    assert len({task.rates["SUCCESS"] for task in cached.tasks}) > 1


def test_events_before_the_window_are_in_no_rate():
    driver, recent = ClusterDriver(), Recent()
    driver.apply(*task_events(1, 0, end=failed))
    for _ in range(int(2 * WINDOW / SHORT_STEP_SECONDS)):
        recent.add(driver.shown(), driver.now)
        driver.now += SHORT_STEP_SECONDS
    result = status(driver, recent)
    (task,) = result.tasks
    assert WINDOW <= result.window <= WINDOW + STEP_SECONDS + SHORT_STEP_SECONDS
    assert set(task.rates.values()) == {0}
    assert (task.failure_share, task.runtime_p50, task.wait_p50) == (None, None, None)


def test_without_an_earlier_sample_rates_are_unknown():
    driver = ClusterDriver()
    driver.apply(*task_events(1, 0))
    (task,) = status(driver, Recent()).tasks
    assert (task.rates, task.runtime_p50, task.failure_share) == ({}, None, None), "events may be old"
    assert status(driver, Recent()).broker.events_per_second is None


def test_counts_that_move_to_other_are_no_growth():
    driver, recent = ClusterDriver(Limits(series_ttl=10)), Recent()
    for number in range(30):
        driver.apply(*task_events(number, number))
    recent.add(driver.shown(), driver.now)
    driver.wait(60)
    assert {label_set.task_name for label_set in driver.aggregates.snapshot()} == {"other"}
    (task,) = status(driver, recent).tasks
    assert (task.name, set(task.rates.values()), task.runtime_p50) == ("other", {0}, None)


def test_the_number_of_stored_samples_is_bounded():
    driver, recent = ClusterDriver(), Recent()
    for step in range(int(2 * WINDOW / SHORT_STEP_SECONDS)):
        driver.apply(*task_events(step, step))
        recent.add(driver.shown(), driver.now)
        driver.now += SHORT_STEP_SECONDS
    assert len(recent._tasks.samples) <= WINDOW / STEP_SECONDS + 2


def test_open_tasks_are_counted_by_state_and_have_the_oldest_time():
    driver, recent = ClusterDriver(), Recent()
    driver.apply(sent("a", at=5), sent("b", at=3), received("b", at=4), sent("c", at=6, queue="other"))
    (task,) = status(driver, recent).tasks
    assert task.open == {"PENDING": 2, "RECEIVED": 1}
    assert task.oldest == pytest.approx(sent("b", at=4)["timestamp"])


def test_failures_have_class_task_and_worker_only():
    driver = ClusterDriver()
    driver.apply(
        *task_events(1, 0, end=failed), *task_events(2, 10, end=failed, exception="KeyError('secret')")
    )
    newest, oldest = status(driver, Recent()).failures
    assert (newest.uuid, newest.task, newest.worker, newest.exception) == ("u2", "add", "w@h", "KeyError")
    assert newest.at > oldest.at
    assert b"secret" not in msgspec.json.encode(status(driver, Recent()))


def test_lengths_of_queues_cover_the_long_window():
    driver, recent = ClusterDriver(), Recent()
    for number in range(int(2 * LONG_WINDOW / SHORT_STEP_SECONDS)):
        recent.add(driver.shown(queue_stats={"q": QueueStats(number)}), driver.now)
        recent.add(
            driver.shown(queue_stats={"q": QueueStats(-1)}), driver.now + SHORT_STEP_SECONDS / 2
        )  # too soon
        driver.now += SHORT_STEP_SECONDS
    (queue,) = status(driver, recent, queue_stats={"q": QueueStats(7)}).queues
    assert queue.length == 7
    newest = int(2 * LONG_WINDOW / SHORT_STEP_SECONDS) - 1
    stored = range(newest - int(LONG_WINDOW / SHORT_STEP_SECONDS) + 2, newest + 1)
    assert [length for _, length in queue.lengths] == [*stored, 7]


def test_a_queue_of_unknown_length_has_none():
    driver, recent = ClusterDriver(), Recent()
    driver.apply(sent())
    recent.add(driver.shown(), driver.now)
    (queue,) = status(driver, recent).queues
    assert (queue.length, [length for _, length in queue.lengths]) == (None, [None, None])


def test_workers_are_sorted_by_name():
    driver = ClusterDriver()
    driver.apply(
        heartbeat(hostname="b@h", active=3, processed=7, loadavg=[1.5, 1, 1]), heartbeat(hostname="a@h")
    )
    a, b = status(driver, Recent()).workers
    assert (a.name, b.name) == ("a@h", "b@h")
    assert (b.up, b.active, b.load) == (True, 3, 1.5)


# -- quantiles -------------------------------------------------------------------------------------------

BOUNDS = (0.1, 1.0, 10.0)


@pytest.mark.parametrize(
    ("share", "counts", "expected"),
    [
        (0.5, (0, 0, 0, 0), None),
        (0.5, (4, 0, 0, 0), 0.05),
        (0.5, (1, 1, 1, 1), 1.0),
        (0.95, (0, 0, 0, 5), 10.0),
        (0.5, (0, 2, 0, 0), 0.55),
    ],
)
def test_a_quantile_equals_that_of_promql(share, counts, expected):
    assert quantile(share, BOUNDS, counts) == (expected if expected is None else pytest.approx(expected))


def test_without_buckets_there_is_no_quantile():
    assert quantile(0.5, (), (3,)) is None


@given(st.lists(st.floats(0.001, 9), min_size=1), st.floats(0.01, 1))
@example([0.0625] * 3 + [1.0] * 3, 0.5)
def test_a_quantile_is_in_the_bucket_of_the_exact_quantile(values, share):
    counts = [0] * (len(BOUNDS) + 1)
    for value in values:
        counts[bisect.bisect_left(BOUNDS, value)] += 1
    estimate = quantile(share, BOUNDS, counts)
    exact = sorted(values)[max(0, -int(-share * len(values) // 1) - 1)]
    assert bisect.bisect_left(BOUNDS, estimate) <= bisect.bisect_left(BOUNDS, exact)
    assert estimate <= 10
