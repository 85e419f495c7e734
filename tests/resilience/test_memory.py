"""The shipped memory limits suffice with all limits reached, and for a start from that.

The events have the largest values that the exporter accepts: names and ids of 255 bytes, texts of workers of
maximum length, and more of everything than it stores. A server scrapes meanwhile, and there is a state file.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import kombu
import pytest
from celery.events.event import get_exchange
from harness.exporter import SCRAPER, Exporter
from harness.processes import ROOT
from harness.servers import RedisServer
from harness.tables import add_row
from harness.waiting import until_equal

#: More of each than the exporter stores; it stores 5,000 workers.
NAMES, QUEUES, WORKERS, FAILED, OPEN, EARLY = 30_000, 3_000, 6_000, 60_000, 320_000, 30_000
#: Names and queues of the open tasks.
COMMON_NAMES, COMMON_QUEUES = 2_000, 50
#: Events in a message, and events that are sent before the test waits: Redis closes a connection that is 32
#: MB behind.
MESSAGE_EVENTS, BATCH_EVENTS = 500, 8_000
#: Time for the whole test on a busy machine.
TIMEOUT_SECONDS = 3_600

Event = dict[str, Any]


def long(text: str) -> str:
    """Return a text of 255 bytes, with characters that take the most memory."""
    return text + "\U0001f600" * ((255 - len(text)) // 4)


def heartbeats(now: float) -> Iterator[Event]:
    texts = {"sw_ident": "i" * 255, "sw_ver": "v" * 255, "sw_sys": "s" * 255}
    event = {"type": "worker-heartbeat", "timestamp": now, "freq": 60.0, "processed": 1, "active": 1, **texts}
    for number in range(WORKERS):
        yield {**event, "hostname": f"worker-{number}@box", "pid": number, "loadavg": [1.5, 2.5, 3.5]}


def sent(now: float, number: int, names: int, queues: int, retries: int = 0) -> Event:
    target = {"name": long(f"name-{number % names}"), "queue": long(f"queue-{number % queues}")}
    common = {"uuid": long(f"{number:08}"), "hostname": "client@box", "retries": retries}
    return {"type": "task-sent", "timestamp": now, **common, **target}


def worker_event(kind: str, now: float, number: int, **more: Any) -> Event:
    common = {"uuid": long(f"{number:08}"), "hostname": f"worker-{number % WORKERS}@box", "pid": 1}
    return {"type": kind, "timestamp": now + 1, **common, **more}


def named(now: float) -> Iterator[Event]:
    return (sent(now, 10**7 + number, NAMES, QUEUES) for number in range(NAMES))


def failed(now: float) -> Iterator[Event]:
    for number in range(2 * 10**7, 2 * 10**7 + FAILED):
        yield sent(now, number, COMMON_NAMES, COMMON_QUEUES)
        yield worker_event("task-failed", now, number, exception=long(f"Error{number}") + "('x')")


def unfinished(now: float) -> Iterator[Event]:
    """Yield tasks that started and whose retry was sent, which take the most memory."""
    for number in range(OPEN):
        yield sent(now, number, COMMON_NAMES, COMMON_QUEUES)
        yield worker_event(
            "task-received", now, number, name=long(f"name-{number % COMMON_NAMES}"), retries=0
        )
        yield worker_event("task-started", now, number)
        yield sent(now, number, COMMON_NAMES, COMMON_QUEUES, retries=1)


def early(now: float) -> Iterator[Event]:
    """Yield task-received events without a task-sent, which are deferred."""
    times = {"eta": "x" * 255, "expires": "x" * 255}
    for number in range(3 * 10**7, 3 * 10**7 + EARLY):
        yield worker_event(
            "task-received", now, number, **times, name=long("early"), exchange=long("exchange")
        )


def memory(app: Exporter, field: str) -> int:
    """Return the resident memory in MB (2^20 bytes): VmRSS is the current value, VmHWM the maximum."""
    match = re.search(rf"{field}:\s*(\d+) kB", Path(f"/proc/{app.pid}/status").read_text())
    assert match
    return int(match[1]) // 2**10


def limits() -> set[int]:
    """Return the shipped memory limits of the exporter in MB."""
    files = {
        "deploy/systemd/celery-exporter.service": r"MemoryMax=(\d+)M",
        "deploy/kubernetes/deployment.yaml": r"limits:\n(?:.*\n)*? +memory: (\d+)Mi",
        "docker-compose.yml": r"x-exporter:(?:.*\n)*? +mem_limit: (\d+)m",
    }
    matches = {name: re.search(pattern, (ROOT / name).read_text()) for name, pattern in files.items()}
    assert all(matches.values()), matches
    return {int(match[1]) for match in matches.values() if match}


def test_the_shipped_limits_are_equal():
    assert len(limits()) == 1


@pytest.mark.long
@pytest.mark.timeout(TIMEOUT_SECONDS)
def test_all_limits_at_once_stay_within_the_memory_limit(request, running, tmp_path):
    (limit,) = limits()
    server = running(RedisServer(tmp_path / "redis"))
    app = running(Exporter(tmp_path / "exporter", server.url, "--state-file", str(tmp_path / "state")))
    app.connected()
    now, total = time.time(), 0
    for events in (heartbeats, named, failed, unfinished, early):
        total = publish(app, server.url, events(now), total)
    rows = [{"bounds": "all at once", "now": memory(app, "VmRSS"), "most": memory(app, "VmHWM")}]
    app.kill()
    app.start()
    app.wait_ready()
    app.connected()
    for _ in range(3):
        app.get("/metrics", SCRAPER)
    rows += [{"bounds": "a start from that", "now": memory(app, "VmRSS"), "most": memory(app, "VmHWM")}]
    for row in rows:
        add_row(request.node, "memory, MB", {**row, "limit": limit})
    assert app.total("celery_tasks_in_flight") > 290_000
    assert max(row["most"] for row in rows) < limit


def publish(app: Exporter, url: str, events: Iterable[Event], total: int) -> int:
    """Publish events, wait until they and `total` earlier ones are counted, and return the new total."""
    remaining = iter(events)
    with kombu.Connection(url) as connection:
        producer = connection.Producer(exchange=get_exchange(connection))
        while batch := list(islice(remaining, BATCH_EVENTS)):
            for start in range(0, len(batch), MESSAGE_EVENTS):
                message = batch[start : start + MESSAGE_EVENTS]
                producer.publish(message, serializer="json", routing_key="task.multi")
            total += len(batch)
            until_equal(lambda: counted(app), total, 600)
    return total


def counted(app: Exporter) -> float:
    """Return the number of counted events, without parsing the whole page, which is long."""
    page = app.get("/metrics", SCRAPER).text
    return sum(map(float, re.findall(r"^celery_exporter_events_total\{.*\} (\S+)$", page, re.MULTILINE)))
