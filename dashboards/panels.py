"""Builds panels: a function for each kind, with the settings that all dashboards share.

Expressions have no matchers for the variables of the dashboard, and targets no data source. `build` adds
both.
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
Meanings: TypeAlias = Mapping[int, tuple[str, str]]  # value → text, colour

# Units, by Grafana's names.
PLAIN = "short"
RATE = "ops"  # operations a second
SECONDS = "s"
SHARE = "percentunit"  # 0 to 1
BYTES = "bytes"
AGO = "dateTimeFromNow"  # of milliseconds since the epoch

ONLINE: Meanings = {0: ("offline", "red"), 1: ("online", "green")}
RECEIVING_STATES: Meanings = {0: ("missing events", "red"), 1: ("receiving", "green")}
YES: Meanings = {0: ("no", "red"), 1: ("yes", "green")}

# The colour of each state in graphs.
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

#: A stat shows an average over some minutes, independent of the time range of the dashboard. $__rate_interval
#: is four times the minimum step of a query, or that step plus the range divided by the points, if that is
#: longer.
RATE_INTERVAL_STEPS = 4
POINTS = 10_000
MAX_DAYS = 24  # with a range up to this, a point is at most 3.5 minutes, which Grafana rounds to two

STAT_HEIGHT = 4
HEIGHT = 8


def stat(  # noqa: PLR0913  a row of a table; most rows use three
    title: str,
    unit: str,
    description: str,
    expr: str,
    *,
    width: int = 3,
    average_seconds: int = 0,
    no_value: str = "no data",
    meanings: Meanings | None = None,
    bad: tuple[float, float] | None = None,
    good: float | None = None,
) -> Panel:
    """Return a panel with the current value, or its average over `average_seconds`.

    `no_value` is the text without a value. `bad` are the values from which it is yellow and red; `good` is
    the value from which it is green instead of red.
    """
    query = prometheus.Dataquery().expr(expr).instant()
    if average_seconds:
        query = query.interval(f"{average_seconds // RATE_INTERVAL_STEPS}s")
        description += (
            f" {average_seconds // 60}-minute average; longer if more than {MAX_DAYS} days are shown."
        )
    panel = (
        stat_.Panel()
        .title(title)
        .description(description)
        .unit(unit)
        .no_value(no_value)
        .with_target(query)
        .reduce_options(look.ReduceDataOptions().calcs(["lastNotNull"]))
        .graph_mode(common.BigValueGraphMode.NONE)
        .color_mode(common.BigValueColorMode.VALUE)
        .thresholds(_steps(bad, good))
        .mappings(_mappings(meanings))
        .span(width)
        .height(STAT_HEIGHT)
    )
    if average_seconds:
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
    """Return a graph of lines, {legend: expression}, with a minimum of 0 unless `signed`."""
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
    """Return a heatmap of the buckets of a histogram, in seconds."""
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
    """A column with the values of an expression or of a label."""

    name: str
    source: str  # an expression whose result has the key label of the table, or the name of a label
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
    """Return a table of current values by the label `key`, whose cells link to `link`.

    The expression of the first column must have the labels that other columns show.
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
    key_properties = [_property("custom.minWidth", 160)]  # names are longer than numbers
    if link:
        key_properties.append(_property("links", [_data_link(key, link)]))
    panel = panel.override_by_name(key.name, key_properties)
    sources = [source for source in names if source != "Time"]
    source_of = {names[source]: source for source in sources}
    titles = [key.name, *(column.name for column in columns)]
    options = {
        "excludeByName": {"Time": True},
        "includeByName": {},
        "indexByName": {source_of[title]: index for index, title in enumerate(titles)},
        "renameByName": {source: names[source] for source in sources},
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
