"""Event subscriptions, one file a way of reading. What each of them promises is `Reader`."""

from __future__ import annotations

from typing import Protocol

from celery_exporter.broker.payload import Payload


class Reader(Protocol):
    """A subscription to the event exchange, used by one thread.

    `open` subscribes anew and may be called again after `close`. `read` waits `timeout` seconds for
    the first message at most, then returns what has come, a bounded number; it keeps the connection
    alive meanwhile, under traffic too. `open` and `read` raise BrokerError when the broker is gone, or
    silent for longer than a living one is. `proven` is when the subscription last proved to be alive, by
    the monotonic clock. `close` never raises.
    """

    proven: float

    def open(self) -> None:
        """Subscribe."""

    def read(self, timeout: float) -> list[Payload]:
        """Return messages."""

    def close(self) -> None:
        """Unsubscribe and hang up."""
