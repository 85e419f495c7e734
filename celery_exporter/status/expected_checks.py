"""The check of expected tasks: whether one is overdue. Pure."""

from __future__ import annotations

from celery_exporter.core.expected import ExpectedView
from celery_exporter.core.snapshot import Snapshot
from celery_exporter.core.types import State
from celery_exporter.quoting import printable
from celery_exporter.status.finding import Finding, count, duration, first_of
from celery_exporter.status.problems import OVERDUE
from celery_exporter.status.recent import Growth

#: What has not happened, by the state that is expected.
_MISSING = {State.PENDING: "not sent", State.SUCCESS: "no success"}


def expected_tasks(snapshot: Snapshot, _: Growth) -> Finding | None:
    """Check that no expected task is overdue. One of several shards does not receive all runs of a task."""
    views, at = snapshot.expected, snapshot.exporter.at
    if not views or snapshot.exporter.shards > 1:
        return None
    late = [view for view in views if view.overdue]
    if late:
        return OVERDUE.finding(tasks=first_of([_text(view, at) for view in sorted(late, key=_by_due)]))
    next_due = max(0.0, min(view.due for view in views) - at)
    tasks = len({view.name for view in views})
    return OVERDUE.ok(
        f"{count(tasks, 'expected task')}, none overdue; the next is due in {duration(next_due)}"
    )


def _by_due(view: ExpectedView) -> tuple[float, str, State]:
    return view.due, view.name, view.state


def _text(view: ExpectedView, at: float) -> str:
    return f"{printable(view.name)} ({_MISSING[view.state]}, due {duration(at - view.due)} ago)"
