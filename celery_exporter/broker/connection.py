"""Settings → kombu connections. Everything that depends on the URL's scheme before a byte is sent.

kombu builds every connection, so each URL, TLS and transport option that Celery takes works here alike.
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
    check_files,
    check_text,
    not_installed,
    parts,
    refused_query,
    scheme_of,
)

log = logging.getLogger(__name__)

T = TypeVar("T")

#: Seconds to wait for a connection to be made, and for an answer on it. The event path has to be back
#: within 10 s of the broker's return, through several attempts.
CONNECT_TIMEOUT = 3.0
ANSWER_TIMEOUT = 5.0
#: Seconds; half of it is how often RabbitMQ and we send a heartbeat.
AMQP_HEARTBEAT = 6
#: The same where a connection is used now and then, and nobody sends any. RabbitMQ ends it after two of them.
KEPT_HEARTBEAT = 60
#: Bytes of one read: some hundred messages.
CHUNK = 2**18
#: TCP keepalive: the kernel notices a peer that is gone after 14 s, even inside a read.
KEEPALIVE = {"TCP_KEEPIDLE": 5, "TCP_KEEPINTVL": 3, "TCP_KEEPCNT": 3}
#: Milliseconds in which the network has to take what was sent. py-amqp's 1,000 are a hiccup of it.
AMQP_UNTAKEN = {"TCP_USER_TIMEOUT": 10_000}
#: Seconds of one look whether a connection was ended, which has no bytes to be read.
LOOK = 0.001
#: What is said of TLS on a port without it, which is silent, or answers something else.
_NO_TLS = re.compile("Timeout connecting|timed out|WRONG_VERSION_NUMBER|EOF occurred|record layer failure")
#: Seconds for the farewell of a TLS connection, which may have nobody at its other end.
FAREWELL = 0.2

#: Exchanges that kombu makes fan-out on these transports (celery/events/event.py, get_exchange).
_FANOUT = frozenset({"redis", "gcpubsub"})
#: Transports with fan-out whose exchanges are known to one process only (kombu/transport/memory.py).
_ONE_PROCESS = frozenset({"memory"})
#: Whoever consumes on Redis, if only answers of workers, returns to their queues the messages that any worker
#: has held for longer than its own visibility timeout (kombu.transport.redis.QoS.restore_visible): tasks that
#: run for long would run twice. So ours never ends; workers return messages by their own.
_TAKES_NOTHING_BACK = {"visibility_timeout": 1e10}
_TLS = {"rediss": "ssl_cert_reqs", "amqps": "cert_reqs"}
_VERIFY = {"required": ssl.CERT_REQUIRED, "optional": ssl.CERT_OPTIONAL, "none": ssl.CERT_NONE}


class BrokerError(Exception):
    """The broker is gone, refuses or does not answer; the text is one line without secrets."""


def check(config: BrokerConfig) -> None:
    """Raise UnusableURLError unless the URL's transport exists, and its package and files are there."""
    urls, scheme = parts(config.broker_url), scheme_of(config.broker_url)
    check_text(config.broker_url)
    try:
        connection = connect(config)
        connection.transport  # noqa: B018  made without a byte sent; its driver is imported by it
        for other in urls[1:]:  # which kombu reads when it fails over to it
            parse_url(other)
    except (
        ImportError,
        AttributeError,
        NameError,
        RuntimeError,
    ) as error:  # how transports miss their driver
        raise not_installed(scheme, error) from None
    except (ValueError, KeyError, TypeError) as error:  # whose text may have a part of the password in it
        raise refused_query(scheme, error) from None
    check_files(connection.ssl or {})


def connect(config: BrokerConfig, heartbeat: int = AMQP_HEARTBEAT) -> kombu.Connection:
    """Return a new connection that is not open yet; `heartbeat` in seconds, of AMQP."""
    scheme = scheme_of(config.broker_url)
    return kombu.Connection(
        config.broker_url,
        ssl=_tls(scheme, config.broker_ssl_option) or None,
        connect_timeout=CONNECT_TIMEOUT,
        heartbeat=heartbeat,
        transport_options={
            **_defaults(scheme),
            **config.broker_transport_option,
            **(_TAKES_NOTHING_BACK if scheme in REDIS else {}),
        },
    )


def is_redis(config: BrokerConfig) -> bool:
    """Tell whether the broker is Redis, behind sentinels or not."""
    return scheme_of(config.broker_url) in REDIS


def has_tls(config: BrokerConfig) -> bool:
    """Tell whether TLS is asked for, by the URL or by options."""
    return bool(_tls(scheme_of(config.broker_url), config.broker_ssl_option))


def is_amqp(config: BrokerConfig) -> bool:
    """Tell whether the broker speaks AMQP, through py-amqp."""
    return scheme_of(config.broker_url) in AMQP


def why_no_events(config: BrokerConfig) -> str:
    """Return why no event of a worker can arrive on this transport; empty where they can.

    kombu sends an event to the queues that are bound to its exchange. Transports without fan-out keep these
    bindings in the memory of the process that made them, so a worker knows of no queue but its own. Asked of
    kombu's classes: nothing is sent, and no queue comes into being.
    """
    if has_fanout(connect(config).transport):
        return ""
    return (
        f"kombu's {scheme_of(config.broker_url)}:// transport has no fan-out between processes, "
        "so events and answers of workers cannot arrive on it"
    )


def has_fanout(transport: Any) -> bool:
    """Tell whether what one process publishes on kombu's transport reaches the queues of every other."""
    fans_out = "fanout" in transport.implements.exchange_type
    return fans_out and transport.driver_type not in _ONE_PROCESS


def open_(connection: kombu.Connection) -> None:
    """Open the connection, at the first of its URLs that answers; each is tried once.

    Raises what kombu raises; see `broker_errors`.
    """
    connection.ensure_connection(
        max_retries=max(len(connection.alt) - 1, 0), interval_start=0, interval_step=0, interval_max=0
    )
    if connection.transport.driver_type == "amqp":
        # py-amqp leaves its waiting to SO_RCVTIMEO, which it takes for no error in the middle of a frame:
        # it would wait for the rest for ever.
        transport = connection.connection.transport
        transport.sock.settimeout(transport.read_timeout or ANSWER_TIMEOUT)


def event_exchange(config: BrokerConfig, connection: kombu.Connection) -> kombu.Exchange:
    """Return the exchange that events are published to."""
    kind = "fanout" if connection.transport.driver_type in _FANOUT else "topic"
    return kombu.Exchange(config.event_exchange, kind)


def receive(sock: socket.socket, timeout: float) -> bytes:
    """Return what has come on a socket, or comes in so many seconds; raise TimeoutError when nothing does."""
    sock.settimeout(timeout)
    try:
        data = sock.recv(CHUNK)
    except (BlockingIOError, ssl.SSLWantReadError):
        raise TimeoutError from None
    finally:
        sock.settimeout(ANSWER_TIMEOUT)  # for what is sent
    if not data:
        raise BrokerError("the broker closed the connection")
    return data


@contextmanager
def broker_errors(connection: kombu.Connection) -> Iterator[None]:
    """Turn whatever kombu, its driver or the system says of a broken broker into BrokerError."""
    # UnicodeError: of a host name that cannot be one, or of a broker's words that were cut to size.
    expected = (*connection.connection_errors, *connection.channel_errors, KombuError, OSError, UnicodeError)
    try:
        yield
    except expected as error:
        text = " ".join(str(error).split()) or type(error).__name__
        if connection.ssl and _NO_TLS.search(text):
            text += " (does this port speak TLS?)"
        raise BrokerError(_without_secrets(text, connection)) from error


class Source(Protocol):
    """Gives the settings as they are now; see `broker.source`."""

    def current(self) -> BrokerConfig:
        """Return the config."""

    def leads_elsewhere(self, used: BrokerConfig) -> bool:
        """Tell whether the URL names another broker now than the one that was `used`."""


class CachedConnection(Generic[T]):
    """Something that needs an open connection: made when it is first used, dropped when a use fails.

    `build` makes it, given the connection, which is to the broker that `source` names then. For one thread.
    """

    def __init__(self, source: Source, build: Callable[[kombu.Connection], T]) -> None:
        self._source = source
        self._config = source.current()  # of the connection that is open
        self._build = build
        self._made: tuple[kombu.Connection, T] | None = None
        self._used = 0.0  # by the monotonic clock

    @contextmanager
    def use(self) -> Iterator[T]:
        """Give it out; raise BrokerError when there is no connection."""
        if self._made is not None and (
            self._source.leads_elsewhere(self._config)
            or not _is_usable(self._made[0], time.monotonic() - self._used)
        ):
            self.close()
        try:
            if self._made is None:
                self._made = self._make()
            yield self._made[1]
        except BaseException:
            self.close()
            raise
        self._used = time.monotonic()

    def close(self) -> None:
        """Hang up; a broker that is gone makes no difference."""
        made, self._made = self._made, None
        if made is not None:
            close_quietly(made[0])

    def _make(self) -> tuple[kombu.Connection, T]:
        self._config = self._source.current()
        connection = connect(self._config, KEPT_HEARTBEAT)
        try:
            with broker_errors(connection):
                open_(connection)
                return connection, self._build(connection)
        except BaseException:
            close_quietly(connection)
            raise


def _is_usable(connection: kombu.Connection, idle: float) -> bool:
    """Tell whether a connection that was not used for so many seconds has not been ended meanwhile."""
    if connection.transport.driver_type != "amqp":
        return True  # redis-py looks for itself
    if not connection.connected or 0 < connection.get_heartbeat_interval() < idle:
        return False
    try:
        connection.drain_events(timeout=LOOK)
    except TimeoutError:
        return True
    except Exception:  # noqa: BLE001  whatever it is, a new one will not have it
        return False
    return True


def close_quietly(connection: kombu.Connection) -> None:
    """Close a connection that may be broken, without a word to the broker where its protocol allows it."""
    try:
        if connection.transport.driver_type == "amqp" and connection.connected:
            connection.connection.transport.sock.settimeout(FAREWELL)
        connection.collect()
    except Exception:
        log.debug("closing a connection", exc_info=True)


def _without_secrets(text: str, connection: kombu.Connection) -> str:
    return text.replace(connection.password, "***") if connection.password else text


def _tls(scheme: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return TLS options; certificates are verified unless the options say otherwise."""
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
            "read_timeout": ANSWER_TIMEOUT,
            "write_timeout": ANSWER_TIMEOUT,
            "socket_settings": _options({**KEEPALIVE, **AMQP_UNTAKEN}),
        }
    if scheme not in REDIS:
        return {}
    tcp = (
        {}
        if scheme == "redis+socket"
        else {
            "socket_connect_timeout": CONNECT_TIMEOUT,
            "socket_keepalive": True,
            "socket_keepalive_options": _options(KEEPALIVE),
        }
    )
    return {"socket_timeout": ANSWER_TIMEOUT, "health_check_interval": 3, **tcp}


def _options(values: Mapping[str, int]) -> dict[int, int]:
    """Return TCP options by the numbers that this system has for them."""
    return {getattr(socket, name): value for name, value in values.items() if hasattr(socket, name)}
