"""A snapshot → the findings of all health checks that apply to it.

One table of checks for the pages, the log of a running exporter, `top` and `doctor`. Pure: data and
time come in. Invariant: a check returns None as long as it cannot decide. Checks of workers and tasks run
only while events can arrive, since nothing is known of them otherwise.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from celery_exporter.core.snapshot import Snapshot
from celery_exporter.status import broker_checks as broker
from celery_exporter.status import queue_checks as queues
from celery_exporter.status import sink_checks as sinks
from celery_exporter.status import threshold_checks as thresholds
from celery_exporter.status import worker_checks as workers
from celery_exporter.status.expected_checks import expected_tasks
from celery_exporter.status.facts import can_receive_events
from celery_exporter.status.finding import Finding
from celery_exporter.status.recent import Growth

Check = Callable[[Snapshot, Growth], Finding | None]

#: All checks, in the order in which their findings are shown: what explains others is above them.
BY_CAUSE: Sequence[Check] = (
    broker.transport,
    broker.subscription,
    broker.publishers,
    broker.serializer,
    broker.event_stream,
    thresholds.missed_events,
    workers.duplicate_node_names,
    workers.workers,
    workers.beat,
    expected_tasks,
    thresholds.silent_workers,
    workers.heartbeats,
    workers.task_events,
    workers.task_sent_events,
    workers.remote_control,
    workers.clock_skew,
    workers.worker_names,
    queues.queue_lengths,
    queues.queue_names,
    queues.queues_without_consumers,
    queues.unconsumed_messages,
    thresholds.slow_tasks,
    thresholds.failures,
    thresholds.retries,
    thresholds.redeliveries,
    thresholds.orphaned_tasks,
    thresholds.stuck_tasks,
    thresholds.queue_depth,
    thresholds.oldest_messages,
    thresholds.queue_waits,
    thresholds.series,
    broker.state,
    sinks.sinks,
    sinks.sink_records,
    sinks.history,
)
#: Checks of what the exporter writes, whatever the broker does.
_OF_FILES = frozenset({broker.state, sinks.sinks, sinks.history})
THRESHOLD_CHECKS: frozenset[Check] = frozenset(
    {
        thresholds.failures,
        thresholds.retries,
        thresholds.redeliveries,
        thresholds.slow_tasks,
        thresholds.stuck_tasks,
        thresholds.orphaned_tasks,
        thresholds.queue_depth,
        thresholds.queue_waits,
        thresholds.oldest_messages,
        thresholds.silent_workers,
        thresholds.missed_events,
        thresholds.series,
        sinks.sink_records,
    }
)
#: Those that need no events.
QUEUE_THRESHOLD_CHECKS: frozenset[Check] = frozenset(
    {thresholds.queue_depth, thresholds.oldest_messages, sinks.sink_records}
)
#: Those that need events.
CHECKS = frozenset(BY_CAUSE) - THRESHOLD_CHECKS - {broker.transport}


def run_checks(snapshot: Snapshot, growth: Growth) -> list[Finding]:
    """Return the findings of the checks that can decide by now, in the order of `BY_CAUSE`.

    `growth` is what was counted up to the snapshot in the last minutes.
    """
    limits = THRESHOLD_CHECKS if can_receive_events(snapshot) else QUEUE_THRESHOLD_CHECKS
    if snapshot.exporter.active is False:  # the active one checks these
        limits = frozenset()
    checks = _applicable(snapshot) | limits
    return [finding for check in BY_CAUSE if check in checks and (finding := check(snapshot, growth))]


def is_decided(snapshot: Snapshot, growth: Growth) -> bool:
    """Return whether each check that applies has decided, so that more time adds no finding."""
    optional = {broker.event_stream, workers.beat, expected_tasks, *_OF_FILES}
    if snapshot.exporter.blocked is None:
        optional.add(broker.publishers)
    return all(check(snapshot, growth) for check in _applicable(snapshot) - optional)


def _applicable(snapshot: Snapshot) -> frozenset[Check]:
    exporter = snapshot.exporter
    if exporter.no_events:
        return _OF_FILES | {broker.transport, queues.queue_lengths}
    if not exporter.broker_up:
        return _OF_FILES | {broker.subscription}
    if exporter.active is False:
        return _OF_FILES | {broker.subscription, broker.publishers}
    if exporter.blocked:
        return _OF_FILES | {broker.subscription, broker.publishers, queues.queue_lengths}
    return CHECKS
