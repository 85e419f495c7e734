"""The interface of event consumers, and the part that all of them share.

To add a broker, write one file with a subclass of `BaseConsumer`, and name it in `factory`.
"""

from __future__ import annotations

import time
import uuid
from abc import ABC, abstractmethod
from typing import Protocol

import kombu

from celery_exporter.broker.connection import (
    BrokerError,
    Source,
    broker_errors,
    close_quietly,
    connect,
    event_exchange,
    open_,
)
from celery_exporter.broker.message import Message

#: A subscription without a sign of life for longer is dead. A live one shows one at least every 3 s: the
#: reply to a ping, or a heartbeat.
MAX_SILENCE_SECONDS = 10.0
#: Time between two checks for a sign of life.
TICK_SECONDS = 1.0
#: Limits of one read: some milliseconds of work, which is how long the lock is held.
BATCH_MESSAGES = 200
#: A batch of the largest real events has a hundredth of it.
BATCH_BYTES = 16 * 2**20

#: A position in a durable queue: number of the connection, delivery tag.
Mark = tuple[int, int]


class EventConsumer(Protocol):
    """A subscription to the event exchange. One thread uses it, except where a method says otherwise.

    `last_alive` is the monotonic time of the newest sign of life. `is_active` says whether the broker sends
    events here: of the consumers of a durable queue, it sends them to one. Without a connection, it is that
    of the last one; without a durable queue, None. `takeovers` is how often the broker sends events here
    after it sent them to another one. `mark` is the position up to which
    messages of a durable queue were read, None for any other queue, and `duplicates` the number of messages
    that were dropped because they had been received before. A durable queue deletes a message when it is
    released; without one, `release` and the methods after it do nothing.
    """

    last_alive: float
    is_active: bool | None
    takeovers: int
    mark: Mark | None

    @property
    def duplicates(self) -> int:
        """Return how many messages were dropped, since they had been received before. For any thread."""

    def open(self) -> None:
        """Connect and subscribe; also after `close`. Raises BrokerError."""

    def read(self, timeout: float) -> list[Message]:
        """Return the messages that have arrived, up to one batch; wait up to `timeout` seconds for one.

        Keeps the connection alive meanwhile. Raises BrokerError when the broker is gone, or silent for
        `MAX_SILENCE_SECONDS`.
        """

    def close(self) -> None:
        """Unsubscribe and close the connection. Raises nothing."""

    def release(self, mark: Mark) -> None:
        """Let the queue delete the messages up to this mark, at the next read. For any thread."""

    def unconfirmed(self, mark: Mark) -> list[int]:
        """Return digests of released messages that the broker may redeliver, up to this mark.

        For any thread.
        """

    def expect_again(self, digests: list[int]) -> None:
        """Drop these messages, which another process has used, if the broker redelivers them."""

    def is_waiting(self) -> bool:
        """Return whether so many messages wait to be released that it is urgent. For any thread."""

    def standby_queue(self) -> str | None:
        """Return the durable queue on which this is a standby, None if it is not. For any thread."""


class BatchFull(Exception):  # noqa: N818  leaves a callback of a driver that would go on while messages arrive
    """The batch has as many messages as one read may return."""


class BaseConsumer(ABC):
    """Connects, collects batches, and checks signs of life.

    A subclass subscribes, and reads messages from the connection.
    """

    def __init__(self, source: Source) -> None:
        self.last_alive = 0.0
        self.is_active: bool | None = None
        self.takeovers = 0
        self.mark: Mark | None = None
        self._source = source
        self._config = source.current()  # of the open connection
        self._connection: kombu.Connection = connect(self._config)
        # One name for the life of the process: Redis keeps the binding of a queue that was not deleted.
        self._queue_name = new_queue_name()
        self._batch: list[Message] = []
        self._batch_bytes = 0
        self._early: list[Message] = []  # read while subscribing; returned by the first read
        self._ticked = 0.0
        self._failure: BrokerError | None = None  # followed a batch; raised by the next read

    @abstractmethod
    def _subscribe(self) -> None:
        """Subscribe on the connection, which is open."""

    @abstractmethod
    def _drain(self, timeout: float) -> None:
        """Pass messages to `_add`; raise TimeoutError if none arrives within `timeout` seconds."""

    @abstractmethod
    def _check_alive(self) -> bool:
        """Return whether there was a sign of life since the last call, and ask for the next one if needed."""

    def _settle(self) -> list[Message]:
        """Wait until the broker has confirmed the subscription; return messages that arrive meanwhile."""
        return []

    def open(self) -> None:
        """Connect and subscribe. Raises BrokerError."""
        self._failure = None
        self._config = self._source.current()
        self._connection = connect(self._config)
        with broker_errors(self._connection):
            open_(self._connection)
            self._subscribe()
        self.last_alive = time.monotonic()
        self._early = self._settle()

    def read(self, timeout: float) -> list[Message]:
        """Return messages; wait up to `timeout` seconds for the first. Raises BrokerError."""
        early, self._early = self._early, []
        return early or self._read(timeout)

    def close(self) -> None:
        """Unsubscribe and close the connection. Raises nothing."""
        close_quietly(self._connection)

    @property
    def duplicates(self) -> int:
        """Return 0: no other queue redelivers messages."""
        return 0

    def release(self, mark: Mark) -> None:  # noqa: B027  what follows is for a durable queue
        """Do nothing: only a durable queue keeps messages."""

    def unconfirmed(self, mark: Mark) -> list[int]:  # noqa: ARG002
        """Return nothing."""
        return []

    def expect_again(self, digests: list[int]) -> None:  # noqa: B027
        """Do nothing: only a durable queue redelivers messages."""

    def is_waiting(self) -> bool:
        """Return False."""
        return False

    def standby_queue(self) -> str | None:
        """Return None."""
        return None

    def _declare_queue(self, *, exclusive: bool) -> kombu.Queue:
        """Declare a queue that receives every event, and return it."""
        queue = kombu.Queue(
            self._queue_name,
            event_exchange(self._config, self._connection),
            routing_key="#",
            durable=False,
            exclusive=exclusive,
            auto_delete=True,
        )(self._connection.default_channel)
        queue.declare()
        return queue

    def _read(self, timeout: float) -> list[Message]:
        if self._failure is not None:
            raise self._failure
        self._start_batch()
        try:
            with broker_errors(self._connection):
                self._tick()
                self._fill_batch(timeout)
        except BrokerError as error:
            if not self._batch:
                raise
            self._failure = error  # the messages before it are good
        if self._batch:
            self.last_alive = time.monotonic()
        return self._batch

    def _start_batch(self) -> None:
        self._batch, self._batch_bytes = [], 0

    def _fill_batch(self, timeout: float) -> None:
        try:
            self._drain(timeout)
            while True:
                self._drain(0)
        except (TimeoutError, BatchFull):
            pass

    def _add(self, message: Message) -> None:
        """Add a message to the batch; raise BatchFull if it was the last one."""
        self._batch.append(message)
        self._batch_bytes += len(message.body)
        self._check_full()

    def _check_full(self) -> None:
        """Raise BatchFull if the batch has as many messages, or bytes, as one read may return."""
        if len(self._batch) >= BATCH_MESSAGES or self._batch_bytes >= BATCH_BYTES:
            raise BatchFull

    def _tick(self) -> None:
        """Check for a sign of life once a second, under traffic as well as in silence."""
        now = time.monotonic()
        if now < self._ticked + TICK_SECONDS:
            return
        self._ticked = now
        if self._source.leads_elsewhere(self._config):
            raise BrokerError("the broker URL names another broker now")
        if self._check_alive():
            self.last_alive = now
        if now > self.last_alive + MAX_SILENCE_SECONDS:
            raise BrokerError(f"no sign of life on the event subscription for {MAX_SILENCE_SECONDS:.0f} s")


def new_queue_name() -> str:
    """Return a name that no other queue has."""
    return f"celeryev.{uuid.uuid4()}"
