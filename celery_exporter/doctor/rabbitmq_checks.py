"""Checks of RabbitMQ: its version, whether it denies transient queues, and orphaned queues."""

from __future__ import annotations

import base64
import json
import re
import uuid
from collections.abc import Callable, Iterable
from http.client import HTTPException
from typing import Any
from urllib.parse import quote

import kombu
from kombu import Queue

from celery_exporter.broker.config import DURABLE_QUEUE, BrokerConfig
from celery_exporter.broker.connection import (
    CONNECT_TIMEOUT_SECONDS,
    BrokerError,
    broker_errors,
    close_quietly,
    connect,
    open_,
)
from celery_exporter.broker.queues.factory import queue_reader_for
from celery_exporter.core.snapshot import QueueStats, WorkerView
from celery_exporter.doctor.event_queue_checks import check_event_queue
from celery_exporter.doctor.http_client import fetch
from celery_exporter.doctor.problems import ORPHANED_QUEUES, QUERY_FAILED, TRANSIENT_QUEUES_DENIED
from celery_exporter.doctor.queue_names import is_task_queue, is_temporary
from celery_exporter.doctor.remedies import BrokerAddress, broker_address, delete_queues_command
from celery_exporter.quoting import shell_word
from celery_exporter.status.finding import MAX_NAMES, Finding, first_of

#: From this version on, transient queues that are not exclusive are denied unless permitted
#: (https://github.com/rabbitmq/rabbitmq-server/releases/tag/v4.3.0), and deprecated since 4.0.
DENIED_SINCE, DEPRECATED_SINCE = (4, 3), (4, 0)
#: Declares exclusive ones (celery/app/defaults.py; https://github.com/celery/celery/pull/10290,
#: https://github.com/celery/kombu/pull/2531). 5.6 has config for it.
EXCLUSIVE_SINCE = (5, 7)
#: Size of an answer of the management API: some 100,000 queues.
MAX_ANSWER_BYTES = 16 * 2**20


def run_rabbitmq_checks(
    config: BrokerConfig, management: str | None, say: Callable[[str], None]
) -> tuple[list[Finding], set[str]]:
    """Return the findings, and the names of the task queues that are known; raise BrokerError.

    `management` is the URL of the management API, None for port 15672 of the broker's host.
    """
    connection = connect(config)
    try:
        with broker_errors(connection):
            open_(connection)
            broker = broker_address(config, connection)
        properties = connection.connection.server_properties
        say("querying the management API")
        consumers = _consumers_of_queues(connection, broker, management)
        reader = queue_reader_for(connection)
        durable = reader.read([DURABLE_QUEUE], requested=(), consumed=())[DURABLE_QUEUE]
    finally:
        close_quietly(connection)
    product, version = properties.get("product", "AMQP broker"), str(properties.get("version", ""))
    if consumers is None and isinstance(durable, QueueStats) and not durable.consumers:
        consumers = {DURABLE_QUEUE: 0}
    findings = [
        QUERY_FAILED.ok(f"{product} {version}"),
        check_transient_queues(version, permitted=_permits_transient_queues(config)),
        _check_orphaned_queues(consumers, config, broker),
    ]
    if config.durable_queue is not None:
        findings.append(check_event_queue(config, config.durable_queue))
    return findings, {name for name in consumers or () if is_task_queue(name)}


# -- transient queues ------------------------------------------------------------------------------------


def check_transient_queues(version: str, *, permitted: bool | None) -> Finding:
    """Check whether workers can declare the transient queues for events and control of Celery before 5.7.

    `permitted` says whether such a queue could be declared; None if it could not be tried.
    """
    release = _release(version)
    if permitted is False or (permitted is None and release >= DENIED_SINCE):
        return TRANSIENT_QUEUES_DENIED.finding(version=version)
    if release >= DEPRECATED_SINCE:
        return TRANSIENT_QUEUES_DENIED.ok(
            f"RabbitMQ {version} permits the transient queues that Celery before 5.7 declares; from 4.3 on "
            f"only if configured so, as Debian does"
        )
    return TRANSIENT_QUEUES_DENIED.ok("the transient queues for events and remote control are permitted")


def consider_workers(finding: Finding, workers: Iterable[WorkerView]) -> Finding:
    """Return the finding on transient queues, or an ok if all workers that are up declare none."""
    up = [worker for worker in workers if worker.up]
    if finding.severity == "ok" or not up or not all(map(_declares_exclusive, up)):
        return finding
    return TRANSIENT_QUEUES_DENIED.ok(
        f"{finding.message}; the workers here have Celery 5.7 or later, and declare none"
    )


def _declares_exclusive(worker: WorkerView) -> bool:
    return worker.software == "py-celery" and _release(worker.version) >= EXCLUSIVE_SINCE


def _release(version: str | None) -> tuple[int, ...]:
    return tuple(map(int, re.findall(r"\d+", version or "")[:2]))


def _permits_transient_queues(config: BrokerConfig) -> bool | None:
    """Declare such a queue and delete it, on a connection of its own, which a denial closes."""
    connection = connect(config)
    try:
        with broker_errors(connection):
            open_(connection)
            channel = connection.default_channel
            name = f"celeryev.doctor-{uuid.uuid4()}"
            queue = Queue(name, durable=False, exclusive=False, auto_delete=True, expires=10)(channel)
            queue.queue_declare()
            queue.delete()
    except BrokerError as error:
        return False if "transient_nonexcl_queues" in str(error) or "(541)" in str(error) else None
    finally:
        close_quietly(connection)
    return True


# -- orphaned queues -------------------------------------------------------------------------------------


def _check_orphaned_queues(
    consumers: dict[str, int] | None, config: BrokerConfig, broker: BrokerAddress
) -> Finding:
    if consumers is None:
        command = f"rabbitmqctl list_queues -p {shell_word(broker.vhost)} name consumers messages"
        return ORPHANED_QUEUES.ok(
            f"unknown, since the management API does not answer (see --management); to list them: {command}"
        )
    own = config.durable_queue  # which has a check of its own
    orphans = sorted(name for name in consumers.keys() - {own} if not consumers[name] and is_temporary(name))
    if not orphans:
        return ORPHANED_QUEUES.ok("no event or reply queue without a consumer")
    command = delete_queues_command(config, broker, orphans[:MAX_NAMES])
    return ORPHANED_QUEUES.finding(queues=first_of(orphans), delete_command=command)


def _consumers_of_queues(
    connection: kombu.Connection, broker: BrokerAddress, management: str | None
) -> dict[str, int] | None:
    """Return the number of consumers of each queue of the virtual host; None without a management API."""
    tls = broker.tls and management is None
    base = management or f"http{'s' if tls else ''}://{broker.host}:{15671 if tls else 15672}"
    login = f"{connection.userid or 'guest'}:{connection.password or 'guest'}"
    url = f"{base.rstrip('/')}/api/queues/{quote(broker.vhost, safe='')}?columns=name,consumers"
    headers = {"Authorization": f"Basic {base64.b64encode(login.encode()).decode()}"}
    try:
        answer = fetch(url, timeout=CONNECT_TIMEOUT_SECONDS, max_bytes=MAX_ANSWER_BYTES, headers=headers)
        queues: Any = json.loads(answer)
        return {str(queue["name"]): int(queue.get("consumers") or 0) for queue in queues}
    except (OSError, HTTPException, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
