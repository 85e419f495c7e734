"""Which RabbitMQ it is, what it denies, and what was left on it."""

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

from celery_exporter.broker.config import BrokerConfig
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
from celery_exporter.doctor.http_client import fetch
from celery_exporter.doctor.queue_names import is_passing, is_task_queue
from celery_exporter.doctor.remedies import BrokerAddress, place_of
from celery_exporter.quoting import shell_word
from celery_exporter.status.finding import Finding

#: From this version on, transient queues that are not exclusive are denied unless permitted
#: (https://github.com/rabbitmq/rabbitmq-server/releases/tag/v4.3.0), and deprecated since 4.0.
DENIED, DEPRECATED = (4, 3), (4, 0)
#: Declares exclusive ones (celery/app/defaults.py; https://github.com/celery/celery/pull/10290,
#: https://github.com/celery/kombu/pull/2531). 5.6 can be told to.
EXCLUSIVE_SINCE = "5.7"
#: Bytes of an answer of the management API: some 100,000 queues.
MOST_BYTES = 16 * 2**20
MOST_NAMES = 5

#: The check that hangs on who is heard, too: see `with_workers`.
TRANSIENT = "transient-queues"

#: What --event-queue-durable declares.
_DURABLE = "celeryev.celery-exporter"


def look(
    config: BrokerConfig, management: str | None, say: Callable[[str], None]
) -> tuple[list[Finding], set[str]]:
    """Return what was found, and the task queues that are known; raise BrokerError.

    `management` is the URL of the management API, where it is not on the broker's host, port 15672.
    """
    connection = connect(config)
    try:
        with broker_errors(connection):
            open_(connection)
            place = place_of(config, connection)
        said = connection.connection.server_properties
        say("asking the management API")
        queues = _managed_queues(connection, place, management)
        durable = queue_reader_for(connection).read([_DURABLE], requested=(), consumed=())[_DURABLE]
    finally:
        close_quietly(connection)
    product, version = said.get("product", "AMQP broker"), str(said.get("version", ""))
    findings = [
        Finding("broker-version", "ok", f"{product} {version}"),
        judge_transient(version, permitted=_permits_transient(config)),
    ]
    if queues is None and isinstance(durable, QueueStats) and not durable.consumers:
        queues = {_DURABLE: 0}
    findings.append(_leftovers(queues, place))
    return findings, {name for name in queues or () if is_task_queue(name)}


def judge_transient(version: str, *, permitted: bool | None) -> Finding:
    """Judge whether workers can have their event and control queues, which Celery made transient and shared.

    `permitted` is whether such a queue could be declared; None: nobody could try.
    """
    digits = _digits(version)
    remedy = (
        f"Celery {EXCLUSIVE_SINCE} or later everywhere; or, with 5.6, control_queue_exclusive = True and "
        "event_queue_exclusive = True; or in rabbitmq.conf: "
        "deprecated_features.permit.transient_nonexcl_queues = true"
    )
    if permitted is False or (permitted is None and digits >= DENIED):
        found = (
            f"RabbitMQ {version} denies the transient queues that Celery before {EXCLUSIVE_SINCE} declares"
        )
        return Finding("transient-queues", "warning", found, remedy)
    if digits >= DEPRECATED:
        found = (
            f"RabbitMQ {version} permits the transient queues that Celery before {EXCLUSIVE_SINCE} declares"
        )
        return Finding(
            "transient-queues", "ok", f"{found}; 4.3 does not, unless it is told to or is Debian's"
        )
    return Finding(
        "transient-queues", "ok", "queues of events and of control are permitted as Celery declares them"
    )


def with_workers(finding: Finding, workers: Iterable[WorkerView]) -> Finding:
    """Return the finding on transient queues in the light of who was heard: whom it is for may be gone."""
    up = [worker for worker in workers if worker.up]
    if finding.severity == "ok" or not up or not all(map(_is_exclusive, up)):
        return finding
    found = f"{finding.message}; the workers heard are of {EXCLUSIVE_SINCE} or later, and declare none"
    return Finding("transient-queues", "ok", found)


def _is_exclusive(worker: WorkerView) -> bool:
    return worker.software == "py-celery" and _digits(worker.version) >= _digits(EXCLUSIVE_SINCE)


def _digits(version: str | None) -> tuple[int, ...]:
    return tuple(map(int, re.findall(r"\d+", version or "")[:2]))


def _permits_transient(config: BrokerConfig) -> bool | None:
    """Try it with a queue that is gone at once; on a connection of its own, which a refusal ends."""
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


def _leftovers(queues: dict[str, int] | None, place: BrokerAddress) -> Finding:
    if queues is None:
        look = f"rabbitmqctl list_queues -p {shell_word(place.vhost)} name consumers messages"
        found = f"not known, since the management API does not answer (see --management): {look}"
        return Finding("orphaned-queues", "ok", found)
    left = sorted(name for name, consumers in queues.items() if not consumers and is_passing(name))
    if not left:
        return Finding("orphaned-queues", "ok", "no queue was left by somebody who listened or asked")
    names = ", ".join(left[:MOST_NAMES]) + (
        f" and {len(left) - MOST_NAMES} more" if len(left) > MOST_NAMES else ""
    )
    delete = f"rabbitmqctl delete_queue -p {shell_word(place.vhost)} {shell_word(left[0])}"
    remedy = f"{delete}, and so each" if len(left) > 1 else delete
    message = f"nobody reads what was made for one who listened or asked: {names}"
    return Finding("orphaned-queues", "warning", message, remedy)


def _managed_queues(
    connection: kombu.Connection, place: BrokerAddress, management: str | None
) -> dict[str, int] | None:
    """Return the consumers of each queue of the virtual host; None where no management API tells."""
    secure = place.tls and management is None
    base = management or f"http{'s' if secure else ''}://{place.host}:{15671 if secure else 15672}"
    login = f"{connection.userid or 'guest'}:{connection.password or 'guest'}"
    url = f"{base.rstrip('/')}/api/queues/{quote(place.vhost, safe='')}?columns=name,consumers"
    headers = {"Authorization": f"Basic {base64.b64encode(login.encode()).decode()}"}
    try:
        found: Any = json.loads(fetch(url, timeout=CONNECT_TIMEOUT_SECONDS, most=MOST_BYTES, headers=headers))
        return {str(queue["name"]): int(queue.get("consumers") or 0) for queue in found}
    except (OSError, HTTPException, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
