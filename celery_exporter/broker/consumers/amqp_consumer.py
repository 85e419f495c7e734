"""Events off an AMQP queue. kombu connects, declares and consumes, so each of its options holds; from then on
the socket is read here, in large reads, and messages are taken from the frames. What else comes is py-amqp's.
(It reads frame by frame, and ends the connection over a message whose properties it cannot read.)

With --event-queue-durable the queue outlives us, and a message leaves it when it has been used: with a state
file, when what it changed is in there. What was used, and is perhaps not acknowledged, when a connection was
lost comes again and is dropped, also after the process was killed, for the state file says what that is. So
nothing is lost, and nothing counts twice.
"""

from __future__ import annotations

import hashlib
import logging
import time
import uuid
from collections import Counter, deque
from contextlib import suppress
from functools import lru_cache
from struct import error as StructError  # noqa: N812
from struct import unpack_from
from typing import Any

from amqp import spec
from amqp.serialization import loads
from kombu import Exchange, Queue

from celery_exporter.broker.codecs import MAX_BODY
from celery_exporter.broker.connection import BrokerError, Source, broker_errors, receive
from celery_exporter.broker.consumers.amqp_frames import Frame, Frames
from celery_exporter.broker.consumers.kombu_consumer import BatchFull, KombuConsumer
from celery_exporter.broker.message import UNREADABLE, Message

log = logging.getLogger(__name__)

#: Messages that a durable queue holds for an exporter that is away, some gigabytes at most; the oldest go.
DURABLE_LENGTH = 1_000_000
#: Messages that RabbitMQ hands out ahead of our acknowledgement: some reads, so that none waits for it. With
#: a state file it comes once a second, or when half of them wait for it.
PREFETCH, PREFETCH_SAVED = 2_000, 40_000
#: Seconds for the last acknowledgement to be taken, when we leave. The process has 1.3 s to end in.
FAREWELL = 0.5
#: Seconds without a message after which the binding is made anew: it is what silence may come from.
RENEW = 10.0
#: Times the prefetch that messages are remembered which may come again.
MEMORY = 5
#: Senders whose properties are remembered, and bytes of those that are.
SENDERS, SHORT = 1_000, 500
#: Seconds after which RabbitMQ has noticed the end of a connection of ours that it was not told of.
FORGOTTEN = 30.0

_METHOD, _HEADER, _BODY = 1, 2, 3
_ANSWERS = frozenset({spec.Queue.DeclareOk, spec.Queue.BindOk})
#: The properties that matter, which are the first ones: flag, and type as amqp.serialization has it.
_PROPERTIES = ((1 << 15, "s"), (1 << 14, "s"), (1 << 13, "F"))  # content type, content encoding, headers


class AmqpConsumer(KombuConsumer):
    """Reads events from AMQP. See `EventConsumer`."""

    def __init__(self, source: Source, *, saves_state: bool = False) -> None:
        super().__init__(source)
        self._durable = self._config.event_queue_durable
        self._prefetch = PREFETCH_SAVED if saves_state else PREFETCH
        self._number = 0  # of the connection
        self._released = (0, 0)  # that and delivery tag, up to which messages were used
        self._tag = self._acknowledged = self._confirmed = 0  # delivery tags
        self._dropped: deque[tuple[int, int]] = deque()  # what came again, as long as it may once more
        self._sound = False  # did the last read end well
        self._unused: list[tuple[int, int]] = []  # delivery tag and hash, of this read
        self._used: deque[tuple[int, int]] = deque()  # of reads before, of which RabbitMQ may not know yet
        self._again: Counter[int] = Counter()  # hashes of what was used on connections before

    def _subscribe(self) -> None:
        self._channel = self._connection.default_channel
        # py-amqp's own: kombu would connect anew by itself, and nobody would be subscribed.
        self._amqp = self._connection.connection
        self._library = self._amqp.on_inbound_frame
        self._amqp.on_inbound_frame = self._on_frame
        self._prove = self._prove_amqp
        self._remember()
        self._head: tuple[int, bool] = (0, False)  # delivery tag, redelivered
        self._properties, self._body, self._missing, self._is_kept = b"", [b""], 0, True
        self._number += 1
        self._tag = self._acknowledged = self._confirmed = 0
        self.mark = (self._number, 0) if self._durable else None
        self._asked: int | None = None  # what was acknowledged before the question that is not answered yet
        self._answered = False
        self._heard = self._renewed = self._alone = time.monotonic()
        # A new name each time: the queue of a connection that RabbitMQ does not know to be dead is locked.
        self._queue_name = "celeryev.celery-exporter" if self._durable else f"celeryev.{uuid.uuid4()}"
        queue = self._queue()(self._channel)
        queue.declare()
        if self._durable:
            self._channel.basic_qos(0, self._prefetch, a_global=False)
        queue.consume("", None, no_ack=not self._durable)
        # Nobody waits for an answer any more, so nobody else reads.
        transport = self._amqp.transport
        self._socket = transport.sock
        self._frames = Frames(self._amqp.frame_max, transport._read_buffer)  # noqa: SLF001  empty, mostly

    def _settle(self) -> list[Message]:
        return []  # RabbitMQ has confirmed

    def _remember(self) -> None:
        """What was used comes again, unless RabbitMQ has had our acknowledgement."""
        self._again = +self._again if self._again.total() < MEMORY * self._prefetch else Counter()
        self._again.update(digest for _, digest in (*self._used, *self._dropped))
        self._used.clear()
        self._dropped.clear()
        self._unused.clear()

    def _queue(self) -> Queue:
        # Exclusive: RabbitMQ 4.3 refuses a queue that is neither durable nor exclusive.
        exclusive = not self._durable
        return Queue(
            self._queue_name,
            Exchange(self._config.event_exchange, "topic"),
            routing_key="#",
            durable=self._durable,
            exclusive=exclusive,
            auto_delete=exclusive,
            max_length=DURABLE_LENGTH if self._durable else None,
            # The newest consumer is served first: one that is dead, and not known to be, keeps nothing back.
            consumer_arguments={"x-priority": int(10 * time.time()) % 2**31} if self._durable else None,
        )

    def read(self, timeout: float) -> list[Message]:
        """Return messages; raise BrokerError."""
        self._sound = False
        if self._failure is None:
            with broker_errors(self._connection):
                self._acknowledge()
        batch = super().read(timeout)
        self._used.extend(self._unused)
        self._unused.clear()
        if self._durable:
            self.mark = (self._number, self._tag)
        self._sound = self._failure is None
        return batch

    def _drain(self, timeout: float) -> None:
        """Take what has come; raise TimeoutError when nothing does."""
        if self._take_frames():  # a batch that was full leaves some
            return
        self._frames.feed(receive(self._socket, timeout))
        self._take_frames()

    def _take_frames(self) -> bool:
        """Take each whole frame, one batch of messages at most; tell whether there was any."""
        taken = False
        while (frame := self._frames.next()) is not None:
            taken = True
            try:
                self._on_frame(frame)
            except (StructError, IndexError) as error:
                raise BrokerError(f"RabbitMQ sent a frame that cannot be read: {error}") from None
        return taken

    def close(self) -> None:
        """Acknowledge what was used, and hang up; a broker that is gone makes no difference."""
        if self._durable and self._sound:
            self._sound = False
            with suppress(Exception):
                self._take_leave()
        super().close()

    # -- messages

    def _on_frame(self, frame: Frame) -> Any:
        """Take what belongs to a message; the rest is py-amqp's, which calls this while it waits, too."""
        kind, channel, data = frame
        method = unpack_from(">HH", data) if kind == _METHOD else spec.Basic.Deliver
        if method != spec.Basic.Deliver or channel != self._channel.channel_id:
            if self._asked is not None and method in _ANSWERS:
                self._on_answer()
                if method == spec.Queue.DeclareOk:
                    self._look_at(*unpack_from(">I", data, len(data) - 4))
            return self._library(frame)
        self._amqp.bytes_recv += 1
        if kind == _METHOD:
            self._head = unpack_from(">Q?", data, 5 + data[4])  # after the consumer's tag
        elif kind == _HEADER:
            (self._missing,) = unpack_from(">Q", data, 4)
            self._properties, self._body = data[12:], []
            self._is_kept = self._missing <= MAX_BODY  # a larger one counts as one that cannot be read
        elif kind == _BODY:
            self._missing -= len(data)
            if self._is_kept:
                self._body.append(data)
        if kind != _METHOD and self._missing <= 0:
            self._on_message(b"".join(self._body))
        return False

    def _on_message(self, body: bytes) -> None:
        self._heard = time.monotonic()
        self._answered = True
        if self._durable:
            self._tag, redelivered = self._head
            digest = _digest(body)
            if redelivered and self._again[digest] > 0:
                self._again[digest] -= 1
                self._dropped.append((self._tag, digest))
                return
            self._unused.append((self._tag, digest))
        self._add(_payload(self._properties, body))

    def _add(self, payload: Message) -> None:
        self._keep(payload)  # broken ones too are taken off the wire, so any number may come
        if self._is_full():
            raise BatchFull

    # -- signs of life, and acknowledgements

    def _prove_amqp(self) -> bool:
        """Send a heartbeat when one is due, and ask; True when an answer or a message has come.

        Not so when a heartbeat has: that is a word of the connection, of which a dead queue knows nothing.
        """
        self._amqp.heartbeat_tick(rate=2)
        self._ask()
        answered, self._answered = self._answered, False
        return answered

    def _ask(self) -> None:
        """Ask for our queue, one question at a time; its answer tells that what went before was done, too."""
        if self._asked is not None:
            return
        self._asked = self._acknowledged
        now = time.monotonic()
        if now < max(self._heard, self._renewed) + RENEW:
            self._send(spec.Queue.Declare, "BsbbbbbF", 0, self._queue_name, 1, 0, 0, 0, 0, {})  # passively
        else:
            self._renewed = now
            exchange = self._config.event_exchange
            self._send(spec.Queue.Bind, "BsssbF", 0, self._queue_name, exchange, "#", 0, {})

    def _on_answer(self) -> None:
        self._confirmed, self._asked, self._answered = self._asked or 0, None, True
        for known in (self._used, self._dropped):
            while known and known[0][0] <= self._confirmed:
                known.popleft()

    def _look_at(self, consumers: int) -> None:
        """Say it when somebody else takes messages from our queue: each event reaches one of us only."""
        now = time.monotonic()
        if consumers < 2:
            self._alone = now
        elif now > self._alone + FORGOTTEN:
            log.warning("%d consumers share the queue %s: events miss here", consumers, self._queue_name)
            self._alone = float("inf")  # said once for each connection

    def release(self, mark: tuple[int, int]) -> None:
        """Take messages up to this mark for used."""
        self._released = mark

    def unconfirmed(self, mark: tuple[int, int]) -> list[int]:
        """Return the digests of what was used up to this mark, and may come again."""
        number, tag = mark
        used = self._used.copy() if number == self._number else ()
        dropped = (digest for _, digest in self._dropped.copy())
        return [
            *self._again.copy().elements(),
            *dropped,
            *(digest for each, digest in used if each <= tag),
        ]

    def expect_again(self, digests: list[int]) -> None:
        """Drop these messages if they come again."""
        self._again.update(digests)

    def is_waiting(self) -> bool:
        """Tell whether many messages wait to be released."""
        return self._durable and self._tag - self._acknowledged > self._prefetch // 2

    def _acknowledge(self) -> None:
        """Acknowledge what has been used by now."""
        number, tag = self._released
        if number == self._number and tag > self._acknowledged:
            self._acknowledged = tag
            self._send(spec.Basic.Ack, "Lb", tag, 1)

    def _take_leave(self) -> None:
        self._acknowledge()
        end = time.monotonic() + FAREWELL
        while self._confirmed < self._acknowledged and (left := end - time.monotonic()) > 0:
            self._ask()
            self._batch, self._bytes = [], 0  # not used, so it comes again
            with suppress(TimeoutError, BatchFull):
                self._drain(left)

    def _send(self, method: tuple[int, int], types: str, *values: Any) -> None:
        self._channel.send_method(method, types, values)


def _digest(body: bytes) -> int:
    """Return a number for a message, the same in each process."""
    return int.from_bytes(hashlib.blake2b(body, digest_size=8).digest(), "big")


def _payload(properties: bytes, body: bytes) -> Message:
    try:
        said = _known(properties) if len(properties) <= SHORT else _read(properties)
    except Exception:  # noqa: BLE001  what a sender wrote, and RabbitMQ passed on unread
        return UNREADABLE
    return Message(body, *said)


def _read(properties: bytes) -> tuple[Any, Any, Any]:
    """Return content type, content encoding and compression of a message."""
    (flags,) = unpack_from(">H", properties)
    offset = 2
    values: list[Any] = []
    for flag, kind in _PROPERTIES:
        (value,), offset = loads(kind, properties, offset) if flags & flag else ((None,), offset)
        values.append(value)
    content_type, content_encoding, headers = values
    return content_type, content_encoding, (headers or {}).get("compression")


#: A sender's are the same for each of its messages, and reading them takes as long as its event does.
_known = lru_cache(SENDERS)(_read)
