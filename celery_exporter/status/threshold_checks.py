"""Checks with a threshold: the conditions of the shipped alerts, looked for in a snapshot. Pure.

Each has the limit of its alert in `thresholds.TABLE`, without the time for which the alert is pending.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from msgspec.structs import replace

from celery_exporter.core.queues import is_event_queue
from celery_exporter.core.snapshot import Snapshot
from celery_exporter.core.types import State
from celery_exporter.quoting import printable
from celery_exporter.status.finding import Finding, Problem, count, duration, first_of, names
from celery_exporter.status.problems import (
    EVENTS_MISSED,
    FAILURES,
    LONG_EVENT_QUEUES,
    LONG_QUEUES,
    LONG_WAITS,
    OLD_MESSAGES,
    ORPHANED_TASKS,
    REDELIVERIES,
    RETRIES,
    SERIES_OVERFLOW,
    SLOW_TASKS,
    STUCK_TASKS,
    WORKERS_LOST,
)
from celery_exporter.status.recent import Growth, TaskGrowth
from celery_exporter.status.thresholds import BY_ALERT, LONG_WINDOW, POLLING_TASKS

#: Tasks of which a share is a sample; a share of fewer counts after this time.
MIN_SAMPLE_TASKS, MIN_SAMPLE_SECONDS = 30, 60.0


def _limit(problem: Problem) -> float:
    return BY_ALERT[problem.alert].limit


# -- shares of tasks -------------------------------------------------------------------------------------


def failures(_: Snapshot, growth: Growth) -> Finding | None:
    """Compare the tasks that failed with all that ended."""
    failed = {name: task.transitions[State.FAILURE] for name, task in growth.tasks.items()}
    ended = sum(failed.values()) + _sum(growth.tasks.values(), State.SUCCESS)
    if not ended:
        return None
    total, tasks, window = sum(failed.values()), count(ended, "task"), duration(growth.seconds)
    share = total / ended
    if share > _limit(FAILURES) and _is_sample(ended, growth):
        by_task = _listed(_above(failed, 0), "{:,}".format)
        return FAILURES.finding(failed=total, tasks=tasks, window=window, share=share, by_task=by_task)
    return FAILURES.ok(f"{total:,} of {tasks} that ended in {window} failed ({share:.1%})")


def retries(_: Snapshot, growth: Growth) -> Finding | None:
    """Compare the executions that ended in a retry with all that started."""
    counted = {name: task for name, task in growth.tasks.items() if name not in POLLING_TASKS}
    retried = {name: task.transitions[State.RETRY] for name, task in counted.items()}
    started = _sum(counted.values(), State.STARTED)
    if not started:
        return None
    total, tasks, window = sum(retried.values()), count(started, "task"), duration(growth.seconds)
    share = total / started
    if share > _limit(RETRIES) and _is_sample(started, growth):
        by_task = _listed(_above(retried, 0), "{:,}".format)
        return RETRIES.finding(retried=total, tasks=tasks, window=window, share=share, by_task=by_task)
    return RETRIES.ok(f"{total:,} of {tasks} started in {window} ended in a retry ({share:.1%})")


def redeliveries(_: Snapshot, growth: Growth) -> Finding | None:
    """Compare the redelivered tasks of each name with all that were received."""
    shares = {
        name: task.redeliveries / received
        for name, task in growth.tasks.items()
        if (received := task.transitions[State.RECEIVED])
    }
    if not shares:
        return None
    over = _above(shares, _limit(REDELIVERIES))
    if over:
        return REDELIVERIES.finding(window=duration(growth.seconds), by_task=_listed(over, "{:.0%}".format))
    return REDELIVERIES.ok(f"at most {_limit(REDELIVERIES):.0%} of the tasks of each name are redelivered")


def _is_sample(tasks: int, growth: Growth) -> bool:
    """Return whether so many tasks are a sample, which a few right after a start are not."""
    return tasks >= MIN_SAMPLE_TASKS or growth.seconds >= MIN_SAMPLE_SECONDS


def _sum(tasks: Iterable[TaskGrowth], state: State) -> int:
    return sum(task.transitions[state] for task in tasks)


# -- times -----------------------------------------------------------------------------------------------


def slow_tasks(_: Snapshot, growth: Growth) -> Finding | None:
    """Look for task names with a long mean run time."""
    means = {name: task.mean_runtime for name, task in growth.tasks.items() if task.mean_runtime is not None}
    if not means:
        return None
    over = _above(means, _limit(SLOW_TASKS))
    if over:
        return SLOW_TASKS.finding(window=duration(growth.seconds), by_task=_listed(over, duration))
    return SLOW_TASKS.ok(f"mean run times are {duration(_limit(SLOW_TASKS))} at most")


def stuck_tasks(snapshot: Snapshot, _: Growth) -> Finding | None:
    """Look for tasks that started long ago and have not ended."""
    now = snapshot.exporter.at
    ages: dict[str, float] = {}
    for group in snapshot.tasks:
        if group.state is State.STARTED and group.since is not None:
            name, age = group.label_set.task_name, now - group.since
            ages[name] = max(age, ages.get(name, age))
    over = _above(ages, _limit(STUCK_TASKS))
    if over:
        return STUCK_TASKS.finding(by_task=_listed(over, duration))
    if snapshot.exporter.listening < _limit(STUCK_TASKS):
        return None
    return STUCK_TASKS.ok(f"no task has run for longer than {duration(_limit(STUCK_TASKS))}")


def orphaned_tasks(_: Snapshot, growth: Growth) -> Finding | None:
    """Look for started tasks that no worker has."""
    if growth.orphans is None:
        return None
    if growth.orphans > _limit(ORPHANED_TASKS):
        return ORPHANED_TASKS.finding(tasks=growth.orphans)
    return ORPHANED_TASKS.ok("all tasks that were started and have not ended are with a worker")


# -- queues ----------------------------------------------------------------------------------------------


def queue_depth(snapshot: Snapshot, _: Growth) -> Finding | None:
    """Look for long queues."""
    lengths = {queue.name: queue.length for queue in snapshot.queues if queue.length is not None}
    if not lengths:
        return None
    over = _above(lengths, _limit(LONG_QUEUES))
    if over:
        by_queue = _listed(over, "{:,}".format)
        if all(map(is_event_queue, over)):
            return LONG_EVENT_QUEUES.finding(by_queue=by_queue)
        finding = LONG_QUEUES.finding(by_queue=by_queue)
        if any(map(is_event_queue, over)):
            return replace(finding, remedy=f"{finding.remedy}; {LONG_EVENT_QUEUES.remedy}")
        return finding
    return LONG_QUEUES.ok(f"no queue is longer than {_limit(LONG_QUEUES):,.0f} messages")


def queue_waits(_: Snapshot, growth: Growth) -> Finding | None:
    """Look for queues in which one of twenty tasks waited for long."""
    if not growth.waits:
        return None
    over = _above(growth.waits, _limit(LONG_WAITS))
    if over:
        return LONG_WAITS.finding(window=duration(growth.seconds), by_queue=_listed(over, duration))
    return LONG_WAITS.ok(f"95 % of the tasks wait no longer than {duration(_limit(LONG_WAITS))}")


def oldest_messages(snapshot: Snapshot, _: Growth) -> Finding | None:
    """Look for queues whose oldest message is old."""
    now = snapshot.exporter.at
    ages = {queue.name: now - queue.oldest for queue in snapshot.queues if queue.oldest is not None}
    if not ages:
        return None
    over = _above(ages, _limit(OLD_MESSAGES))
    if over:
        return OLD_MESSAGES.finding(by_queue=_listed(over, duration))
    return OLD_MESSAGES.ok(f"no message waits for longer than {duration(_limit(OLD_MESSAGES))}")


# -- workers, and what is counted of them ----------------------------------------------------------------


def silent_workers(snapshot: Snapshot, _: Growth) -> Finding | None:
    """Look for workers that went down without a worker-offline event, in the window of the alert."""
    if not snapshot.workers:
        return None
    lost = [
        worker
        for worker in snapshot.workers
        if not worker.up and not worker.left and (worker.down_for or 0.0) < LONG_WINDOW
    ]
    if lost:
        return WORKERS_LOST.finding(workers=names(lost))
    if snapshot.exporter.listening < LONG_WINDOW:
        return None
    return WORKERS_LOST.ok("no worker went down without a worker-offline event")


def missed_events(_: Snapshot, growth: Growth) -> Finding | None:
    """Compare what workers have processed, by their own count, with the events received from them."""
    processed = sum(worker.processed for worker in growth.workers.values())
    missed = {name: worker.missed for name, worker in growth.workers.items() if worker.missed}
    if not processed:
        return None
    total, tasks, window = sum(missed.values()), count(processed, "task"), duration(growth.long_seconds)
    if total > processed * _limit(EVENTS_MISSED):
        return EVENTS_MISSED.finding(missed=total, tasks=tasks, window=window, workers=names(missed))
    return EVENTS_MISSED.ok(f"events were missed for {total:,} of {tasks} processed in {window}")


def series(_: Snapshot, growth: Growth) -> Finding | None:
    """Look for names that were counted as `other` because a limit was reached."""
    if growth.overflowed:
        return SERIES_OVERFLOW.finding(times=growth.overflowed, window=duration(growth.long_seconds))
    return SERIES_OVERFLOW.ok("no task or exception was newly counted as other")


# -- shared ----------------------------------------------------------------------------------------------


def _above(values: Mapping[str, float], limit: float) -> dict[str, float]:
    """Return the values above a limit, the highest first."""
    over = [(name, value) for name, value in values.items() if value > limit]
    return dict(sorted(over, key=lambda item: (-item[1], item[0])))


def _listed(values: Mapping[str, float], shown: Callable[[float], str]) -> str:
    return first_of([f"{printable(name) or 'all'} {shown(value)}" for name, value in values.items()])
