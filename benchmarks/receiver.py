"""Celery's event receiver with a handler that only counts.

It prints "ready" when it is subscribed, and "counted …" when it stops.
"""

from __future__ import annotations

import signal
import sys
from types import FrameType
from typing import Any

from celery import Celery
from celery.events import EventReceiver


class Receiver(EventReceiver):  # type: ignore[misc]
    """Prints "ready" when it is subscribed."""

    def on_consume_ready(self, *_: Any, **__: Any) -> None:
        print("ready", flush=True)


def main() -> None:
    """Count the events of the broker in the first argument."""
    counted = 0

    def handler(_: dict[str, Any]) -> None:
        nonlocal counted
        counted += 1

    def stop(_: int, __: FrameType | None) -> None:
        print(f"counted {counted}", flush=True)
        sys.exit()

    signal.signal(signal.SIGTERM, stop)
    app = Celery(broker=sys.argv[1])
    with app.connection_for_read() as connection:
        Receiver(connection, handlers={"*": handler}, app=app).capture()


if __name__ == "__main__":
    main()
