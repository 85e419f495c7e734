"""Write every event of a broker into a file, one JSON object a line: `python -m celery_integration.receiver`.

It is Celery's own receiver, so that what was on the wire is known without any code of the exporter.
It prints "ready" when it is subscribed.
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
    def on_consume_ready(self, *_: Any, **__: Any) -> None:
        print("ready", flush=True)


def main(url: str, path: str) -> None:
    app = Celery(broker=url, set_as_current=False)
    with Path(path).open("w", buffering=1) as file, app.connection_for_read() as connection:

        def write(event: dict[str, Any]) -> None:
            file.write(json.dumps({"arrived": time.time(), **event}) + "\n")

        Receiver(connection, handlers={"*": write}, app=app).capture(wakeup=False)


if __name__ == "__main__":
    main(*sys.argv[1:])
