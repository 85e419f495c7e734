"""The same sums from both sides: from the ledger, and from what the exporter shows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator

from harness.exporter import Samples
from harness.outcomes import EXCEPTION_PREFIX, REDELIVERED, Outcome

Sums = dict[tuple[str, ...], int]

STATES = ("PENDING", "RECEIVED", "STARTED", "SUCCESS", "FAILURE", "RETRY", "REVOKED", "REJECTED")
RAN = ("SUCCESS", "FAILURE", "RETRY")
UNKNOWN = "unknown"
PLACE = ("task_name", "queue_name", "worker")
#: What is compared: a metric, and the labels that it is summed up by.
TASKS = ("celery_tasks_total", *PLACE, "state")
FAILURES = ("celery_task_failures_total", *PLACE, "exception")
RUNS = ("celery_task_runtime_seconds_count", *PLACE, "state")
QUEUED = ("celery_task_queue_wait_seconds_count", *PLACE)
PREFETCHED = ("celery_task_prefetch_wait_seconds_count", *PLACE)
#: Not by worker: of two workers that receive a task at a time, who is the second one depends on who is asked.
REDELIVERIES = ("celery_task_redeliveries_total", "task_name", "queue_name")
COMPARED = (TASKS, FAILURES, RUNS, QUEUED, PREFETCHED, REDELIVERIES)


def shown(samples: Samples) -> Sums:
    """Return what the exporter shows: {(metric, label values): sum}, without zeros."""
    return {
        (name, *values): int(count)
        for name, *labels in COMPARED
        for values, count in samples.by(name, *labels).items()
        if count
    }


def written(entries: Counter[Outcome], is_introduced: Callable[[str], bool] = lambda _: True) -> Sums:
    """Return what the ledger says, in the same form. `is_introduced` tells of a task's name whether its
    task-sent was published, without which its first time in the queue is not known.
    """
    sums: Counter[tuple[str, ...]] = Counter()
    for entry, count in entries.items():
        for key, factor in _consequences(entry, entry.task != UNKNOWN and is_introduced(entry.task)):
            sums[key] += factor * count
    return {key: count for key, count in sums.items() if count}


def _consequences(entry: Outcome, introduced: bool) -> Iterator[tuple[tuple[str, ...], int]]:
    """Yield what one such entry adds to which sums."""
    task, queue, state, worker = entry
    place = (task, queue, worker)
    if state in STATES:
        yield (TASKS[0], *place, state), 1
    if state in RAN:
        yield (RUNS[0], *place, state), 1
    if state == "STARTED" and task != UNKNOWN:
        yield (PREFETCHED[0], *place), 1
    if state == ("STARTED" if introduced else REDELIVERED):  # what is redelivered waits from then on
        yield (QUEUED[0], *place), 1
    if state == REDELIVERED:
        yield (REDELIVERIES[0], task, queue), 1
    if state.startswith(EXCEPTION_PREFIX):
        yield (FAILURES[0], *place, state.removeprefix(EXCEPTION_PREFIX)), 1
    if state == EXCEPTION_PREFIX + "NotRegistered":  # it failed without having run
        yield (RUNS[0], *place, "FAILURE"), -1


def differences(got: Sums, want: Sums) -> dict[tuple[str, ...], tuple[int, int]]:
    """Return the sums that differ: {(metric, label values): (shown, written)}."""
    keys = got.keys() | want.keys()
    return {
        key: (got.get(key, 0), want.get(key, 0))
        for key in sorted(keys)
        if got.get(key, 0) != want.get(key, 0)
    }


def excesses(got: Sums, want: Sums) -> dict[tuple[str, ...], tuple[int, int]]:
    """Return where more was counted than happened in any queue: {(task, worker, state): (shown, written)}.

    Of a task whose task-sent was lost the queue is `unknown`, and if its task-received was lost, too, so is
    the name: it is one of those that miss such a transition. Its transitions were still there, or were not.
    """
    mine, true = _by_task(got), _by_task(want)
    named = [key for key in true if key[0] != UNKNOWN]
    for unknown in [key for key in mine if key[0] == UNKNOWN]:
        alike = (key for key in named if key[1:] == unknown[1:])
        true[unknown] += sum(max(0, true[key] - mine[key]) for key in alike)
    return {key: (count, true[key]) for key, count in sorted(mine.items()) if count > true[key]}


def _by_task(sums: Sums) -> Counter[tuple[str, ...]]:
    found: Counter[tuple[str, ...]] = Counter()
    for (metric, *values), count in sums.items():
        if metric == TASKS[0]:
            task, _, worker, state = values
            found[task, worker, state] += count
    return found
