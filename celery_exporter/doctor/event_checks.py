"""What was heard and answered → findings: those of `run_checks`, and what only one who asks can tell."""

from __future__ import annotations

from collections import Counter

import msgspec

from celery_exporter.broker.codecs import CONTENT_TYPES
from celery_exporter.broker.inspect import Configuration
from celery_exporter.core.queues import MAX_QUEUES
from celery_exporter.core.snapshot import Snapshot, WorkerView
from celery_exporter.doctor.listener import ListenResult
from celery_exporter.doctor.remedies import place_of, to_ask, to_ask_workers, to_forget, to_measure
from celery_exporter.monitor.config import MonitorConfig
from celery_exporter.quoting import shell_word
from celery_exporter.status.checks import (
    ASK_DOCTOR,
    ENABLE_EVENTS,
    LONGEST_INTERVAL,
    PATIENCE,
    can_hear,
    idle_queues,
    run_checks,
    same_names,
    too_many_queues,
)
from celery_exporter.status.finding import MOST_NAMES, Finding, Severity, names

#: In this order they are told.
_ORDER = (
    "listening",
    "subscription",
    "event-stream",
    "publishers",
    "first-event",
    "serializer",
    "workers",
    "worker-versions",
    "worker-names",
    "duplicate-node-names",
    "heartbeats",
    "remote-control",
    "clock-skew",
    "task-events",
    "task-sent-events",
    "queue-lengths",
    "queue-names",
    "queues-without-consumers",
    "unconsumed-messages",
    "failures",
    "retries",
    "redeliveries",
    "slow-tasks",
    "stuck-tasks",
    "orphaned-tasks",
    "queue-depth",
    "queue-waits",
    "oldest-messages",
    "silent-workers",
    "missed-events",
    "series",
)

#: Check → who asked the broker, and what mends it.
_MENDS = {"remote-control": ("workers", to_ask_workers), "queue-lengths": ("queues", to_measure)}

_NAMES = {kind: name for name, kind in CONTENT_TYPES.items()}


def run_event_checks(heard: ListenResult, config: MonitorConfig) -> list[Finding]:
    """Return the findings of a while of listening; `config` are those that were given."""
    # The listener asked for all queues that the broker has.
    heard = msgspec.structs.replace(
        heard, snapshot=msgspec.structs.replace(heard.snapshot, requested=config.queues)
    )
    found = {finding.check: finding for finding in run_checks(heard.snapshot, heard.growth)}
    if not heard.snapshot.exporter.broker_up and "subscription" in found:
        remedy = to_ask(place_of(config.broker))
        return [msgspec.structs.replace(finding, remedy=remedy) for finding in found.values()]
    if not can_hear(heard.snapshot):  # what did not come is not known to be missing
        found.update({finding.check: finding for finding in _of_this_broker(heard, config, found)})
        return list(found.values())
    own = (
        _cut(heard),
        _first_event(heard, config),
        _versions(heard.snapshot),
        _shared_names(heard.configurations, found.get("duplicate-node-names")),
        _serializer(heard, config, found.get("serializer")),
        _task_events(heard, found.get("task-events")),
        _task_sent(heard, found.get("task-sent-events")),
        *_of_this_broker(heard, config, found),
        _queue_names(heard.snapshot, config),
        _idle_queues(heard.snapshot, config, found.get("queues-without-consumers")),
    )
    found.update({finding.check: finding for finding in own if finding is not None})
    return sorted(found.values(), key=lambda finding: _ORDER.index(finding.check))


def _cut(heard: ListenResult) -> Finding | None:
    if not heard.cut:
        return None
    found = (
        f"ended after {heard.snapshot.exporter.listening:.0f} s of listening: what is not told is not known"
    )
    return Finding("listening", "warning", found, "let it listen to its end")


def _first_event(heard: ListenResult, config: MonitorConfig) -> Finding | None:
    if heard.first_event is not None:
        return Finding("first-event", "ok", f"the first event came after {heard.first_event:.1f} s")
    listened = heard.snapshot.exporter.listening
    if listened < PATIENCE:
        return Finding(
            "first-event", "warning", f"no event in {listened:.0f} s", "listen longer: --seconds 30"
        )
    exchanges = {said.event_exchange for _, said in heard.configurations if said.event_exchange}
    other = sorted(exchanges - {config.broker.event_exchange})
    if other:
        found = f"no event in {listened:.0f} s: workers publish theirs to the exchange {other[0]}"
        return Finding("first-event", "critical", found, f"--event-exchange {shell_word(other[0])}")
    if heard.configurations:
        answered = names(sorted({name for name, _ in heard.configurations}))
        found = f"no event in {listened:.0f} s, though workers answered: {answered}"
        severity: Severity = "critical" if listened > LONGEST_INTERVAL else "warning"
        remedy = (
            "start workers with -E and without --without-heartbeat; if they have a --heartbeat-interval, "
            f"listen longer: --seconds {LONGEST_INTERVAL + 5}"
        )
        return Finding("first-event", severity, found, remedy)
    return None  # there is no worker, which is told as such


def _versions(snapshot: Snapshot) -> Finding | None:
    known = [worker for worker in snapshot.workers if worker.up and worker.version]
    if not known:
        return None
    versions: dict[str, list[WorkerView]] = {}
    for worker in known:
        versions.setdefault(f"{worker.software} {worker.version}", []).append(worker)
    text = "; ".join(f"{version}: {names(workers)}" for version, workers in sorted(versions.items()))
    if len({worker.version.rpartition(".")[0] for worker in known}) == 1:
        return Finding("worker-versions", "ok", text)
    newest = max((worker.version for worker in known), key=_digits)
    return Finding(
        "worker-versions",
        "warning",
        text,
        f"the same everywhere: pip install {shell_word(f'celery=={newest}')}",
    )


def _digits(version: str) -> list[int]:
    return [int(part) if part.isdecimal() else -1 for part in version.split(".")]


def _shared_names(configurations: list[tuple[str, Configuration]], advised: Finding | None) -> Finding | None:
    """Look for one name that several workers answer to. On RabbitMQ only one of them does at a time."""
    twice = [name for name, count in Counter(name for name, _ in configurations).items() if count > 1]
    return same_names(twice) if twice or (configurations and advised is None) else advised


def _serializer(heard: ListenResult, config: MonitorConfig, advised: Finding | None) -> Finding | None:
    if not heard.content_types:
        return advised
    seen = sorted(heard.content_types)
    refused = [kind for kind in seen if _NAMES.get(kind) not in config.broker.accept_content]
    if not refused:
        return Finding("serializer", "ok", f"events come as {', '.join(seen)}")
    known = [_NAMES[kind] for kind in refused if kind in _NAMES]
    remedy = "event_serializer = 'json' in the workers' configuration"
    if known:
        remedy += f", or here --accept-content {','.join([*config.broker.accept_content, *known])}"
        remedy += " (pickle runs what a sender wants)" if "pickle" in known else ""
    return Finding(
        "serializer", "critical", f"events come as {names(refused)}, which is not accepted here", remedy
    )


def _task_events(heard: ListenResult, advised: Finding | None) -> Finding | None:
    """Say more of workers that ran no task, which their own configuration may tell."""
    up = [worker for worker in heard.snapshot.workers if worker.up]
    if advised is None or advised.severity != "ok" or all(worker.events for worker in up):
        return advised
    told = {name for name, said in heard.configurations if said.worker_send_task_events}
    idle = [worker for worker in up if not worker.events and worker.name not in told]
    if not idle:
        return Finding(
            "task-events", "ok", f"task events come from, or are on by configuration in, {names(up)}"
        )
    return Finding(
        "task-events",
        "ok",
        f"no task ran on {names(idle)}, so whether it sends task events is not known; to be sure: "
        f"{ENABLE_EVENTS}",
    )


def _of_this_broker(heard: ListenResult, config: MonitorConfig, found: dict[str, Finding]) -> list[Finding]:
    """Return what the broker was asked in vain, with what mends it there."""
    said = {each.name: each.error for each in heard.snapshot.exporter.jobs}
    return [
        msgspec.structs.replace(found[check], remedy=remedy(config.broker, said[collector]))
        for check, (collector, remedy) in _MENDS.items()
        if check in found and found[check].remedy == ASK_DOCTOR
    ]


def _queue_names(snapshot: Snapshot, config: MonitorConfig) -> Finding | None:
    """Look for more queues than are measured; those that the broker has are all requested here."""
    others = snapshot.queue_names - len(set(config.queues))
    return too_many_queues(snapshot.queue_names) if others >= MAX_QUEUES else None


def _idle_queues(snapshot: Snapshot, config: MonitorConfig, advised: Finding | None) -> Finding | None:
    if advised is None or advised.severity == "ok":
        return advised
    forget = to_forget(config.broker, idle_queues(snapshot)[:MOST_NAMES])
    return msgspec.structs.replace(advised, remedy=f"{advised.remedy}; if nobody should: {forget}")


def _task_sent(heard: ListenResult, advised: Finding | None) -> Finding | None:
    if advised is not None or not heard.configurations:
        return advised
    if all(said.task_send_sent_event for _, said in heard.configurations):
        message = "task_send_sent_event is on in the configuration of the workers"
        return Finding("task-sent-events", "ok", message)
    return Finding(
        "task-sent-events",
        "warning",
        "no task was sent meanwhile, so whether clients say what they send is not known; "
        "task_send_sent_event is not set in the workers' configuration",
        "task_send_sent_event = True in the configuration of whoever sends tasks",
    )
