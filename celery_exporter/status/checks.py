"""A snapshot → the findings of all health checks that apply to it.

One table of checks for the status page, the log of a running exporter, `top` and `doctor`. Pure: data and
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
from celery_exporter.status.facts import can_receive_events
from celery_exporter.status.finding import Finding
from celery_exporter.status.recent import Growth

Check = Callable[[Snapshot, Growth], Finding | None]

#: Checks of what the exporter writes, whatever the broker does.
_OF_FILES: Sequence[Check] = (broker.state, sinks.sinks, sinks.history)
#: In the order in which they are shown.
CHECKS: Sequence[Check] = (
    broker.subscription,
    broker.event_stream,
    broker.publishers,
    workers.workers,
    workers.heartbeats,
    workers.remote_control,
    broker.serializer,
    workers.task_events,
    workers.task_sent_events,
    workers.clock_skew,
    workers.worker_names,
    workers.duplicate_node_names,
    queues.queue_lengths,
    queues.queue_names,
    queues.queues_without_consumers,
    queues.unconsumed_messages,
    *_OF_FILES,
)
THRESHOLD_CHECKS: Sequence[Check] = (
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
)
#: Those that need no events.
QUEUE_THRESHOLD_CHECKS: Sequence[Check] = (
    thresholds.queue_depth,
    thresholds.oldest_messages,
    sinks.sink_records,
)


def run_checks(snapshot: Snapshot, growth: Growth) -> list[Finding]:
    """Return the findings of the checks that can decide by now, in the order of the tables.

    `growth` is what was counted up to the snapshot in the last minutes.
    """
    limits = THRESHOLD_CHECKS if can_receive_events(snapshot) else QUEUE_THRESHOLD_CHECKS
    checks = (*_applicable(snapshot), *limits)
    return [finding for check in checks if (finding := check(snapshot, growth))]


def is_decided(snapshot: Snapshot, growth: Growth) -> bool:
    """Return whether each check that applies has decided, so that more time adds no finding."""
    optional = {broker.event_stream, *_OF_FILES}
    if snapshot.exporter.blocked is None:
        optional.add(broker.publishers)
    return all(check(snapshot, growth) for check in _applicable(snapshot) if check not in optional)


def _applicable(snapshot: Snapshot) -> Sequence[Check]:
    exporter = snapshot.exporter
    if exporter.no_events:
        return (broker.transport, queues.queue_lengths, *_OF_FILES)
    if not exporter.broker_up:
        return (broker.subscription, *_OF_FILES)
    if exporter.blocked:
        return (broker.subscription, broker.publishers, queues.queue_lengths, *_OF_FILES)
    return CHECKS
