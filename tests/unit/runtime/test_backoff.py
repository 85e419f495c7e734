"""Waits double up to the longest one, and are spread."""

from __future__ import annotations

from itertools import islice

import pytest

from celery_exporter.runtime.backoff import FIRST_RETRY_SECONDS, back_off


def waits(count: int, longest: float, rand: float, **options: float) -> list[float]:
    return list(islice(back_off(longest, rand=lambda: rand, **options), count))


def test_waits_double_up_to_the_longest():
    assert waits(6, 10.0, 1.0, first=1.0) == [1.0, 2.0, 4.0, 8.0, 10.0, 10.0]


def test_the_first_wait_is_short_by_default():
    assert waits(2, 10.0, 1.0) == [FIRST_RETRY_SECONDS, 2 * FIRST_RETRY_SECONDS]


def test_a_longest_wait_below_the_first_applies_at_once():
    assert waits(3, 0.1, 1.0, first=1.0) == [0.1, 0.1, 0.1]


@pytest.mark.parametrize(("rand", "share"), [(0.0, 0.5), (0.5, 0.75), (1.0, 1.0)])
def test_each_wait_is_between_half_and_all_of_its_length(rand, share):
    assert waits(4, 3.0, rand, first=1.0) == pytest.approx([share, 2 * share, 3 * share, 3 * share])


def test_clients_wait_for_different_times():
    assert len({next(back_off(10.0)) for _ in range(20)}) > 10


def test_no_wait_overflows():
    assert waits(5_000, 60.0, 1.0)[-1] == 60.0
