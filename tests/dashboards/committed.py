"""The dashboards as they are committed, and how to go through them."""

import json
import re
from collections.abc import Iterator
from typing import Any

from harness.processes import ROOT

from celery_exporter.metrics.model import MetricOptions
from celery_exporter.metrics.registry import select

FOLDER = ROOT / "dashboards"
UIDS = (
    "celery-overview",
    "celery-tasks",
    "celery-workers",
    "celery-exporter",
)  # for ever: others link to them
VARIANTS = ("provisioning", "import")

Json = dict[str, Any]


def load(variant: str) -> dict[str, Json]:
    return {path.stem: json.loads(path.read_text()) for path in sorted((FOLDER / variant).glob("*.json"))}


BOARDS = load("provisioning")
IMPORTS = load("import")
ROWS = {row.name: row for row in select(("native",), MetricOptions()).rows}


def panels() -> Iterator[tuple[str, Json]]:
    """Go through (uid, panel) of all that shows something."""
    for uid, board in BOARDS.items():
        for panel in board["panels"]:
            if panel["type"] != "row":
                yield uid, panel


def targets() -> Iterator[tuple[str, Json, Json]]:
    for uid, panel in panels():
        for target in panel["targets"]:
            yield uid, panel, target


def variables(board: Json) -> dict[str, Json]:
    return {variable["name"]: variable for variable in board["templating"]["list"]}


def names_in(expr: str) -> set[str]:
    """Return the metrics of an expression; those with a suffix of a histogram by the histogram's name."""
    found = set(re.findall(r"\b(?:celery|process)_\w+", re.sub(r"\{[^}]*\}", "", expr)))
    return {name if name in ROWS else re.sub("_(bucket|sum|count)$", "", name) for name in found}


def label(uid: str, panel: Json, target: Json | None = None) -> str:
    """Return what pytest calls it."""
    return "-".join([uid, panel["title"].replace(" ", "_"), *([target["refId"]] if target else [])])
