"""Checks of Redis: eviction, the output buffer of subscribers, and orphaned queues.

A command that this user may not run is not a problem: the finding says how to see the value.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import kombu
import redis

from celery_exporter.broker.config import BrokerConfig
from celery_exporter.broker.connection import broker_errors, close_quietly, connect, open_
from celery_exporter.doctor.problems import (
    EVICTS_QUEUES,
    EVICTS_RESULTS,
    EVICTS_WHEN_LIMITED,
    ORPHANED_BINDINGS,
    QUERY_FAILED,
    SMALL_BUFFER,
    UNREAD_REPLIES,
)
from celery_exporter.doctor.queue_names import is_task_queue, is_temporary
from celery_exporter.doctor.remedies import BrokerAddress, broker_address, redis_cli
from celery_exporter.quoting import shell_word
from celery_exporter.status.finding import MAX_NAMES, Finding, Problem

#: The default limits of Redis for subscribers (redis.conf, client-output-buffer-limit). The events of a busy
#: cluster (2,000 a second) are some 1 MB a second: an exporter that does not read for 8 s is 8 MB behind, and
#: Redis tolerates that for a minute.
HARD_LIMIT_BYTES, SOFT_LIMIT_BYTES, SOFT_LIMIT_SECONDS = 32 * 2**20, 8 * 2**20, 60
#: Replies that were not read for so long are not read any more: kombu's own limit is 10 s.
UNREAD_SECONDS = 60
#: Keys scanned in all, which takes a busy Redis some seconds; and keys of one SCAN.
MAX_KEYS, KEYS_PER_SCAN = 200_000, 1_000

_BINDINGS = "_kombu.binding."


def run_redis_checks(config: BrokerConfig) -> tuple[list[Finding], set[str]]:
    """Return the findings, and the names of the task queues that are bound; raise BrokerError."""
    connection = connect(config)
    try:
        with broker_errors(connection):
            open_(connection)
            broker = broker_address(config, connection)
            checks = _RedisChecks(connection, broker, f"reply.{config.control_exchange}.pidbox")
            return list(checks.findings()), checks.task_queues()
    finally:
        close_quietly(connection)


class _RedisChecks:
    def __init__(self, connection: kombu.Connection, broker: BrokerAddress, reply_exchange: str) -> None:
        self._reply_exchange = reply_exchange
        channel = connection.default_channel
        self._separator: str = channel.sep
        self._prefix: str = channel.global_keyprefix or ""
        self._client = redis.Redis(connection_pool=channel.pool)
        self._cli = redis_cli(broker)
        self._info = self._run("INFO") or {}

    def findings(self) -> Iterator[Finding]:
        """Yield a finding for each check."""
        product = "Valkey" if "valkey_version" in self._info else "Redis"
        version = self._info.get("valkey_version") or self._info.get("redis_version")
        yield QUERY_FAILED.ok(f"{product} {version}" if version else "unknown, since INFO is not allowed")
        yield self._eviction()
        yield self._output_buffer()
        yield self._orphaned_queues()

    def task_queues(self) -> set[str]:
        """Return the task queues that are bound to the exchange of their name, as Celery binds them."""
        keys = self._keys(f"{_BINDINGS}*") or []
        members = [member for key in keys for member in self._run("SMEMBERS", self._prefix + key) or ()]
        names = {_text(member).rpartition(self._separator)[2] for member in members}
        return {name for name in names if name and is_task_queue(name)}

    def _eviction(self) -> Finding:
        policy, limit_bytes = self._info.get("maxmemory_policy"), self._info.get("maxmemory")
        if policy is None:
            command = f"{self._cli} CONFIG GET maxmemory-policy"
            return EVICTS_QUEUES.ok(f"unknown, since INFO is not allowed; it has to be noeviction: {command}")
        problem = eviction_problem(policy, limit_bytes or 0)
        if problem is None:
            return EVICTS_QUEUES.ok("maxmemory-policy is noeviction: Redis evicts no queue")
        return problem.finding(policy=policy, limit=limit_bytes, redis_cli=self._cli)

    def _output_buffer(self) -> Finding:
        answer = self._run("CONFIG", "GET", "client-output-buffer-limit")
        limits = next((text for text in _texts(answer) if "pubsub" in text), None)
        if limits is None:
            command = f"{self._cli} CONFIG GET client-output-buffer-limit"
            return SMALL_BUFFER.ok(f"unknown, since CONFIG is not allowed: {command}")
        lag = max_lag(*pubsub_limits(limits))
        if lag is None:
            return SMALL_BUFFER.ok("the limit for subscribers is at least the default of Redis")
        return SMALL_BUFFER.finding(lag=lag, redis_cli=self._cli)

    def _orphaned_queues(self) -> Finding:
        pattern = f"*.{_escaped(self._reply_exchange)}"
        queues = self._keys(pattern)
        if queues is None:
            command = f"{self._cli} --scan --pattern {shell_word(pattern)}"
            return UNREAD_REPLIES.ok(f"unknown, since SCAN is not allowed: {command}")
        unread = [queue for queue in queues if is_temporary(queue) and self._is_unread(queue)]
        if unread:
            keys = " ".join(shell_word(self._prefix + queue) for queue in unread[:MAX_NAMES])
            more = f", and {len(unread) - MAX_NAMES} more" if len(unread) > MAX_NAMES else ""
            return UNREAD_REPLIES.finding(
                number=len(unread), seconds=UNREAD_SECONDS, redis_cli=self._cli, quoted_keys=keys + more
            )
        # A process that inspects workers has a connection: further queues are of processes that ended.
        key = f"{self._prefix}{_BINDINGS}{self._reply_exchange}"
        bound, clients = self._run("SCARD", key) or 0, self._info.get("connected_clients")
        if clients is not None and bound > clients:
            return ORPHANED_BINDINGS.finding(
                bound=bound,
                clients=clients,
                orphans=bound - clients,
                redis_cli=self._cli,
                quoted_key=shell_word(key),
            )
        return UNREAD_REPLIES.ok("no reply queue of a process that ended")

    def _is_unread(self, queue: str) -> bool:
        idle_seconds = self._run("OBJECT", "IDLETIME", self._prefix + queue)
        return isinstance(idle_seconds, int) and idle_seconds >= UNREAD_SECONDS

    def _keys(self, pattern: str) -> list[str] | None:
        """Return keys without the global prefix, at most `MAX_KEYS`; None if SCAN is not allowed."""
        keys: set[str] = set()
        cursor = 0
        for _ in range(MAX_KEYS // KEYS_PER_SCAN):
            answer = self._run(
                "SCAN", cursor, "MATCH", f"{_escaped(self._prefix)}{pattern}", "COUNT", KEYS_PER_SCAN
            )
            if answer is None:
                return None
            cursor = int(answer[0])
            keys.update(_text(key).removeprefix(self._prefix) for key in answer[1])
            if not cursor:
                break
        return sorted(keys)

    def _run(self, *command: Any) -> Any:
        """Return the answer, None if the command is not allowed."""
        try:
            return self._client.execute_command(*command)
        except redis.ResponseError:
            return None


def eviction_problem(policy: str, limit_bytes: int) -> Problem | None:
    """Return what is wrong with a maxmemory-policy, if anything; `limit_bytes` is maxmemory, 0 for none."""
    if policy == "noeviction":
        return None
    if not limit_bytes:
        return EVICTS_WHEN_LIMITED
    # The volatile policies evict keys with a time to live: results, not queues.
    return EVICTS_RESULTS if policy.startswith("volatile") else EVICTS_QUEUES


def pubsub_limits(text: str) -> tuple[int, int, int]:
    """Return hard limit and soft limit in bytes (0: none) and seconds of `… pubsub 33554432 8388608 60`."""
    words = text.split()
    start = words.index("pubsub") + 1
    hard, soft, seconds = map(int, words[start : start + 3])
    return hard, soft, seconds


def max_lag(hard_bytes: int, soft_bytes: int, soft_seconds: int) -> str | None:
    """Return the lag at which Redis disconnects a subscriber, if it is less than by default; else None."""
    if 0 < hard_bytes < HARD_LIMIT_BYTES:
        return f"{hard_bytes:,} bytes"
    is_short = soft_bytes < HARD_LIMIT_BYTES and soft_seconds < SOFT_LIMIT_SECONDS
    if soft_bytes > 0 and (soft_bytes < SOFT_LIMIT_BYTES or is_short):
        return f"{soft_bytes:,} bytes for {soft_seconds} s"
    return None


def _texts(answer: Any) -> list[str]:
    """Return the texts of the answer to CONFIG GET, which redis-py returns as a dict or a list."""
    if isinstance(answer, dict):
        answer = [*answer.keys(), *answer.values()]
    return [_text(value) for value in answer or ()]


def _text(value: Any) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)


def _escaped(text: str) -> str:
    """Return a text as a pattern of SCAN that matches it literally."""
    return "".join(f"\\{letter}" if letter in "*?[]\\" else letter for letter in text)
