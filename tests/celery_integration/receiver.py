"""Writes all events of a broker to a file, one JSON object a line.

It uses Celery's receiver, so that the published events are known without code of the exporter. Run it with
`python -m celery_integration.receiver`. It prints "ready" when it is subscribed.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

from celery import Celery
from celery.events import EventReceiver


class Receiver(EventReceiver):  # type: ignore[misc]
    """Prints "ready" when it is subscribed."""

    def on_consume_ready(self, *_: Any, **__: Any) -> None:
        print("ready", flush=True)


def main(url: str, path: str) -> None:
    """Write the events of a broker to a file until the process is stopped."""
    app = Celery(broker=url, set_as_current=False)
    with Path(path).open("w", buffering=1) as file, app.connection_for_read() as connection:

        def write(event: dict[str, Any]) -> None:
            file.write(json.dumps({"arrived": time.time(), **event}) + "\n")

        Receiver(connection, handlers={"*": write}, app=app).capture(wakeup=False)


if __name__ == "__main__":
    main(*sys.argv[1:])
