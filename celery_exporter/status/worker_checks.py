"""Checks of workers: whether they are up, reply, and send the events that they should. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable

from msgspec.structs import replace

from celery_exporter.core.snapshot import Snapshot, WorkerView
from celery_exporter.core.types import State
from celery_exporter.quoting import printable
from celery_exporter.status.facts import has_discovered, job, short, workers_up
from celery_exporter.status.finding import Finding, Problem, count, duration, first_of, names, rate
from celery_exporter.status.problems import (
    BEAT_DOWN,
    CHANGING_HOSTS,
    CLOCK_SKEW,
    INSPECTION_FAILED,
    NO_HEARTBEATS,
    NO_REPLIES,
    NO_TASK_EVENTS,
    NO_TASK_SENT_EVENTS,
    NO_TASK_SENT_EVENTS_YET,
    NO_WORKERS,
    REPLIES_REJECTED,
    SAME_HOST,
    SHARED_NAMES,
    WORKERS_DOWN,
)
from celery_exporter.status.recent import Growth
from celery_exporter.status.thresholds import LONG_WINDOW

#: Longest --heartbeat-interval of workers that is expected.
LONGEST_HEARTBEAT_INTERVAL_SECONDS = 60
#: Tolerated difference of clocks. Waiting times between two hosts are wrong by as much.
MAX_CLOCK_SKEW_SECONDS = 5.0
#: Workers of one name that are down, from which on each restart seems to make a new name.
MIN_CHANGED_HOSTS = 3

#: The error of the job `workers` when no worker replies.
NO_REPLY = "no worker replied"


def workers(snapshot: Snapshot, _: Growth) -> Finding | None:
    """Check that a worker is up; without one, a waiting task makes it critical."""
    up, down = workers_up(snapshot), [worker for worker in snapshot.workers if not worker.up]
    if up:
        also = f"; {len(down)} down" if down else ""
        return NO_WORKERS.ok(f"{count(len(up), 'worker')} up: {names(up)}{also}")
    if down:
        return _unless_idle(WORKERS_DOWN, snapshot).finding(workers=names(down))
    if not has_discovered(snapshot):
        return None
    return _unless_idle(NO_WORKERS, snapshot).finding(seconds=snapshot.exporter.listening)


def _unless_idle(problem: Problem, snapshot: Snapshot) -> Problem:
    """Return the problem, as a warning without its alert if no task waits for a worker."""
    lengths = [queue.length for queue in snapshot.queues if queue.length is not None]
    may_wait = not lengths or any(lengths) or bool(snapshot.exporter.unacked)
    return problem if may_wait else replace(problem, severity="warning", alert="")


def heartbeats(snapshot: Snapshot, _: Growth) -> Finding | None:
    """Check that each worker sends heartbeats."""
    up = workers_up(snapshot)
    if not up or not has_discovered(snapshot):
        return None
    silent = [worker for worker in up if worker.heartbeat is None]
    if not silent:
        return NO_HEARTBEATS.ok(f"heartbeats arrive from {count(len(up), 'worker')}")
    limit_seconds = LONGEST_HEARTBEAT_INTERVAL_SECONDS
    finding = NO_HEARTBEATS.finding(workers=names(silent), seconds=limit_seconds)
    is_certain = len(silent) == len(up) and snapshot.exporter.listening > limit_seconds
    return finding if is_certain else replace(finding, severity="warning")


def remote_control(snapshot: Snapshot, _: Growth) -> Finding | None:
    """Check that each worker replies to inspection."""
    up, inspection = workers_up(snapshot), job(snapshot, "workers")
    if not up or inspection is None or inspection.success is None or not has_discovered(snapshot):
        return None
    rejected = sorted(snapshot.exporter.refused_replies)
    if rejected:
        return REPLIES_REJECTED.finding(serializers=names(rejected))
    if inspection.error not in ("", NO_REPLY):
        return INSPECTION_FAILED.finding(error=short(inspection.error))
    # Before Celery 5.3 a reply does not have the kind of the pool.
    silent = [worker for worker in up if worker.pool is None and worker.pool_size is None]
    if silent:
        return NO_REPLIES.finding(workers=names(silent))
    return NO_REPLIES.ok(f"{count(len(up), 'worker')} replied")


def task_events(snapshot: Snapshot, _: Growth) -> Finding | None:
    """Check that workers which run tasks send task events."""
    up = workers_up(snapshot)
    silent = [worker for worker in up if worker.events is False]
    sending = [worker for worker in up if worker.events]
    if silent:
        noun = "worker" if len(silent) == 1 else "workers"
        finding = NO_TASK_EVENTS.finding(workers=f"{noun} {names(silent)}")
        return replace(finding, severity="warning") if sending else finding
    if sending:
        return NO_TASK_EVENTS.ok(f"task events arrive from {names(sending)}")
    if not up or not has_discovered(snapshot):
        return None
    return NO_TASK_EVENTS.ok("no task event has arrived yet, so it is unknown whether workers send them")


def task_sent_events(snapshot: Snapshot, growth: Growth) -> Finding | None:
    """Check that clients publish task-sent events."""
    if snapshot.events["task-sent"]:
        return NO_TASK_SENT_EVENTS.ok("clients publish task-sent events")
    received = snapshot.events["task-received"]
    if not received or not has_discovered(snapshot):
        return None
    recent = sum(task.transitions[State.RECEIVED] for task in growth.tasks.values())
    tasks = rate(recent, growth.seconds, "task") if recent and growth.seconds else count(received, "task")
    listening = snapshot.exporter.listening
    if listening < LONG_WINDOW and any(queue.length for queue in snapshot.queues):
        return NO_TASK_SENT_EVENTS_YET.finding(tasks=tasks, duration=duration(listening))
    return NO_TASK_SENT_EVENTS.finding(tasks=tasks)


def clock_skew(snapshot: Snapshot, _: Growth) -> Finding | None:
    """Compare the clocks of workers with the one here."""
    skews = {
        worker.name: worker.clock_skew for worker in workers_up(snapshot) if worker.clock_skew is not None
    }
    if not skews or not has_discovered(snapshot):
        return None
    wrong = {name: skew for name, skew in skews.items() if abs(skew) > MAX_CLOCK_SKEW_SECONDS}
    if not wrong:
        return CLOCK_SKEW.ok(f"worker clocks differ by {max(map(abs, skews.values())):.1f} s at most")
    is_ours = len(wrong) == len(skews) > 1 and len({skew > 0 for skew in wrong.values()}) == 1
    return CLOCK_SKEW.finding(
        skews=first_of([f"{printable(name)} by {skew:+.0f} s" for name, skew in sorted(wrong.items())]),
        host="this host, from which all differ" if is_ours else "their host",
    )


def worker_names(snapshot: Snapshot, _: Growth) -> Finding | None:
    """Look for one worker under several names, which alerts and dashboards count as several."""
    if not snapshot.workers:
        return None
    groups: dict[str, list[WorkerView]] = {}
    for worker in snapshot.workers:
        groups.setdefault(worker.name.partition("@")[0], []).append(worker)
    for group in groups.values():
        duplicates = _on_same_host(group)
        if duplicates:
            return SAME_HOST.finding(workers=names(duplicates))
    for _name, group in sorted(groups.items()):
        down = sum(not worker.up for worker in group)
        if down >= max(MIN_CHANGED_HOSTS, len(group) - down):
            return CHANGING_HOSTS.finding(number=len(group), down=down, workers=names(group))
    return SAME_HOST.ok(f"{count(len(snapshot.workers), 'name')}, each of one worker")


def beat(snapshot: Snapshot, _: Growth) -> Finding | None:
    """Check that a beat replies, if one ever has: others are not known."""
    up, down = ([beat for beat in snapshot.beats if beat.up is is_up] for is_up in (True, False))
    if up:
        also = f"; {len(down)} down" if down else ""
        return BEAT_DOWN.ok(f"{count(len(up), 'beat')} up: {names(beat.name for beat in up)}{also}")
    if not down:
        return None
    at = snapshot.exporter.at
    silent = sorted((beat.name, duration(at - beat.last_reply)) for beat in down)
    return BEAT_DOWN.finding(beats=first_of([f"{printable(name)} for {since}" for name, since in silent]))


def duplicate_node_names(snapshot: Snapshot, _: Growth) -> Finding | None:
    """Look for one node name that several workers use."""
    up = workers_up(snapshot)
    return shared_names(worker.name for worker in up if worker.shared) if up else None


def shared_names(shared: Iterable[str]) -> Finding:
    """Return the finding on node names that are each used by several workers, if any."""
    shared = sorted(shared)
    return (
        SHARED_NAMES.finding(names=names(shared))
        if shared
        else SHARED_NAMES.ok("no two workers use one node name")
    )


def _on_same_host(group: Iterable[WorkerView]) -> list[WorkerView]:
    """Return the workers of one name whose hosts differ only by domain or letter case."""
    hosts: dict[str, list[WorkerView]] = {}
    for worker in group:
        hosts.setdefault(worker.name.partition("@")[2].lower(), []).append(worker)
    duplicates = [worker for alike in hosts.values() if len(alike) > 1 for worker in alike]
    for host, alike in hosts.items():
        end = host.find(".")
        while end > 0 and not re.fullmatch(r"[\d.]+", host):  # the parts of an address are no domain
            if host[:end] in hosts:
                duplicates += [*hosts[host[:end]], *alike]
            end = host.find(".", end + 1)
    return list({worker.name: worker for worker in duplicates}.values())
