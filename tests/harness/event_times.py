"""When each task event was made, by the process that made it.

Celery has no signal for most events, and the process that runs a task is often not the one that makes its
events: with the pool prefork, that is the main process of the worker. So the function that makes the event
(celery/events/event.py) is called between two readings of the clock, and these are noted. However busy the
machine is, the event was made between them. The event itself is not read.
"""

from __future__ import annotations

import json
import threading
import time
from typing import Any, NamedTuple

from celery.events.dispatcher import EventDispatcher
from celery.events.event import Event
from celery.worker.request import Request

from harness.outcomes import Attempt, RedisOutcomes

#: The list in the Redis of the recorded outcomes.
EVENTS = "events"
_current = threading.local()


class MadeEvent(NamedTuple):
    """A task event, which was made between two times (epoch seconds)."""

    attempt: Attempt
    type: str
    hostname: str
    begin: float
    end: float


class NotingRequest(Request):
    """A request of a worker whose events are noted with its attempt: most events do not have it."""

    def send_event(self, type: str, **fields: Any) -> None:  # noqa: A002  as Celery calls it
        _current.retries = self.request_dict.get("retries", 0)
        try:
            super().send_event(type, **fields)
        finally:
            _current.retries = None


class NotingDispatcher(EventDispatcher):
    """A dispatcher that notes when it makes task events."""

    outcomes: RedisOutcomes

    def send(self, type: str, **fields: Any) -> None:  # noqa: A002
        super().send(type, Event=self._make, **fields)

    def publish(self, type: str, fields: dict[str, Any], producer: Any, **options: Any) -> None:  # noqa: A002
        super().publish(type, fields, producer, Event=self._make, **options)

    def _make(self, type: str, **fields: Any) -> dict[str, Any]:  # noqa: A002
        begin = time.time()
        event: dict[str, Any] = Event(type, **fields)
        end = time.time()
        if type.startswith("task-"):
            retries = fields.get("retries", getattr(_current, "retries", None))
            attempt = Attempt(fields["uuid"], retries or 0)
            made = MadeEvent(attempt, type, self.hostname, begin, end)
            self.outcomes.redis.rpush(EVENTS, json.dumps(made))
        return event


def note_events(app: Any, outcomes: RedisOutcomes) -> None:
    """Let an app note when it makes task events. Call it before anything uses the app."""
    app.events.dispatcher_cls = type("Dispatcher", (NotingDispatcher,), {"outcomes": outcomes})


def made_events(outcomes: RedisOutcomes) -> list[MadeEvent]:
    """Return the noted events, in the order in which they were stored."""
    lines = map(json.loads, outcomes.redis.lrange(EVENTS, 0, -1))
    return [MadeEvent(Attempt(*attempt), *rest) for attempt, *rest in lines]
