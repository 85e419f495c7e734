"""Charts as HTML with inline SVG. static/charts.js draws the same."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from html import escape

from celery_exporter.status.charts import DEFAULT_RANGE, Charts, ChartView, LineView, MarkView
from celery_exporter.status.columns import KINDS, UNKNOWN
from celery_exporter.status.rings import POINTS, RANGES
from celery_exporter.web.pages.cells import moment
from celery_exporter.web.pages.query import Query

#: Size of the drawing in SVG units: a unit for each step, and some space above the highest value.
WIDTH, HEIGHT, PLOT_HEIGHT = POINTS - 1, 100, 96
#: Rates from this one on have no decimals.
MIN_WHOLE = 100
#: Steps without a value after which the newest known one has its age. The step of now may have no sample yet.
MAX_CURRENT_STEPS = 1
RANGE_TITLES = {"15m": "15 min", "1h": "1 h", "6h": "6 h", "24h": "24 h"}

_FIGURE = """<figure class="chart" id="chart-{name}" data-name="{name}" tabindex="0">
<figcaption><b>{title}</b> <small>{unit}</small> <span class="when"></span></figcaption>
<div class="plot"><span class="top">{top}</span><span class="bottom">0</span>
<svg viewBox="0 0 {width} {height}" preserveAspectRatio="none" role="img" aria-label="{label}">{paths}</svg>
</div>
<p class="axis">{axis}</p>
<ul class="legend">{legend}</ul>
</figure>
"""


def html(charts: Charts, page: str, query: Query) -> str:
    """Return all charts, the choice of their range, and what their marks mean."""
    return (
        f'<section id="charts" aria-labelledby="charts-title" data-page="{page}" '
        f'data-name="{escape(query.name)}">\n'
        f'<div class="head"><h2 id="charts-title">Charts</h2>{_ranges(query)}</div>\n'
        f'<div class="charts">{"".join(_figure(chart, charts) for chart in charts.charts)}</div>\n'
        f'<details id="marks"{"" if charts.marks else " hidden"}><summary>{_summary(charts.marks)}</summary>'
        f"<ul>{''.join(_event(mark) for mark in charts.marks)}</ul></details>\n"
        "</section>\n"
    )


def scale_top(most: float) -> float:
    """Return the top of a scale for a highest value: 1, 2 or 5 times a power of ten."""
    if most <= 0:
        return 1.0
    unit = 1.0
    while unit > most:
        unit /= 10
    while unit * 10 <= most:
        unit *= 10
    return next(factor * unit for factor in (1, 2, 5, 10) if factor * unit >= most)


def path(values: Sequence[float | None], top: float) -> str:
    """Return the path of a line, with a gap where values are unknown and a dot for a single value."""
    return "".join(_commands(values, top))


def _commands(values: Sequence[float | None], top: float) -> Iterator[str]:
    previous: float | None = None
    for index, value in enumerate(values):
        if value is not None:
            y = f"{math.floor((HEIGHT - PLOT_HEIGHT * value / top) * 10 + 0.5) / 10:g}"
            is_single = previous is None and (index + 1 == len(values) or values[index + 1] is None)
            yield f"{'M' if previous is None else 'L'}{index},{y}{'h0' if is_single else ''}"
        previous = value


def _ranges(query: Query) -> str:
    chosen = query.parameters.get("range", DEFAULT_RANGE)
    links = "".join(_range(name, query, is_chosen=name == chosen) for name in RANGE_TITLES)
    return f'<nav aria-label="Range of the charts" class="ranges">{links}</nav>'


def _range(name: str, query: Query, *, is_chosen: bool) -> str:
    value = "" if name == DEFAULT_RANGE else name
    current = ' aria-current="true"' if is_chosen else ""
    url = escape(query.url(range=value))
    return f'<a href="{url}" data-set="range={value}"{current}>{RANGE_TITLES[name]}</a>'


def _figure(chart: ChartView, charts: Charts) -> str:
    known = [value for line in chart.lines for value in line.values if value is not None]
    top = scale_top(max(known, default=0.0))
    latest = [(line, *_latest(chart, line, charts.step)) for line in chart.lines]
    label = f"{chart.title}: {', '.join(f'{line.title} {value}{age}' for line, value, age in latest)}"
    return _FIGURE.format(
        name=chart.name,
        title=chart.title,
        unit=chart.unit,
        top=_format(chart, top),
        width=WIDTH,
        height=HEIGHT,
        label=escape(label),
        paths="".join(map(_mark, charts.marks)) + "".join(_path(line, top) for line in chart.lines),
        axis="".join(_times(charts)),
        legend="".join(
            f'<li class="{line.style}"><span>{escape(line.title)}</span> <b>{value}</b>'
            f"{age and f'<small>{age}</small>'}</li>"
            for line, value, age in latest
        ),
    )


def _format(chart: ChartView, value: float | None) -> str:
    if value is None:
        return UNKNOWN
    is_whole = chart.kind == "count" or (chart.kind == "decimal" and value >= MIN_WHOLE)
    return KINDS["count"](math.floor(value + 0.5), 0.0) if is_whole else KINDS[chart.kind](value, 0.0)


def _latest(chart: ChartView, line: LineView, step: float) -> tuple[str, str]:
    """Return the newest known value of a line, and its age if it is not of now."""
    for steps, value in enumerate(reversed(line.values)):
        if value is not None:
            age = f" {KINDS['ago'](0.0, steps * step)} ago" if steps > MAX_CURRENT_STEPS else ""
            return _format(chart, value), age
    return UNKNOWN, ""


def _path(line: LineView, top: float) -> str:
    return f'<path class="{line.style}" d="{path(line.values, top)}"></path>'


def _mark(mark: MarkView) -> str:
    return f'<path class="{mark.kind}" d="M{mark.index},0V{HEIGHT}"><title>{escape(mark.text)}</title></path>'


def _times(charts: Charts) -> Iterator[str]:
    length = RANGES[charts.range]
    for at in (charts.at - length, charts.at - length / 2, charts.at):
        yield moment(at, KINDS["minute"](at, 0.0))


def _summary(marks: Sequence[MarkView]) -> str:
    return f"{len(marks)} restarts and new versions of workers"


def _event(mark: MarkView) -> str:
    return f"<li>{moment(mark.at, KINDS['clock'](mark.at, 0.0))} {escape(mark.text)}</li>"
