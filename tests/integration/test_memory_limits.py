"""A flood of new names: memory stays within its limit, and valid tasks are counted."""

import base64
import json
import time
from itertools import islice

import psutil
import pytest
from harness.broker_marks import on_redis
from harness.events import publish_events, task_events
from harness.exporter import SCRAPER
from harness.memory_limits import FLOODED_BYTES
from harness.waiting import eventually, until_equal
from prometheus_client.utils import floatToGoString

#: Tasks between two scrapes. Each scrape waits until they are counted.
TASKS_PER_SCRAPE = 20_000


def hostile(number: int) -> list[dict]:
    """Return the events of a task with new names for everything."""
    now = time.time()
    common = {"uuid": f"h{number}", "pid": number, "timestamp": now}
    name = {"name": f"task-{number}", "queue": f"queue-{number}", "retries": 0}
    worker = {**common, "hostname": f"w{number}@h{number}"}
    return [
        {**common, **name, "type": "task-sent", "hostname": f"client@h{number}"},
        {**worker, **name, "type": "task-received"},
        {**worker, "type": "task-started"},
        {**worker, "type": "task-failed", "exception": f"Error{number}('x')"},
        {**worker, "type": "worker-heartbeat", "freq": 2, "processed": number, "active": 1},
    ]


def flood(redis, first: int, count: int) -> None:
    """Publish `count` hostile tasks in batches."""
    numbers = iter(range(first, first + count))
    while chunk := list(islice(numbers, 20)):
        events = [event for number in chunk for event in hostile(number)]
        body = base64.b64encode(json.dumps(events).encode()).decode()
        envelope = {
            "body": body,
            "content-type": "application/json",
            "content-encoding": "utf-8",
            "headers": {},
            "properties": {"body_encoding": "base64"},
        }
        redis.publish("/0.celeryev/task.multi", json.dumps(envelope))


@on_redis
@pytest.mark.parametrize("tasks", [60_000, pytest.param(1_000_000, marks=pytest.mark.long)])
@pytest.mark.timeout(3_600)
def test_memory_is_bounded_in_a_flood_of_names_hosts_and_exceptions(running, exporter, broker, tasks):
    """All names of tasks, queues, hosts and exceptions are new. Tasks of known names are still counted."""
    app = running(exporter("--task-labels", "queue_name,worker")).connected()
    publish_events(broker.url, *task_events(1))
    until_equal(lambda: app.total("celery_tasks_total", task_name="made.up", state="SUCCESS"), 1)
    process, redis = psutil.Process(app.pid), broker.server.client()
    redis.config_set("client-output-buffer-limit", "pubsub 0 0 0")
    peak = 0
    for first in range(0, tasks, TASKS_PER_SCRAPE):
        flood(redis, first, TASKS_PER_SCRAPE)
        failures = floatToGoString(first + TASKS_PER_SCRAPE)
        line = f'celery_exporter_events_total{{kind="task-failed"}} {failures}\n'
        eventually(lambda: line in app.get(headers=SCRAPER, timeout=30).text, 120, what=line)  # noqa: B023
        peak = max(peak, process.memory_info().rss)
    publish_events(broker.url, *task_events(2))
    # The page is long, and a client needs seconds to parse it.
    until_equal(lambda: app.total("celery_tasks_total", task_name="made.up", state="SUCCESS"), 2, 60)
    samples = app.samples()
    assert samples.total("celery_tasks_total", state="FAILURE") == tasks
    assert samples.total("celery_tasks_total", task_name="made.up", worker="w@box", state="SUCCESS") == 2
    assert samples.total("celery_exporter_series_overflow_total") > 0
    assert samples.total("celery_exporter_limit_rejections_total", kind="worker") > 0
    assert samples.total("celery_exporter_limit_rejections_total", kind="queue") > 0
    assert peak < FLOODED_BYTES, f"{peak / 2**20:.0f} MB"
    print(f"{tasks} hostile tasks: {peak / 2**20:.0f} MB at most")
