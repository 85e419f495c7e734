"""A client whose task-sent events arrive late, after the events of the worker that runs the task."""

from __future__ import annotations

import heapq
import random
import threading
import time
from typing import TYPE_CHECKING, Any

import kombu

if TYPE_CHECKING:
    from typing import Self

    from celery import Celery


class DelayedDispatcher:
    """An event dispatcher for `send_task(..., event_dispatcher=…)` that publishes task-sent events late.

    Each event keeps its time of sending, and is published between `shortest` and `longest` seconds later.
    """

    def __init__(self, app: Celery, shortest: float, longest: float) -> None:
        self._app = app
        self._random = random.Random(1)
        self._delay = shortest, longest
        self._queue: list[tuple[float, int, dict[str, Any]]] = []
        self._count = 0
        self._changed = threading.Condition()
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="delayed task-sent", daemon=True)

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
        """How many events are not published yet."""
        return len(self._queue)

    def deliver_within(self, longest: float) -> None:
        """Publish all waiting events within this many seconds."""
        with self._changed:
            latest = time.monotonic() + longest
            self._queue = [(min(due, latest), number, fields) for due, number, fields in self._queue]
            heapq.heapify(self._queue)
            self._changed.notify()

    def publish(self, type: str, fields: dict[str, Any], producer: Any, **_: Any) -> None:  # noqa: A002, ARG002
        """Take an event, as `celery.events.EventDispatcher.publish` does."""
        assert type == "task-sent"
        due = time.monotonic() + self._random.uniform(*self._delay)
        with self._changed:
            self._count += 1
            heapq.heappush(self._queue, (due, self._count, {**fields, "timestamp": time.time()}))
            self._changed.notify()

    def _run(self) -> None:
        with self._app.connection_for_write() as connection, kombu.Producer(connection) as producer:
            dispatcher = self._app.events.Dispatcher(connection, enabled=False)
            while (fields := self._next()) is not None:
                dispatcher.publish("task-sent", fields, producer)

    def _next(self) -> dict[str, Any] | None:
        with self._changed:
            while self._queue or not self._stopping:
                remaining = self._queue[0][0] - time.monotonic() if self._queue else None
                if remaining is not None and remaining <= 0:
                    return heapq.heappop(self._queue)[2]
                self._changed.wait(remaining)
        return None
