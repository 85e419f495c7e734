"""Generates the two variants of a dashboard's JSON from its table of panels."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any, TypeAlias
from urllib.parse import quote

from grafana_foundation_sdk.builders import dashboard as sdk
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models import dashboard as model
from grafana_foundation_sdk.models import loki, prometheus

from celery_exporter.metrics.model import MetricOptions
from celery_exporter.metrics.registry import select
from dashboards import influxql
from dashboards.panels import Panel
from dashboards.sources import INFLUXDB, LOKI, PROMETHEUS, TEMPO, Source

Json = dict[str, Any]
#: A variable that `VARIABLES` does not have.
Variable: TypeAlias = sdk.QueryVariable | sdk.TextBoxVariable

#: Type of a query → its data source.
SOURCES = {prometheus.Dataquery: PROMETHEUS, loki.Dataquery: LOKI, influxql.Query: INFLUXDB}
GRAFANA = "12.0.0"  # the oldest version that reads this schema without a conversion

#: Variable → its title, the label that it filters by, and the metric that has the values of the label.
VARIABLES = {
    "job": ("Job", "job", "celery_exporter_build_info"),
    "queue": ("Queue", "queue_name", "celery_tasks_total"),
    "task": ("Task", "task_name", "celery_tasks_total"),
    "worker": ("Worker", "worker", "celery_worker_up"),
}
# Matches for "All". A job always has a name. A label that --task-labels leaves out is empty, so others use
# ".*".
ALL = {"job": ".+"}

#: Metric → its labels. Every series also has a job.
LABELS: dict[str, tuple[str, ...]] = {
    **{row.name: row.labels for row in select(("native",), MetricOptions()).rows},
    **dict.fromkeys(("process_cpu_seconds_total", "process_resident_memory_bytes", "process_open_fds"), ()),
}
#: Of the records of alerts/objectives.libsonnet. No variable except `job` has one of their labels.
RECORD_PREFIX = "job_objective_sli:"
METRIC = re.compile(rf"\b((?:{RECORD_PREFIX})?(?:celery|process)_\w+(?::\w+)?)(?:\{{([^}}]*)\}})?")


@dataclass(frozen=True)
class Board:
    """One dashboard."""

    uid: str  # must not change: other dashboards and alerts link to it
    title: str
    description: str
    variables: Sequence[str | Variable]  # those of `VARIABLES` by name
    rows: Mapping[str, Sequence[Panel]]
    links: Mapping[str, str]  # on each panel: title → uid of another dashboard
    sources: Sequence[Source] = (PROMETHEUS,)
    time_range: str = "now-1h"  # the start of the time range when it is opened

    @property
    def matchers(self) -> tuple[str, ...]:
        """Return the variables of `VARIABLES` that filter the metrics of the panels."""
        return tuple(name for name in self.variables if isinstance(name, str))


def dashboard_url(uid: str) -> str:
    """Return the URL of another dashboard, with the time range and the variables of this one."""
    return f"/d/{uid}?${{__url_time_range}}&${{__all_variables}}"


def url_of_value(uid: str, variable: str, column: str) -> str:
    """Return the URL of another dashboard with this variable set to the value of the clicked cell."""
    setting = f"var-{variable}=${{__data.fields.{column}}}"
    return f"/d/{uid}?${{__url_time_range}}&var-datasource=${{datasource}}&${{job:queryparam}}&{setting}"


def task_log_url(uuid: str) -> str:
    """Return the URL of the task log with one task; `uuid` is a variable of Grafana."""
    return f"/d/celery-task-log?${{__url_time_range}}&var-uuid={uuid}"


def trace_url(uuid: str) -> str:
    """Return the URL of the traces with one task; `uuid` is a variable of Grafana.

    It searches for the attribute of spans, because a trace has the id of the first task of a workflow.
    """
    query = {
        "refId": "A",
        "datasource": {"type": TEMPO.plugin, "uid": TEMPO.ref.uid},
        "queryType": "traceql",
        "query": f'{{ span.messaging.message.id = "{uuid}" }}',
    }
    window = {"from": "${__from}", "to": "${__to}"}
    panes = {"task": {"datasource": TEMPO.ref.uid, "queries": [query], "range": window}}
    return f"/explore?schemaVersion=1&panes={_quoted(json.dumps(panes, separators=(',', ':')))}"


def trace_link(title: str, uuid: str) -> sdk.DashboardLink:
    """Return a link of a panel to the traces with one task."""
    return sdk.DashboardLink(title).type(model.DashboardLinkType.LINK).url(trace_url(uuid))


def _quoted(text: str) -> str:
    """Return a part of a URL, in which Grafana still finds its variables."""
    return "".join(
        part if part.startswith("${") else quote(part, safe="") for part in re.split(r"(\$\{[\w.:]+\})", text)
    )


def filtered(expr: str, variables: Sequence[str]) -> str:
    """Add matchers for these variables to each metric of an expression, by the labels that it has."""

    def with_matchers(match: re.Match[str]) -> str:
        name, own = match.groups()
        matchers = [
            f'{label}=~"${variable}"'
            for variable, (_, label, _) in VARIABLES.items()
            if variable in variables and label in ("job", *labels_of(name))
        ]
        selector = ", ".join([*matchers, *([own] if own else [])])
        return f"{name}{{{selector}}}" if selector else name

    return METRIC.sub(with_matchers, expr)


def labels_of(name: str) -> tuple[str, ...]:
    """Return a metric's labels; raise KeyError for a metric that neither the exporter nor a rule has."""
    if name.startswith(RECORD_PREFIX):
        return ()
    return LABELS[name if name in LABELS else re.sub("_(bucket|sum|count)$", "", name)]


def provisioned(board: Board) -> Json:
    """Return the dashboard for a folder that Grafana reads, with a variable for the data source."""
    builder = (
        sdk.Dashboard(board.title)
        .uid(board.uid)
        .description(board.description)
        .tags(["celery"])
        .readonly()
        .tooltip(model.DashboardCursorSync.CROSSHAIR)
        .time(board.time_range, "now")
        .refresh("30s")
        .timezone("browser")
        .link(_dashboard_links())
    )
    for source in board.sources:
        builder = builder.with_variable(
            sdk.DatasourceVariable(source.variable).label(source.label).type(source.plugin).multi(False)
        )
    for variable in board.variables:
        builder = builder.with_variable(
            _variable(variable) if isinstance(variable, str) else deepcopy(variable)
        )
    for title, panels in board.rows.items():
        builder = builder.with_row(sdk.Row(title))
        for panel in panels:
            builder = builder.with_panel(deepcopy(panel))  # the SDK changes it
    dashboard = builder.build()
    for number, panel in enumerate(dashboard.panels or [], start=1):
        panel.id_val = number
        if isinstance(panel, model.Panel):
            _complete(panel, board)
    return _json(dashboard)


def importable(board: Board) -> Json:
    """Return the dashboard for Grafana's import dialog, which asks for the data sources that panels query."""
    sources = [source for source in board.sources if source.content]
    content = text(provisioned(board))
    for source in sources:
        content = content.replace(f"${{{source.variable}}}", f"${{{source.import_input}}}")
    dashboard = json.loads(content)
    dashboard["editable"] = True
    asked = {source.variable for source in sources}
    variables = dashboard["templating"]["list"]
    dashboard["templating"]["list"] = [variable for variable in variables if variable["name"] not in asked]
    kinds = sorted({panel["type"] for panel in dashboard["panels"]} - {"row"})
    return {
        "__inputs": [
            {
                "name": source.import_input,
                "label": source.name,
                "description": source.content,
                "type": "datasource",
                "pluginId": source.plugin,
                "pluginName": source.name,
            }
            for source in sources
        ],
        "__elements": {},
        "__requires": [
            {"type": "grafana", "id": "grafana", "name": "Grafana", "version": GRAFANA},
            *(
                {"type": "datasource", "id": source.plugin, "name": source.name, "version": "1.0.0"}
                for source in sources
            ),
            *({"type": "panel", "id": kind, "name": kind, "version": ""} for kind in kinds),
        ],
        "id": None,
        **dashboard,
    }


def text(dashboard: Json) -> str:
    """Return a dashboard as the text of its file."""
    return json.dumps(dashboard, indent=2, ensure_ascii=False) + "\n"


def _complete(panel: model.Panel, board: Board) -> None:
    """Set the data source, the links, and the matchers of the queries."""
    panel.links = [*(panel.links or []), *(_panel_link(title, uid) for title, uid in board.links.items())]
    for index, target in enumerate(panel.targets or []):
        if isinstance(target, prometheus.Dataquery | loki.Dataquery | influxql.Query):
            panel.datasource = target.datasource = SOURCES[type(target)].ref
            target.ref_id = chr(ord("A") + index)
        if isinstance(target, prometheus.Dataquery):
            target.expr = filtered(target.expr, board.matchers)


def _variable(name: str) -> sdk.QueryVariable:
    title, label, metric = VARIABLES[name]
    filters = () if name == "job" else ("job",)
    query = f"label_values({filtered(metric, filters)}, {label})"
    return (
        sdk.QueryVariable(name)
        .label(title)
        .datasource(PROMETHEUS.ref)
        .query({"qryType": 1, "query": query, "refId": name})
        .refresh(model.VariableRefresh.ON_TIME_RANGE_CHANGED)
        .sort(model.VariableSort.ALPHABETICAL_ASC)
        .multi(True)
        .include_all(True)
        .all_value(ALL.get(name, ".*"))
        .current(model.VariableOption(selected=True, text=["All"], value=["$__all"]))
    )


def _dashboard_links() -> sdk.DashboardLink:
    """Return the links to the other dashboards, which Grafana shows above the panels."""
    return (
        sdk.DashboardLink("Celery")
        .type(model.DashboardLinkType.DASHBOARDS)
        .icon("external link")
        .tags(["celery"])
        .include_vars(True)
        .keep_time(True)
    )


def _panel_link(title: str, uid: str) -> model.DashboardLink:
    return model.DashboardLink(title=title, type_val=model.DashboardLinkType.LINK, url=dashboard_url(uid))


def _json(board: model.Dashboard) -> Json:
    """Return plain JSON, without SDK defaults that Grafana lacks or that change the layout."""
    dashboard: Json = json.loads(JSONEncoder().encode(board))
    panels = dashboard["panels"]
    _drop(dashboard["templating"]["list"], "auto", "auto_min", "auto_count")
    _drop(
        [panel.get("options", {}) for panel in panels if panel["type"] == "table"], "footer", "showTypeIcons"
    )
    # With the SDK's placement, Grafana shows the links in a menu.
    _drop([link for item in (dashboard, *panels) for link in item.get("links", ())], "placement")
    return dashboard


def _drop(objects: list[Json], *names: str) -> None:
    for item in objects:
        for name in names:
            item.pop(name, None)
