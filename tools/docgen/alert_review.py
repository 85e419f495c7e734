"""alerts/review.yml as tables for people, and as the inhibit rules of Alertmanager."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import yaml

from tools.docgen import markdown

_ROOT = Path(__file__).resolve().parents[2]
_REVIEW = yaml.safe_load((_ROOT / "alerts" / "review.yml").read_text())
_ALERTMANAGER = _ROOT / "deploy" / "alertmanager" / "alertmanager.yml"
#: The rest of alertmanager.yml is generated.
_MARK = "# Generated from alerts/review.yml by make alerts.\n"
_CLUSTER_LABELS = ("job", "namespace")


def detection() -> str:
    """Return a table: a cause of each alert, when it is detected, and which causes are none."""
    rows = [
        (f"[{name}](../runbooks.md#{name.lower()})", row["cause"], row["detected"], row["quiet"])
        for name, row in _REVIEW["alerts"].items()
    ]
    return markdown.table(("alert", "cause", "fires after", "false alarms"), rows)


def inhibitions() -> str:
    """Return a table: which alerts each cause mutes, and which labels have to be the same."""
    rows = []
    for cause, conditions in _REVIEW["causes"].items():
        labels = [f"`{label}`" for label in conditions.get("equal", ())]
        without = [f"the cause has no `{conditions['without']}`"] if "without" in conditions else []
        rows.append((cause, ", ".join(_muted_by(cause)), ", ".join([*labels, *without])))
    return markdown.table(("while this fires", "these are muted", "further condition"), rows)


def faults() -> str:
    """Return a table: what pages, notifies elsewhere, or is muted after each fault of the tests."""
    rows = [
        (row["fault"], *(", ".join(row.get(name, ())) for name in ("page", "other", "muted")))
        for row in _REVIEW["faults"]
    ]
    return markdown.table(("fault", "pages", "other notifications", "fires, and is muted"), rows)


def made() -> Mapping[Path, str]:
    """Return the configuration of Alertmanager with its inhibit rules."""
    before, mark, _ = _ALERTMANAGER.read_text().partition(_MARK)
    return {_ALERTMANAGER: before + mark + _inhibit_rules()}


def _inhibit_rules() -> str:
    """Return the inhibit rules, in the layout of the file."""
    lines = ["inhibit_rules:"]
    for cause, conditions in _REVIEW["causes"].items():
        matchers = [f"'alertname=\"{cause}\"'"]
        if "without" in conditions:
            matchers.append(f"'{conditions['without']}=\"\"'")
        lines += [f"  - source_matchers: [{', '.join(matchers)}]", *_targets(cause)]
        equal = [*_CLUSTER_LABELS, *conditions.get("equal", ())]
        lines.append(f"    equal: [{', '.join(equal)}]")
    return "\n".join([*lines, ""])


def _targets(cause: str) -> list[str]:
    """Return the lines with the matchers of the alerts that a cause mutes."""
    names = _muted_by(cause)
    # In YAML, a backslash at the end of a line continues a quoted text without a space.
    alternatives = "|\\\n         ".join(names)
    return ["    target_matchers:", f'      - "alertname=~\\"{alternatives}\\""']


def _muted_by(cause: str) -> list[str]:
    return [name for name, row in _REVIEW["alerts"].items() if cause in row["muted_by"]]
