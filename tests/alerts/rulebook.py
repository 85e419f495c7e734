"""The shipped rules, and enough of PromQL to find the metrics and labels in them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import yaml
from harness.processes import ROOT

FOLDER = ROOT / "alerts"
MIXIN = FOLDER / "mixin.libsonnet"
RULES = FOLDER / "celery.rules.yml"
CASES = FOLDER / "celery.rules.test.yml"
RUNBOOKS = ROOT / "docs" / "runbooks.md"

KEYWORDS = {"and", "or", "unless", "bool", "offset"}
LISTS = re.compile(r"\b(?:by|without|on|ignoring|group_left|group_right)\s*\(([^)]*)\)")
SELECTOR = re.compile(r"(?<![\w:.])([a-zA-Z_:][\w:]*)\s*(?:\{([^}]*)\})?(?!\s*\(|[\w:])")
MATCHER = re.compile(r'(\w+)\s*(=~|!~|!=|=)\s*"((?:[^"\\]|\\.)*)"')

Matcher = tuple[str, str, str]  # label, operator, value

_rules = [rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]]
ALERTS: dict[str, Any] = {rule["alert"]: rule for rule in _rules if "alert" in rule}
RECORDS: dict[str, str] = {rule["record"]: rule["expr"] for rule in _rules if "record" in rule}
CASE_GROUPS: list[dict[str, Any]] = yaml.safe_load(CASES.read_text())["tests"]
EXPRESSIONS = {**RECORDS, **{name: rule["expr"] for name, rule in ALERTS.items()}}
#: Of the mixin with objectives. The shipped rules have none.
OBJECTIVE_ALERTS = ("CeleryErrorBudgetBurnFast", "CeleryErrorBudgetBurnSlow")
OBJECTIVE_RECORDS = {
    f"job_objective_sli:celery_objective_{name}"
    for name in (
        "tasks:rate5m",
        "good_tasks:rate5m",
        "error_budget:ratio",
        *(f"errors:ratio_rate{window}" for window in ("5m", "30m", "1h", "6h", "3d")),
    )
}


def selectors(promql: str) -> Iterator[tuple[str, list[Matcher]]]:
    """Yield the metrics that an expression selects, with their matchers."""
    without_texts = re.sub(r'(?:, "[^"]*"){4}\)', ")", LISTS.sub("", promql))  # of label_replace
    bare = re.sub(r"\[[^\]]*\]|#.*", "", without_texts)
    for name, matchers in SELECTOR.findall(bare):
        if name not in KEYWORDS:
            yield name, MATCHER.findall(matchers)


def grouped_by(promql: str) -> set[str]:
    """Return the labels that an expression groups by or matches on."""
    return {label for names in LISTS.findall(promql) for label in re.findall(r"\w+", names)}


def read(promql: str, expanded: frozenset[str] = frozenset()) -> set[str]:
    """Return the metrics that an expression uses, directly and through recording rules.

    A rule may use its own earlier value.
    """
    metrics: set[str] = set()
    for name, _ in selectors(promql):
        if name not in RECORDS:
            metrics.add(name)
        elif name not in expanded:
            metrics |= read(RECORDS[name], expanded | {name})
    return metrics


def seconds(duration: str) -> float:
    """Return the seconds of a duration such as 1h30m."""
    units = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
    return sum(int(count) * units[unit] for count, unit in re.findall(r"(\d+)([smhd])", duration))


def shortened(rules: dict[str, Any], factor: float = 60) -> dict[str, Any]:
    """Return rules with each duration divided by a factor; the shortest one is a second.

    Names keep the duration: a record `…:rate5m` then has a shorter window.
    """

    def shorter(duration: str) -> str:
        return f"{max(1, round(seconds(duration) / factor))}s"

    for group in rules["groups"]:
        for rule in group["rules"]:
            # Not a class of characters, such as [.] in a matcher.
            rule["expr"] = re.sub(
                r"\[(\d[^\]]*)\]",
                lambda match: "[" + ":".join(map(shorter, match.group(1).split(":"))) + "]",
                rule["expr"],
            )
            if "for" in rule:
                rule["for"] = shorter(rule["for"])
    return rules
