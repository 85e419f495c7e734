"""For each other profile: the table of docs/how-to/migrate-from-*.md, and recording rules in docs/rules/."""

from __future__ import annotations

import contextlib
import re
from pathlib import Path

from celery_exporter.metrics.model import MetricFamily, MetricOptions, Profile
from celery_exporter.metrics.profiles import native
from celery_exporter.metrics.registry import PROFILES, ProfilesClashError, select
from tools.docgen.markdown import table

ROOT = Path(__file__).resolve().parents[2]
NATIVE = {row.name: row for row in [*native.rows(MetricOptions()), *native.EXPORTER_ROWS]}
OTHERS = [profile for profile in PROFILES.values() if profile.name != "native"]

#: In a query: a metric with its matchers, and the arguments of label_replace that rename a label.
SELECTOR = re.compile(r"\b(celery_[a-z_]+)(?:\{([^}]*)\})?")
RENAME = re.compile(r'"(\w+)", "([^"]*)", "(\w*)"')
#: Matchers by which a rule does not select its own results.
GUARDS = {'worker!=""', 'worker=""', 'task_name!=""'}


def made() -> dict[Path, str]:
    """Return the generated files of rules, and their texts."""
    return {ROOT / f"docs/rules/{profile.name}.yml": rule_file(profile) for profile in OTHERS}


def page(profile: Profile) -> Path:
    """Return the page that has the chapter of a profile."""
    return ROOT / f"docs/how-to/migrate-from-{profile.name}.md"


# -- recording rules -------------------------------------------------------------------------------------


def is_native(row: MetricFamily) -> bool:
    """Return whether the native profile has the same metric."""
    same = NATIVE.get(row.name)
    return same is not None and (row.type, row.labels, row.buckets) == (same.type, same.labels, same.buckets)


def rules(row: MetricFamily) -> dict[str, str]:
    """Return the expressions to record by name: three for a histogram."""
    if not row.query or is_native(row):
        return {}
    if row.type != "histogram":
        return {row.name: row.query}
    return {row.name + part: row.query.replace("_bucket", part) for part in ("_bucket", "_sum", "_count")}


def needs_worker(profile: Profile) -> bool:
    """Return whether the rules read the optional label `worker` of task metrics."""
    return any(
        re.search(r'celery_tasks?_\w*\{[^}]*worker!=""', row.query) for row in profile.rows(MetricOptions())
    )


def rule_file(profile: Profile) -> str:
    """Return the recording rules of a profile; those with names of native metrics are a second group."""
    rows = profile.rows(MetricOptions())
    source = f"celery_exporter/metrics/profiles/{profile.name}.py"
    text = f"# Made by tools/docgen/migrating.py from {source}: make golden.\n"
    if needs_worker(profile):
        text += "# For an exporter with --task-labels queue_name,worker.\n"
    text += "groups:\n" + _group(profile.name, [row for row in rows if row.name not in NATIVE])
    if both := [row for row in rows if row.name in NATIVE and rules(row)]:
        text += (
            "# Native metrics have the same names. Leave this group out if alerts or dashboards read them:\n"
            "# their sums would count twice.\n"
        )
        text += _group(f"{profile.name}-native-names", both)
    return text


def _group(name: str, rows: list[MetricFamily]) -> str:
    return f"- name: celery-exporter-{name}\n  rules:\n" + "".join(
        f"  - record: {record}\n    expr: |\n      {query}\n"
        for row in rows
        for record, query in rules(row).items()
    )


# -- pages -----------------------------------------------------------------------------------------------


def chapter(profile: Profile) -> str:
    """Return a table of old and native names, and how the profile differs from the original exporter."""
    rows = profile.rows(MetricOptions())
    cells = [(f"`{row.name}`", _labels(row), _sources(row), _rule(row)) for row in rows]
    text = table(("old name", "labels", "native", "rule"), cells)
    text += f"\n\n`--profile` can combine it with one of: {', '.join(partners(profile)) or 'none'}."
    remarks: dict[str, list[str]] = {}
    for row in rows:
        if row.remark:
            remarks.setdefault(row.remark, []).append(f"`{row.name}`")
    if remarks:
        text += "\n\nKnown differences, of the profile and so of the rules:\n\n"
        text += "\n".join(f"- {', '.join(names)}: {remark}." for remark, names in remarks.items())
    return text


def partners(profile: Profile) -> list[str]:
    """Return the profiles that can be combined with this one."""
    names = []
    for other in PROFILES:
        if other != profile.name:
            with contextlib.suppress(ProfilesClashError):
                select((profile.name, other), MetricOptions())
                names.append(other)
    return names


def _labels(row: MetricFamily) -> str:
    """Return the labels, with the names that native metrics have in brackets."""
    renames = [rename for rename in RENAME.findall(row.query) if rename[0] != rename[2]]
    native_names = {new: old or f'"{value}"' for new, value, old in renames}
    return ", ".join(
        f"{label} ({native_names[label]})" if label in native_names else label for label in row.labels
    )


def _sources(row: MetricFamily) -> str:
    """Return the selectors of native metrics that the query of a row has."""
    if is_native(row):
        return "the same"
    selectors = []
    for name, matchers in SELECTOR.findall(row.query):
        kept = [part for part in re.findall(r'\w+[=!~]+"[^"]*"', matchers) if part not in GUARDS]
        metric = name.removesuffix("_bucket") if row.type == "histogram" else name
        selectors.append(f"`{metric}{{{','.join(kept)}}}`" if kept else f"`{metric}`")
    return ", ".join(dict.fromkeys(selectors)).replace("|", "\\|") or "nothing"


def _rule(row: MetricFamily) -> str:
    if is_native(row):
        return "not needed"
    if not row.query:
        return "none: only with `--profile`"
    return "yes, in the second group" if row.name in NATIVE else "yes"
