"""A short table of costs, made from the long one that `make bench` writes."""

from __future__ import annotations

import re

from tools.docgen.markdown import table

OURS, PEER = "this exporter", "prometheus-exporter-celery"
#: A row of the long table: its label, the median with its unit, and ratios, of which the last is to the peer.
_ROW = re.compile(r"^  (?P<label>\S.*?) {2,}(?P<median>[\d.,]+ \S+)(?P<rest>.*)$")
_RATIO = re.compile(r"(?<![\d.])(1/[\d.]+|[\d.]+ x)(?! f)")


def short(page: str) -> str:
    """Return the medians of the exporter and of the most used other one, and their ratios."""
    headline = ""
    measured: dict[str, re.Match[str]] = {}
    for line in page.splitlines():
        row = _ROW.match(line)
        if row is None:
            headline = line
        elif headline.startswith(("CPU an event", "events a second")) and "but for" not in headline:
            measured[f"{headline}: {row['label']}"] = row
    rows = []
    for name, row in measured.items():
        if name.endswith(f": {OURS}"):
            measure = name.removesuffix(f": {OURS}")
            peer = measured.get(f"{measure}: {PEER}")  # which may not have been measured
            ratios = _RATIO.findall(re.split("[<>]=", row["rest"])[0])
            comparison = (peer["median"], ratios[-1]) if peer and ratios else ("", "")
            rows.append((measure, row["median"], *comparison))
    return table(("", OURS, f"`{PEER}`", "ratio"), rows)
