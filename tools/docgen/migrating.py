"""Make the tables of docs/how-to/migrate-from-*.md, and the rules in docs/rules/, from the profiles."""

from __future__ import annotations

import contextlib
import re
from pathlib import Path

from celery_exporter.metrics.model import MetricFamily, MetricOptions, Profile
from celery_exporter.metrics.profiles import native
from celery_exporter.metrics.registry import PROFILES, ProfilesClashError, select

ROOT = Path(__file__).resolve().parents[2]
NATIVE = {row.name: row for row in [*native.rows(MetricOptions()), *native.EXPORTER_ROWS]}
OTHERS = [profile for profile in PROFILES.values() if profile.name != "native"]

#: What a query selects, and what it calls labels; matchers that only keep a rule from its own results.
SELECTED = re.compile(r"\b(celery_[a-z_]+)(?:\{([^}]*)\})?")
RENAMED = re.compile(r'"(\w+)", "([^"]*)", "(\w*)"')
GUARDS = {'worker!=""', 'worker=""', 'task_name!=""'}


def is_native(row: MetricFamily) -> bool:
    """Tell whether the native profile has this very metric."""
    same = NATIVE.get(row.name)
    return same is not None and (row.type, row.labels, row.buckets) == (same.type, same.labels, same.buckets)


def rules(row: MetricFamily) -> dict[str, str]:
    """Return what has to be recorded under which name for a row: three things for a histogram."""
    if not row.query or is_native(row):
        return {}
    if row.type != "histogram":
        return {row.name: row.query}
    return {row.name + part: row.query.replace("_bucket", part) for part in ("_bucket", "_sum", "_count")}


def needs_worker(profile: Profile) -> bool:
    """Tell whether rules read the optional label `worker` of task metrics."""
    return any(
        re.search(r'celery_tasks?_\w*\{[^}]*worker!=""', row.query) for row in profile.rows(MetricOptions())
    )


def rule_file(profile: Profile) -> str:
    """Return the recording rules of a profile, those under names that native has, too, in a second group."""
    rows = profile.rows(MetricOptions())
    text = (
        f"# Made by tools/docgen/migrating.py from celery_exporter/profiles/{profile.name}.py: make golden.\n"
    )
    if needs_worker(profile):
        text += "# For an exporter with --task-labels queue_name,worker.\n"
    text += "groups:\n" + _group(profile.name, [row for row in rows if row.name not in NATIVE])
    if both := [row for row in rows if row.name in NATIVE and rules(row)]:
        text += (
            "# Native metrics have these names, too: leave the group out where alerts and dashboards read\n"
        )
        text += "# them, or what they sum counts twice.\n"
        text += _group(f"{profile.name}-native-names", both)
    return text


def _group(name: str, rows: list[MetricFamily]) -> str:
    return f"- name: celery-exporter-{name}\n  rules:\n" + "".join(
        f"  - record: {record}\n    expr: |\n      {query}\n"
        for row in rows
        for record, query in rules(row).items()
    )


def chapter(profile: Profile) -> str:
    """Return the table of a profile, old name → native name, and how it differs from the original."""
    rows = profile.rows(MetricOptions())
    lines = ["| old name | labels | native | rule |", "|---|---|---|---|"]
    lines += [f"| `{row.name}` | {_labels(row)} | {_sources(row)} | {_ruled(row)} |" for row in rows]
    lines += ["", f"`--profile` takes it together with {_words(partners(profile)) or 'no other'}."]
    remarks: dict[str, list[str]] = {}
    for row in rows:
        if row.remark:
            remarks.setdefault(row.remark, []).append(f"`{row.name}`")
    if remarks:
        lines += ["", "Known differences, of the profile and so of the rules:", ""]
        lines += [f"- {', '.join(names)}: {remark}." for remark, names in remarks.items()]
    return "\n".join(lines)


def partners(profile: Profile) -> list[str]:
    """Return the profiles that can be on beside this one, each by itself."""
    found = []
    for other in PROFILES:
        if other != profile.name:
            with contextlib.suppress(ProfilesClashError):
                select((profile.name, other), MetricOptions())
                found.append(other)
    return found


def _words(names: list[str]) -> str:
    *first, last = names or [""]
    return f"{', '.join(first)} or {last}" if first else last


def _labels(row: MetricFamily) -> str:
    """Return the labels, with what native metrics call them in brackets."""
    renamed = [
        each for each in RENAMED.findall(row.query) if each[0] != each[2]
    ]  # others change a value only
    native_names = {new: old or f'"{value}"' for new, value, old in renamed}
    return ", ".join(
        f"{label} ({native_names[label]})" if label in native_names else label for label in row.labels
    )


def _sources(row: MetricFamily) -> str:
    if is_native(row):
        return "the same"
    found = []
    for name, matchers in SELECTED.findall(row.query):
        kept = ",".join(part for part in _split(matchers) if part not in GUARDS)
        metric = name.removesuffix("_bucket") if row.type == "histogram" else name
        found.append(f"`{metric}{{{kept}}}`" if kept else f"`{metric}`")
    return ", ".join(dict.fromkeys(found)).replace("|", "\\|") or "nothing"


def _split(matchers: str) -> list[str]:
    return re.findall(r'\w+[=!~]+"[^"]*"', matchers)


def _ruled(row: MetricFamily) -> str:
    if is_native(row):
        return "not needed"
    if not row.query:
        return "none: only with `--profile`"
    return "yes, in the second group" if row.name in NATIVE else "yes"


def page(profile: Profile) -> Path:
    """Return the page that shows the table of a profile."""
    return ROOT / f"docs/how-to/migrate-from-{profile.name}.md"


def made() -> dict[Path, str]:
    """Return what has to be in which file of rules."""
    return {ROOT / f"docs/rules/{profile.name}.yml": rule_file(profile) for profile in OTHERS}
