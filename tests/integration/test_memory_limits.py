"""Whatever is published, memory stays within what somebody chose, and what is honest is still counted."""

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

#: Tasks between two scrapes, each of which has to wait until they are counted.
STEP = 20_000


def hostile(number: int) -> list[dict]:
    """Return a task whose every name is new."""
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
    """Publish so many hostile tasks, in batches, waiting where the exporter is behind."""
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
def test_a_flood_of_names_hosts_and_exceptions(running, exporter, broker, tasks):
    """Every name is new: tasks, queues, hosts, exceptions. Memory stays within 300 MB, honest sums go on."""
    app = running(exporter("--task-labels", "queue_name,worker")).connected()
    publish_events(broker.url, *task_events(1))
    until_equal(lambda: app.total("celery_tasks_total", task_name="made.up", state="SUCCESS"), 1)
    process, redis = psutil.Process(app.pid), broker.server.client()
    redis.config_set("client-output-buffer-limit", "pubsub 0 0 0")
    most = 0
    for first in range(0, tasks, STEP):
        flood(redis, first, STEP)
        line = f'celery_exporter_events_total{{kind="task-failed"}} {floatToGoString(first + STEP)}\n'
        eventually(lambda: line in app.get(headers=SCRAPER, timeout=30).text, 120, what=line)  # noqa: B023
        most = max(most, process.memory_info().rss)
    publish_events(broker.url, *task_events(2))
    # The page is long by now, and takes a client seconds to take apart.
    until_equal(lambda: app.total("celery_tasks_total", task_name="made.up", state="SUCCESS"), 2, 60)
    samples = app.samples()
    assert samples.total("celery_tasks_total", state="FAILURE") == tasks
    assert samples.total("celery_tasks_total", task_name="made.up", worker="w@box", state="SUCCESS") == 2
    assert samples.total("celery_exporter_series_overflow_total") > 0
    assert samples.total("celery_exporter_limit_rejections_total", kind="worker") > 0
    assert samples.total("celery_exporter_limit_rejections_total", kind="queue") > 0
    assert most < FLOODED_BYTES, f"{most / 2**20:.0f} MB"
    print(f"{tasks} hostile tasks: {most / 2**20:.0f} MB at most")
