"""What is too much of something: the conditions of the shipped alerts, looked for in a snapshot.

Each is that of an alert in `thresholds.TABLE`, without the time for which that has to last. Pure. Invariant:
what is not known is no finding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

from celery_exporter.core.snapshot import Snapshot
from celery_exporter.core.types import State
from celery_exporter.quoting import printable
from celery_exporter.status.finding import Finding, count, lasting, names, some
from celery_exporter.status.recent import Growth, TaskGrowth
from celery_exporter.status.thresholds import BY_CHECK, LONG_WINDOW, POLLING_TASKS

#: Tasks of which a share is a sample; after so many seconds fewer are.
SAMPLE, SAMPLE_SECONDS = 30, 60.0

Check = Callable[[Snapshot, Growth], Finding | None]


def exceeded(snapshot: Snapshot, growth: Growth, *, events: bool) -> list[Finding]:
    """Return what each check found that can be decided by now, in the order of the table.

    Where no `events` can come, those of queues, which the broker tells of.
    """
    checks = LIMITS if events else OF_QUEUES
    return [finding for check in checks if (finding := check(snapshot, growth))]


def _judged(check: str, found: str, remedy: str, *, is_over: bool) -> Finding:
    """Return the finding of a check with a row in the table; a warning, for it may not last."""
    if not is_over:
        return Finding(check, "ok", found)
    row = BY_CHECK[check]
    return Finding(check, "warning", found, remedy, row.alert)


def _limit(check: str) -> float:
    return BY_CHECK[check].limit


# -- shares of tasks -------------------------------------------------------------------------------------


def _failures(_: Snapshot, growth: Growth) -> Finding | None:
    failed = {name: each.transitions[State.FAILURE] for name, each in growth.tasks.items()}
    ended = sum(failed.values()) + _sum(growth.tasks.values(), State.SUCCESS)
    if not ended:
        return None
    of_all = f"{count(ended, 'task')} that ended in {lasting(growth.seconds)}"
    share = sum(failed.values()) / ended
    return _judged(
        "failures",
        f"{sum(failed.values()):,} of {of_all} failed ({share:.1%}){_whose(failed)}",
        "celery_task_failures_total and the status page have the exceptions; usual causes: a release, an API "
        "or a database that the tasks need, a time limit, a worker that ran out of memory",
        is_over=share > _limit("failures") and _is_enough(ended, growth),
    )


def _retries(_: Snapshot, growth: Growth) -> Finding | None:
    tasks = {name: each for name, each in growth.tasks.items() if name not in POLLING_TASKS}
    retried = {name: each.transitions[State.RETRY] for name, each in tasks.items()}
    begun = _sum(tasks.values(), State.STARTED)
    if not begun:
        return None
    of_all = f"{count(begun, 'task')} started in {lasting(growth.seconds)}"
    share = sum(retried.values()) / begun
    return _judged(
        "retries",
        f"{sum(retried.values()):,} of {of_all} ended in a retry ({share:.1%}){_whose(retried)}",
        "look for what autoretry_for of these tasks waits for (an API, a lock, a mail server), and for a "
        "retry_backoff that is too short for it",
        is_over=share > _limit("retries") and _is_enough(begun, growth),
    )


def _redeliveries(_: Snapshot, growth: Growth) -> Finding | None:
    shares = {
        name: each.redeliveries / received
        for name, each in growth.tasks.items()
        if (received := each.transitions[State.RECEIVED])
    }
    if not shares:
        return None
    over = _above(shares, _limit("redeliveries"))
    if not over:
        return Finding("redeliveries", "ok", "no task is delivered again and again")
    return _judged(
        "redeliveries",
        f"delivered again, of all in {lasting(growth.seconds)}: {_listed(over, '{:.0%}'.format)}",
        "on Redis a visibility_timeout (broker_transport_options) above the longest task and countdown; for "
        "workers that are killed in the middle of a task, more memory, and more time to stop",
        is_over=True,
    )


def _is_enough(tasks: int, growth: Growth) -> bool:
    """Tell whether a share says something: right after a start a few tasks are no sample."""
    return tasks >= SAMPLE or growth.seconds >= SAMPLE_SECONDS


def _sum(tasks: Iterable[TaskGrowth], state: State) -> int:
    return sum(each.transitions[state] for each in tasks)


def _whose(counts: Mapping[str, int]) -> str:
    """Return whose these are for the most part, to be added to a sentence."""
    whose = _listed(_above(counts, 0), "{:,}".format)
    return f": {whose}" if whose else ""


# -- times -------------------------------------------------------------------------------------------------


def _slow(_: Snapshot, growth: Growth) -> Finding | None:
    means = {name: each.mean_runtime for name, each in growth.tasks.items() if each.mean_runtime is not None}
    if not means:
        return None
    over = _above(means, _limit("slow-tasks"))
    found = f"mean run times are {lasting(_limit('slow-tasks'))} at most"
    if over:
        found = f"mean run time in {lasting(growth.seconds)}: {_listed(over, lasting)}"
    return _judged(
        "slow-tasks",
        found,
        "celery -A yourapp inspect active shows where they are: look at what they wait for, and at the load "
        "of the workers' hosts",
        is_over=bool(over),
    )


def _stuck(snapshot: Snapshot, _: Growth) -> Finding | None:
    now, started = snapshot.exporter.at, State.STARTED
    groups = (each for each in snapshot.tasks if each.state is started and each.since is not None)
    ages: dict[str, float] = {}
    for group in groups:
        name, age = group.label_set.task_name, now - (group.since or now)
        ages[name] = max(age, ages.get(name, age))
    over = _above(ages, _limit("stuck-tasks"))
    if not over and snapshot.exporter.listening < _limit("stuck-tasks"):
        return None
    found = f"no task has run for longer than {lasting(_limit('stuck-tasks'))}"
    if over:
        found = f"started, and not ended since: {_listed(over, lasting)}"
    return _judged(
        "stuck-tasks",
        found,
        "celery -A yourapp inspect active shows where it runs; task_time_limit ends one that hangs; if no "
        "worker has it, its worker was lost",
        is_over=bool(over),
    )


def _orphans(_: Snapshot, growth: Growth) -> Finding | None:
    if growth.orphans is None:
        return None
    is_over = growth.orphans > _limit("orphaned-tasks")
    found = "all tasks that were started and have not ended are with a worker"
    if is_over:
        found = (
            f"{growth.orphans:,.1f} tasks, on average, were started, have not ended, and are with no worker"
        )
    return _judged(
        "orphaned-tasks",
        found,
        "see which workers went down, and why (kubectl describe, dmesg: out of memory); with "
        "task_acks_late = True such tasks run again, where they may",
        is_over=is_over,
    )


# -- queues ------------------------------------------------------------------------------------------------


def _depths(snapshot: Snapshot, _: Growth) -> Finding | None:
    lengths = {queue.name: queue.length for queue in snapshot.queues if queue.length is not None}
    if not lengths:
        return None
    over = _above(lengths, _limit("queue-depth"))
    found = f"no queue is longer than {_limit('queue-depth'):,.0f} messages"
    if over:
        found = f"messages wait: {_listed(over, '{:,}'.format)}"
    return _judged("queue-depth", found, _MORE_WORKERS, is_over=bool(over))


def _waits(_: Snapshot, growth: Growth) -> Finding | None:
    if not growth.waits:
        return None
    over = _above(growth.waits, _limit("queue-waits"))
    found = f"95 % of the tasks wait no longer than {lasting(_limit('queue-waits'))}"
    if over:
        of_tasks = f"5 % of the tasks started in {lasting(growth.seconds)}"
        found = f"{of_tasks} had waited longer than: {_listed(over, lasting)}"
    return _judged("queue-waits", found, _MORE_WORKERS, is_over=bool(over))


def _oldest(snapshot: Snapshot, _: Growth) -> Finding | None:
    now = snapshot.exporter.at
    ages = {queue.name: now - queue.oldest for queue in snapshot.queues if queue.oldest is not None}
    if not ages:
        return None
    over = _above(ages, _limit("oldest-messages"))
    found = f"no message waits for longer than {lasting(_limit('oldest-messages'))}"
    if over:
        found = f"the message at the head has waited: {_listed(over, lasting)}"
    return _judged("oldest-messages", found, _MORE_WORKERS, is_over=bool(over))


_MORE_WORKERS = (
    "more workers, or processes for each (-c), for these queues; or find what sends so much, or what makes "
    "its tasks slow"
)


# -- workers, and what is counted of them --------------------------------------------------------------------


def _silent(snapshot: Snapshot, _: Growth) -> Finding | None:
    """Look for workers that went down without a goodbye, as the alert in the window in which they did."""
    if not snapshot.workers:
        return None
    silent = [
        worker
        for worker in snapshot.workers
        if not worker.up and not worker.left and (worker.down_for or 0.0) < LONG_WINDOW
    ]
    if not silent and snapshot.exporter.listening < LONG_WINDOW:
        return None
    found = "no worker has fallen silent"
    if silent:
        found = f"fell silent without a goodbye: {names(silent)}"
    return _judged(
        "silent-workers",
        found,
        "see whether it runs, and why not (kubectl describe, journalctl, dmesg: out of memory); what it was "
        "executing may be lost, or be delivered again",
        is_over=bool(silent),
    )


def _missed(_: Snapshot, growth: Growth) -> Finding | None:
    """Compare what workers have processed, by their own count, with the events received from them."""
    processed = sum(each.processed for each in growth.workers.values())
    missed = sum(each.missed for each in growth.workers.values())
    if not processed:
        return None
    whose = names(name for name, each in growth.workers.items() if each.missed)
    but = f" but {missed:,} ({whose})" if missed else ""
    return _judged(
        "missed-events",
        f"of {count(processed, 'task')} processed in {lasting(growth.long_seconds)} all{but} are counted",
        "keep the exporter running (with --event-queue-durable RabbitMQ keeps events while it is away), give "
        "it processor time, and Redis a larger client-output-buffer-limit for pubsub: the check "
        "output-buffer of celery-exporter doctor has the command",
        is_over=missed > processed * _limit("missed-events"),
    )


def _series(_: Snapshot, growth: Growth) -> Finding | None:
    is_over = growth.folded > 0
    found = "no task is newly counted as other"
    if is_over:
        times = f"{growth.folded:,} times in {lasting(growth.long_seconds)}"
        found = f"a task or an exception was counted as other, {times}"
    return _judged(
        "series",
        found,
        "--max-series larger, if names are meant to be so many; or --task-name-rule, or --task-exclude, for "
        "names that are made at run time",
        is_over=is_over,
    )


#: Those for which no event has to come.
OF_QUEUES: Sequence[Check] = (_depths, _oldest)
#: In this order they are shown.
LIMITS: Sequence[Check] = (
    _failures,
    _retries,
    _redeliveries,
    _slow,
    _stuck,
    _orphans,
    _depths,
    _waits,
    _oldest,
    _silent,
    _missed,
    _series,
)


# -- what they have in common --------------------------------------------------------------------------------


def _above(values: Mapping[str, float], limit: float) -> dict[str, float]:
    """Return what is above a limit, the most first."""
    over = [(name, value) for name, value in values.items() if value > limit]
    return dict(sorted(over, key=lambda each: (-each[1], each[0])))


def _listed(values: Mapping[str, float], shown: Callable[[float], str]) -> str:
    return some([f"{printable(name) or 'all'} {shown(value)}" for name, value in values.items()])
