"""The rungs between a URL and an event subscription, each of which hangs on the one before."""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import msgspec

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
from celery_exporter.doctor.remedies import (
    LOCAL,
    BrokerAddress,
    allow,
    place_of,
    refusal,
)
from celery_exporter.quoting import shell_word
from celery_exporter.status.checks import NO_EVENTS_REMEDY
from celery_exporter.status.finding import Finding

#: Seconds for a name to resolve: the system's resolver tries its servers for longer.
RESOLVE_TIMEOUT = 5.0

#: What is tried when a connection is opened, in this order: what comes before the one that fails went well.
_AFTER_THE_PORT = ("answer", "tls", "login", "database")


def check_connectivity(config: BrokerConfig, say: Callable[[str], None]) -> Iterator[Finding]:
    """Yield what is found on the way up; nothing is a failure if one of several URLs leads to the top."""
    try:
        check(config)
    except UnusableURLError as error:
        found, _, remedy = str(error).partition("; ")
        yield Finding("url", "critical", found.removeprefix("--broker-url: "), f"--broker-url: {remedy}")
        return
    yield Finding("url", "ok", masked(config.broker_url))
    if no_events := why_no_events(config):
        yield Finding("transport", "critical", no_events, NO_EVENTS_REMEDY)
        return
    urls = parts(config.broker_url)
    if len(urls) == 1:
        yield from _rungs(config, say)
        return
    ways = [list(_rungs(msgspec.structs.replace(config, broker_url=url), say)) for url in urls]
    leads = any(all(finding.severity != "critical" for finding in way) for way in ways)
    for way in ways:
        for finding in way:
            spared = leads and finding.severity == "critical"
            yield msgspec.structs.replace(finding, severity="warning") if spared else finding


def _rungs(config: BrokerConfig, say: Callable[[str], None]) -> Iterator[Finding]:
    place = place_of(config)
    for rung, doing in ((_resolve, "looking for"), (_reach, "connecting to")) if place.network else ():
        say(f"{doing} {place.address}")
        finding = rung(place)
        yield finding
        if finding.severity == "critical":
            return
    say("logging in")
    yield from (login := _log_in(config, place))
    if all(finding.severity != "critical" for finding in login):
        say("subscribing")
        yield from _subscribe(config, place)


def _resolve(place: BrokerAddress) -> Finding:
    """In a thread: nothing bounds the system's resolver."""
    answer: list[Any] = []

    def ask() -> None:
        try:
            answer.append(sorted({info[4][0] for info in socket.getaddrinfo(place.host, place.port)}))
        except (OSError, UnicodeError) as error:
            answer.append(error)

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(RESOLVE_TIMEOUT)
    asked = shell_word(place.host)
    remedy = f"correct the host in --broker-url; what the system knows of it: getent hosts {asked}"
    if not answer:
        return Finding(
            "host", "critical", f"no answer in {RESOLVE_TIMEOUT:.0f} s what {place.host} is", remedy
        )
    if isinstance(answer[0], Exception):
        why = getattr(answer[0], "strerror", None) or "it cannot be a host's name"
        return Finding("host", "critical", f"{place.host} does not resolve: {why}", remedy)
    return Finding("host", "ok", f"{place.host} resolves to {', '.join(answer[0][:3])}")


def _reach(place: BrokerAddress) -> Finding:
    try:
        socket.create_connection((place.host, place.port), CONNECT_TIMEOUT_SECONDS).close()
    except TimeoutError:
        remedy = f"a firewall, or a wrong host; try it with: nc -vz {shell_word(place.host)} {place.port}"
        return Finding(
            "port", "critical", f"no answer from {place.address} in {CONNECT_TIMEOUT_SECONDS:.0f} s", remedy
        )
    except OSError as error:
        remedy = "start the broker, or correct host and port in --broker-url"
        if place.host in LOCAL:
            remedy += " (in a container, 127.0.0.1 is the container itself)"
        return Finding("port", "critical", f"{place.address}: {error.strerror}", remedy)
    return Finding("port", "ok", f"{place.address} takes connections")


# -- what opening a connection says ---------------------------------------------------------------------


def _log_in(config: BrokerConfig, place: BrokerAddress) -> list[Finding]:
    connection = connect(config)
    try:
        with broker_errors(connection):
            open_(connection)
    except (BrokerError, ValueError) as error:  # ValueError: a Redis database that is no number
        return _refused(config, place, str(error))
    finally:
        close_quietly(connection)
    return _well(place)


def _well(place: BrokerAddress, until: str | None = None) -> list[Finding]:
    texts = {
        "answer": "the broker answers",
        "tls": "the broker's certificate is taken" if place.tls else "no TLS is asked for",
        "login": f"logged in as {place.user or ('guest' if place.amqp else 'the default user')}",
        "database": f"{'virtual host' if place.amqp else 'database'} {place.vhost} is there",
    }
    rungs: tuple[str, ...] = _AFTER_THE_PORT if place.server else _AFTER_THE_PORT[:1]
    rungs = rungs if until is None else rungs[: _AFTER_THE_PORT.index(until)]
    return [Finding(_named(rung, place), "ok", texts[rung]) for rung in rungs]


def _refused(config: BrokerConfig, place: BrokerAddress, text: str) -> list[Finding]:
    row = refusal(config, text)
    mismatch = _tls_mismatch(place) if row.rung in ("answer", "tls") else None
    if mismatch is not None:
        return [mismatch]
    return [*_well(place, row.rung), Finding(_named(row.rung, place), "critical", text, row.remedy(place))]


def _named(rung: str, place: BrokerAddress) -> str:
    return "virtual-host" if rung == "database" and place.amqp else rung


def _tls_mismatch(place: BrokerAddress) -> Finding | None:
    """Tell when one side speaks TLS and the other does not, of which neither says anything useful."""
    if not place.network:
        return None
    schemes = ("amqp", "amqps") if place.amqp else ("redis", "rediss")
    if not place.tls and _speaks_tls(place):
        return Finding(
            "tls",
            "critical",
            f"{place.address} speaks TLS, and the URL does not",
            f"--broker-url {schemes[1]}://…",
        )
    if place.tls and _speaks_plainly(place):
        return Finding(
            "tls",
            "critical",
            f"the URL asks for TLS, which {place.address} does not speak",
            f"--broker-url {schemes[0]}://…, or the port on which the broker has TLS",
        )
    return None


def _speaks_tls(place: BrokerAddress) -> bool:
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE  # nothing is said to it
    address = (place.host, place.port)
    with suppress(OSError), socket.create_connection(address, CONNECT_TIMEOUT_SECONDS) as sock:
        try:
            context.wrap_socket(sock, server_hostname=place.host).close()
        except ssl.SSLError as error:  # it may want a certificate of ours
            return "ALERT" in (error.reason or "")
        return True
    return False


def _speaks_plainly(place: BrokerAddress) -> bool:
    """Ask a word that a broker answers to in its protocol (AMQP: any word), not in a TLS alert."""
    address = (place.host, place.port)
    with suppress(OSError), socket.create_connection(address, CONNECT_TIMEOUT_SECONDS) as sock:
        sock.sendall(b"PING\r\n" + b" " * 2)
        return sock.recv(8)[:1] in (b"+", b"-", b"A")
    return False


# -- the subscription -------------------------------------------------------------------------------------


def _subscribe(config: BrokerConfig, place: BrokerAddress) -> list[Finding]:
    """Try it; that it is open is told later, after a while of listening."""
    reader = consumer_for(ConfigSource(config))
    try:
        reader.open()
    except BrokerError as error:
        text = str(error)
        return [Finding("subscription", "critical", text, allow(config, place, text))]
    finally:
        reader.close()
    return []
