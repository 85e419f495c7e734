"""Durations with a unit."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from celery_exporter.core.durations import duration_text, seconds_of


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90s", 90), ("15m", 900), ("1.5h", 5_400), ("2d", 172_800), ("1w", 604_800), ("0s", 0)],
)
def test_a_duration_has_a_number_and_a_unit(text, seconds):
    assert seconds_of(text) == seconds


@pytest.mark.parametrize("text", ["", "90", "h", "1 h", "1H", "-1h", "1h30m", "1e3s", "1234567890s", "1,5h"])
def test_other_texts_are_none(text):
    assert seconds_of(text) is None


@pytest.mark.parametrize(
    ("seconds", "text"), [(90, "90s"), (7_200, "2h"), (86_400, "1d"), (604_800, "1w"), (1.5, "1.5s")]
)
def test_the_text_has_the_largest_unit_that_fits(seconds, text):
    assert duration_text(seconds) == text


@given(st.integers(1, 10**8))
def test_a_text_is_read_as_its_seconds(seconds):
    assert seconds_of(duration_text(seconds)) == seconds
