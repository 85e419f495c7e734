"""The scale and the path of a chart. tests/integration/test_status_page.py compares it with the script."""

from __future__ import annotations

import re

import pytest

from celery_exporter.status.charts import Charts, ChartView, LineView
from celery_exporter.web.pages.charts import html, path, scale_top
from celery_exporter.web.pages.query import Query


@pytest.mark.parametrize(
    ("most", "top"),
    [
        *(
            (0.0, 1.0),
            (-1.0, 1.0),
            (1.0, 1.0),
            (1.01, 2.0),
            (2.0, 2.0),
            (2.1, 5.0),
            (5.5, 10.0),
            (10.0, 10.0),
        ),
        *((12.0, 20.0), (999.0, 1_000.0), (1_000.0, 1_000.0), (0.03, 0.05), (0.3, 0.5), (3e9, 5e9)),
    ],
)
def test_the_top_of_a_scale_is_a_round_number(most, top):
    assert scale_top(most) == pytest.approx(top)
    assert scale_top(most) >= most


def test_every_value_fits_the_scale():
    for exponent in range(-12, 13):
        for factor in (1.0, 1.1, 1.9999, 2.5, 4.9999999, 5.0, 7.3, 9.9999999):
            most = factor * 10.0**exponent
            assert most <= scale_top(most) <= 10.001 * most


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([], ""),
        ([None, None], ""),
        ([0.0, 5.0, 10.0], "M0,100L1,52L2,4"),
        ([5.0, None, None], "M0,52h0"),
        ([None, 5.0, None], "M1,52h0"),
        ([None, None, 5.0], "M2,52h0"),
        ([0.0, 0.0, None, 5.0, 5.0], "M0,100L1,100M3,52L4,52"),
        ([1 / 3, 1 / 3], "M0,96.8L1,96.8"),
    ],
)
def test_unknown_values_are_gaps_and_single_ones_are_dots(values, expected):
    assert path(values, 10.0) == expected


def legend(values: list[float | None], step: float = 20.0) -> str:
    """Return the legend of a chart with one line, as text."""
    chart = ChartView("wait", "Wait", "s", "seconds", [LineView("p50", "mark", values)])
    text = html(Charts("1h", 1_800_000_000.0, step, [chart], []), "overview", Query())
    (label,) = re.findall(r'aria-label="Wait: ([^"]*)"', text)
    (item,) = re.findall(r'<ul class="legend"><li class="mark">(.*?)</li>', text)
    shown = re.sub("<[^>]+>", "", item)
    assert shown == label
    return shown


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ([1.0, 2.0], "p50 2.0 s"),
        ([2.0, None], "p50 2.0 s"),  # the step of now has no sample yet
        ([2.0, None, None], "p50 2.0 s 40 s ago"),
        ([1.0, 2.0, *[None] * 9], "p50 2.0 s 3.0 min ago"),
        ([None, None], "p50 \N{EN DASH}"),
        ([], "p50 \N{EN DASH}"),
    ],
)
def test_a_legend_has_the_newest_known_value_with_its_age(values, text):
    assert legend(values) == text
