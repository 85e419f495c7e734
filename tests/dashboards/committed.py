"""The committed dashboards, and iterators over their panels and queries."""

import json
import re
from collections.abc import Iterator
from typing import Any

from harness.processes import ROOT

from celery_exporter.metrics.model import MetricOptions
from celery_exporter.metrics.registry import select

FOLDER = ROOT / "dashboards"
#: They must not change: links depend on them.
METRIC_UIDS = ("celery-overview", "celery-tasks", "celery-workers", "celery-exporter", "celery-objectives")
UIDS = (*METRIC_UIDS, "celery-task-log", "celery-points")
VARIANTS = ("provisioning", "import")

Json = dict[str, Any]


def load(variant: str) -> dict[str, Json]:
    """Return the dashboards of a variant by uid."""
    return {path.stem: json.loads(path.read_text()) for path in sorted((FOLDER / variant).glob("*.json"))}


BOARDS = load("provisioning")
IMPORTS = load("import")
ROWS = {row.name: row for row in select(("native",), MetricOptions()).rows}


def panels() -> Iterator[tuple[str, Json]]:
    """Yield (uid, panel) for each panel except the rows."""
    for uid, board in BOARDS.items():
        for panel in board["panels"]:
            if panel["type"] != "row":
                yield uid, panel


def targets(plugin: str = "prometheus") -> Iterator[tuple[str, Json, Json]]:
    """Yield (uid, panel, target) for each query of data sources of this kind."""
    for uid, panel in panels():
        for target in panel["targets"]:
            if target["datasource"]["type"] == plugin:
                yield uid, panel, target


def variables(board: Json) -> dict[str, Json]:
    """Return the variables of a dashboard by name."""
    return {variable["name"]: variable for variable in board["templating"]["list"]}


def names_in(expr: str) -> set[str]:
    """Return the metrics of an expression without records; the series of a histogram count as its name."""
    names = set(re.findall(r"(?<![\w:])(?:celery|process)_\w+", re.sub(r"\{[^}]*\}", "", expr)))
    return {name if name in ROWS else re.sub("_(bucket|sum|count)$", "", name) for name in names}


def records_in(expr: str) -> set[str]:
    """Return the records of rules in an expression."""
    return set(re.findall(r"\w+:celery_\w+:\w+", expr))


def label(uid: str, panel: Json, target: Json | None = None) -> str:
    """Return the test id of a panel or a query."""
    return "-".join([uid, panel["title"].replace(" ", "_"), *([target["refId"]] if target else [])])
