"""What tests of sinks send, and the accounts that they compare."""

from __future__ import annotations

from typing import Any

from celery import Celery

from harness.events import publish_events, task_events
from harness.exporter import Exporter

#: Tasks that end in different ways, with the queues that they are sent to: 3 SUCCESS and 2 FAILURE, one of
#: them of a ValueError.
MIXED_TASKS = (
    ("tasks.succeed", "left"),
    ("tasks.succeed", "right"),
    ("tasks.fail_with_value_error", "left"),
    ("tasks.retry_once", "right"),
    ("tasks.retry_and_fail", "left"),
    ("tasks.reject", "left"),
)


def send_mixed_tasks(client: Celery) -> None:
    for name, queue in MIXED_TASKS:
        client.send_task(name, queue=queue)


def exposed(app: Exporter, *labels: str) -> dict[tuple[str, ...], float]:
    """Return the transitions by these labels, without zeros."""
    return {key: count for key, count in app.samples().by("celery_tasks_total", *labels).items() if count}


def outcomes(app: Exporter, sink: str) -> dict[str, float]:
    """Return the records of a sink by outcome, without zeros."""
    sums = app.samples().by("celery_exporter_sink_records_total", "outcome", sink=sink)
    return {outcome: count for (outcome,), count in sums.items() if count}


def publish(url: str, *numbers: int, offset: float = 0, **changes: Any) -> None:
    """Publish the four events of each of these tasks, with `offset` seconds added to their times."""
    events = [event | changes for number in numbers for event in task_events(number)]
    publish_events(url, *(event | {"timestamp": event["timestamp"] + offset} for event in events))
