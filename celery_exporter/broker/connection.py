"""Creates kombu connections from a BrokerConfig.

Everything that depends on the URL's scheme before a byte is sent is here, too.

kombu builds every connection, so every URL, TLS option and transport option of Celery works here.
"""

from __future__ import annotations

import logging
import re
import socket
import ssl
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Generic, Protocol, TypeVar

import kombu
from kombu.exceptions import KombuError
from kombu.utils.url import parse_url

from celery_exporter.broker.config import BrokerConfig
from celery_exporter.broker.url import (
    AMQP,
    REDIS,
    UnusableURLError,
    check_files,
    check_text,
    not_installed,
    parts,
    refused_query,
    scheme_of,
)

log = logging.getLogger(__name__)

T = TypeVar("T")

#: How long to wait for a connection, and for a reply on it. The event consumer has to be back within 10 s of
#: the broker's return, which takes several attempts.
CONNECT_TIMEOUT_SECONDS = 3.0
REPLY_TIMEOUT_SECONDS = 5.0
#: RabbitMQ and this side each send a heartbeat after half of it.
HEARTBEAT_SECONDS = 6
#: The same for a connection that is used now and then, on which no heartbeat is sent. RabbitMQ closes it
#: after two of them.
CACHED_HEARTBEAT_SECONDS = 60
#: Size of one read: some hundred messages.
READ_BYTES = 2**18
#: TCP keepalive, in seconds and probes: the kernel notices a dead peer after 14 s, even inside a read.
KEEPALIVE = {"TCP_KEEPIDLE": 5, "TCP_KEEPINTVL": 3, "TCP_KEEPCNT": 3}
#: Milliseconds in which the peer has to acknowledge what was sent. py-amqp's 1,000 are too few for a short
#: outage of the network.
AMQP_USER_TIMEOUT = {"TCP_USER_TIMEOUT": 10_000}
#: Timeout of a read that only finds out whether the connection was closed.
POLL_SECONDS = 0.001
#: How long closing a TLS connection may take, whose peer may be dead.
CLOSE_TIMEOUT_SECONDS = 0.2

#: What errors say about TLS on a port without it, which stays silent or sends something else.
_NO_TLS = re.compile("Timeout connecting|timed out|WRONG_VERSION_NUMBER|EOF occurred|record layer failure")
#: Transports on which Celery uses a fan-out exchange for events (celery/events/event.py, get_exchange).
_FANOUT = frozenset({"redis", "gcpubsub"})
#: Transports with fan-out inside one process only (kombu/transport/memory.py).
_ONE_PROCESS = frozenset({"memory"})
#: A consumer on Redis, even of replies, returns to their queues the messages that any worker has held for
#: longer than the consumer's own visibility timeout (kombu.transport.redis.QoS.restore_visible): long tasks
#: would run twice. So ours never ends; workers return messages by their own.
_RESTORE_NOTHING = {"visibility_timeout": 1e10}
#: Packages whose errors are about the code, not about the broker.
_NO_DRIVERS = frozenset({"builtins", "celery_exporter"})
_TLS = {"rediss": "ssl_cert_reqs", "amqps": "cert_reqs"}
_VERIFY = {"required": ssl.CERT_REQUIRED, "optional": ssl.CERT_OPTIONAL, "none": ssl.CERT_NONE}


class BrokerError(Exception):
    """The broker is unreachable, refuses, or does not reply. The text is one line without secrets."""


def check(config: BrokerConfig) -> None:
    """Raise UnusableURLError for an unknown transport, a missing package or TLS file. Sends nothing."""
    urls, scheme = parts(config.broker_url), scheme_of(config.broker_url)
    check_text(config.broker_url)
    try:
        connection = connect(config)
        connection.transport  # noqa: B018  imports the driver
        for url in urls[1:]:  # kombu reads these when it fails over
            parse_url(url)
    except (ImportError, AttributeError, NameError, RuntimeError) as error:  # its driver is missing
        raise not_installed(scheme, error) from None
    except (ValueError, KeyError, TypeError) as error:  # the text may have a part of the password
        raise refused_query(scheme, error) from None
    check_files(connection.ssl or {})
    if config.event_queue is not None and not is_amqp(config):
        raise UnusableURLError(
            f"--event-queue needs amqp:// or amqps://, and the broker URL is {scheme}://; give the URL of "
            "RabbitMQ, or no --event-queue"
        )


def connect(config: BrokerConfig, heartbeat: int = HEARTBEAT_SECONDS) -> kombu.Connection:
    """Return a new connection, not open yet; `heartbeat` is for AMQP, in seconds."""
    scheme = scheme_of(config.broker_url)
    return kombu.Connection(
        config.broker_url,
        ssl=_tls(scheme, config.broker_ssl_option) or None,
        connect_timeout=CONNECT_TIMEOUT_SECONDS,
        heartbeat=heartbeat,
        transport_options={
            **_defaults(scheme),
            **config.broker_transport_option,
            **(_RESTORE_NOTHING if scheme in REDIS else {}),
        },
    )


def is_redis(config: BrokerConfig) -> bool:
    """Return whether the broker is Redis, with or without Sentinel."""
    return scheme_of(config.broker_url) in REDIS


def has_tls(config: BrokerConfig) -> bool:
    """Return whether the URL or an option asks for TLS."""
    return bool(_tls(scheme_of(config.broker_url), config.broker_ssl_option))


def is_amqp(config: BrokerConfig) -> bool:
    """Return whether the broker is reached through py-amqp."""
    return scheme_of(config.broker_url) in AMQP


def why_no_events(config: BrokerConfig) -> str:
    """Return why events cannot arrive on this transport, empty if they can. Sends nothing.

    kombu sends an event to the queues that are bound to its exchange. Transports without fan-out keep these
    bindings in the memory of the process that declared them, so a worker knows only its own queues.
    """
    if has_fanout(connect(config).transport):
        return ""
    return (
        f"kombu's {scheme_of(config.broker_url)}:// transport has no fan-out between processes, "
        "so events and replies of workers cannot arrive on it"
    )


def has_fanout(transport: Any) -> bool:
    """Return whether messages of one process reach the queues of every other process."""
    fans_out = "fanout" in transport.implements.exchange_type
    return fans_out and transport.driver_type not in _ONE_PROCESS


def open_(connection: kombu.Connection) -> None:
    """Open the connection at the first of its URLs that works; each is tried once.

    Raises the errors of kombu and its driver; see `broker_errors`.
    """
    connection.ensure_connection(
        max_retries=max(len(connection.alt) - 1, 0), interval_start=0, interval_step=0, interval_max=0
    )
    if connection.transport.driver_type == "amqp":
        # py-amqp relies on SO_RCVTIMEO, and ignores its error in the middle of a frame: it would wait
        # forever.
        transport = connection.connection.transport
        transport.sock.settimeout(transport.read_timeout or REPLY_TIMEOUT_SECONDS)


def event_exchange(config: BrokerConfig, connection: kombu.Connection) -> kombu.Exchange:
    """Return the exchange to which Celery publishes events."""
    exchange_type = "fanout" if connection.transport.driver_type in _FANOUT else "topic"
    return kombu.Exchange(config.event_exchange, exchange_type)


def receive(sock: socket.socket, timeout: float) -> bytes:
    """Return bytes from a socket; raise TimeoutError if none arrive within `timeout` seconds."""
    sock.settimeout(timeout)
    try:
        data = sock.recv(READ_BYTES)
    except (BlockingIOError, ssl.SSLWantReadError):
        raise TimeoutError from None
    finally:
        sock.settimeout(REPLY_TIMEOUT_SECONDS)  # of later sends
    if not data:
        raise BrokerError("the broker closed the connection")
    return data


@contextmanager
def broker_errors(connection: kombu.Connection) -> Iterator[None]:
    """Raise BrokerError for the errors of kombu, its driver and the system that are about the broker."""
    # UnicodeError: an impossible host name, or a text of the broker that was cut inside a character.
    expected = (*connection.connection_errors, *connection.channel_errors, KombuError, OSError, UnicodeError)
    try:
        yield
    except Exception as error:
        if not (isinstance(error, expected) or _is_of_driver(error, connection)):
            raise
        text = " ".join(str(error).split()) or type(error).__name__
        if connection.ssl and _NO_TLS.search(text):
            text += " (does this port speak TLS?)"
        raise BrokerError(_without_secrets(text, connection)) from error


def _is_of_driver(error: Exception, connection: kombu.Connection) -> bool:
    """Return whether a driver raised this error, which kombu may not list: psycopg, SQLAlchemy, botocore.

    kombu lists all errors of the drivers of AMQP and Redis.
    """
    package = type(error).__module__.partition(".")[0]
    return connection.transport.driver_type not in {"amqp", "redis"} and package not in _NO_DRIVERS


class Source(Protocol):
    """Returns the current config; see `broker.source`."""

    def current(self) -> BrokerConfig:
        """Return the config."""

    def leads_elsewhere(self, used: BrokerConfig) -> bool:
        """Return whether the URL now names another broker than that of the config in use."""


class CachedConnection(Generic[T]):
    """A client on a connection of its own, created at the first use and dropped when a use fails.

    For one thread. `build` creates the client on an open connection to the broker that `source` names then.
    """

    def __init__(self, source: Source, build: Callable[[kombu.Connection], T]) -> None:
        self._source = source
        self._config = source.current()  # of the open connection
        self._build = build
        self._cached: tuple[kombu.Connection, T] | None = None
        self._used = 0.0  # monotonic time

    @contextmanager
    def use(self) -> Iterator[T]:
        """Yield the client. Raises BrokerError if there is no connection."""
        if self._cached is not None and (
            self._source.leads_elsewhere(self._config)
            or not _is_usable(self._cached[0], time.monotonic() - self._used)
        ):
            self.close()
        try:
            if self._cached is None:
                self._cached = self._open()
            yield self._cached[1]
        except BaseException:
            self.close()
            raise
        self._used = time.monotonic()

    def close(self) -> None:
        """Close the connection. Raises nothing."""
        cached, self._cached = self._cached, None
        if cached is not None:
            close_quietly(cached[0])

    def _open(self) -> tuple[kombu.Connection, T]:
        self._config = self._source.current()
        connection = connect(self._config, CACHED_HEARTBEAT_SECONDS)
        try:
            with broker_errors(connection):
                open_(connection)
                return connection, self._build(connection)
        except BaseException:
            close_quietly(connection)
            raise


def _is_usable(connection: kombu.Connection, idle: float) -> bool:
    """Return whether a connection is still open after so many seconds without use."""
    if connection.transport.driver_type != "amqp":
        return True  # redis-py checks by itself
    if not connection.connected or 0 < connection.get_heartbeat_interval() < idle:
        return False
    try:
        connection.drain_events(timeout=POLL_SECONDS)
    except TimeoutError:
        return True
    except Exception:  # noqa: BLE001  whatever it is, a new connection does not have it
        return False
    return True


def close_quietly(connection: kombu.Connection) -> None:
    """Close a connection that may be broken. Raises nothing."""
    try:
        if connection.transport.driver_type == "amqp" and connection.connected:
            connection.connection.transport.sock.settimeout(CLOSE_TIMEOUT_SECONDS)
        connection.collect()
    except Exception:
        log.debug("closing a connection", exc_info=True)


def _without_secrets(text: str, connection: kombu.Connection) -> str:
    return text.replace(connection.password, "***") if connection.password else text


def _tls(scheme: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return TLS options. Certificates are verified unless an option disables it."""
    tls = dict(options)
    if scheme in _TLS:
        tls.setdefault(_TLS[scheme], "required")
    for name in ("ssl_cert_reqs", "cert_reqs"):
        level = str(tls.get(name, "")).lower().removeprefix("cert_")
        if level in _VERIFY:
            tls[name] = _VERIFY[level]
    return tls


def _defaults(scheme: str) -> dict[str, Any]:
    if scheme in AMQP:
        return {
            "read_timeout": REPLY_TIMEOUT_SECONDS,
            "write_timeout": REPLY_TIMEOUT_SECONDS,
            "socket_settings": _options({**KEEPALIVE, **AMQP_USER_TIMEOUT}),
        }
    if scheme not in REDIS:
        return {}
    tcp = (
        {}
        if scheme == "redis+socket"
        else {
            "socket_connect_timeout": CONNECT_TIMEOUT_SECONDS,
            "socket_keepalive": True,
            "socket_keepalive_options": _options(KEEPALIVE),
        }
    )
    return {"socket_timeout": REPLY_TIMEOUT_SECONDS, "health_check_interval": 3, **tcp}


def _options(values: Mapping[str, int]) -> dict[int, int]:
    """Return TCP options by their numbers on this system."""
    return {getattr(socket, name): value for name, value in values.items() if hasattr(socket, name)}
