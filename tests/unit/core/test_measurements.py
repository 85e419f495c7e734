"""What tasks measure: sums by name and field that only grow, within bounds, and change nothing else."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from celery_exporter.core.limits import Limits
from celery_exporter.core.measurements import (
    ENTRY_BYTES,
    REST,
    TASK_BYTES,
    MeasurementSums,
    PendingMeasurements,
    Summary,
)

from .cluster_driver import ClusterDriver, heartbeat, received, sent, started, task_event
from .lives import LIFE


def measured(uuid: str = "u1", at: float = 0.25, **fields) -> dict:
    return task_event("measured", uuid, at, **{"name": "add", "fields": {"size": 2}, **fields})


def sums(driver: ClusterDriver) -> dict[tuple[str, str], tuple[int, float]]:
    summaries = driver.shown().measurements.items()
    return {pair: (summary.count, summary.total) for pair, summary in summaries}


# -- the sums ----------------------------------------------------------------------------------------------


def test_only_numbers_are_summed_and_none_below_0():
    driver = ClusterDriver()
    fields = {"size": 2, "share": 0.25, "zero": 0, "hit": True, "text": "5", "below": -1, "minus": -0.0}
    driver.apply(measured(fields=fields, tags={"a": "b"}), measured("u2", fields={"size": 3}))
    assert sums(driver) == {
        ("add", "size"): (2, 5.0),
        ("add", "share"): (1, 0.25),
        ("add", "zero"): (1, 0.0),
        ("add", "minus"): (1, 0.0),
    }
    assert driver.cluster.events["task-measured"] == 2


def test_an_event_without_fields_is_counted():
    driver = ClusterDriver()
    driver.apply(measured(fields=None), measured(fields={}))
    assert (sums(driver), driver.cluster.events["task-measured"]) == ({}, 2)


def test_a_snapshot_does_not_change():
    driver = ClusterDriver()
    driver.apply(measured())
    shown = driver.shown()
    driver.apply(measured())
    assert shown.measurements == {("add", "size"): Summary(1, 2.0)}


@pytest.mark.parametrize(
    ("before", "name", "shown"),
    [
        ([], "add", "add"),
        ([], None, "unknown"),
        ([sent()], None, "add"),
        (LIFE, None, "add"),
        ([started()], None, "unknown"),  # its name is not known yet
        ([sent(name="mul")], "add", "add"),
        ([sent(name="job-1")], None, "job"),
        ([], "job-1", "job"),
        ([sent(name="secret")], None, None),
        ([], "secret", None),
    ],
)
def test_the_name_is_that_of_the_event_or_of_the_task_by_the_rules(before, name, shown):
    rules = {"job-1": "job", "secret": ""}
    driver = ClusterDriver(show=lambda name: rules.get(name, name))
    driver.apply(*before, measured(name=name))
    assert sums(driver) == ({} if shown is None else {(shown, "size"): (1, 2.0)})


@pytest.mark.parametrize("position", range(5))
def test_a_measurement_changes_no_task_and_no_worker(position):
    driver, without = ClusterDriver(), ClusterDriver()
    for life, target in (([*LIFE[:position], measured(), *LIFE[position:]], driver), (LIFE, without)):
        target.apply(*life)
        target.wait(3)
    assert driver.aggregates.snapshot() == without.aggregates.snapshot()
    assert driver.gauges() == without.gauges()
    assert driver.cluster.workers == without.cluster.workers


def test_a_measurement_creates_no_task_and_no_worker_and_keeps_none_alive():
    driver = ClusterDriver(Limits(worker_timeout=10, task_ttl=100))
    driver.apply(measured())
    assert (driver.cluster.tasks.uuids(), driver.cluster.workers) == ([], {})
    driver.apply(heartbeat(), sent("u2"))
    for _ in range(30):
        driver.wait(5)
        driver.apply(measured("u2"))
    assert not driver.cluster.workers["w@h"].up
    assert driver.gauges() == {}, "older than --task-ttl"


def test_a_deferred_event_keeps_no_tags_and_fields():
    """They could be 500 times as large as the rest of it."""
    driver = ClusterDriver()
    driver.apply(received(tags={"a": "b"}, fields={"c": 1}))
    (event,) = driver.cluster.tasks.deferred["u1"]
    assert (event.tags, event.fields) == (None, None)


# -- limits ------------------------------------------------------------------------------------------------


def test_beyond_the_limit_numbers_are_added_to_other():
    driver = ClusterDriver(Limits(max_series=3))
    driver.apply(
        *(measured(fields={f"f{number}": number}) for number in range(5)), measured(fields={"f0": 1})
    )
    assert sums(driver) == {
        ("add", "f0"): (2, 1.0),
        ("add", "f1"): (1, 1.0),
        ("add", "f2"): (1, 2.0),
        REST: (2, 7.0),
    }
    assert driver.shown().series_overflowed == 2


def test_what_is_named_other_does_not_overflow():
    driver = ClusterDriver(Limits(max_series=1))
    driver.apply(measured(), measured(name="other", fields={"other": 1}))
    assert (sums(driver)[REST], driver.shown().series_overflowed) == ((1, 1.0), 0)


def test_names_and_fields_are_bounded_in_bytes():
    driver = ClusterDriver(Limits(max_series=100))
    for number in range(100):
        driver.apply(measured(name=f"{number}" * 60 + "n" * 100, fields={"é" * 200 + f"{number}": 1}))
    shown = sums(driver)
    assert sum(len(name.encode()) + len(field.encode()) for name, field in shown) <= 100 * 300
    assert all(len(field.encode()) <= 255 for _, field in shown)
    assert sum(count for count, _ in shown.values()) == 100


def test_idle_sums_move_to_other():
    driver = ClusterDriver(Limits(series_ttl=60, max_series=3))
    driver.apply(measured(fields={"old": 1, "new": 2}))
    driver.wait(50)
    driver.apply(measured(fields={"new": 3}))
    driver.wait(20)
    assert sums(driver) == {("add", "new"): (2, 5.0), REST: (1, 1.0)}
    driver.apply(measured(fields={"old": 4}))  # it fits again
    driver.wait(70)
    assert sums(driver) == {REST: (4, 10.0)}
    assert driver.shown().series_overflowed == 0


def test_without_a_ttl_idle_sums_stay():
    driver = ClusterDriver()
    driver.apply(measured())
    driver.wait(600)
    assert sums(driver) == {("add", "size"): (1, 2.0)}


fields = st.sampled_from(["a", "b", "c", "other"])
steps = st.lists(
    st.tuples(st.sampled_from(["x", "y", "other"]), fields, st.integers(0, 9), st.integers(0, 5))
)


@given(steps)
def test_no_total_ever_changes_by_moving_sums(steps):
    table, now = MeasurementSums(3), 0.0
    total: Counter[str] = Counter()
    for name, field, value, pause in steps:
        now += pause
        before = table.snapshot().get(REST, Summary())
        table.observe(name, {field: float(value)}, now)
        table.expire(now - 8)
        total.update(count=1, sum=value)
        summaries = table.snapshot()
        assert sum(summary.count for summary in summaries.values()) == total["count"]
        assert sum(summary.total for summary in summaries.values()) == total["sum"]
        assert summaries.get(REST, Summary()).count >= before.count
        assert len(summaries) <= 3 + (REST in summaries)


# -- of unfinished tasks -----------------------------------------------------------------------------------


def test_the_measurements_of_a_task_are_merged_up_to_a_number():
    pending = PendingMeasurements()
    pending.add("u", {"a": "1", "b": "1"}, {"x": 1.0}, 0.0)
    pending.add("u", {"b": "2"}, {"y": True}, 1.0)
    pending.add("v", {}, {str(number): 1.0 for number in range(40)}, 1.0)
    pending.add(
        "v", {str(number): "" for number in range(15)}, {f"n{number}": 2.0 for number in range(40)}, 1
    )
    pending.add("v", {f"n{number}": "" for number in range(15)}, {"0": 3.0}, 1.0)
    assert pending.take("u") == ({"a": "1", "b": "2"}, {"x": 1.0, "y": True})
    assert "u" not in pending
    assert pending.take("u") == ({}, {})
    tags, fields = pending.take("v")
    assert (len(tags), len(fields), fields["0"], [*fields][-1]) == (20, 50, 3.0, "n9")


def test_pending_measurements_are_bounded_in_bytes_and_the_oldest_go():
    pending = PendingMeasurements(limit=100_000)
    for number in range(2_000):
        pending.add(f"u{number}", {}, {f"field {number}": float(number)}, 0.0)
        if number >= 2:
            pending.add("u1", {}, {"kept": 1.0}, 0.0)  # it is newer again
    assert "u1" in pending
    assert "u1999" in pending
    assert "u1000" not in pending
    kept = sum(f"u{number}" in pending for number in range(2_000))
    assert kept * (TASK_BYTES + ENTRY_BYTES) <= 100_000 <= 1.1 * kept * (TASK_BYTES + ENTRY_BYTES + 15)
    pending.add("u", {}, {"x": 1.0}, 0.0)
    assert "u" in pending


@pytest.mark.parametrize("character", ["x", "\U0001f600"])
def test_long_texts_count_for_the_bound(character):
    pending = PendingMeasurements(limit=1_000_000)
    for number in range(1_000):
        pending.add(f"u{number}", {f"{number}": character * 200}, {"text": character * 200}, 0.0)
    kept = sum(f"u{number}" in pending for number in range(1_000))
    assert kept * 400 * len(character.encode()) < 1_000_000


def test_pending_measurements_expire():
    pending = PendingMeasurements()
    for at, uuid in enumerate("abc"):
        pending.add(uuid, {}, {"x": 1.0}, float(at))
    pending.add("a", {}, {"y": 1.0}, 3.0)
    pending.expire(2.0)
    assert ["a" in pending, "b" in pending, "c" in pending] == [True, False, True]
