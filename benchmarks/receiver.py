"""Celery's own receiver with a handler that counts and does nothing else.

It says "ready" when it hears, and "counted …" when it is ended.
"""

from __future__ import annotations

import signal
import sys
from types import FrameType
from typing import Any

from celery import Celery
from celery.events import EventReceiver


class Receiver(EventReceiver):  # type: ignore[misc]
    def on_consume_ready(self, *_: Any, **__: Any) -> None:
        print("ready", flush=True)


def main() -> None:
    counted = 0

    def handler(_: dict[str, Any]) -> None:
        nonlocal counted
        counted += 1

    def leave(_: int, __: FrameType | None) -> None:
        print(f"counted {counted}", flush=True)
        sys.exit()

    signal.signal(signal.SIGTERM, leave)
    app = Celery(broker=sys.argv[1])
    with app.connection_for_read() as connection:
        Receiver(connection, handlers={"*": handler}, app=app).capture()


if __name__ == "__main__":
    main()
