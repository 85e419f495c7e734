"""The same sums from two sources: the recorded outcomes, and the metrics of the exporter."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator

from harness.exporter import Samples
from harness.outcomes import EXCEPTION_PREFIX, REDELIVERED, RETRIES_EXCEEDED, Outcome

Sums = dict[tuple[str, ...], int]

STATES = ("PENDING", "RECEIVED", "STARTED", "SUCCESS", "FAILURE", "RETRY", "REVOKED", "REJECTED")
STATES_WITH_RUNTIME = ("SUCCESS", "FAILURE", "RETRY")
UNKNOWN = "unknown"
LABELS = ("task_name", "queue_name", "worker")
#: The compared metrics, with the labels by which they are summed.
TASKS = ("celery_tasks_total", *LABELS, "state")
FAILURES = ("celery_task_failures_total", *LABELS, "exception")
EXCEEDED = ("celery_task_retries_exceeded_total", *LABELS)
RUNTIMES = ("celery_task_runtime_seconds_count", *LABELS, "state")
QUEUE_WAITS = ("celery_task_queue_wait_seconds_count", *LABELS)
PREFETCH_WAITS = ("celery_task_prefetch_wait_seconds_count", *LABELS)
#: Without the worker: if two workers receive a task at the same time, outcomes and exporter may differ in the
#: order.
REDELIVERIES = ("celery_task_redeliveries_total", "task_name", "queue_name")
COMPARED = (TASKS, FAILURES, EXCEEDED, RUNTIMES, QUEUE_WAITS, PREFETCH_WAITS, REDELIVERIES)


def exposed_sums(samples: Samples) -> Sums:
    """Return the sums of the exporter, without zeros: {(metric, label values): sum}."""
    return {
        (name, *values): int(count)
        for name, *labels in COMPARED
        for values, count in samples.by(name, *labels).items()
        if count
    }


def recorded_sums(entries: Counter[Outcome], has_sent_event: Callable[[str], bool] = lambda _: True) -> Sums:
    """Return the sums of the recorded outcomes, in the same form.

    `has_sent_event` returns whether `task-sent` was published for a task name. Without it, the first queue
    wait is unknown.
    """
    sums: Counter[tuple[str, ...]] = Counter()
    for entry, count in entries.items():
        for key, factor in _contributions(entry, entry.task != UNKNOWN and has_sent_event(entry.task)):
            sums[key] += factor * count
    return {key: count for key, count in sums.items() if count}


def _contributions(entry: Outcome, is_sent_known: bool) -> Iterator[tuple[tuple[str, ...], int]]:
    """Yield the sums that an entry belongs to, with the amounts that it adds."""
    task, queue, state, worker = entry
    labels = (task, queue, worker)
    if state in STATES:
        yield (TASKS[0], *labels, state), 1
    if state in STATES_WITH_RUNTIME:
        yield (RUNTIMES[0], *labels, state), 1
    if state == "STARTED" and task != UNKNOWN:
        yield (PREFETCH_WAITS[0], *labels), 1
    if state == ("STARTED" if is_sent_known else REDELIVERED):  # a redelivered task waits from its redelivery
        yield (QUEUE_WAITS[0], *labels), 1
    if state == REDELIVERED:
        yield (REDELIVERIES[0], task, queue), 1
    if state.startswith(EXCEPTION_PREFIX):
        yield (FAILURES[0], *labels, state.removeprefix(EXCEPTION_PREFIX)), 1
    if state == RETRIES_EXCEEDED:
        yield (EXCEEDED[0], *labels), 1
    if state == EXCEPTION_PREFIX + "NotRegistered":  # a failure without a run
        yield (RUNTIMES[0], *labels, "FAILURE"), -1


def differences(exposed: Sums, recorded: Sums) -> dict[tuple[str, ...], tuple[int, int]]:
    """Return the sums that differ: {(metric, label values): (exposed, recorded)}."""
    keys = exposed.keys() | recorded.keys()
    return {
        key: (exposed.get(key, 0), recorded.get(key, 0))
        for key in sorted(keys)
        if exposed.get(key, 0) != recorded.get(key, 0)
    }


def excesses(exposed: Sums, recorded: Sums) -> dict[tuple[str, ...], tuple[int, int]]:
    """Return sums that are too high: {(task, worker, state): (exposed, recorded)}.

    A task whose task-sent was lost has the queue `unknown`. If its task-received was lost, too, its name is
    also `unknown`. Such a transition may then belong to any task that lacks a transition of this kind.
    """
    counted, actual = _by_task(exposed), _by_task(recorded)
    named = [key for key in actual if key[0] != UNKNOWN]
    for unknown in [key for key in counted if key[0] == UNKNOWN]:
        candidates = (key for key in named if key[1:] == unknown[1:])
        actual[unknown] += sum(max(0, actual[key] - counted[key]) for key in candidates)
    return {key: (count, actual[key]) for key, count in sorted(counted.items()) if count > actual[key]}


def _by_task(sums: Sums) -> Counter[tuple[str, ...]]:
    totals: Counter[tuple[str, ...]] = Counter()
    for (metric, *values), count in sums.items():
        if metric == TASKS[0]:
            task, _, worker, state = values
            totals[task, worker, state] += count
    return totals
