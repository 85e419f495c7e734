"""The growth of counts since earlier samples, and quantiles of it."""

from __future__ import annotations

import bisect
import copy

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from celery_exporter.core.limits import Limits
from celery_exporter.status.recent import SHORT_STEP_SECONDS, STEP_SECONDS, Recent, quantile
from celery_exporter.status.thresholds import WINDOW
from unit.core.cluster_driver import ClusterDriver, failed

from .scenario import status, task_events


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
    assert (set(task.rates.values()), task.runtime_p50, task.failure_share) == ({None}, None, None), (
        "events may be old"
    )
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
