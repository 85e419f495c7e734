"""Remote control commands to workers, and their answers, over kombu's mailbox as celery.app.control does it.

Commands go to `<control_exchange>.pidbox`. Answers come from the wire: one in a serialiser that is not
accepted is not read (unpickling runs code that the sender chose), and one that cannot be read costs no other.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Collection, Iterable, Sequence
from contextlib import suppress
from typing import Any

import kombu
from kombu.pidbox import Mailbox

from celery_exporter.broker.blocked import raise_when_blocked
from celery_exporter.broker.codecs import CONTENT_TYPES, UndecodableError, bound_kombu
from celery_exporter.broker.connection import broker_errors
from celery_exporter.broker.message import RefusedError, from_kombu, object_of

log = logging.getLogger(__name__)

#: Seconds to wait for the next answer. A worker that is busy in the solo pool does not answer at all.
PATIENCE = 1.0
#: Seconds for all answers to one command: thousands of workers answer in less.
LONGEST_CALL_SECONDS = 10.0
#: Different content types of refused answers that are remembered, and characters of one.
MAX_REFUSED, MAX_TYPE_LENGTH = 5, 100

#: Control exchanges that are asked besides the configured one, and characters of such a name on AMQP.
MAX_EXCHANGES, MAX_NAME_LENGTH = 5, 240
#: Keys of Redis looked at for them, in pages of so many: some tenths of a second, of which Redis is busy with
#: a millisecond at a time.
MAX_KEYS, PAGE_KEYS = 200_000, 1_000
#: Seconds between two such searches, doubled up to the second number.
FIRST_SEARCH_WAIT, LONGEST_SEARCH_WAIT = 15.0, 3_600.0


class ControlClient:
    """Asks workers on one open connection. For one thread.

    `refused` are the serialisers of answers to the newest command that were not accepted: their names in
    --accept-content, or content types.
    """

    def __init__(self, connection: kombu.Connection, exchange: str, accept: Sequence[str]) -> None:
        bound_kombu()  # which takes the answers off the wire
        raise_when_blocked(connection)
        self.refused: set[str] = set()
        self._connection = connection
        self._accept = accept
        self._mailboxes = [self._mailbox(exchange)]
        self._search_wait, self._next_search = FIRST_SEARCH_WAIT, 0.0

    def call(
        self,
        command: str,
        limit: int,
        only: Collection[str] | None = None,
        arguments: dict[str, Any] | None = None,
    ) -> list[Any]:
        """Return the answers of all workers, or `only` of these, `limit` at most; raise BrokerError."""
        self.refused.clear()
        answers: list[Any] = []
        with broker_errors(self._connection):
            for mailbox in self._mailboxes:
                if len(answers) < limit:
                    found = mailbox.ask(command, limit - len(answers), only, arguments)
                    mailbox.answers = len(found)
                    answers += found
        # Where many answer is asked first: by then nobody has to be waited for elsewhere.
        self._mailboxes.sort(key=lambda mailbox: -mailbox.answers)
        return answers

    def cast(self, command: str, workers: Iterable[str]) -> None:
        """Send a command to these workers, of which no answer is expected; raise BrokerError."""
        with broker_errors(self._connection):
            for mailbox in self._mailboxes:
                mailbox.cast(list(workers), command, {})

    def search_exchanges(self) -> bool:
        """Look for control exchanges that are not asked yet; tell whether there are.

        For workers with a control_exchange of their own. Only Redis can be searched, and is not often.
        """
        now = time.monotonic()
        if now < self._next_search or self._connection.transport.driver_type != "redis":
            return False
        self._next_search, self._search_wait = (
            now + self._search_wait,
            min(2 * self._search_wait, LONGEST_SEARCH_WAIT),
        )
        asked = {mailbox.namespace for mailbox in self._mailboxes}
        with broker_errors(self._connection):
            new = sorted(bound_exchanges(self._connection) - asked)[: MAX_EXCHANGES + 1 - len(asked)]
        for name in new:
            log.info("workers are also asked through the control exchange %r, which is bound on Redis", name)
            self._mailboxes.append(self._mailbox(name))
        return bool(new)

    def _mailbox(self, exchange: str) -> _Mailbox:
        mailbox = _Mailbox(exchange, type="fanout", accept=self._accept, serializer=self._accept[0])
        mailbox.refused = self.refused
        bound: _Mailbox = mailbox(self._connection)
        return bound


class _Mailbox(Mailbox):  # type: ignore[misc]
    """kombu's, which takes the answers by our rules."""

    answers = 0  # to the newest command
    refused: set[str]

    def get_reply_queue(self) -> kombu.Queue:
        """Return the queue for the answers: exclusive also before kombu 5.7, as RabbitMQ 4.3 wants it."""
        queue = super().get_reply_queue()
        queue.exclusive = True
        return queue

    def ask(
        self, command: str, limit: int, only: Collection[str] | None, arguments: dict[str, Any] | None
    ) -> list[Any]:
        """Return the answers of all workers, or `only` of these."""
        if only is None:
            found = self.multi_call(command, arguments, timeout=PATIENCE, limit=limit)
        else:
            found = self.call(list(only), command, arguments, timeout=PATIENCE)
        return list(found or ())

    def _collect(self, ticket: str, limit: int, timeout: float, channel: Any, **_: Any) -> list[Any]:
        """Return the answers to a command: kombu's raises at the first that it may not read."""
        accepted = {CONTENT_TYPES[name] for name in self.accept}
        answers: list[Any] = []

        def take(message: Any) -> None:
            if message.headers.get("ticket", ticket) == ticket:  # else one that came too late for its command
                answers.extend(self._read(message, accepted))

        queue = self.reply_queue
        consumer = kombu.Consumer(
            channel, [queue], on_message=take, on_decode_error=_drop, no_ack=True, accept=None
        )
        end = time.monotonic() + LONGEST_CALL_SECONDS
        try:
            # Inside: kombu takes a TimeoutError for a lost connection, and would leave the consumer in place.
            with consumer, suppress(TimeoutError):
                while len(answers) < limit and (left := end - time.monotonic()) > 0:
                    self.connection.drain_events(timeout=min(timeout, left))
        finally:
            channel.after_reply_message_received(queue.name)
        return answers

    def _read(self, message: Any, accepted: Collection[str]) -> list[Any]:
        try:
            return [object_of(from_kombu(message), accepted)]
        except RefusedError as error:
            if len(self.refused) < MAX_REFUSED:
                self.refused.add(_serializer(error.content_type))
        except UndecodableError:
            log.debug("an answer to a remote control command cannot be read", exc_info=True)
        return []


def _drop(_: Any, error: Exception) -> None:
    log.debug("an answer to a remote control command cannot be read: %r", error)


def _serializer(content_type: str) -> str:
    """Return the name of a serialiser in --accept-content, or else the content type."""
    names = {kind: name for name, kind in CONTENT_TYPES.items()}
    return names.get(content_type, content_type[:MAX_TYPE_LENGTH])


def bound_exchanges(connection: kombu.Connection) -> set[str]:
    """Return the control exchanges to which queues are bound on Redis; none where SCAN is not allowed.

    kombu keeps the queues of an exchange in a set that is named after it (kombu/transport/redis.py).
    """
    import redis  # noqa: PLC0415  7 MB, which other brokers do without

    channel = connection.default_channel
    client = redis.Redis(connection_pool=channel.pool)
    before, after = f"{channel.global_keyprefix or ''}{channel.keyprefix_queue % ''}", ".pidbox"
    keys: set[bytes] = set()
    cursor = 0
    try:
        for _ in range(MAX_KEYS // PAGE_KEYS):
            cursor, page = client.scan(cursor, match=f"{_escaped(before)}*{after}", count=PAGE_KEYS)
            keys.update(page)
            if not cursor:
                break
    except redis.ResponseError:
        return set()
    names = {key.decode(errors="replace").removeprefix(before).removesuffix(after) for key in keys}
    return {name for name in names if _is_exchange(name)}


def _is_exchange(name: str) -> bool:
    return not name.startswith("reply.") and name.isprintable() and 0 < len(name) <= MAX_NAME_LENGTH


def _escaped(text: str) -> str:
    """Return a text as SCAN matches it."""
    return "".join(f"\\{letter}" if letter in "*?[]\\" else letter for letter in text)
