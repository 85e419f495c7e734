"""Queue lengths on Redis, where a queue is one list per priority step.

Keys are those of kombu/transport/redis.py: `name`, and `name + sep + step` for steps above 0. Messages are
pushed on the left and taken from the right, so the last one is the oldest.
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
from celery_exporter.broker.queues.redis_unacked import UnackedCounts, UnackedMessages
from celery_exporter.broker.redis_keys import client_of, prefixed, queue_keys
from celery_exporter.core.queues import Absence
from celery_exporter.core.snapshot import QueueStats


class _Headers(Struct):
    id: str


class _Message(Struct):
    """The fields read of a task message, protocol 2."""

    headers: _Headers


#: Queues per round trip: each returns a whole message, so memory is bounded.
PIPELINE_QUEUES = 20

_decode = msgspec.json.Decoder(_Message).decode


class RedisQueueReader:
    """See `QueueReader`."""

    def __init__(self, connection: kombu.Connection) -> None:
        self._connection = connection
        self._channel = connection.default_channel
        self._client = client_of(self._channel)
        self._unacked = UnackedMessages(self._client, self._channel)

    costly = False

    def read(
        self, queues: Iterable[str], *, requested: Collection[str], consumed: Collection[str]
    ) -> Mapping[str, QueueStats | Absence]:
        """Return the contents of the queues.

        Redis deletes an empty list. So an empty queue exists if a worker consumes it, if one of its messages
        is unacknowledged, or if it has a binding, which its declaration makes.
        """
        names = iter(queues)
        with broker_errors(self._connection):
            unacked = self._unacked.count()
        stats: dict[str, QueueStats | Absence] = {}
        expected = {*requested, *consumed}
        while batch := list(islice(names, PIPELINE_QUEUES)):
            stats.update(self._read(batch, expected, unacked))
        return stats

    def _read(
        self, queues: list[str], expected: Collection[str], unacked: UnackedCounts | None
    ) -> dict[str, QueueStats | Absence]:
        with broker_errors(self._connection), self._client.pipeline(transaction=False) as pipe:
            for queue in queues:
                pipe.exists(prefixed(self._channel, self._channel.keyprefix_queue % queue))
                for key in queue_keys(self._channel, queue):
                    pipe.llen(key)
                    pipe.lindex(key, -1)
            replies = iter(pipe.execute(raise_on_error=False))
        stats: dict[str, QueueStats | Absence] = {}
        for queue in queues:
            is_bound = next(replies) == 1
            pairs = [(next(replies), next(replies)) for _ in self._channel.priority_steps]
            lengths, heads = zip(*pairs, strict=True)
            if not all(isinstance(length, int) for length in lengths):
                stats[queue] = Absence.UNREADABLE
                continue
            held = unacked.of(queue) if unacked else None
            if any(lengths) or held or is_bound or queue in expected:
                oldest_ids = tuple(filter(None, map(_task_id, heads)))
                by_priority = dict(zip(self._channel.priority_steps, lengths, strict=True))
                stats[queue] = QueueStats(sum(lengths), None, oldest_ids, by_priority, held)
            else:
                stats[queue] = Absence.MISSING
        return stats

    def unacked(self) -> int | None:
        """Return the size of the hash of unacknowledged messages of kombu, None if access is denied."""
        with broker_errors(self._connection), suppress(redis.ResponseError):
            return int(self._client.hlen(prefixed(self._channel, self._channel.unacked_key)))
        return None


def _task_id(message: object) -> str | None:
    try:
        return _decode(message).headers.id  # type: ignore[arg-type]
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, TypeError):
        return None
