"""A client whose task-sent is slow on its way: the message is there at once, and overtaken are its words."""

from __future__ import annotations

import heapq
import random
import threading
import time
from typing import TYPE_CHECKING, Any

import kombu

if TYPE_CHECKING:
    from celery import Celery
    from typing_extensions import Self


class LateDispatcher:
    """What `send_task(..., event_dispatcher=…)` publishes task-sent with: at its true time of sending, and
    up to `longest` seconds later on the wire. `shortest` and `longest` are seconds.
    """

    def __init__(self, app: Celery, shortest: float, longest: float) -> None:
        self._app = app
        self._delays = random.Random(1)
        self._between = shortest, longest
        self._queue: list[tuple[float, int, dict[str, Any]]] = []
        self._taken = 0
        self._changed = threading.Condition()
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="late task-sent", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        with self._changed:
            self._stopping = True
            self._changed.notify()
        self._thread.join(10)

    @property
    def waiting(self) -> int:
        """How many are still on their way."""
        return len(self._queue)

    def hurry(self, longest: float) -> None:
        """Let each that is still on its way come within so many seconds."""
        with self._changed:
            latest = time.monotonic() + longest
            self._queue = [(min(due, latest), number, fields) for due, number, fields in self._queue]
            heapq.heapify(self._queue)
            self._changed.notify()

    def publish(self, type: str, fields: dict[str, Any], producer: Any, **_: Any) -> None:  # noqa: A002, ARG002
        """Take an event as `celery.events.EventDispatcher.publish` does."""
        assert type == "task-sent"
        due = time.monotonic() + self._delays.uniform(*self._between)
        with self._changed:
            self._taken += 1
            heapq.heappush(self._queue, (due, self._taken, {**fields, "timestamp": time.time()}))
            self._changed.notify()

    def _run(self) -> None:
        with self._app.connection_for_write() as connection, kombu.Producer(connection) as producer:
            dispatcher = self._app.events.Dispatcher(connection, enabled=False)
            while (fields := self._next()) is not None:
                dispatcher.publish("task-sent", fields, producer)

    def _next(self) -> dict[str, Any] | None:
        with self._changed:
            while self._queue or not self._stopping:
                left = self._queue[0][0] - time.monotonic() if self._queue else None
                if left is not None and left <= 0:
                    return heapq.heappop(self._queue)[2]
                self._changed.wait(left)
        return None
