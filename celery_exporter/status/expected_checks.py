"""The check of expected tasks: whether one is overdue. A task that was not sent cannot succeed. Pure."""

from __future__ import annotations

from celery_exporter.core.expected import ExpectedView
from celery_exporter.core.snapshot import Snapshot
from celery_exporter.core.types import State
from celery_exporter.quoting import printable
from celery_exporter.status.finding import Finding, count, duration, first_of, names
from celery_exporter.status.problems import OVERDUE
from celery_exporter.status.recent import Growth

#: What has not happened, by the state that is expected.
_MISSING = {State.PENDING: "not sent", State.SUCCESS: "no success"}


def expected_tasks(snapshot: Snapshot, _: Growth) -> Finding | None:
    """Check that no expected task is overdue. One of several shards does not receive all runs of a task."""
    views, at = snapshot.expected, snapshot.exporter.at
    if not views or snapshot.exporter.shards > 1:
        return None
    unsent = {view.name for view in views if view.overdue and view.state is State.PENDING}
    late = [
        view for view in views if view.overdue and (view.state is State.PENDING or view.name not in unsent)
    ]
    if late:
        texts = first_of([_text(view, at) for view in sorted(late, key=_by_due)])
        return OVERDUE.finding(tasks=texts, beats=_beats(snapshot) if unsent else "")
    next_due = max(0.0, min(view.due for view in views) - at)
    tasks = len({view.name for view in views})
    return OVERDUE.ok(
        f"{count(tasks, 'expected task')}, none overdue; the next is due in {duration(next_due)}"
    )


def _beats(snapshot: Snapshot) -> str:
    """Return what is known of beats, as the end of a sentence: one that runs has another schedule."""
    up = [beat.name for beat in snapshot.beats if beat.up]
    return f"; beat {names(up)} is up" if up else ""


def _by_due(view: ExpectedView) -> tuple[float, str, State]:
    return view.due, view.name, view.state


def _text(view: ExpectedView, at: float) -> str:
    return f"{printable(view.name)} ({_MISSING[view.state]}, due {duration(at - view.due)} ago)"
