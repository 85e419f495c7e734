"""Looks for a message in the lists and the hash of kombu on Redis. It sends reading commands only.

A message goes from the left of its list to the right end, and from there into the hash of unacknowledged
messages. So lists are read from the left, by indexes that a worker does not change when it takes a message,
and the hash after the lists: a message that moves meanwhile is seen. A message may also move back, and it is
in neither place between the two commands by which a worker takes it. So a second look confirms "absent".
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from itertools import accumulate, chain, repeat
from typing import Any

import kombu
import redis
from msgspec import Struct

from celery_exporter.broker.connection import broker_errors
from celery_exporter.broker.message_lookup.base import MAX_QUEUES, Budget
from celery_exporter.broker.message_lookup.envelope import Head, read_head, read_unacknowledged_head
from celery_exporter.broker.redis_keys import client_of, prefixed, queue_keys
from celery_exporter.core.message_location import MessageLocation, Place, QueueLook, UnacknowledgedLook

#: Messages in one reply at most, and their bytes by the largest one so far: Redis buffers a reply.
CHUNK_MESSAGES, CHUNK_BYTES = 100, 2**20
#: Messages in the first reply, before the size of any is known.
FIRST_CHUNK_MESSAGES = 4
#: Seconds until the second look. A worker needs some milliseconds between its two commands.
CONFIRM_SECONDS = 0.25


class _List(Struct, frozen=True):
    """The list of one queue and one priority."""

    queue: str
    key: str
    length: int  # when the look began
    before: int  # messages of the queue that are delivered before those of this list


class RedisMessageLookup:
    """See `MessageLookup`."""

    def __init__(self, connection: kombu.Connection) -> None:
        self._connection = connection
        self._channel = connection.default_channel
        self._client = client_of(self._channel)

    def look_up(self, uuid: str, queues: Sequence[str], others: Sequence[str] = ()) -> MessageLocation:
        """Return where the message is; "absent" only if every message in all of these queues was read."""
        names = list(dict.fromkeys((*queues, *others)))
        with broker_errors(self._connection):
            location = _Look(self._client, self._channel, uuid).run(names)
            if location.place == "absent":
                time.sleep(CONFIRM_SECONDS)
                location = _Look(self._client, self._channel, uuid).run(names)
        return location


class _Look:
    """One look for the message of one task."""

    def __init__(self, client: Any, channel: Any, uuid: str) -> None:
        self._client = client
        self._channel = channel
        self._uuid = uuid
        self._budget = Budget.new()
        self._chunk_messages = FIRST_CHUNK_MESSAGES
        self._largest_bytes = 1  # of a message that was read
        self._lengths: dict[str, int | None] = {}  # by queue
        self._examined: Counter[str] = Counter()  # messages, by queue
        self._unacknowledged = UnacknowledgedLook(None)
        self._unreadable = 0  # messages
        self._limits: dict[str, None] = {}  # why messages may have been missed

    def run(self, queues: Sequence[str]) -> MessageLocation:
        """Look into these queues, and then into the hash."""
        if not queues:
            self._limits["no queue is known"] = None
        if len(queues) > MAX_QUEUES:
            self._limits[f"only {MAX_QUEUES} of {len(queues):,} queues were looked at"] = None
            queues = queues[:MAX_QUEUES]
        return (
            self._search(self._measure(queues))
            or self._search_hash()
            or self._location("unknown" if self._limits or self._unreadable else "absent")
        )

    def _location(self, place: Place, head: Head | None = None, **fields: Any) -> MessageLocation:
        unreadable = [f"the ids of {self._unreadable:,} messages cannot be read"] if self._unreadable else []
        return MessageLocation(
            place,
            eta=head.eta if head else None,
            expires=head.expires if head else None,
            queues=[
                QueueLook(queue, length, examined=self._examined[queue])
                for queue, length in self._lengths.items()
            ],
            unacknowledged=self._unacknowledged,
            reason="; ".join([*self._limits, *unreadable]) if place == "unknown" else "",
            **fields,
        )

    def _is_over(self) -> bool:
        """Return whether the look has reached one of its bounds."""
        spent = self._budget.spent()
        if spent:
            self._limits[spent] = None
        return bool(spent)

    def _chunk(self) -> int:
        """Return how many messages to read next."""
        return max(1, min(self._chunk_messages, CHUNK_BYTES // self._largest_bytes, self._budget.messages))

    def _find(
        self, messages: Sequence[bytes], read: Callable[[bytes], Head | None]
    ) -> tuple[int, Head] | None:
        """Return index and head of the message of the task, None if it is not among these."""
        self._budget.spend(messages)
        self._chunk_messages = CHUNK_MESSAGES
        self._largest_bytes = max(self._largest_bytes, *map(len, messages))
        for index, message in enumerate(messages):
            head = read(message)
            if head is None:
                self._unreadable += 1
            elif head.id == self._uuid:
                return index, head
        return None

    # -- lists -------------------------------------------------------------------------------------------

    def _measure(self, queues: Sequence[str]) -> list[_List]:
        """Read the lengths of these queues; return the lists that have messages."""
        keys = {queue: queue_keys(self._channel, queue) for queue in queues}
        with self._client.pipeline(transaction=False) as pipe:
            for key in chain.from_iterable(keys.values()):
                pipe.llen(key)
            replies = iter(pipe.execute(raise_on_error=False))
        lists: list[_List] = []
        for queue, keys_of_queue in keys.items():
            lengths = [next(replies) for _ in keys_of_queue]
            if all(isinstance(length, int) for length in lengths):
                self._lengths[queue] = sum(lengths)
                starts = accumulate(lengths, initial=0)
                lists += map(_List, repeat(queue), keys_of_queue, lengths, starts)
            else:
                self._lengths[queue] = None
                self._limits["a queue cannot be read"] = None
        return [list_ for list_ in lists if list_.length]

    def _search(self, lists: Sequence[_List]) -> MessageLocation | None:
        for list_ in lists:
            for start, stop in self._ranges(list_):
                for index, messages in self._read(list_.key, start, stop):
                    match = self._find(messages, read_head)
                    self._examined[list_.queue] += len(messages)
                    if match is not None:
                        behind = self._client.llen(list_.key) - index - match[0]
                        position = list_.before + max(1, behind)
                        return self._location("queue", match[1], queue=list_.queue, position=position)
        return None

    def _ranges(self, list_: _List) -> list[tuple[int, int | None]]:
        """Return the whole list; of one that is too long, the part next to delivery and then the newest."""
        limit = self._budget.messages
        if list_.length <= limit:
            return [(0, None)]
        middle = list_.length - limit // 2
        return [(middle, None), (0, middle)]

    def _read(self, key: str, start: int, stop: int | None) -> Iterator[tuple[int, list[bytes]]]:
        """Yield messages and the index of the first of them, up to an index; None is the end of the list."""
        index = start
        while (stop is None or index < stop) and not self._is_over():
            count = self._chunk() if stop is None else min(self._chunk(), stop - index)
            messages = self._client.lrange(key, index, index + count - 1)
            if messages:
                yield index, messages
            if len(messages) < count:
                break
            index += count

    # -- unacknowledged messages -------------------------------------------------------------------------

    def _search_hash(self) -> MessageLocation | None:
        """Search the messages that workers hold."""
        key = prefixed(self._channel, self._channel.unacked_key)
        try:
            self._unacknowledged = UnacknowledgedLook(self._client.hlen(key))
            for entries in self._read_hash(key):
                tags, messages = list(entries), list(entries.values())
                match = self._find(messages, read_unacknowledged_head)
                examined = self._unacknowledged.examined + len(messages)
                self._unacknowledged = UnacknowledgedLook(self._unacknowledged.length, examined)
                if match is not None:
                    return self._location("unacknowledged", match[1], since=self._taken_at(tags[match[0]]))
        except redis.ResponseError:  # no permission
            self._limits["the unacknowledged messages cannot be read"] = None
        return None

    def _read_hash(self, key: str) -> Iterator[dict[bytes, bytes]]:
        cursor = -1
        while cursor and not self._is_over():
            cursor, entries = self._client.hscan(key, max(cursor, 0), count=self._chunk())
            if entries:
                yield entries

    def _taken_at(self, tag: bytes) -> float | None:
        """Return when a worker took the message, by its clock."""
        with suppress(redis.ResponseError):
            score = self._client.zscore(prefixed(self._channel, self._channel.unacked_index_key), tag)
            return None if score is None else float(score)
        return None
