"""Series at decreasing resolution: their steps, gaps and bounds."""

from __future__ import annotations

import pytest

from celery_exporter.status.rings import POINTS, RANGES, SAMPLE_SECONDS, Ring

KEY = ("queue", "q")
HOUR = RANGES["1h"]


def test_values_end_with_the_newest_step():
    ring = Ring(POINTS)  # a step is one second
    for now in range(300):
        ring.advance(now)
        ring.set(KEY, float(now))
    assert ring.values(KEY, 299.5) == [float(now) for now in range(300 - POINTS, 300)]


def test_an_unknown_series_and_the_time_before_the_first_value_are_unknown():
    ring = Ring(POINTS)
    assert ring.values(KEY, 5.0) == [None] * POINTS
    ring.advance(5.0)
    ring.set(KEY, 0.0)
    assert ring.values(KEY, 5.0) == [None] * (POINTS - 1) + [0.0]
    assert ring.values(("queue", "other"), 5.0) == [None] * POINTS


@pytest.mark.parametrize("pause", [3, 100, POINTS - 1, POINTS, POINTS + 1, 10 * POINTS])
def test_skipped_steps_are_unknown(pause):
    ring = Ring(POINTS)
    for now in (*range(POINTS), POINTS - 1 + pause):
        ring.advance(now)
        ring.set(KEY, 7.0)
    values = ring.values(KEY, POINTS - 1 + pause)
    assert values[-1] == 7.0
    assert values.count(None) == min(pause, POINTS) - 1
    assert None not in values[: POINTS - pause] if pause < POINTS else values.count(7.0) == 1


def test_one_skipped_step_gets_the_next_value():
    """A periodic job that is due every 5 s runs a bit later than that."""
    ring = Ring(RANGES["15m"])
    for number in range(1_000):
        ring.advance(number * SAMPLE_SECONDS * 1.01)
        ring.set(KEY, 1.0)
    assert None not in ring.values(KEY, 999 * SAMPLE_SECONDS * 1.01)


def test_steps_after_the_last_sample_are_unknown():
    ring = Ring(POINTS)
    ring.advance(0.0)
    ring.set(KEY, 1.0)
    assert ring.values(KEY, 3.0)[-5:] == [None, 1.0, None, None, None]
    assert ring.values(KEY, 10.0 * POINTS) == [None] * POINTS


def test_a_step_keeps_its_peak():
    ring = Ring(HOUR)
    for value in (None, 3.0, 9.0, None, 4.0):
        ring.advance(10.0)
        ring.set_peak(KEY, value)
    assert ring.values(KEY, 10.0)[-1] == 9.0
    assert ring.peaks() == {KEY: 9.0}
    ring.advance(30.0)
    ring.set_peak(KEY, None)
    assert ring.values(KEY, 30.0)[-2:] == [9.0, None]


def test_the_clock_does_not_go_back():
    ring = Ring(POINTS)
    assert ring.advance(5.0)
    assert not ring.advance(4.0)
    assert ring.advance(6.0)


def test_a_removed_series_is_unknown():
    ring = Ring(POINTS)
    ring.advance(1.0)
    ring.set(KEY, 1.0)
    ring.remove(KEY)
    ring.remove(KEY)
    assert ring.values(KEY, 1.0) == [None] * POINTS
    assert ring.known_keys() == frozenset()
