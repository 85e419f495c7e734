"""Texts of cells: their width, bars, sparklines, and characters that must not reach a terminal."""

from __future__ import annotations

from harness.example_status import AT
from hypothesis import given
from hypothesis import strategies as st

from celery_exporter.top.cells import BAR_CELLS, SPARKLINE_CELLS, bar, clean, shorten, sparkline, width


def test_a_long_name_is_cut_in_its_middle():
    assert shorten("shop.report.build_the_report", 12) == "shop.r…eport"
    assert shorten("shop.report", 12) == "shop.report"
    assert shorten("漢字漢字漢字", 8) == "漢字…字"


@given(st.text(), st.integers(1, 30))
def test_a_clean_text_is_printable_and_a_short_one_fits(text, cells):
    assert clean(text).isprintable()
    assert width(shorten(clean(text), cells)) <= cells


def test_a_bar_shows_every_part_above_0():
    assert bar(0, 8) == "░" * BAR_CELLS
    assert bar(1, 100) == "█" + "░" * (BAR_CELLS - 1)
    assert bar(8, 8) == bar(9, 8) == "█" * BAR_CELLS
    assert bar(1, 0) == "░" * BAR_CELLS


def test_a_sparkline_ends_now_and_is_blank_where_the_length_is_unknown():
    line = sparkline([(AT - 899, 0), (AT - 450, None), (AT - 30, 4), (AT, 8)], AT)
    assert len(line) == SPARKLINE_CELLS
    assert (line[0], line[-1], line.count(" ")) == ("▁", "█", SPARKLINE_CELLS - 2)
    assert sparkline([(AT - 5_000, 3)], AT) == " " * SPARKLINE_CELLS
    assert set(sparkline([(AT - 15 * step, 0) for step in range(60)], AT)) == {"▁"}
