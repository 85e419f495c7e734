"""Failures by exception and task, from the sums of a snapshot and its newest failures. Pure."""

from __future__ import annotations

from collections.abc import Iterable

from celery_exporter.core.aggregates import Failure
from celery_exporter.core.snapshot import Snapshot
from celery_exporter.core.task_names import clipped
from celery_exporter.status.model import FailureGroup

#: Groups in a status. The others have the fewest failures.
MAX_GROUPS = 200


def failure_groups(snapshot: Snapshot) -> list[FailureGroup]:
    """Return the groups with the newest failures first, then those with the most failures."""
    totals: dict[tuple[str, str], int] = {}
    for label_set, aggregate in snapshot.aggregates.items():
        for exception, count in aggregate.exceptions.items():
            key = (exception, label_set.task_name)
            totals[key] = totals.get(key, 0) + count
    recent: dict[tuple[str, str], list[Failure]] = {}
    for failure in snapshot.failures:  # newest first
        recent.setdefault((clipped(failure.exception), failure.label_set.task_name), []).append(failure)
    keys = sorted(totals, key=lambda key: (-_last(recent.get(key, ())), -totals[key], key))
    return [_group(key, totals[key], recent.get(key, [])) for key in keys[:MAX_GROUPS] if totals[key]]


def _last(failures: Iterable[Failure]) -> float:
    return max((failure.at for failure in failures), default=0.0)


def _group(key: tuple[str, str], total: int, recent: list[Failure]) -> FailureGroup:
    exception, task = key
    newest = recent[0] if recent else None
    return FailureGroup(
        exception,
        task,
        total,
        len(recent),
        newest.at if newest else None,
        newest.worker if newest else "",
        newest.uuid if newest else "",
    )
