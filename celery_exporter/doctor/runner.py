"""Run the checks of `doctor` in order: connection, broker, events and workers, sinks, Prometheus.

Each part needs the one before: a critical finding of the connection ends the run. Events are judged by the
exporter's own monitor and health checks, as on the overview and in the log.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from msgspec import Struct
from msgspec.structs import replace

from celery_exporter.broker.config import BrokerConfig
from celery_exporter.broker.connection import BrokerError, is_amqp, is_redis
from celery_exporter.broker.url import masked
from celery_exporter.core.shards import Shard
from celery_exporter.core.snapshot import WorkerView
from celery_exporter.doctor.connectivity import check_connectivity
from celery_exporter.doctor.event_checks import run_event_checks
from celery_exporter.doctor.history_checks import run_history_check
from celery_exporter.doctor.listener import listen
from celery_exporter.doctor.problems import QUERY_FAILED, TRANSIENT_QUEUES_DENIED
from celery_exporter.doctor.prometheus_checks import run_prometheus_checks
from celery_exporter.doctor.rabbitmq_checks import consider_workers, run_rabbitmq_checks
from celery_exporter.doctor.remedies import broker_address, diagnose_command
from celery_exporter.doctor.sink_checks import run_sink_checks
from celery_exporter.doctor.state_checks import run_state_check
from celery_exporter.metrics.config import MetricsConfig
from celery_exporter.monitor.config import MonitorConfig
from celery_exporter.sinks.base import Sink
from celery_exporter.status.finding import Finding

#: Exit code of the worst severity.
EXIT_CODES = {"ok": 0, "warning": 1, "critical": 2}
REPORT_VERSION = 1
#: Between two measurements of queues and inspections of workers: shorter than an exporter's.
UPDATE_INTERVAL_SECONDS = 2.0


class DoctorOptions(Struct, frozen=True, kw_only=True):
    """The options of the command.

    They are the seconds to listen, the URLs of Prometheus and of the management API, and the sinks and the
    history file of the exporter. None, or no sink, is not checked.
    """

    seconds: float
    prometheus: str | None = None
    management: str | None = None
    sinks: Sequence[Sink] = ()
    history_file: Path | None = None


class Report(Struct, frozen=True):
    """What `--json` prints. `version` is that of this format; `seconds` is how long the run took."""

    version: int
    broker: str
    seconds: float
    exit_code: int
    findings: list[Finding]


def run_doctor(
    config: MonitorConfig,
    options: DoctorOptions,
    *,
    report: Callable[[Finding], None],
    say: Callable[[str], None],
    is_stopped: Callable[[], bool],
) -> Report:
    """Run all checks; `report` each finding at once, `say` what is going on. Raises no BrokerError.

    A URL that does not answer takes some 15 s, listening `options.seconds` more. `is_stopped` ends listening.
    """
    start = time.monotonic()
    findings: list[Finding] = []

    def add(new: Iterable[Finding]) -> None:
        for finding in new:
            findings.append(finding)
            report(finding)

    add(check_connectivity(config.broker, say))
    if all(finding.severity != "critical" for finding in findings):
        by_broker, queues = _run_broker_checks(config.broker, options, say)
        transient = [finding for finding in by_broker if finding.check == TRANSIENT_QUEUES_DENIED.check]
        add(finding for finding in by_broker if finding not in transient)
        result = listen(_for_listening(config, queues), options.seconds, say, is_stopped)
        workers = result.snapshot.workers
        add(consider_workers(finding, workers) for finding in transient)
        add(run_event_checks(result, config))
        if options.sinks:
            say("querying the sinks")
            add(run_sink_checks(options.sinks))
        add(_run_file_checks(config, options))
        if options.prometheus is not None:
            say("querying Prometheus")
            up = workers_up_of(config.shard or Shard(0, 1), workers)
            names = _native_histogram_names(config.metrics)
            add(run_prometheus_checks(options.prometheus, config.metrics.metric_prefix, up, names))
    exit_code = max((EXIT_CODES[finding.severity] for finding in findings), default=0)
    seconds = round(time.monotonic() - start, 1)
    return Report(REPORT_VERSION, masked(config.broker.broker_url), seconds, exit_code, findings)


def _run_broker_checks(
    config: BrokerConfig, options: DoctorOptions, say: Callable[[str], None]
) -> tuple[list[Finding], set[str]]:
    """Return the findings on the broker, and the names of its task queues."""
    say("querying the broker")
    try:
        if is_redis(config):
            from celery_exporter.doctor.redis_checks import (  # noqa: PLC0415  imports its client
                run_redis_checks,
            )

            return run_redis_checks(config)
        if is_amqp(config):
            return run_rabbitmq_checks(config, options.management, say)
    except BrokerError as error:
        command = diagnose_command(broker_address(config))
        return [QUERY_FAILED.finding(error=error, diagnose_command=command)], set()
    return [], set()


def workers_up_of(shard: Shard, workers: Iterable[WorkerView]) -> set[str]:
    """Return the workers that are up according to the metrics of a shard."""
    return {worker.name for worker in workers if worker.up and shard.has(worker.name)}


def _run_file_checks(config: MonitorConfig, options: DoctorOptions) -> list[Finding]:
    """Return the findings on the files of the exporter."""
    findings = []
    if options.history_file is not None:
        findings.append(run_history_check(options.history_file))
    if config.state_file is not None:
        findings.append(run_state_check(config.state_file, config))
    return findings


def _native_histogram_names(config: MetricsConfig) -> list[str]:
    rows = config.selection.rows if config.native_histograms else []
    return [row.full_name(config.metric_prefix) for row in rows if row.type == "histogram"]


def _for_listening(config: MonitorConfig, queues: set[str]) -> MonitorConfig:
    """Return the config of an exporter that changes nothing, and measures all these queues often.

    It keeps the tasks of all shards, since a problem of the cluster shows in any of them.
    """
    all_queues = tuple(sorted({*config.queues, *queues}))
    whole = replace(config.read_only(), shard=None)
    return replace(whole, queues=all_queues, update_interval=UPDATE_INTERVAL_SECONDS)
