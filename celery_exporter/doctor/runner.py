"""The command `doctor`: from the URL to the numbers, what is wrong on the way and what mends it.

In the order in which things hang on each other: the ladder to a subscription, what the broker is set to, then
a while of listening with the exporter's own monitor, whose snapshot is judged by `advice`, as those of the
status page and the log are. What fails on the ladder ends the way; the rest is not guessed.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable

import msgspec
from msgspec import Struct

from celery_exporter.broker.config import BrokerConfig
from celery_exporter.broker.connection import BrokerError, is_amqp, is_redis
from celery_exporter.broker.url import masked
from celery_exporter.doctor import prometheus_checks as prometheus
from celery_exporter.doctor import rabbitmq_checks as amqp
from celery_exporter.doctor.connectivity import check_connectivity
from celery_exporter.doctor.event_checks import run_event_checks
from celery_exporter.doctor.listener import listen
from celery_exporter.doctor.rabbitmq_checks import TRANSIENT, with_workers
from celery_exporter.doctor.remedies import place_of, to_ask
from celery_exporter.metrics.config import MetricsConfig
from celery_exporter.monitor.config import MonitorConfig
from celery_exporter.status.finding import Finding

#: Exit codes, by the worst level.
EXIT_CODES = {"ok": 0, "warning": 1, "critical": 2}


class DoctorOptions(Struct, frozen=True, kw_only=True):
    """What to look at besides the broker, and for how long."""

    seconds: float
    prometheus: str | None = None
    management: str | None = None


class Report(Struct, frozen=True):
    """What `--json` prints. `version` is that of this shape."""

    version: int
    broker: str
    seconds: float
    exit_code: int
    findings: list[Finding]


def run_doctor(
    config: MonitorConfig,
    what: DoctorOptions,
    *,
    tell: Callable[[Finding], None],
    say: Callable[[str], None],
    ended: Callable[[], bool],
) -> Report:
    """Look at everything; `tell` each finding as it is made, `say` what is going on. Raises no BrokerError.

    It takes some 15 s for each URL that does not answer, and `what.seconds` beyond.
    """
    start = time.monotonic()
    findings: list[Finding] = []

    def found(some: Iterable[Finding]) -> bool:
        """Pass them on; tell whether the way goes on."""
        new = []
        for finding in some:
            new.append(finding)
            tell(finding)
        findings.extend(new)
        return all(finding.severity != "critical" for finding in new)

    _quiet(say)
    if found(check_connectivity(config.broker, say)):
        made, queues = _of_broker(config.broker, what, say)
        found(finding for finding in made if finding.check != TRANSIENT)
        heard = listen(_for_listening(config, queues), what.seconds, say, ended)
        found(with_workers(each, heard.snapshot.workers) for each in made if each.check == TRANSIENT)
        found(run_event_checks(heard, config))
        if what.prometheus is not None:
            say("asking Prometheus")
            up = {worker.name for worker in heard.snapshot.workers if worker.up}
            found(prometheus.look(what.prometheus, config.metrics.metric_prefix, up, _native(config.metrics)))
    worst = max((EXIT_CODES[finding.severity] for finding in findings), default=0)
    return Report(1, masked(config.broker.broker_url), round(time.monotonic() - start, 1), worst, findings)


def _of_broker(
    config: BrokerConfig, what: DoctorOptions, say: Callable[[str], None]
) -> tuple[list[Finding], set[str]]:
    """Return what the broker is set to, and the task queues that it knows."""
    say("asking the broker")
    try:
        if is_redis(config):
            from celery_exporter.doctor.redis_checks import look  # noqa: PLC0415  only where it is used

            return look(config)
        if is_amqp(config):
            return amqp.look(config, what.management, say)
    except BrokerError as error:
        found = f"the broker could not be asked: {error}"
        return [Finding("broker-version", "warning", found, to_ask(place_of(config)))], set()
    return [], set()


def _native(config: MetricsConfig) -> list[str]:
    """Return the names of the histograms that are native ones, too."""
    rows = config.selection.rows if config.native_histograms else []
    return [row.full_name(config.metric_prefix) for row in rows if row.type == "histogram"]


def _for_listening(config: MonitorConfig, queues: set[str]) -> MonitorConfig:
    """Return settings of an exporter that only looks, and is quick."""
    return msgspec.structs.replace(
        config.read_only(), queues=tuple(sorted({*config.queues, *queues})), update_interval=2.0
    )


class _Said(logging.Handler):
    """Says what the monitor logs as what is going on."""

    def __init__(self, say: Callable[[str], None]) -> None:
        super().__init__(logging.WARNING)
        self._say = say

    def emit(self, record: logging.LogRecord) -> None:
        self._say(record.getMessage())


def _quiet(say: Callable[[str], None]) -> None:
    log = logging.getLogger("celery_exporter")
    log.handlers = [_Said(say)]
    log.propagate = False
    logging.getLogger("celery_exporter.status.checks").disabled = True  # it is told in full
