"""Events that a test builds, and malformed bytes, published to the event exchange of a real broker."""

import json
import time
from typing import Any

import kombu
from celery.events.event import get_exchange


def publish_event_bytes(
    url: str, body: bytes, *, content_type: str = "application/json", routing_key: str = "task.multi"
) -> None:
    """Publish bytes unchanged as the body of an event message."""
    with kombu.Connection(url) as connection:
        connection.Producer(exchange=get_exchange(connection)).publish(
            body,
            routing_key=routing_key,
            content_type=content_type,
            content_encoding="utf-8",
            delivery_mode="transient",
        )


def publish_events(url: str, *events: dict[str, Any]) -> None:
    """Publish events as one batch, as a worker does."""
    publish_event_bytes(url, json.dumps(events).encode())


def task_events(number: int) -> tuple[dict[str, Any], ...]:
    """Return the task-sent, task-received, task-started and task-succeeded events of a task."""
    now = time.time()
    common = {"uuid": f"task-{number}", "clock": number, "utcoffset": 0, "pid": 1}
    name = {"name": "made.up", "queue": "made", "args": "()", "kwargs": "{}", "retries": 0, "eta": None}
    worker, client = {**common, "hostname": "w@box"}, {**common, "hostname": "client@box"}
    return (
        {**client, "type": "task-sent", "timestamp": now, **name},
        {**worker, "type": "task-received", "timestamp": now + 0.01, **name},
        {**worker, "type": "task-started", "timestamp": now + 0.02},
        {**worker, "type": "task-succeeded", "timestamp": now + 0.03, "runtime": 0.01, "result": "None"},
    )
