"""The metrics of the native profile, a section for each; and a table of the other profiles."""

from __future__ import annotations

from celery_exporter.metrics.model import MetricFamily, MetricOptions
from celery_exporter.metrics.registry import PROFILES, select
from tools.docgen.markdown import table

#: Headings, and how the names below them begin.
CHAPTERS = {
    "Tasks": ("celery_task",),
    "Workers": ("celery_worker",),
    "Queues and the broker": ("celery_queue_", "celery_broker_"),
    "The exporter itself": ("celery_exporter_",),
}


def rows() -> tuple[MetricFamily, ...]:
    """Return the metrics of the native profile with default options."""
    return tuple(select(("native",), MetricOptions()).rows)


def long() -> str:
    """Return a section for each metric: labels, when it is absent, and an example query."""
    return "\n\n".join(
        "\n\n".join([f"## {title}", *(_section(row) for row in rows() if row.name.startswith(prefixes))])
        for title, prefixes in CHAPTERS.items()
    )


def _section(row: MetricFamily) -> str:
    labels = ", ".join(f"`{label}`" for label in row.labels)
    kind = row.type.capitalize() + (f", labels {labels}." if labels else ", no labels.")
    absent = f"**Absent:** {row.absent}" if row.absent else "Never absent."
    return f"### {row.name}\n\n{row.help}\n\n{kind} {absent}\n\n```promql\n{row.example}\n```"


def others() -> str:
    """Return a table of the other profiles."""
    cells = [
        (
            f"[{name}](../how-to/migrate-from-{name}.md)",
            str(len(profile.rows(MetricOptions()))),
            profile.about,
        )
        for name, profile in PROFILES.items()
        if name != "native"
    ]
    return table(("profile", "metrics", "known from"), cells)
