"""Checks of the sinks of records, and of the history file. Pure."""

from __future__ import annotations

from celery_exporter.core.snapshot import Snapshot
from celery_exporter.quoting import printable
from celery_exporter.status.facts import short
from celery_exporter.status.finding import Finding, count, duration, first_of
from celery_exporter.status.problems import HISTORY_FAILING, HISTORY_INCOMPLETE, RECORDS_LOST, SINK_FAILING
from celery_exporter.status.recent import Growth
from celery_exporter.status.thresholds import BY_ALERT


def sinks(snapshot: Snapshot, _: Growth) -> Finding | None:
    """Check that each sink takes records."""
    exporter, limit_seconds = snapshot.exporter, BY_ALERT[SINK_FAILING.alert].limit
    if not exporter.sinks:
        return None
    failing = [
        sink
        for sink in exporter.sinks
        if sink.failing_since is not None and exporter.at - sink.failing_since >= limit_seconds
    ]
    if not failing:
        return SINK_FAILING.ok(f"{count(len(exporter.sinks), 'sink')} of records: no delivery fails")
    longest = max(exporter.at - sink.failing_since for sink in failing if sink.failing_since is not None)
    shown = first_of([f"{sink.name} ({printable(sink.address)}: {short(sink.error)})" for sink in failing])
    return SINK_FAILING.finding(seconds=duration(longest), sinks=shown)


def history(snapshot: Snapshot, growth: Growth) -> Finding | None:
    """Check that the history file is written, with all tasks."""
    view, limit_seconds = snapshot.exporter.history, BY_ALERT[HISTORY_FAILING.alert].limit
    if view is None or (view.last_success is None and view.failing_since is None):
        return None
    failing = 0.0 if view.failing_since is None else snapshot.exporter.at - view.failing_since
    if failing >= limit_seconds:
        return HISTORY_FAILING.finding(seconds=duration(failing), error=printable(view.error))
    if growth.history_dropped > 0:
        tasks = count(growth.history_dropped, "task")
        return HISTORY_INCOMPLETE.finding(tasks=tasks, window=duration(growth.long_seconds))
    if view.failing_since is not None:  # another exporter may be about to stop
        return None
    return HISTORY_FAILING.ok(f"{count(view.tasks or 0, 'task')} in the history file")


def sink_records(snapshot: Snapshot, growth: Growth) -> Finding | None:
    """Look for records that could not be delivered."""
    if not snapshot.exporter.sinks:
        return None
    lost = {name: number for name, number in growth.lost.items() if number > 0}
    if not lost:
        return RECORDS_LOST.ok("no record was lost on its way to a sink")
    by_sink = first_of([f"{name} {number:,}" for name, number in sorted(lost.items())])
    return RECORDS_LOST.finding(window=duration(growth.long_seconds), by_sink=by_sink)
