"""From tables to JSON: variables, matchers, places, links; and the two variants that are committed."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

from grafana_foundation_sdk.builders import dashboard as sdk
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models import dashboard as model
from grafana_foundation_sdk.models.common import DataSourceRef
from grafana_foundation_sdk.models.prometheus import Dataquery

from celery_exporter.metrics.model import MetricOptions
from celery_exporter.metrics.registry import select
from dashboards.panels import Panel

Json = dict[str, Any]

SOURCE = DataSourceRef(type_val="prometheus", uid="${datasource}")
GRAFANA = "12.0.0"  # the oldest that reads this schema without converting it

#: Variable → its title, the label that it narrows, and the metric that knows the label's values.
VARIABLES = {
    "job": ("Job", "job", "celery_exporter_build_info"),
    "queue": ("Queue", "queue_name", "celery_tasks_total"),
    "task": ("Task", "task_name", "celery_tasks_total"),
    "worker": ("Worker", "worker", "celery_worker_up"),
}
# All jobs are those that have a name. A label that --task-labels left out is empty, so all queues are any.
ALL = {"job": ".+"}

#: Metric → its labels; every series has a job besides.
LABELS: dict[str, tuple[str, ...]] = {
    **{row.name: row.labels for row in select(("native",), MetricOptions()).rows},
    **dict.fromkeys(("process_cpu_seconds_total", "process_resident_memory_bytes", "process_open_fds"), ()),
}
METRIC = re.compile(r"\b((?:celery|process)_\w+)(?:\{([^}]*)\})?")


@dataclass(frozen=True)
class Board:
    """One dashboard."""

    uid: str  # others link to it; it never changes
    title: str
    description: str
    variables: Sequence[str]
    rows: Mapping[str, Sequence[Panel]]
    links: Mapping[str, str]  # of each panel: title → uid of another dashboard


def there(uid: str) -> str:
    """Return the address of another dashboard, with the time and the variables of this one."""
    return f"/d/{uid}?${{__url_time_range}}&${{__all_variables}}"


def only(uid: str, variable: str, column: str) -> str:
    """Return the address of another dashboard where this variable is what was clicked."""
    chosen = f"var-{variable}=${{__data.fields.{column}}}"
    return f"/d/{uid}?${{__url_time_range}}&var-datasource=${{datasource}}&${{job:queryparam}}&{chosen}"


def narrowed(expr: str, variables: Sequence[str]) -> str:
    """Give each metric of an expression the matchers for these variables, by the labels that it has."""

    def with_matchers(found: re.Match[str]) -> str:
        name, own = found.groups()
        matchers = [
            f'{label}=~"${variable}"'
            for variable, (_, label, _) in VARIABLES.items()
            if variable in variables and label in ("job", *labels_of(name))
        ]
        inside = ", ".join([*matchers, *([own] if own else [])])
        return f"{name}{{{inside}}}" if inside else name

    return METRIC.sub(with_matchers, expr)


def labels_of(name: str) -> tuple[str, ...]:
    """Return a metric's labels; a name that nobody exports is an error."""
    return LABELS[name if name in LABELS else re.sub("_(bucket|sum|count)$", "", name)]


def provisioned(board: Board) -> Json:
    """Return the dashboard for a folder that Grafana reads: it asks which data source to use."""
    builder = (
        sdk.Dashboard(board.title)
        .uid(board.uid)
        .description(board.description)
        .tags(["celery"])
        .readonly()
        .tooltip(model.DashboardCursorSync.CROSSHAIR)
        .time("now-1h", "now")
        .refresh("30s")
        .timezone("browser")
        .link(_bar())
        .with_variable(
            sdk.DatasourceVariable("datasource").label("Data source").type("prometheus").multi(False)
        )
    )
    for name in board.variables:
        builder = builder.with_variable(_variable(name))
    for title, panels in board.rows.items():
        builder = builder.with_row(sdk.Row(title))
        for panel in panels:
            builder = builder.with_panel(deepcopy(panel))  # what is made here stays out of the table
    built = builder.build()
    for number, placed in enumerate(built.panels or [], start=1):
        placed.id_val = number
        if isinstance(placed, model.Panel):
            _finish(placed, board)
    return _json(built)


def importable(board: Board) -> Json:
    """Return the dashboard for Grafana's import dialog, which asks for the data source itself."""
    dashboard = json.loads(text(provisioned(board)).replace("${datasource}", "${DS_PROMETHEUS}"))
    dashboard["editable"] = True
    variables = dashboard["templating"]["list"]
    dashboard["templating"]["list"] = [one for one in variables if one["type"] != "datasource"]
    kinds = sorted({panel["type"] for panel in dashboard["panels"]} - {"row"})
    return {
        "__inputs": [
            {
                "name": "DS_PROMETHEUS",
                "label": "Prometheus",
                "description": "The Prometheus that scrapes celery-exporter",
                "type": "datasource",
                "pluginId": "prometheus",
                "pluginName": "Prometheus",
            }
        ],
        "__elements": {},
        "__requires": [
            {"type": "grafana", "id": "grafana", "name": "Grafana", "version": GRAFANA},
            {"type": "datasource", "id": "prometheus", "name": "Prometheus", "version": "1.0.0"},
            *({"type": "panel", "id": kind, "name": kind, "version": ""} for kind in kinds),
        ],
        "id": None,
        **dashboard,
    }


def text(dashboard: Json) -> str:
    """Return it as it stands in the file."""
    return json.dumps(dashboard, indent=2, ensure_ascii=False) + "\n"


def _finish(panel: model.Panel, board: Board) -> None:
    panel.datasource = SOURCE
    panel.links = [_panel_link(title, uid) for title, uid in board.links.items()]
    for place, target in enumerate(panel.targets or []):
        if isinstance(target, Dataquery):
            target.ref_id = chr(ord("A") + place)
            target.datasource = SOURCE
            target.expr = narrowed(target.expr, board.variables)


def _variable(name: str) -> sdk.QueryVariable:
    title, label, metric = VARIABLES[name]
    others = [other for other in ("job",) if other != name]
    query = f"label_values({narrowed(metric, others)}, {label})"
    return (
        sdk.QueryVariable(name)
        .label(title)
        .datasource(SOURCE)
        .query({"qryType": 1, "query": query, "refId": name})
        .refresh(model.VariableRefresh.ON_TIME_RANGE_CHANGED)
        .sort(model.VariableSort.ALPHABETICAL_ASC)
        .multi(True)
        .include_all(True)
        .all_value(ALL.get(name, ".*"))
        .current(model.VariableOption(selected=True, text=["All"], value=["$__all"]))
    )


def _bar() -> sdk.DashboardLink:
    """Return the links to the other dashboards, above the panels."""
    return (
        sdk.DashboardLink("Celery")
        .type(model.DashboardLinkType.DASHBOARDS)
        .icon("external link")
        .tags(["celery"])
        .include_vars(True)
        .keep_time(True)
    )


def _panel_link(title: str, uid: str) -> model.DashboardLink:
    return model.DashboardLink(title=title, type_val=model.DashboardLinkType.LINK, url=there(uid))


def _json(built: model.Dashboard) -> Json:
    """Return plain JSON, without defaults of the SDK that Grafana's types do not know or that do harm."""
    dashboard: Json = json.loads(JSONEncoder().encode(built))
    panels = dashboard["panels"]
    _drop(dashboard["templating"]["list"], "auto", "auto_min", "auto_count")
    _drop(
        [panel.get("options", {}) for panel in panels if panel["type"] == "table"], "footer", "showTypeIcons"
    )
    # The SDK's placement would move links into a menu.
    _drop([link for shown in (dashboard, *panels) for link in shown.get("links", ())], "placement")
    return dashboard


def _drop(objects: list[Json], *names: str) -> None:
    for one in objects:
        for name in names:
            one.pop(name, None)
