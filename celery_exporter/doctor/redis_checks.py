"""What a Redis is set to, and what was left on it, as far as it lets itself be asked."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import kombu
import redis

from celery_exporter.broker.config import BrokerConfig
from celery_exporter.broker.connection import broker_errors, close_quietly, connect, open_
from celery_exporter.doctor.queue_names import is_passing, is_task_queue
from celery_exporter.doctor.remedies import BrokerAddress, place_of, redis_cli
from celery_exporter.quoting import shell_word
from celery_exporter.status.finding import Finding

#: Redis' own limits for subscribers, bytes (redis.conf, client-output-buffer-limit). Events of a busy cluster
#: (2,000 a second) are some 1 MB a second there: 8 MB are gone after 8 s in which this host had other things
#: to do, of which Redis cuts nobody off by its own limits.
HARD, SOFT, SOFT_SECONDS = 32 * 2**20, 8 * 2**20, 60
#: Seconds for which answers lay unread. Whoever asks reads them within some; kombu's own limit is 10 s.
UNREAD = 60
#: Keys looked at, in all: some seconds of a Redis that has other things to do.
MOST_KEYS = 200_000
#: Keys of one SCAN, and names in one command.
PAGE, MOST_NAMES = 1_000, 5

_BINDINGS = "_kombu.binding."


def look(config: BrokerConfig) -> tuple[list[Finding], set[str]]:
    """Return what was found, and the task queues that are bound; raise BrokerError."""
    connection = connect(config)
    try:
        with broker_errors(connection):
            open_(connection)
            place = place_of(config, connection)
            found = _Redis(connection, place, f"reply.{config.control_exchange}.pidbox")
            return list(found.findings()), found.queues()
    finally:
        close_quietly(connection)


class _Redis:
    def __init__(self, connection: kombu.Connection, place: BrokerAddress, replies: str) -> None:
        self._replies = replies  # what queues for answers of workers are bound to
        channel = connection.default_channel
        self._sep: str = channel.sep
        self._prefix: str = channel.global_keyprefix or ""
        self._client = redis.Redis(connection_pool=channel.pool)
        self._cli = redis_cli(place)
        self._info = self._ask("INFO") or {}

    def findings(self) -> Iterator[Finding]:
        info = self._info
        name = "Valkey" if "valkey_version" in info else "Redis"
        version = info.get("valkey_version") or info.get("redis_version")
        yield Finding(
            "broker-version", "ok", f"{name} {version}" if version else "it does not tell its version"
        )
        yield self._eviction()
        yield self._buffer()
        yield self._leftovers()

    def queues(self) -> set[str]:
        """Return the task queues that are bound to the exchange of their name, as Celery binds them."""
        keys = self._keys(f"{_BINDINGS}*") or []
        members = [member for key in keys for member in self._ask("SMEMBERS", self._prefix + key) or ()]
        names = {_text(member).rpartition(self._sep)[2] for member in members}
        return {name for name in names if name and is_task_queue(name)}

    def _eviction(self) -> Finding:
        policy, limit = self._info.get("maxmemory_policy"), self._info.get("maxmemory")
        if policy is None:
            look = f"{self._cli} CONFIG GET maxmemory-policy"
            return Finding(
                "eviction", "ok", f"not seen, since INFO is not allowed; it has to be noeviction: {look}"
            )
        if policy == "noeviction":
            return Finding("eviction", "ok", "noeviction: Redis throws no queue away")
        level, when = judge_eviction(policy, limit or 0)
        return Finding(
            "eviction",
            level,
            f"maxmemory-policy is {policy}: {when}",
            f"{self._cli} CONFIG SET maxmemory-policy noeviction, and the same in redis.conf",
        )

    def _buffer(self) -> Finding:
        answer = self._ask("CONFIG", "GET", "client-output-buffer-limit")
        text = next((text for text in _texts(answer) if "pubsub" in text), None)
        if text is None:
            look = f"{self._cli} CONFIG GET client-output-buffer-limit"
            return Finding("output-buffer", "ok", f"not seen, since CONFIG is not allowed: {look}")
        hard, soft, seconds = pubsub_limits(text)
        low = judge_buffer(hard, soft, seconds)
        if low is None:
            return Finding(
                "output-buffer", "ok", "a subscriber may lag as far behind as Redis has it by default"
            )
        limits = f"client-output-buffer-limit 'pubsub {HARD} {SOFT} {SOFT_SECONDS}'"
        return Finding(
            "output-buffer",
            "warning",
            f"a subscriber that lags behind is cut off {low}, and misses events",
            f"{self._cli} CONFIG SET {limits}, and the same in redis.conf",
        )

    def _leftovers(self) -> Finding:
        replies = self._keys(f"*.{_escaped(self._replies)}")
        if replies is None:
            pattern = shell_word(f"*.{_escaped(self._replies)}")
            look = f"{self._cli} --scan --pattern {pattern}"
            return Finding("orphaned-queues", "ok", f"not seen, since SCAN is not allowed: {look}")
        unread = [key for key in replies if is_passing(key) and self._is_unread(key)]
        if unread:
            names = " ".join(shell_word(self._prefix + key) for key in unread[:MOST_NAMES])
            more = f", and {len(unread) - MOST_NAMES} more" if len(unread) > MOST_NAMES else ""
            return Finding(
                "orphaned-queues",
                "warning",
                f"{len(unread)} reply queues hold answers of workers that nobody has read for {UNREAD} s",
                f"{self._cli} DEL {names}{more}",
            )
        # Whoever asks has a connection: more queues than connections are of some who are gone.
        bindings = f"{self._prefix}{_BINDINGS}{self._replies}"
        bound = self._ask("SCARD", bindings) or 0
        clients = self._info.get("connected_clients")
        if clients is not None and bound > clients:
            return Finding(
                "orphaned-queues",
                "warning",
                f"{bound:,} reply queues are bound, and {clients} clients are connected: at least "
                f"{bound - clients:,} were left by processes that asked workers and were killed; each slows "
                "every answer",
                f"{self._cli} DEL {shell_word(bindings)}, then restart those who ask (Flower)",
            )
        return Finding("orphaned-queues", "ok", "no reply queue was left by somebody who is gone")

    def _is_unread(self, key: str) -> bool:
        idle = self._ask("OBJECT", "IDLETIME", self._prefix + key)
        return isinstance(idle, int) and idle >= UNREAD

    def _keys(self, pattern: str) -> list[str] | None:
        """Return keys without the prefix that all have, of so many; None where SCAN is not allowed."""
        found: list[str] = []
        cursor = 0
        for _ in range(MOST_KEYS // PAGE):
            page = self._ask("SCAN", cursor, "MATCH", f"{_escaped(self._prefix)}{pattern}", "COUNT", PAGE)
            if page is None:
                return None
            cursor = int(page[0])
            found += [_text(key).removeprefix(self._prefix) for key in page[1]]
            if not cursor:
                break
        return sorted(set(found))

    def _ask(self, *command: Any) -> Any:
        """Return the answer, None where the question is not allowed."""
        try:
            return self._client.execute_command(*command)
        except redis.ResponseError:
            return None


def judge_eviction(policy: str, limit: int) -> tuple[Any, str]:
    """Return level and consequence of a policy that evicts; `limit` is maxmemory in bytes, 0 for none."""
    if not limit:
        return "warning", "once maxmemory is set, Redis throws keys away when it is full"
    if policy.startswith("volatile"):  # keys with a time to live: results, not queues
        return "warning", f"beyond {limit:,} bytes results are thrown away, and then nothing more can be sent"
    return "critical", f"beyond {limit:,} bytes Redis throws queues with all their tasks away"


def pubsub_limits(text: str) -> tuple[int, int, int]:
    """Return hard limit, soft limit (bytes; 0: none) and seconds: `normal … pubsub 33554432 8388608 60`."""
    words = text.split()
    at = words.index("pubsub")
    hard, soft, seconds = map(int, words[at + 1 : at + 4])
    return hard, soft, seconds


def judge_buffer(hard: int, soft: int, seconds: int) -> str | None:
    """Return where a subscriber is cut off, if that is earlier than by Redis' own limits; else None."""
    if 0 < hard < HARD:
        return f"{hard:,} bytes behind"
    if 0 < soft < SOFT or (0 < soft < HARD and seconds < SOFT_SECONDS):
        return f"after {seconds} s of being {soft:,} bytes behind"
    return None


def _texts(answer: Any) -> list[str]:
    """Return the texts of a CONFIG GET, which redis-py makes a mapping of, or a list."""
    if isinstance(answer, dict):
        answer = [*answer.keys(), *answer.values()]
    return [_text(each) for each in answer or ()]


def _text(value: Any) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)


def _escaped(text: str) -> str:
    """Return a text as SCAN matches it."""
    return "".join(f"\\{letter}" if letter in "*?[]\\" else letter for letter in text)
