"""Consumes events from an AMQP queue.

kombu connects, declares and subscribes, so all of its options apply. Then the socket is read here, in large
reads, and messages are taken from the frames; every other frame goes to py-amqp. (py-amqp reads frame by
frame, and closes the connection over a message whose properties it cannot read.)

A durable queue (--event-queue-durable, --event-queue) stays while the exporter is away, and a message leaves
it when it was used; see `acknowledgements`. So no event is lost, and none counts twice. The queue has a
single active consumer: of several exporters, RabbitMQ serves the one that subscribed first, and the next one
when that is gone. It tells none of them which one it is (rabbitmq.com/docs/consumers). A consumer knows that
it is active if it is alone, or when a message arrives. So that one arrives where no worker sends events,
each standby publishes test messages to the queue (`blocked.BlockedWatch`).
"""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable
from contextlib import suppress
from functools import lru_cache
from struct import error as StructError  # noqa: N812
from struct import unpack_from
from typing import Any

from amqp import spec
from amqp.exceptions import PreconditionFailed
from amqp.serialization import loads
from kombu import Exchange, Queue

from celery_exporter.broker.codecs import JSON, MAX_BODY
from celery_exporter.broker.connection import (
    HEARTBEAT_SECONDS,
    BrokerError,
    Source,
    broker_errors,
    receive,
)
from celery_exporter.broker.consumers.acknowledgements import RELAYED_LINES, Acknowledgements
from celery_exporter.broker.consumers.amqp_frames import Frame, Frames
from celery_exporter.broker.consumers.base import (
    BATCH_MESSAGES,
    BaseConsumer,
    BatchFull,
    Mark,
    new_queue_name,
)
from celery_exporter.broker.message import EVENT_LINES, TEST_MESSAGE, UNREADABLE, Message

#: What a durable queue holds while the exporter is away; the oldest messages are dropped. Events have some
#: 400 bytes, and a message of a relay has up to a megabyte of them.
DURABLE_QUEUE_ARGUMENTS = {
    "x-max-length": 1_000_000,
    "x-max-length-bytes": 2**30,
    "x-single-active-consumer": True,
}
#: Messages that RabbitMQ sends ahead of their acknowledgement: several reads, so that none waits for it. With
#: a state file the acknowledgement follows once a second, or when half of them wait for it.
PREFETCH, PREFETCH_WITH_STATE = 2_000, 40_000
#: Messages of a relay. Each line is remembered, and a message has those of one read of the relay.
PREFETCH_OF_RELAYED = RELAYED_LINES // BATCH_MESSAGES
#: How long `close` waits for the last acknowledgement. The whole process has 1.3 s to stop.
CLOSE_TIMEOUT_SECONDS = 0.5
#: Silence after which the queue is bound again: a deleted binding looks like silence.
REBIND_SECONDS = 10.0
#: Distinct properties that are cached, one per kind of sender, and the longest that are.
CACHED_PROPERTIES, MAX_CACHED_BYTES = 1_000, 500

_METHOD, _HEADER, _BODY = 1, 2, 3  # types of frames
_PROBE_REPLIES = frozenset({spec.Queue.DeclareOk, spec.Queue.BindOk})
#: The first properties of a message: flag, and type as in amqp.serialization.
_PROPERTIES = ((1 << 15, "s"), (1 << 14, "s"), (1 << 13, "F"))  # content type, content encoding, headers


class AmqpConsumer(BaseConsumer):
    """Consumes events from AMQP. See `EventConsumer`.

    `acks` are those of a queue that no relay has filled; None: the config says what kind of queue it is.
    """

    def __init__(
        self, source: Source, *, saves_state: bool = False, acks: Acknowledgements | None = None
    ) -> None:
        super().__init__(source)
        self._acks = acks
        if acks is None and self._config.event_queue is not None:
            self._acks = Acknowledgements(PREFETCH_OF_RELAYED, relayed=True)
        elif acks is None and self._config.event_queue_durable:
            self._acks = Acknowledgements(PREFETCH_WITH_STATE if saves_state else PREFETCH)
        self.is_active = None if self._acks is None else False
        self.is_standby = False  # another one was active when that was known last
        self._is_intact = False  # the last read ended without an error
        # Of the open connection: kombu's channel, py-amqp's connection and frame handler, and the socket.
        self._channel: Any = None
        self._amqp: Any = None
        self._handle_by_amqp: Callable[[Frame], Any] = _ignore
        self._socket: Any = None
        self._frames = Frames(0)
        # Of the message whose frames are arriving.
        self._is_decided = False  # whether it is active on this connection
        self._delivery: tuple[int, bool] = (0, False)  # delivery tag, redelivered
        self._properties = b""
        self._body: list[bytes] = []
        self._missing_bytes = 0
        self._is_kept = True
        # Signs of life.
        self._probed: int | None = None  # acknowledged when the probe was sent that has no reply yet
        self._is_alive = False
        self._last_message = self._last_bound = self._last_read = 0.0  # monotonic times

    # -- subscription

    def _subscribe(self) -> None:
        self._start_connection()
        queue = self._event_queue()(self._channel)
        if self._config.event_queue is None:
            declare(queue)
        else:
            queue.queue_declare(passive=True)
        if self._acks is not None:
            self._channel.basic_qos(0, self._acks.prefetch, a_global=False)
        queue.consume("", None, no_ack=self._acks is None)
        # py-amqp has received all replies, so it reads no more.
        transport = self._amqp.transport
        self._socket = transport.sock
        self._frames = Frames(self._amqp.frame_max, transport._read_buffer)  # noqa: SLF001  empty, mostly
        self._send_probe()

    def _start_connection(self) -> None:
        self._channel = self._connection.default_channel
        # py-amqp's connection. kombu's would reconnect by itself, without the subscription.
        self._amqp = self._connection.connection
        self._handle_by_amqp = self._amqp.on_inbound_frame
        self._amqp.on_inbound_frame = self._on_frame
        self._properties, self._body, self._missing_bytes, self._is_kept = b"", [], 0, True
        self._probed, self._is_alive, self._is_decided = None, False, False
        self._last_message = self._last_bound = self._last_read = time.monotonic()
        if self._acks is not None:
            self._acks.start_connection()
            self.mark = self._acks.mark

    def _event_queue(self) -> Queue:
        exchange = Exchange(self._config.event_exchange, "topic")
        durable_queue = self._config.durable_queue
        if durable_queue is None:
            # RabbitMQ 4.3 refuses a queue that is neither durable nor exclusive. A new name each time: the
            # queue of a dead connection stays locked until RabbitMQ notices.
            self._queue_name = new_queue_name()
            return Queue(
                self._queue_name, exchange, routing_key="#", durable=False, exclusive=True, auto_delete=True
            )
        self._queue_name = durable_queue
        return Queue(
            self._queue_name,
            exchange,
            routing_key="#",
            durable=True,
            queue_arguments=DURABLE_QUEUE_ARGUMENTS,
        )

    def read(self, timeout: float) -> list[Message]:
        """Return messages; wait up to `timeout` seconds for the first. Raises BrokerError."""
        if self._acks is None:
            return super().read(timeout)
        self._is_intact = False
        self._check_pause()
        if self._failure is None:
            with broker_errors(self._connection):
                self._acknowledge(self._acks)
        batch = super().read(timeout)
        self._acks.end_read()
        self._last_read = time.monotonic()
        self.mark = self._acks.mark
        self._is_intact = self._failure is None
        return batch

    def close(self) -> None:
        """Acknowledge what was used, and close the connection. Raises nothing."""
        if self._acks is not None and self._is_intact:
            self._is_intact = False
            with suppress(Exception):
                self._confirm_all(self._acks)
        self._is_decided = False
        super().close()

    # -- messages

    def _drain(self, timeout: float) -> None:
        if self._take_frames():  # a full batch leaves some
            return
        self._frames.feed(receive(self._socket, timeout))
        self._take_frames()

    def _take_frames(self) -> bool:
        """Take the complete frames, up to one batch of messages; return whether there were any."""
        has_frames = False
        while (frame := self._frames.next()) is not None:
            has_frames = True
            try:
                self._on_frame(frame)
            except (StructError, IndexError) as error:
                raise BrokerError(f"RabbitMQ sent a frame that cannot be read: {error}") from None
        return has_frames

    def _on_frame(self, frame: Frame) -> Any:
        """Take a frame of a message; pass any other to py-amqp, which calls this as well while it waits."""
        kind, channel, data = frame
        method = unpack_from(">HH", data) if kind == _METHOD else spec.Basic.Deliver
        if method != spec.Basic.Deliver or channel != self._channel.channel_id:
            if self._probed is not None and method in _PROBE_REPLIES:
                self._on_probe_reply()
                if method == spec.Queue.DeclareOk and self._acks is not None:
                    (consumers,) = unpack_from(">I", data, len(data) - 4)
                    self._on_consumers(consumers)
            if method == spec.Basic.Cancel:
                raise BrokerError(f"the queue {self._queue_name!r} was deleted, or its node is down")
            return self._handle_by_amqp(frame)
        self._amqp.bytes_recv += 1
        if kind == _METHOD:
            self._delivery = unpack_from(">Q?", data, 5 + data[4])  # after the consumer tag
        elif kind == _HEADER:
            (self._missing_bytes,) = unpack_from(">Q", data, 4)
            self._properties, self._body = data[12:], []
            self._is_kept = self._missing_bytes <= MAX_BODY  # without its body, a larger one is undecodable
        elif kind == _BODY:
            self._missing_bytes -= len(data)
            if self._is_kept:
                self._body.append(data)
        if kind != _METHOD and self._missing_bytes <= 0:
            self._on_message(b"".join(self._body))
        return False

    def _on_message(self, body: bytes) -> None:
        self._is_alive = True
        message = _message(self._properties, body)
        if message.content_type != TEST_MESSAGE:
            self._last_message = time.monotonic()
        if self._acks is None:
            self._add(message)
            return
        if not self.is_active or not self._is_decided:
            self._decide(is_active=True)
        tag, redelivered = self._delivery
        if message.content_type == TEST_MESSAGE:
            self._acks.pass_over(tag)
            return
        has_lines = self._acks.is_relayed and message.content_type == EVENT_LINES
        for part in _lines(message) if has_lines else [message]:
            if self._acks.deliver(tag, part.body, redelivered=redelivered):
                self._batch.append(part)
                self._batch_bytes += len(part.body)
        self._check_full()

    # -- signs of life

    def _check_alive(self) -> bool:
        # A heartbeat of RabbitMQ does not count: it belongs to the connection, and the queue may be gone.
        self._amqp.heartbeat_tick(rate=2)
        self._send_probe()
        is_alive, self._is_alive = self._is_alive, False
        return is_alive

    def _send_probe(self) -> None:
        """Query the queue, one probe at a time. Its reply confirms the acknowledgements before it."""
        if self._probed is not None:
            return
        self._probed = self._acks.acknowledged if self._acks is not None else 0
        now = time.monotonic()
        is_bound = now < max(self._last_message, self._last_bound) + REBIND_SECONDS
        # A standby receives nothing, and has to know the number of consumers.
        if is_bound or self.is_active is False or self._config.event_queue is not None:
            self._send(spec.Queue.Declare, "BsbbbbbF", 0, self._queue_name, 1, 0, 0, 0, 0, {})  # passive
        else:
            self._last_bound = now
            exchange = self._config.event_exchange
            self._send(spec.Queue.Bind, "BsssbF", 0, self._queue_name, exchange, "#", 0, {})

    def _on_probe_reply(self) -> None:
        if self._acks is not None:
            self._acks.confirm(self._probed or 0)
        self._probed, self._is_alive = None, True

    def _on_consumers(self, consumers: int) -> None:
        """Decide whether it is the active one of the consumers of a durable queue; it remains that.

        Who is alone is active, and so is who receives a message. Of two that subscribed at the same time, the
        first message decides.
        """
        if consumers == 1 or not self._is_decided:
            self._decide(is_active=consumers == 1)

    def _decide(self, *, is_active: bool) -> None:
        self.takeovers += is_active and self.is_standby
        self.is_active, self.is_standby, self._is_decided = is_active, not is_active, True

    # -- the durable queue

    def _check_pause(self) -> None:
        """Raise BrokerError after a pause in which RabbitMQ may have given the messages to another consumer.

        What the socket still has would count twice.
        """
        pause = time.monotonic() - self._last_read
        if pause > HEARTBEAT_SECONDS:
            raise BrokerError(f"nothing was read for {pause:.0f} s, so RabbitMQ has closed the connection")

    @property
    def duplicates(self) -> int:
        """Return how many messages were dropped, since they had been received before."""
        return 0 if self._acks is None else self._acks.duplicates

    def release(self, mark: Mark) -> None:
        """Let the queue delete the messages up to this mark, at the next read."""
        if self._acks is not None:
            self._acks.release(mark)

    def unconfirmed(self, mark: Mark) -> list[int]:
        """Return digests of released messages up to this mark that RabbitMQ may redeliver."""
        return [] if self._acks is None else self._acks.unconfirmed(mark)

    def expect_again(self, digests: list[int]) -> None:
        """Drop these messages, which another process has used, if RabbitMQ redelivers them."""
        if self._acks is not None:
            self._acks.expect_again(digests)

    def is_waiting(self) -> bool:
        """Return whether so many messages wait to be released that it is urgent."""
        return self._acks is not None and self._acks.is_waiting()

    def standby_queue(self) -> str | None:
        """Return the durable queue on which this is a standby, None if it is not."""
        return self._queue_name if self._is_decided and self.is_active is False else None

    def _acknowledge(self, acks: Acknowledgements) -> None:
        tag = acks.next_tag()
        if tag is not None:
            self._send(spec.Basic.Ack, "Lb", tag, 1)  # 1: and all before it

    def _confirm_all(self, acks: Acknowledgements) -> None:
        """Acknowledge what was used, and wait until RabbitMQ has processed it."""
        self._acknowledge(acks)
        deadline = time.monotonic() + CLOSE_TIMEOUT_SECONDS
        while not acks.is_confirmed and (left := deadline - time.monotonic()) > 0:
            self._send_probe()
            self._start_batch()  # these messages are not used, so they are redelivered
            with suppress(TimeoutError, BatchFull):
                self._drain(left)

    def _send(self, method: tuple[int, int], types: str, *values: Any) -> None:
        self._channel.send_method(method, types, values)


def declare(queue: Queue) -> None:
    """Declare a queue on its channel. Raises BrokerError if it exists with other arguments."""
    try:
        queue.declare()
    except PreconditionFailed as error:
        if error.method_sig != spec.Queue.Declare:
            raise
        vhost, name = (shlex.quote(text) for text in (queue.channel.connection.virtual_host, queue.name))
        raise BrokerError(
            f"the queue {queue.name!r} exists with other arguments: {error.reply_text}; "
            f"to delete it and its messages: rabbitmqctl delete_queue -p {vhost} {name}"
        ) from error


def _ignore(_: Frame) -> None:
    pass


def _lines(message: Message) -> list[Message]:
    """Return the messages that a relay has joined."""
    lines = message.body.split(b"\n", BATCH_MESSAGES - 1)  # a relay sends no more of them
    return [Message(line, JSON, "utf-8") for line in lines]


def _message(properties: bytes, body: bytes) -> Message:
    try:
        read = _cached_properties if len(properties) <= MAX_CACHED_BYTES else _read_properties
        return Message(body, *read(properties))
    except Exception:  # noqa: BLE001  senders write properties, and RabbitMQ passes them on unread
        return UNREADABLE


def _read_properties(properties: bytes) -> tuple[Any, Any, Any]:
    """Return content type, content encoding and compression of a message."""
    (flags,) = unpack_from(">H", properties)
    offset = 2
    values: list[Any] = []
    for flag, kind in _PROPERTIES:
        (value,), offset = loads(kind, properties, offset) if flags & flag else ((None,), offset)
        values.append(value)
    content_type, content_encoding, headers = values
    return content_type, content_encoding, (headers or {}).get("compression")


#: A sender uses the same properties for each of its messages; reading them costs as much as its event.
_cached_properties = lru_cache(CACHED_PROPERTIES)(_read_properties)
