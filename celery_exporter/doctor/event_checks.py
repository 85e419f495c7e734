"""What was received while listening → findings: those of `run_checks`, and those of `doctor` only."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping

from msgspec.structs import replace

from celery_exporter.broker.codecs import CONTENT_TYPES
from celery_exporter.broker.config import BrokerConfig
from celery_exporter.broker.inspect import Configuration
from celery_exporter.core.queues import MAX_QUEUES
from celery_exporter.core.snapshot import Snapshot, WorkerView
from celery_exporter.doctor.check_order import CHECKS_BY_SUBJECT
from celery_exporter.doctor.listener import ListenResult
from celery_exporter.doctor.problems import (
    CONTENT_TYPE_REJECTED,
    MIXED_VERSIONS,
    NO_EVENT_YET,
    NO_FIRST_EVENT,
    OTHER_EXCHANGE,
    STOPPED_EARLY,
    TASK_EVENTS_UNKNOWN,
    TASK_SENT_EVENTS_OFF,
)
from celery_exporter.doctor.remedies import (
    broker_address,
    delete_queues_command,
    diagnose_command,
    inspection_remedy,
    queue_lengths_remedy,
)
from celery_exporter.monitor.config import MonitorConfig
from celery_exporter.quoting import shell_word
from celery_exporter.status.checks import run_checks
from celery_exporter.status.facts import DISCOVERY_SECONDS, can_receive_events, workers_up
from celery_exporter.status.finding import MAX_NAMES, Finding, names
from celery_exporter.status.problems import ASK_DOCTOR, ENABLE_EVENTS, NO_TASK_EVENTS, TOO_MANY_QUEUES
from celery_exporter.status.queue_checks import idle_queues
from celery_exporter.status.worker_checks import LONGEST_HEARTBEAT_INTERVAL_SECONDS, shared_names

_ORDER = [name for checks in CHECKS_BY_SUBJECT.values() for name in checks]

#: Check → the job whose request the broker refused, and what helps on this broker.
_BROKER_REMEDIES: Mapping[str, tuple[str, Callable[[BrokerConfig, str], str]]] = {
    "remote-control": ("workers", inspection_remedy),
    "queue-lengths": ("queues", queue_lengths_remedy),
}

_SERIALIZERS = {content_type: name for name, content_type in CONTENT_TYPES.items()}


def run_event_checks(result: ListenResult, config: MonitorConfig) -> list[Finding]:
    """Return the findings of a while of listening; `config` is that of the command line."""
    # The listener requested all queues of the broker.
    snapshot = replace(result.snapshot, requested=config.queues)
    findings = {finding.check: finding for finding in run_checks(snapshot, result.growth)}
    if not snapshot.exporter.broker_up and "subscription" in findings:
        remedy = diagnose_command(broker_address(config.broker))
        return [replace(finding, remedy=remedy) for finding in findings.values()]
    own = [*_refused_by_broker(snapshot, config, findings)]
    if can_receive_events(snapshot):  # otherwise what is missing may exist
        own += [
            _stopped_early(result),
            _first_event(result, config),
            _worker_versions(snapshot),
            _duplicate_node_names(result.configurations, findings.get("duplicate-node-names")),
            _serializer(result, config),
            _task_events(result, findings.get("task-events")),
            _task_sent_events(result, findings.get("task-sent-events")),
            _queue_names(snapshot, config),
            _queues_without_consumers(snapshot, config, findings.get("queues-without-consumers")),
        ]
    findings.update({finding.check: finding for finding in own if finding is not None})
    return sorted(findings.values(), key=lambda finding: _ORDER.index(finding.check))


def _refused_by_broker(
    snapshot: Snapshot, config: MonitorConfig, findings: Mapping[str, Finding]
) -> list[Finding | None]:
    """Return the findings on what the broker refused, with what helps on this broker."""
    errors = {job.name: job.error for job in snapshot.exporter.jobs}
    return [
        replace(findings[check], remedy=remedy(config.broker, errors[job]))
        for check, (job, remedy) in _BROKER_REMEDIES.items()
        if check in findings and findings[check].remedy == ASK_DOCTOR
    ]


def _stopped_early(result: ListenResult) -> Finding | None:
    return STOPPED_EARLY.finding(seconds=result.snapshot.exporter.listening) if result.stopped_early else None


def _first_event(result: ListenResult, config: MonitorConfig) -> Finding | None:
    if result.first_event_seconds is not None:
        return NO_EVENT_YET.ok(f"the first event came after {result.first_event_seconds:.1f} s")
    seconds = result.snapshot.exporter.listening
    if seconds < DISCOVERY_SECONDS:
        return NO_EVENT_YET.finding(seconds=seconds)
    exchanges = {reply.event_exchange for _, reply in result.configurations if reply.event_exchange}
    others = sorted(exchanges - {config.broker.event_exchange})
    if others:
        exchange = others[0]
        return OTHER_EXCHANGE.finding(
            seconds=seconds, exchange=exchange, quoted_exchange=shell_word(exchange)
        )
    if not result.configurations:
        return None  # there is no worker, which is a finding of its own
    workers = names({name for name, _ in result.configurations})
    finding = NO_FIRST_EVENT.finding(seconds=seconds, workers=workers)
    return finding if seconds > LONGEST_HEARTBEAT_INTERVAL_SECONDS else replace(finding, severity="warning")


def _worker_versions(snapshot: Snapshot) -> Finding | None:
    workers = [worker for worker in workers_up(snapshot) if worker.version]
    if not workers:
        return None
    by_version: dict[str, list[WorkerView]] = {}
    for worker in workers:
        by_version.setdefault(f"{worker.software} {worker.version}", []).append(worker)
    versions = "; ".join(f"{version}: {names(group)}" for version, group in sorted(by_version.items()))
    if len({worker.version.rpartition(".")[0] for worker in workers}) == 1:
        return MIXED_VERSIONS.ok(versions)
    newest = max((worker.version for worker in workers), key=_numbers)
    return MIXED_VERSIONS.finding(versions=versions, quoted_package=shell_word(f"celery=={newest}"))


def _numbers(version: str) -> list[int]:
    return [int(part) if part.isdecimal() else -1 for part in version.split(".")]


def _duplicate_node_names(
    configurations: list[tuple[str, Configuration]], finding: Finding | None
) -> Finding | None:
    """Look for one name with several replies. On RabbitMQ only one worker of a name replies at a time."""
    shared = [name for name, replies in Counter(name for name, _ in configurations).items() if replies > 1]
    return shared_names(shared) if shared or (configurations and finding is None) else None


def _serializer(result: ListenResult, config: MonitorConfig) -> Finding | None:
    content_types = sorted(result.content_types)
    if not content_types:
        return None
    rejected = [kind for kind in content_types if _SERIALIZERS.get(kind) not in config.broker.accept_content]
    if not rejected:
        return CONTENT_TYPE_REJECTED.ok(f"events arrive as {', '.join(content_types)}")
    acceptable = [_SERIALIZERS[kind] for kind in rejected if kind in _SERIALIZERS]
    option = ""
    if acceptable:
        option = f", or --accept-content {','.join([*config.broker.accept_content, *acceptable])} here"
        option += " (pickle runs code of the sender)" if "pickle" in acceptable else ""
    return CONTENT_TYPE_REJECTED.finding(content_types=names(rejected), or_accept_content=option)


def _task_events(result: ListenResult, finding: Finding | None) -> Finding | None:
    """Add what the configuration of workers that sent no task event shows about these."""
    up = workers_up(result.snapshot)
    if finding is None or finding.severity != "ok" or all(worker.events for worker in up):
        return None
    enabled = {name for name, reply in result.configurations if reply.worker_send_task_events}
    unknown = [worker for worker in up if not worker.events and worker.name not in enabled]
    if not unknown:
        return NO_TASK_EVENTS.ok(f"task events arrive from, or are on in the configuration of, {names(up)}")
    busy = [worker for worker in unknown if worker.name in result.busy]
    if busy:
        return TASK_EVENTS_UNKNOWN.finding(workers=names(busy))
    return NO_TASK_EVENTS.ok(
        f"no task ran on {names(unknown)}, so it is unknown whether task events are on; to be sure: "
        f"{ENABLE_EVENTS}"
    )


def _task_sent_events(result: ListenResult, finding: Finding | None) -> Finding | None:
    """Use the configuration of workers where no task-received event arrived meanwhile."""
    if finding is not None or not result.configurations:
        return None
    if all(reply.task_send_sent_event for _, reply in result.configurations):
        return TASK_SENT_EVENTS_OFF.ok(
            "no task-received event arrived, so it is unknown whether clients publish task-sent; "
            "task_send_sent_event is on in the workers' configuration"
        )
    return TASK_SENT_EVENTS_OFF.finding(seconds=result.snapshot.exporter.listening)


def _queue_names(snapshot: Snapshot, config: MonitorConfig) -> Finding | None:
    """Look for more queues than are measured, not counting those of --queues."""
    if snapshot.queue_names - len(set(config.queues)) < MAX_QUEUES:
        return None
    return TOO_MANY_QUEUES.finding(number=snapshot.queue_names, limit=MAX_QUEUES)


def _queues_without_consumers(
    snapshot: Snapshot, config: MonitorConfig, finding: Finding | None
) -> Finding | None:
    """Add the command that deletes idle queues."""
    if finding is None or finding.severity == "ok":
        return None
    idle = idle_queues(snapshot)[:MAX_NAMES]
    command = delete_queues_command(config.broker, broker_address(config.broker), idle)
    return replace(finding, remedy=f"{finding.remedy}; if not: {command}")
