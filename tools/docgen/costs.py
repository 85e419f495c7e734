"""What it costs, in short: a table out of the long one that `make bench` writes."""

from __future__ import annotations

import re

OURS, PEER = "this exporter", "prometheus-exporter-celery"
#: A row of the table: its label, the median with its unit, and last of what is compared, the peer.
_ROW = re.compile(r"^  (?P<label>\S.*?) {2,}(?P<median>[\d.,]+ \S+)(?P<rest>.*)$")
_COMPARED = re.compile(r"(?<![\d.])(1/[\d.]+|[\d.]+ x)(?! f)")


def short(page: str) -> str:
    """Return the medians of the exporter and of the most used other one, and their ratios, from the page."""
    lines = [f"| | {OURS} | `{PEER}` | ratio |", "|---|---|---|---|"]
    headline = ""
    found: dict[str, re.Match[str]] = {}
    for line in page.splitlines():
        row = _ROW.match(line)
        if row is None:
            headline = line
        elif headline.startswith(("CPU an event", "events a second")) and "but for" not in headline:
            found[f"{headline}: {row['label']}"] = row
    for name, row in found.items():
        if name.endswith(f": {OURS}"):
            what = name.removesuffix(f": {OURS}")
            peer = found.get(f"{what}: {PEER}")  # who may not have been measured
            ratios = _COMPARED.findall(re.split("[<>]=", row["rest"])[0])
            compared = f"{peer['median']} | {ratios[-1]}" if peer and ratios else "|"
            lines.append(f"| {what} | {row['median']} | {compared} |")
    return "\n".join(lines)
