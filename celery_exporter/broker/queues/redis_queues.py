"""Queues on Redis: a list for each priority step, read in one round trip for all queues.

Keys are those of kombu/transport/redis.py: `name`, and `name + sep + step` for the steps above 0; messages
are pushed on the left and taken from the right, so the last one is the oldest.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from contextlib import suppress
from itertools import islice

import kombu
import msgspec
import redis
from msgspec import Struct

from celery_exporter.broker.connection import broker_errors
from celery_exporter.core.queues import Absence
from celery_exporter.core.snapshot import QueueStats


class _Headers(Struct):
    id: str


class _Message(Struct):
    """A task message of protocol 2, as far as it is looked at."""

    headers: _Headers


#: Queues asked about in one go: whole messages come back, of which any number of MB would be one too many.
AT_ONCE = 20

_decode = msgspec.json.Decoder(_Message).decode


class RedisDepths:
    """See `QueueReader`."""

    def __init__(self, connection: kombu.Connection) -> None:
        self._connection = connection
        self._channel = connection.default_channel
        # A client without kombu's key prefixing, which knows some commands only: keys are prefixed here.
        self._client = redis.Redis(connection_pool=self._channel.pool)

    costly = False

    def read(
        self, queues: Iterable[str], *, requested: Collection[str], consumed: Collection[str]
    ) -> Mapping[str, QueueStats | Absence]:
        """Return what the queues hold.

        An empty list is a missing key, so an empty queue exists if a worker consumes it, or if it is bound to
        the exchange of its name, which it is from its declaration on.
        """
        names, answers = iter(queues), {}
        expected = {*requested, *consumed}
        while some := list(islice(names, AT_ONCE)):
            answers.update(self._read(some, expected))
        return answers

    def _read(self, queues: list[str], expected: Collection[str]) -> dict[str, QueueStats | Absence]:
        with broker_errors(self._connection), self._client.pipeline(transaction=False) as pipe:
            for queue in queues:
                pipe.exists(self._prefixed(self._channel.keyprefix_queue % queue))
                for key in self._keys(queue):
                    pipe.llen(key)
                    pipe.lindex(key, -1)
            replies = iter(pipe.execute(raise_on_error=False))
        answers: dict[str, QueueStats | Absence] = {}
        for queue in queues:
            bound = next(replies) == 1
            pairs = [(next(replies), next(replies)) for _ in self._channel.priority_steps]
            lengths, heads = zip(*pairs, strict=True)
            if not all(isinstance(length, int) for length in lengths):
                answers[queue] = Absence.UNREADABLE
            elif any(lengths) or bound or queue in expected:
                answers[queue] = QueueStats(sum(lengths), None, tuple(filter(None, map(_task_id, heads))))
            else:
                answers[queue] = Absence.MISSING
        return answers

    def unacked(self) -> int | None:
        """Return the size of the hash in which kombu keeps what workers hold; None if it may not be seen."""
        with broker_errors(self._connection), suppress(redis.ResponseError):
            return int(self._client.hlen(self._prefixed(self._channel.unacked_key)))
        return None

    def _keys(self, queue: str) -> list[str]:
        channel = self._channel
        return [
            self._prefixed(f"{queue}{channel.sep}{step}" if step else queue)
            for step in channel.priority_steps
        ]

    def _prefixed(self, key: str) -> str:
        return f"{self._channel.global_keyprefix}{key}"


def _task_id(message: object) -> str | None:
    try:
        return _decode(message).headers.id  # type: ignore[arg-type]
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, TypeError):
        return None
