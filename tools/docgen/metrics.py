"""The metrics: a heading each for docs/reference/metrics.md."""

from __future__ import annotations

from celery_exporter.metrics.model import MetricFamily, MetricOptions
from celery_exporter.metrics.registry import PROFILES, select

#: Chapters, by how names begin.
CHAPTERS = {
    "Tasks": ("celery_task",),
    "Workers": ("celery_worker",),
    "Queues and the broker": ("celery_queue_", "celery_broker_"),
    "The exporter itself": ("celery_exporter_",),
}


def rows() -> tuple[MetricFamily, ...]:
    """Return those of the native profile, as they are by default."""
    return tuple(select(("native",), MetricOptions()).rows)


def long() -> str:
    """Return the chapters, with when a metric is absent and a query that it answers."""
    return "\n\n".join(
        "\n\n".join([f"## {title}", *(_described(row) for row in rows() if row.name.startswith(begin))])
        for title, begin in CHAPTERS.items()
    )


def _described(row: MetricFamily) -> str:
    labels = ", ".join(f"`{label}`" for label in row.labels)
    kind = row.type.capitalize() + (f", labels {labels}." if labels else ", no labels.")
    absent = f"**Absent:** {row.absent}" if row.absent else "Never absent."
    return f"### {row.name}\n\n{row.help}\n\n{kind} {absent}\n\n```promql\n{row.example}\n```"


def others() -> str:
    """Return a table of the other profiles."""
    lines = ["| profile | metrics | known from |", "|---|---|---|"]
    for name, profile in PROFILES.items():
        if name != "native":
            count = len(profile.rows(MetricOptions()))
            lines.append(f"| [{name}](../how-to/migrate-from-{name}.md) | {count} | {profile.about} |")
    return "\n".join(lines)
