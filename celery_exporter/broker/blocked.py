"""Whether RabbitMQ blocks publishers: its memory and disk alarms do, and stop heartbeats with all else.

RabbitMQ says so to a connection that publishes during an alarm, and reads nothing more from it until the
alarm is over (https://www.rabbitmq.com/docs/connection-blocked). So this publishes on a connection of its
own: an empty message to a queue that only this connection has, which is taken out again at once. It cannot be
a message that no queue takes: RabbitMQ counts those, and there are alerts on that count.
"""

from __future__ import annotations

import time
import uuid
from contextlib import suppress
from struct import unpack_from
from typing import Any

import amqp
import kombu
from amqp import spec

from celery_exporter.broker.connection import LOOK, BrokerError, CachedConnection, Source, broker_errors
from celery_exporter.broker.consumers.amqp_frames import Frame

#: Seconds between two looks: fewer than the three heartbeats after which a worker counts as down.
INTERVAL_SECONDS = 2.0
#: Seconds between two attempts, at most, while the broker does not answer, and where it denies them to this
#: user, of which it logs each.
LONGEST_WAIT_SECONDS, DENIED_WAIT_SECONDS = 4.0, 3_600.0
DENIED = "ACCESS_REFUSED"
#: Frames read in one look: between two there is a heartbeat, and at most one change.
MAX_FRAMES = 20
#: What RabbitMQ calls the ability to tell a connection that it is blocked.
CAPABILITY = "connection.blocked"

_METHOD = 1  # type of a frame
_CONNECTION = 0  # channel of methods that are about the connection


class BlockedError(BrokerError):
    """RabbitMQ blocks publishers, so what was asked cannot be asked now."""

    def __init__(self, reason: str = "") -> None:
        super().__init__(f"RabbitMQ blocks publishers{f': {reason}' if reason else ' (a resource alarm)'}")


def raise_when_blocked(connection: kombu.Connection) -> None:
    """Have this open connection raise BlockedError, instead of waiting in vain, once RabbitMQ blocks it."""
    if connection.transport.driver_type == "amqp":

        def blocked(_: str) -> None:
            raise BlockedError

        connection.connection.on_blocked = blocked


class BlockedWatch:
    """Looks again and again; `reason` is what the newest look found, for any thread.

    The reason is RabbitMQ's own text, such as "low on memory"; empty where publishers are not blocked, None
    where that is not known.
    """

    def __init__(self, source: Source) -> None:
        self.reason: str | None = None
        self._probe = CachedConnection(source, _Probe)
        self._failure: BrokerError | None = None
        self._wait = INTERVAL_SECONDS
        self._next = 0.0  # monotonic time of the next attempt after a failure

    def look(self) -> None:
        """Find out; raise BrokerError where the broker cannot be asked."""
        if self._failure is not None and time.monotonic() < self._next:
            raise self._failure
        reason = None
        try:
            with self._probe.use() as probe:
                reason = probe.look()
        except BrokerError as error:
            self._failure = error
            self._next = time.monotonic() + self._wait
            longest = DENIED_WAIT_SECONDS if DENIED in str(error) else LONGEST_WAIT_SECONDS
            self._wait = min(2 * self._wait, longest)
            raise
        finally:
            self.reason = reason
        self._failure, self._wait = None, INTERVAL_SECONDS

    def close(self) -> None:
        """Close the connection."""
        self._probe.close()


class _Probe:
    """A connection that publishes to itself.

    It stays open while blocked: RabbitMQ does not notice then that one was closed, and would collect them.
    """

    def __init__(self, connection: kombu.Connection) -> None:
        self._connection = connection
        self._channel = connection.default_channel
        library = connection.connection  # py-amqp's, which drops the reason that RabbitMQ gives
        self._tells = bool((library.server_properties.get("capabilities") or {}).get(CAPABILITY))
        self._library = library.on_inbound_frame
        library.on_inbound_frame = self._on_frame
        self._reason = ""
        self._waits = False
        self._queue = f"celeryev.{uuid.uuid4()}.probe"  # "celeryev": what restricted users may declare
        if self._tells:
            self._channel.queue_declare(self._queue, exclusive=True)

    def look(self) -> str | None:
        """Return why publishers are blocked; None where the broker does not tell."""
        if not self._tells:
            return None
        with broker_errors(self._connection):
            self._read_what_came()
            if not self._reason:
                self._publish_and_get()
        return self._reason

    def _read_what_came(self) -> None:
        with suppress(TimeoutError):
            for _ in range(MAX_FRAMES):
                self._connection.drain_events(timeout=LOOK)

    def _publish_and_get(self) -> None:
        self._waits = True
        try:
            with suppress(BlockedError):
                self._channel.basic_publish(amqp.Message(b""), exchange="", routing_key=self._queue)
                self._channel.basic_get(self._queue, no_ack=True)
        finally:
            self._waits = False

    def _on_frame(self, frame: Frame) -> Any:
        kind, channel, data = frame
        method = unpack_from(">HH", data) if (kind, channel) == (_METHOD, _CONNECTION) else None
        if method == spec.Connection.Unblocked:
            self._reason = ""
        elif method == spec.Connection.Blocked:
            self._reason = _short_string(data, 4) or "no reason given"
            if self._waits:  # for an answer that will not come
                raise BlockedError(self._reason)
        return self._library(frame)


def _short_string(data: bytes, offset: int) -> str:
    """Return a short string of AMQP, which begins with its length in a byte."""
    start = offset + 1
    return data[start : start + data[offset]].decode(errors="replace")
