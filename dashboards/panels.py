"""One function for each kind of panel: how it looks here, so that a dashboard only says what it shows.

Expressions carry no matchers for the dashboard's variables and targets no data source: `build` puts both in.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias

from grafana_foundation_sdk.builders import common as look
from grafana_foundation_sdk.builders import heatmap as heatmap_
from grafana_foundation_sdk.builders import prometheus, timeseries
from grafana_foundation_sdk.builders import stat as stat_
from grafana_foundation_sdk.builders import table as table_
from grafana_foundation_sdk.builders.dashboard import ThresholdsConfig
from grafana_foundation_sdk.models import common
from grafana_foundation_sdk.models import dashboard as model
from grafana_foundation_sdk.models.heatmap import HeatmapColorMode
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

Panel: TypeAlias = stat_.Panel | timeseries.Panel | heatmap_.Panel | table_.Panel
Meanings: TypeAlias = Mapping[int, tuple[str, str]]  # a value → what it means, and in which colour

# Units: as Grafana calls them.
PLAIN = "short"
RATE = "ops"  # operations a second
SECONDS = "s"
SHARE = "percentunit"  # 0 to 1
BYTES = "bytes"
MOMENT = "dateTimeFromNow"  # of milliseconds since the epoch

ONLINE: Meanings = {0: ("offline", "red"), 1: ("online", "green")}
HEARS: Meanings = {0: ("blind", "red"), 1: ("hears", "green")}
YES: Meanings = {0: ("no", "red"), 1: ("yes", "green")}

# A state has its colour wherever it is a line.
COLORS = {
    "PENDING": "purple",
    "RECEIVED": "super-light-blue",
    "STARTED": "blue",
    "SUCCESS": "green",
    "FAILURE": "red",
    "RETRY": "yellow",
    "REVOKED": "dark-orange",
    "REJECTED": "dark-red",
}

#: How a stat has an average of some minutes, whatever range the dashboard shows. $__rate_interval is four
#: times the least step of a query, unless that step and the range divided by the points are more.
LEAST_STEPS = 4
POINTS = 10_000
DAYS = 24  # in which a point is one of 3.5 minutes, which Grafana makes two; longer ones it makes five

STAT_HEIGHT = 4
HEIGHT = 8


def stat(  # noqa: PLR0913  a row of a table: most have three
    title: str,
    unit: str,
    description: str,
    expr: str,
    *,
    width: int = 3,
    over: int = 0,
    none: str = "no data",
    meanings: Meanings | None = None,
    bad: tuple[float, float] | None = None,
    good: float | None = None,
) -> Panel:
    """One number, as of now: averaged `over` so many seconds, `none` where there is none.

    `bad`: yellow and red from these on; `good`: green from there on, red below.
    """
    query = prometheus.Dataquery().expr(expr).instant()
    if over:
        query = query.interval(f"{over // LEAST_STEPS}s")
        description += f" {over // 60}-minute average, or a longer one where more than {DAYS} days are shown."
    panel = (
        stat_.Panel()
        .title(title)
        .description(description)
        .unit(unit)
        .no_value(none)
        .with_target(query)
        .reduce_options(look.ReduceDataOptions().calcs(["lastNotNull"]))
        .graph_mode(common.BigValueGraphMode.NONE)
        .color_mode(common.BigValueColorMode.VALUE)
        .thresholds(_steps(bad, good))
        .mappings(_mappings(meanings))
        .span(width)
        .height(STAT_HEIGHT)
    )
    if over:
        panel = panel.max_data_points(POINTS)
    return panel.max(1).min(0) if unit == SHARE else panel


def lines(  # noqa: PLR0913
    title: str,
    unit: str,
    description: str,
    queries: Mapping[str, str],
    *,
    width: int = 12,
    stacked: bool = False,
    signed: bool = False,
) -> Panel:
    """Lines over time, {legend: expression}; from 0 up unless they are `signed`."""
    panel = (
        timeseries.Panel()
        .title(title)
        .description(description)
        .unit(unit)
        .line_width(1)
        .fill_opacity(40 if stacked else 5)
        .show_points(common.VisibilityMode.NEVER)
        .stacking(
            look.StackingConfig().mode(common.StackingMode.NORMAL if stacked else common.StackingMode.NONE)
        )
        .legend(
            look.VizLegendOptions()
            .display_mode(common.LegendDisplayMode.LIST)
            .placement(common.LegendPlacement.BOTTOM)
            .show_legend(True)
            .calcs([])
        )
        .tooltip(
            look.VizTooltipOptions().mode(common.TooltipDisplayMode.MULTI).sort(common.SortOrder.DESCENDING)
        )
        .span(width)
        .height(HEIGHT)
    )
    for legend, expr in queries.items():
        panel = panel.with_target(prometheus.Dataquery().expr(expr).legend_format(legend).range())
    if "{{state}}" in queries:
        for state, color in COLORS.items():
            fixed = {"mode": "fixed", "fixedColor": color}
            panel = panel.override_by_name(state, [_property("color", fixed)])
    return panel if signed else panel.min(0)


def heatmap(title: str, description: str, histogram: str, *, width: int = 12) -> Panel:
    """How the observations of a histogram, in seconds, spread over its buckets."""
    return (
        heatmap_.Panel()
        .title(title)
        .description(description)
        .unit(SECONDS)
        .with_target(
            prometheus.Dataquery()
            .expr(f"sum by (le) (increase({histogram}_bucket[$__rate_interval]))")
            .format(PromQueryFormat.HEATMAP)
            .legend_format("{{le}}")
            .range()
        )
        .calculate(False)
        .color(heatmap_.HeatmapColorOptions().mode(HeatmapColorMode.SCHEME).scheme("Oranges").steps(64))
        .cell_gap(1)
        .y_axis(heatmap_.YAxisConfig().unit(SECONDS))
        .show_legend()
        .tooltip(heatmap_.HeatmapTooltip().mode(common.TooltipDisplayMode.SINGLE).show_color_scale(True))
        .span(width)
        .height(HEIGHT)
    )


@dataclass(frozen=True)
class Column:
    """A column of numbers, or, without an expression, of a label's values."""

    name: str
    source: str  # an expression that leaves the table's key label, or the name of a label
    unit: str = PLAIN
    meanings: Meanings | None = None


def table(  # noqa: PLR0913
    title: str,
    description: str,
    key: Column,
    columns: list[Column],
    *,
    link: str = "",
    width: int = 24,
    height: int = HEIGHT,
) -> Panel:
    """One row for each value of the label `key`, as of now; a click on it goes to `link`.

    What other columns name as labels must come with the first column's expression.
    """
    names = {"Time": "Time", key.source: key.name}
    panel = table_.Panel().title(title).description(description).unit(PLAIN).span(width).height(height)
    for column in columns:
        if not _is_label(column):
            ref = chr(ord("A") + len(panel.build().targets or []))
            names[f"Value #{ref}"] = column.name
            query = prometheus.Dataquery().expr(column.source).format(PromQueryFormat.TABLE)
            panel = panel.with_target(query.instant())
        else:
            names[column.source] = column.name
        panel = panel.override_by_name(column.name, _of_column(column))
    of_key = [_property("custom.minWidth", 160)]  # names are longer than numbers
    if link:
        of_key.append(_property("links", [_data_link(key, link)]))
    panel = panel.override_by_name(key.name, of_key)
    shown = [source for source in names if source != "Time"]
    order = {names[source]: source for source in shown}
    options = {
        "excludeByName": {"Time": True},
        "includeByName": {},
        "indexByName": {
            order[name]: place for place, name in enumerate([key.name, *(column.name for column in columns)])
        },
        "renameByName": {source: names[source] for source in shown},
    }
    return (
        panel.show_header(True)
        .min_width(60)
        .cell_height(common.TableCellHeight.SM)
        .with_transformation(model.DataTransformerConfig(id_val="merge", options={}))
        .with_transformation(model.DataTransformerConfig(id_val="organize", options=options))
    )


def _is_label(column: Column) -> bool:
    return column.source.isidentifier()


def _of_column(column: Column) -> list[model.DynamicConfigValue]:
    properties = [_property("unit", "string" if _is_label(column) else column.unit)]
    if column.meanings:
        properties += [
            _property("mappings", _mappings(column.meanings)),
            _property("custom.cellOptions", {"type": "color-text"}),
        ]
    return properties


def _property(name: str, value: object) -> model.DynamicConfigValue:
    return model.DynamicConfigValue(id_val=name, value=value)


def _data_link(key: Column, link: str) -> dict[str, object]:
    return {"title": f"this {key.name.lower()}", "url": link, "targetBlank": False}


def _mappings(meanings: Meanings | None) -> list[model.ValueMapping]:
    if not meanings:
        return []
    results = {
        str(value): model.ValueMappingResult(text=text, color=color, index=index)
        for index, (value, (text, color)) in enumerate(meanings.items())
    }
    return [model.ValueMap(options=results)]


def _steps(bad: tuple[float, float] | None, good: float | None) -> ThresholdsConfig:
    if bad:
        steps = [(None, "green"), (bad[0], "yellow"), (bad[1], "red")]
    elif good is not None:
        steps = [(None, "red"), (good, "green")]
    else:
        steps = [(None, "text")]
    return (
        ThresholdsConfig()
        .mode(model.ThresholdsMode.ABSOLUTE)
        .steps([model.Threshold(value=value, color=color) for value, color in steps])
    )
