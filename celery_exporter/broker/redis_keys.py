"""The keys of kombu on Redis, and a client for them (kombu/transport/redis.py)."""

from __future__ import annotations

from typing import Any

import redis


def client_of(channel: Any) -> Any:
    """Return a client on the connection pool of a channel.

    It is not kombu's, which adds the key prefix to some commands only. `prefixed` adds it.
    """
    return redis.Redis(connection_pool=channel.pool)


def prefixed(channel: Any, key: str) -> str:
    """Return a key with the option `global_keyprefix`."""
    return f"{channel.global_keyprefix}{key}"


def queue_keys(channel: Any, queue: str) -> list[str]:
    """Return the keys of the lists of a queue, one for each priority step; the first is delivered first."""
    return [
        prefixed(channel, f"{queue}{channel.sep}{step}" if step else queue) for step in channel.priority_steps
    ]
