"""Builds panels: a function for each kind, with the settings that all dashboards share.

Expressions have no matchers for the variables of the dashboard, and targets no data source. `build` adds
both.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from grafana_foundation_sdk.builders import common as look
from grafana_foundation_sdk.builders import heatmap as heatmap_
from grafana_foundation_sdk.builders import logs as logs_
from grafana_foundation_sdk.builders import loki, prometheus, timeseries
from grafana_foundation_sdk.builders import stat as stat_
from grafana_foundation_sdk.builders import table as table_
from grafana_foundation_sdk.builders.dashboard import ThresholdsConfig
from grafana_foundation_sdk.cog.builder import Builder
from grafana_foundation_sdk.cog.variants import Dataquery
from grafana_foundation_sdk.models import common
from grafana_foundation_sdk.models import dashboard as model
from grafana_foundation_sdk.models.heatmap import HeatmapColorMode
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

from dashboards import influxql

Panel: TypeAlias = stat_.Panel | timeseries.Panel | heatmap_.Panel | table_.Panel | logs_.Panel
#: Returns the query of a line, by its legend and its expression.
Line: TypeAlias = Callable[[str, str], Builder[Dataquery]]
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
OVERDUE: Meanings = {0: ("on time", "green"), 1: ("overdue", "red")}
YES: Meanings = {0: ("no", "red"), 1: ("yes", "green")}

#: Legends whose lines are named after states.
STATE_LEGENDS = {"{{state}}", "$tag_status"}
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
EXEMPLAR_LEGEND = "p99"
MIN_INFLUX_INTERVAL = "15s"  # between two points of a graph; without it, few points are in each
LOG_HEIGHT = 16
MAX_LOG_LINES = 500
UUID_WIDTH = 290  # of a column, in pixels


def promql_line(legend: str, expr: str) -> Builder[Dataquery]:
    """Return a query of Prometheus over the time range."""
    return prometheus.Dataquery().expr(expr).legend_format(legend).range()


def with_exemplars(legend: str, expr: str) -> Builder[Dataquery]:
    """Return a query of Prometheus, and exemplars for one legend: the others have the same buckets."""
    query = prometheus.Dataquery().expr(expr).legend_format(legend).range()
    return query.exemplar(True) if legend == EXEMPLAR_LEGEND else query


def logql_line(legend: str, expr: str) -> Builder[Dataquery]:
    """Return a query of Loki over the time range."""
    return loki.Dataquery().expr(expr).legend_format(legend).query_type("range")


def influxql_line(legend: str, query: str) -> Builder[Dataquery]:
    """Return a query of InfluxDB over the time range."""
    return influxql.Query(query, alias=legend)


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
    panel = _value(title, unit, description, query, width, no_value).thresholds(_steps(bad, good))
    panel = panel.mappings(_mappings(meanings))
    if average_seconds:
        panel = panel.max_data_points(POINTS)
    return panel.max(1).min(0) if unit == SHARE else panel


def value_of_points(  # noqa: PLR0913
    title: str,
    unit: str,
    description: str,
    query: str,
    *,
    width: int = 4,
    no_value: str,
    bad: tuple[float, float] | None = None,
) -> Panel:
    """Return a panel with one value of InfluxDB for the time range of the dashboard."""
    panel = _value(title, unit, description, influxql.Query(query), width, no_value)
    return panel.thresholds(_steps(bad, None))


def _value(  # noqa: PLR0913, PLR0917
    title: str, unit: str, description: str, query: Builder[Dataquery], width: int, no_value: str
) -> stat_.Panel:
    return (
        stat_.Panel()
        .title(title)
        .description(description)
        .unit(unit)
        .no_value(no_value)
        .with_target(query)
        .reduce_options(look.ReduceDataOptions().calcs(["lastNotNull"]))
        .graph_mode(common.BigValueGraphMode.NONE)
        .color_mode(common.BigValueColorMode.VALUE)
        .span(width)
        .height(STAT_HEIGHT)
    )


def lines(  # noqa: PLR0913
    title: str,
    unit: str,
    description: str,
    queries: Mapping[str, str],
    *,
    width: int = 12,
    stacked: bool = False,
    signed: bool = False,
    line: Line = promql_line,
    no_value: str = "",
) -> Panel:
    """Return a graph of lines, {legend: expression}, with a minimum of 0 unless `signed`.

    `no_value` is the text without any line, if that is usual.
    """
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
        panel = panel.with_target(line(legend, expr))
    if line is influxql_line:
        panel = panel.interval(MIN_INFLUX_INTERVAL)
    if no_value:
        panel = panel.no_value(no_value)
    if STATE_LEGENDS & queries.keys():
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
            .exemplar(True)
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


def log(  # noqa: PLR0913
    title: str,
    description: str,
    expr: str,
    *,
    no_value: str,
    oldest_first: bool = False,
    width: int = 24,
    links: Sequence[Builder[model.DashboardLink]] = (),
) -> Panel:
    """Return a panel with log lines of Loki. `no_value` is the text without any."""
    order = common.LogsSortOrder.ASCENDING if oldest_first else common.LogsSortOrder.DESCENDING
    return (
        logs_.Panel()
        .title(title)
        .description(description)
        .no_value(no_value)
        .with_target(loki.Dataquery().expr(expr).query_type("range").max_lines(MAX_LOG_LINES))
        .show_time(True)
        .wrap_log_message(True)
        .enable_log_details(True)
        .sort_order(order)
        .links([*links])
        .span(width)
        .height(LOG_HEIGHT)
    )


def rows(  # noqa: PLR0913
    title: str,
    description: str,
    query: str,
    *,
    units: Mapping[str, str],
    links: Mapping[str, Mapping[str, str]],
    no_value: str,
    highest: str = "Time",
) -> Panel:
    """Return a table of points of InfluxDB, whose columns the query names.

    `units` and `links` are {column: unit} and {column: {title: URL}}. The rows with the highest values in
    the column `highest` are first.
    """
    panel = (
        table_.Panel()
        .title(title)
        .description(description)
        .unit(PLAIN)
        .no_value(no_value)
        .with_target(influxql.Query(query, result_format="table"))
        .show_header(True)
        .min_width(60)
        .cell_height(common.TableCellHeight.SM)
        .sort_by([look.TableSortByFieldState().display_name(highest).desc(True)])
        .span(24)
        .height(HEIGHT)
    )
    for column, unit in units.items():
        panel = panel.override_by_name(column, [_property("unit", unit)])
    for column, urls in links.items():
        targets = [{"title": text, "url": url, "targetBlank": False} for text, url in urls.items()]
        properties = [_property("links", targets), _property("custom.minWidth", UUID_WIDTH)]
        panel = panel.override_by_name(column, properties)
    return panel


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
    no_value: str = "",
) -> Panel:
    """Return a table of current values by the label `key`, whose cells link to `link`.

    The expression of the first column must have the labels that other columns show. `no_value` is the
    text without any row, if that is usual.
    """
    names = {"Time": "Time", key.source: key.name}
    panel = table_.Panel().title(title).description(description).unit(PLAIN).span(width).height(height)
    if no_value:
        panel = panel.no_value(no_value)
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
