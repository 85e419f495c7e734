"""Connectivity checks: the steps from a URL to an event subscription.

Each step needs the one before.
"""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

from msgspec.structs import replace

from celery_exporter.broker.config import BrokerConfig
from celery_exporter.broker.connection import (
    CONNECT_TIMEOUT_SECONDS,
    BrokerError,
    broker_errors,
    check,
    close_quietly,
    connect,
    open_,
    why_no_events,
)
from celery_exporter.broker.consumers.factory import consumer_for
from celery_exporter.broker.source import ConfigSource
from celery_exporter.broker.url import UnusableURLError, masked, parts
from celery_exporter.doctor.problems import (
    CONNECT_FAILED,
    CONNECT_TIMED_OUT,
    CONTAINER_HINT,
    LOOKUP_FAILED,
    LOOKUP_TIMEOUT,
    TLS_MISSING,
    TLS_UNSUPPORTED,
    UNUSABLE_URL,
)
from celery_exporter.doctor.remedies import (
    LOCAL_HOSTS,
    BrokerAddress,
    broker_address,
    refusal,
    subscription_remedy,
)
from celery_exporter.quoting import shell_word
from celery_exporter.status.finding import Finding
from celery_exporter.status.problems import NO_EVENTS, NOT_SUBSCRIBED

#: Limit of a DNS lookup; the system's resolver tries its servers for longer.
LOOKUP_TIMEOUT_SECONDS = 5.0

#: Checks of an opened connection, in this order: those before the one that fails are ok.
_LOGIN_CHECKS = ("answer", "tls", "login", "database")


def check_connectivity(config: BrokerConfig, say: Callable[[str], None]) -> Iterator[Finding]:
    """Yield the findings of each step; the first critical one ends them.

    Of several URLs one that works is enough: then the problems of the others are warnings.
    """
    try:
        check(config)
    except UnusableURLError as error:
        text, _, remedy = str(error).partition("; ")
        yield UNUSABLE_URL.finding(error=text.removeprefix("--broker-url: "), remedy=remedy)
        return
    yield UNUSABLE_URL.ok(masked(config.broker_url))
    if reason := why_no_events(config):
        yield NO_EVENTS.finding(no_fanout=reason)
        return
    urls = parts(config.broker_url)
    if len(urls) == 1:
        yield from _check_url(config, say)
        return
    results = [list(_check_url(replace(config, broker_url=url), say)) for url in urls]
    works = any(all(finding.severity != "critical" for finding in findings) for findings in results)
    for findings in results:
        for finding in findings:
            is_spare = works and finding.severity == "critical"
            yield replace(finding, severity="warning") if is_spare else finding


def _check_url(config: BrokerConfig, say: Callable[[str], None]) -> Iterator[Finding]:
    broker = broker_address(config)
    for step, action in ((_resolve, "resolving"), (_reach, "connecting to")) if broker.network else ():
        say(f"{action} {broker.address}")
        finding = step(broker)
        yield finding
        if finding.severity == "critical":
            return
    say("logging in")
    yield from (login := _log_in(config, broker))
    if all(finding.severity != "critical" for finding in login):
        say("subscribing")
        yield from _subscribe(config, broker)


def _resolve(broker: BrokerAddress) -> Finding:
    """Resolve the host, in a thread: nothing limits the time of the system's resolver."""
    result: list[list[Any] | Exception] = []

    def run() -> None:
        try:
            result.append(sorted({info[4][0] for info in socket.getaddrinfo(broker.host, broker.port)}))
        except (OSError, UnicodeError) as error:
            result.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(LOOKUP_TIMEOUT_SECONDS)
    host, quoted = broker.host, shell_word(broker.host)
    if not result:
        return LOOKUP_TIMEOUT.finding(host=host, seconds=LOOKUP_TIMEOUT_SECONDS, quoted_host=quoted)
    if isinstance(result[0], Exception):
        error = getattr(result[0], "strerror", None) or "it cannot be the name of a host"
        return LOOKUP_FAILED.finding(host=host, error=error, quoted_host=quoted)
    return LOOKUP_FAILED.ok(f"{host} resolves to {', '.join(result[0][:3])}")


def _reach(broker: BrokerAddress) -> Finding:
    host, port = broker.host, broker.port
    try:
        socket.create_connection((host, port), CONNECT_TIMEOUT_SECONDS).close()
    except TimeoutError:
        return CONNECT_TIMED_OUT.finding(
            address=broker.address, seconds=CONNECT_TIMEOUT_SECONDS, quoted_host=shell_word(host), port=port
        )
    except OSError as error:
        hint = CONTAINER_HINT if host in LOCAL_HOSTS else ""
        return CONNECT_FAILED.finding(address=broker.address, error=error.strerror, container_hint=hint)
    return CONNECT_FAILED.ok(f"{broker.address} accepts connections")


# -- opening a connection --------------------------------------------------------------------------------


def _log_in(config: BrokerConfig, broker: BrokerAddress) -> list[Finding]:
    connection = connect(config)
    try:
        with broker_errors(connection):
            open_(connection)
    except (BrokerError, ValueError) as error:  # ValueError: a Redis database that is no number
        return _refused(config, broker, str(error))
    finally:
        close_quietly(connection)
    return _passed(broker, _LOGIN_CHECKS if broker.server else _LOGIN_CHECKS[:1])


def _passed(broker: BrokerAddress, checks: tuple[str, ...]) -> list[Finding]:
    texts = {
        "answer": "the broker answers",
        "tls": "the broker's certificate is accepted" if broker.tls else "the URL does not use TLS",
        "login": f"logged in as {broker.user or ('guest' if broker.amqp else 'the default user')}",
        "database": f"{'virtual host' if broker.amqp else 'database'} {broker.vhost} exists",
    }
    return [Finding(_shown_name(name, broker), "ok", texts[name]) for name in checks]


def _refused(config: BrokerConfig, broker: BrokerAddress, error: str) -> list[Finding]:
    row = refusal(config, error)
    mismatch = _tls_mismatch(broker) if row.check in ("answer", "tls") else None
    if mismatch is not None:
        return [mismatch]
    checks = _LOGIN_CHECKS if broker.server else _LOGIN_CHECKS[:1]
    passed = _passed(broker, checks[: _LOGIN_CHECKS.index(row.check)])
    return [*passed, Finding(_shown_name(row.check, broker), "critical", error, row.remedy(broker))]


def _shown_name(name: str, broker: BrokerAddress) -> str:
    return "virtual-host" if name == "database" and broker.amqp else name


def _tls_mismatch(broker: BrokerAddress) -> Finding | None:
    """Detect TLS on one side only, for which neither side has a useful error."""
    if not broker.network:
        return None
    plain, secure = ("amqp", "amqps") if broker.amqp else ("redis", "rediss")
    if not broker.tls and _speaks_tls(broker):
        return TLS_MISSING.finding(address=broker.address, scheme=secure)
    if broker.tls and _speaks_without_tls(broker):
        return TLS_UNSUPPORTED.finding(address=broker.address, scheme=plain)
    return None


def _speaks_tls(broker: BrokerAddress) -> bool:
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE  # nothing is sent
    with (
        suppress(OSError),
        socket.create_connection((broker.host, broker.port), CONNECT_TIMEOUT_SECONDS) as sock,
    ):
        try:
            context.wrap_socket(sock, server_hostname=broker.host).close()
        except ssl.SSLError as error:  # it may require a client certificate
            return "ALERT" in (error.reason or "")
        return True
    return False


def _speaks_without_tls(broker: BrokerAddress) -> bool:
    """Send a word that a broker answers in its protocol (AMQP: any word), not with a TLS alert."""
    with (
        suppress(OSError),
        socket.create_connection((broker.host, broker.port), CONNECT_TIMEOUT_SECONDS) as sock,
    ):
        sock.sendall(b"PING\r\n" + b" " * 2)
        return sock.recv(8)[:1] in (b"+", b"-", b"A")
    return False


# -- the subscription ------------------------------------------------------------------------------------


def _subscribe(config: BrokerConfig, broker: BrokerAddress) -> list[Finding]:
    """Try to subscribe; that the subscription is open is reported after listening.

    Not to the durable queue: its events belong to the exporter.
    """
    consumer = consumer_for(ConfigSource(config.read_only()))
    try:
        consumer.open()
    except BrokerError as error:
        text = str(error)
        remedy = subscription_remedy(config, broker, text)
        return [Finding(NOT_SUBSCRIBED.check, "critical", text, remedy)]
    finally:
        consumer.close()
    return []
