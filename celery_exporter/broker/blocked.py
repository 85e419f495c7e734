"""Detects that RabbitMQ blocks publishers.

Its memory and disk alarms block them, which also stops the heartbeats of workers.

RabbitMQ reports it to a connection that publishes during an alarm, and reads nothing more from that
connection until the alarm is over (https://www.rabbitmq.com/docs/connection-blocked). So this publishes on a
connection of its own: an empty message to an exclusive queue, from which it gets the message at once. A
message that no queue receives would be wrong: RabbitMQ counts those, and there are alerts on that count.

The test messages of a standby leave on the same connection: on that of the event subscription, an alarm would
stop the events.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from struct import unpack_from
from typing import Any

import amqp
import kombu
from amqp import spec

from celery_exporter.broker.connection import (
    POLL_SECONDS,
    BrokerError,
    CachedConnection,
    Source,
    broker_errors,
)
from celery_exporter.broker.consumers.amqp_frames import Frame
from celery_exporter.broker.message import TEST_MESSAGE

#: Time between two checks: less than the three heartbeats after which a worker counts as down.
INTERVAL_SECONDS = 2.0
#: Longest time between two attempts while the broker does not reply, and while it denies access, which it
#: logs.
MAX_WAIT_SECONDS, MAX_DENIED_WAIT_SECONDS = 4.0, 3_600.0
DENIED = "ACCESS_REFUSED"
#: Frames read in one check: between two checks there are a heartbeat and at most one change.
MAX_FRAMES = 20
#: RabbitMQ's name for the ability to notify a blocked connection.
CAPABILITY = "connection.blocked"

_METHOD = 1  # type of a frame
_CONNECTION = 0  # channel of methods about the connection


class BlockedError(BrokerError):
    """RabbitMQ blocks publishers, so no command can be sent."""

    def __init__(self, reason: str = "") -> None:
        super().__init__(f"RabbitMQ blocks publishers{f': {reason}' if reason else ' (a resource alarm)'}")


def raise_when_blocked(connection: kombu.Connection) -> None:
    """Make this open connection raise BlockedError when RabbitMQ blocks it, instead of waiting."""
    if connection.transport.driver_type == "amqp":

        def on_blocked(_: str) -> None:
            raise BlockedError

        connection.connection.on_blocked = on_blocked


class BlockedWatch:
    """Checks repeatedly; `reason`, for any thread, is the result of the newest check.

    The reason is RabbitMQ's own text, such as "low on memory". It is empty where publishers are not blocked,
    None where that is unknown.

    `standby_queue` returns the durable queue on which this exporter is a standby, None if it is not. Each
    check publishes a test message to it, and the exporter that receives one is active.
    """

    def __init__(self, source: Source, standby_queue: Callable[[], str | None]) -> None:
        self.reason: str | None = None
        self._standby_queue = standby_queue
        self._probe = CachedConnection(source, _Probe)
        self._failure: BrokerError | None = None
        self._wait_seconds = INTERVAL_SECONDS
        self._next_attempt = 0.0  # monotonic time, after a failure

    def check(self) -> None:
        """Check once. Raises BrokerError if the broker does not reply."""
        if self._failure is not None and time.monotonic() < self._next_attempt:
            raise self._failure
        reason = None
        try:
            with self._probe.use() as probe:
                reason = probe.check(self._standby_queue())
        except BrokerError as error:
            self._failure = error
            self._next_attempt = time.monotonic() + self._wait_seconds
            longest = MAX_DENIED_WAIT_SECONDS if DENIED in str(error) else MAX_WAIT_SECONDS
            self._wait_seconds = min(2 * self._wait_seconds, longest)
            raise
        finally:
            self.reason = reason
        self._failure, self._wait_seconds = None, INTERVAL_SECONDS

    def close(self) -> None:
        """Close the connection. Raises nothing."""
        self._probe.close()


class _Probe:
    """A connection that publishes to itself.

    It stays open while it is blocked: RabbitMQ does not notice that a blocked connection was closed, so each
    new one would stay there too.
    """

    def __init__(self, connection: kombu.Connection) -> None:
        self._connection = connection
        self._channel = connection.default_channel
        library = connection.connection  # py-amqp's connection, which drops RabbitMQ's reason
        capabilities = library.server_properties.get("capabilities") or {}
        self._is_notified = bool(capabilities.get(CAPABILITY))
        self._handle_by_amqp = library.on_inbound_frame
        library.on_inbound_frame = self._on_frame
        self._reason = ""
        self._is_waiting = False
        self._queue = f"celeryev.{uuid.uuid4()}.probe"  # restricted users may declare "celeryev…"
        if self._is_notified:
            self._channel.queue_declare(self._queue, exclusive=True)

    def check(self, standby_queue: str | None) -> str | None:
        """Return why publishers are blocked, empty if they are not, None if the broker does not report it.

        Publishes a test message to `standby_queue` before, unless they are blocked.
        """
        if not self._is_notified:
            return None
        with broker_errors(self._connection):
            self._read_notifications()
            if not self._reason:
                self._publish_and_get(standby_queue)
        return self._reason

    def _read_notifications(self) -> None:
        with suppress(TimeoutError):
            for _ in range(MAX_FRAMES):
                self._connection.drain_events(timeout=POLL_SECONDS)

    def _publish_and_get(self, standby_queue: str | None) -> None:
        self._is_waiting = True
        try:
            with suppress(BlockedError):
                if standby_queue is not None:
                    test = amqp.Message(b"", content_type=TEST_MESSAGE)
                    self._channel.basic_publish(test, exchange="", routing_key=standby_queue)
                self._channel.basic_publish(amqp.Message(b""), exchange="", routing_key=self._queue)
                self._channel.basic_get(self._queue, no_ack=True)
        finally:
            self._is_waiting = False

    def _on_frame(self, frame: Frame) -> Any:
        kind, channel, data = frame
        method = unpack_from(">HH", data) if (kind, channel) == (_METHOD, _CONNECTION) else None
        if method == spec.Connection.Unblocked:
            self._reason = ""
        elif method == spec.Connection.Blocked:
            self._reason = _short_string(data, 4) or "no reason given"
            if self._is_waiting:  # for a reply that does not arrive while blocked
                raise BlockedError(self._reason)
        return self._handle_by_amqp(frame)


def _short_string(data: bytes, offset: int) -> str:
    """Return a short string of AMQP: one byte with the length, then the text."""
    start = offset + 1
    return data[start : start + data[offset]].decode(errors="replace")
