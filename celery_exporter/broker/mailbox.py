"""Remote control commands to workers, and their replies.

They use kombu's mailbox, as celery.app.control does.

Commands go to `<control_exchange>.pidbox`. Anybody may send a reply, so only accepted serializers are read
(unpickling runs code that the sender chose), and an unreadable reply does not affect the others.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from contextlib import suppress
from typing import Any

import kombu
from kombu.pidbox import Mailbox

from celery_exporter.broker.blocked import raise_when_blocked
from celery_exporter.broker.codecs import CONTENT_TYPES, UndecodableError, bound_kombu
from celery_exporter.broker.connection import broker_errors
from celery_exporter.broker.message import Message, RefusedError, from_kombu, object_of

log = logging.getLogger(__name__)

#: How long to wait for the next reply. A busy worker with the solo pool sends none.
REPLY_TIMEOUT_SECONDS = 1.0
#: How long one command may take: thousands of workers reply in less.
MAX_CALL_SECONDS = 10.0
#: Distinct content types of refused replies that are kept, and characters of one.
MAX_REFUSED, MAX_TYPE_LENGTH = 5, 100

#: Control exchanges used besides the configured one, and characters of a name on AMQP.
MAX_EXCHANGES, MAX_NAME_LENGTH = 5, 240
#: Keys of Redis that one search scans, and keys of one SCAN, which keeps Redis busy for a millisecond.
MAX_KEYS, PAGE_KEYS = 200_000, 1_000
#: Returns what is used of a reply; the collection has the content types that may be deserialized.
ReadReply = Callable[[Message, Collection[str]], Any]
#: Time between two searches: the first, doubled up to the longest.
FIRST_SEARCH_WAIT_SECONDS, MAX_SEARCH_WAIT_SECONDS = 15.0, 3_600.0


class ControlClient:
    """Sends commands to workers on one open connection. For one thread.

    `refused` are the serializers of refused replies to the newest command: their names in --accept-content,
    or else their content types.
    """

    def __init__(self, connection: kombu.Connection, exchange: str, accept: Sequence[str]) -> None:
        bound_kombu()  # because kombu decompresses the replies
        raise_when_blocked(connection)
        self.refused: set[str] = set()
        self._connection = connection
        self._accept = accept
        self._mailboxes = [self._mailbox(exchange)]
        self._search_wait, self._next_search = FIRST_SEARCH_WAIT_SECONDS, 0.0

    def call(
        self,
        command: str,
        limit: int,
        only: Collection[str] | None = None,
        arguments: dict[str, Any] | None = None,
        read: ReadReply = object_of,
    ) -> list[Any]:
        """Return up to `limit` replies, of all workers or `only` of these. Raises BrokerError.

        `read` is called for each reply when it arrives, so that no more than one of them is in memory.
        """
        self.refused.clear()
        replies: list[Any] = []
        with broker_errors(self._connection):
            for mailbox in self._mailboxes:
                if len(replies) < limit:
                    mailbox.read = read
                    new = mailbox.ask(command, limit - len(replies), only, arguments)
                    mailbox.replies = len(new)
                    replies += new
        # The mailbox with the most replies comes first: the limit may be reached before the others.
        self._mailboxes.sort(key=lambda mailbox: -mailbox.replies)
        return replies

    def ping(self, pattern: str, limit: int, timeout: float) -> list[Any]:
        """Return up to `limit` replies to ping of the nodes whose name fits a pattern of fnmatch.

        `timeout` is the longest time in seconds until the next reply. Uses the exchanges on which nodes have
        replied to the newest command, or all if there are none. Raises BrokerError.
        """
        in_use = [mailbox for mailbox in self._mailboxes if mailbox.replies] or self._mailboxes
        for mailbox in in_use:
            mailbox.read = object_of
        with broker_errors(self._connection):
            return [reply for mailbox in in_use for reply in mailbox.ping(pattern, limit, timeout)][:limit]

    def cast(self, command: str, workers: Iterable[str]) -> None:
        """Send a command without a reply to these workers. Raises BrokerError."""
        with broker_errors(self._connection):
            for mailbox in self._mailboxes:
                mailbox.cast(list(workers), command, {})

    def search_exchanges(self) -> bool:
        """Search for control exchanges that are not used yet; return whether there are any.

        For workers with another control_exchange. Only Redis can be searched; the searches are rare.
        """
        now = time.monotonic()
        if now < self._next_search or self._connection.transport.driver_type != "redis":
            return False
        self._next_search, self._search_wait = (
            now + self._search_wait,
            min(2 * self._search_wait, MAX_SEARCH_WAIT_SECONDS),
        )
        used = {mailbox.namespace for mailbox in self._mailboxes}
        with broker_errors(self._connection):
            new = sorted(bound_exchanges(self._connection) - used)[: MAX_EXCHANGES + 1 - len(used)]
        for name in new:
            log.info("also using the control exchange %r, which has bound queues on Redis", name)
            self._mailboxes.append(self._mailbox(name))
        return bool(new)

    def _mailbox(self, exchange: str) -> _Mailbox:
        mailbox = _Mailbox(exchange, type="fanout", accept=self._accept, serializer=self._accept[0])
        mailbox.refused = self.refused
        bound: _Mailbox = mailbox(self._connection)
        return bound


class _Mailbox(Mailbox):  # type: ignore[misc]
    """kombu's mailbox, with limits for what is read of replies."""

    replies = 0  # to the newest command
    refused: set[str]
    read: ReadReply

    def get_reply_queue(self) -> kombu.Queue:
        """Return the reply queue: exclusive before kombu 5.7 too, because RabbitMQ 4.3 requires it."""
        queue = super().get_reply_queue()
        queue.exclusive = True
        return queue

    def ask(
        self, command: str, limit: int, only: Collection[str] | None, arguments: dict[str, Any] | None
    ) -> list[Any]:
        """Return the replies of all workers, or `only` of these."""
        if only is None:
            replies = self.multi_call(command, arguments, timeout=REPLY_TIMEOUT_SECONDS, limit=limit)
        else:
            replies = self.call(list(only), command, arguments, timeout=REPLY_TIMEOUT_SECONDS)
        return list(replies or ())

    def ping(self, pattern: str, limit: int, timeout: float) -> list[Any]:
        """Return the replies to ping of the nodes whose name fits a pattern."""
        # As celery.app.control does: kombu has no public method for it.
        return list(
            self._broadcast("ping", reply=True, timeout=timeout, limit=limit, pattern=pattern, matcher="glob")
            or ()
        )

    def _collect(self, ticket: str, limit: int, timeout: float, channel: Any, **_: Any) -> list[Any]:
        """Return the replies to a command. kombu's own method raises at the first reply that it refuses."""
        accepted = {CONTENT_TYPES[name] for name in self.accept}
        replies: list[Any] = []

        def on_message(message: Any) -> None:
            if message.headers.get("ticket", ticket) == ticket:  # not a late reply to an earlier command
                replies.extend(self._read(message, accepted))

        queue = self.reply_queue
        consumer = kombu.Consumer(
            channel, [queue], on_message=on_message, on_decode_error=_drop, no_ack=True, accept=None
        )
        deadline = time.monotonic() + MAX_CALL_SECONDS
        try:
            # `suppress` is inside: kombu treats a TimeoutError as a lost connection, and would not cancel the
            # consumer.
            with consumer, suppress(TimeoutError):
                while len(replies) < limit and (left := deadline - time.monotonic()) > 0:
                    self.connection.drain_events(timeout=min(timeout, left))
        finally:
            channel.after_reply_message_received(queue.name)
        return replies

    def _read(self, message: Any, accepted: Collection[str]) -> list[Any]:
        try:
            return [self.read(from_kombu(message), accepted)]
        except RefusedError as error:
            if len(self.refused) < MAX_REFUSED:
                self.refused.add(_serializer(error.content_type))
        except UndecodableError:
            log.debug("unreadable reply to a remote control command", exc_info=True)
        return []


def _drop(_: Any, error: Exception) -> None:
    log.debug("unreadable reply to a remote control command: %r", error)


def _serializer(content_type: str) -> str:
    """Return the name of a serializer in --accept-content, or else the content type."""
    names = {kind: name for name, kind in CONTENT_TYPES.items()}
    return names.get(content_type, content_type[:MAX_TYPE_LENGTH])


def bound_exchanges(connection: kombu.Connection) -> set[str]:
    """Return the control exchanges that have bound queues on Redis, none if SCAN is denied.

    kombu stores the queues of an exchange in a set named after it (kombu/transport/redis.py).
    """
    import redis  # noqa: PLC0415  7 MB that only this broker needs

    channel = connection.default_channel
    client = redis.Redis(connection_pool=channel.pool)
    prefix, suffix = f"{channel.global_keyprefix or ''}{channel.keyprefix_queue % ''}", ".pidbox"
    keys: set[bytes] = set()
    cursor = 0
    try:
        for _ in range(MAX_KEYS // PAGE_KEYS):
            cursor, page = client.scan(cursor, match=f"{_escaped(prefix)}*{suffix}", count=PAGE_KEYS)
            keys.update(page)
            if not cursor:
                break
    except redis.ResponseError:
        return set()
    names = {key.decode(errors="replace").removeprefix(prefix).removesuffix(suffix) for key in keys}
    return {name for name in names if _is_exchange(name)}


def _is_exchange(name: str) -> bool:
    return not name.startswith("reply.") and name.isprintable() and 0 < len(name) <= MAX_NAME_LENGTH


def _escaped(text: str) -> str:
    """Return a pattern for SCAN that matches this text only."""
    return "".join(f"\\{character}" if character in "*?[]\\" else character for character in text)
