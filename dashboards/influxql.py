"""InfluxQL queries of the points that --influx-url writes, and variables with the values of their tags.

InfluxDB 1 and 2 answer them, in both layouts of points. A name that both a tag and a field have needs its
kind, such as "status"::field.
"""

from __future__ import annotations

from collections.abc import Sequence

from grafana_foundation_sdk.builders import dashboard as sdk
from grafana_foundation_sdk.cog.builder import Builder
from grafana_foundation_sdk.cog.variants import Dataquery
from grafana_foundation_sdk.models import dashboard as model
from grafana_foundation_sdk.models.common import DataSourceRef

from dashboards.sources import INFLUXDB

SERVICE = '"service" =~ /^$service$/'
#: A point without the tag is among all tasks.
TASK = '"task_type" =~ /^$task$/'


class Query(Dataquery, Builder["Query"]):
    """A query in the JSON of Grafana's data source; its SDK has no type for it."""

    def __init__(self, query: str, *, alias: str = "", result_format: str = "time_series") -> None:
        self.query = query
        self.alias = alias
        self.result_format = result_format
        self.ref_id = "A"
        self.datasource: DataSourceRef = INFLUXDB.ref

    def build(self) -> Query:
        """Return itself: the SDK adds what a builder builds."""
        return self

    def to_json(self) -> dict[str, object]:
        """Return the fields that Grafana reads."""
        return {
            "refId": self.ref_id,
            "datasource": self.datasource,
            "query": self.query,
            "rawQuery": True,
            "resultFormat": self.result_format,
            **({"alias": self.alias} if self.alias else {}),
        }


def select(what: str, measurement: str, *conditions: str, by: str = "", fill: str = "") -> str:
    """Return a query over the time range of the dashboard."""
    conditions = ("WHERE $timeFilter", SERVICE, *conditions)
    parts = [f'SELECT {what} FROM "{measurement}"', " AND ".join(conditions)]  # noqa: S608  not of a user
    if by:
        parts.append(f"GROUP BY {by}")
    if fill:
        parts.append(f"fill({fill})")
    return " ".join(parts)


def over_time(
    what: str, measurement: str, *conditions: str, by: Sequence[str] = (), fill: str = "none"
) -> str:
    """Return a query with a value for each step of a graph, by these tags."""
    group = ", ".join(["time($__interval)", *(f'"{tag}"' for tag in by)])
    return select(what, measurement, *conditions, by=group, fill=fill)


def rate(field: str, measurement: str, *conditions: str, by: Sequence[str]) -> str:
    """Return the points per second that have this field, by these tags."""
    count = f"count({field}) * 1000 / $__interval_ms"
    return over_time(count, measurement, *conditions, by=by, fill="0")


def percentile(percent: int, field: str, measurement: str, *conditions: str, by: Sequence[str] = ()) -> str:
    """Return a percentile of a field in each step of a graph, by these tags."""
    return over_time(f'percentile("{field}", {percent})', measurement, *conditions, by=by)


def tag_variable(name: str, title: str, tag: str, measurement: str, condition: str = "") -> sdk.QueryVariable:
    """Return a variable with the values of a tag."""
    where = f" WHERE {condition}" if condition else ""
    return (
        sdk.QueryVariable(name)
        .label(title)
        .datasource(INFLUXDB.ref)
        .query(f'SHOW TAG VALUES FROM "{measurement}" WITH KEY = "{tag}"{where}')
        .refresh(model.VariableRefresh.ON_TIME_RANGE_CHANGED)
        .sort(model.VariableSort.ALPHABETICAL_ASC)
        .multi(True)
        .include_all(True)
        .all_value(".*")
        .current(model.VariableOption(selected=True, text=["All"], value=["$__all"]))
    )
