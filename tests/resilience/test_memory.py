"""The memory limits that are shipped hold with every bound reached at once, and at a start from that state.

What is sent is the worst that the bounds let through: names and ids of 255 bytes, texts of workers as long as
they may be, and more of everything than is kept. A server scrapes meanwhile, and there is a state file.
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

#: More of each than is kept, but for workers, of which 5,000 are.
NAMES, QUEUES, WORKERS, FAILED, OPEN, EARLY = 30_000, 3_000, 6_000, 60_000, 320_000, 30_000
#: Names whose tasks are open, and queues they are in.
COMMON_NAMES, COMMON_QUEUES = 2_000, 50
#: Events in a message, and events that are sent before those are waited for: Redis ends a connection that is
#: 32 MB behind.
IN_MESSAGE, AT_ONCE = 500, 8_000
#: Seconds for all of it, on a machine that has other things to do.
DEADLINE = 3_600

Event = dict[str, Any]


def long(text: str) -> str:
    """Return it as 255 bytes, which take the most memory."""
    return text + "\U0001f600" * ((255 - len(text)) // 4)


def heartbeats(now: float) -> Iterator[Event]:
    texts = {"sw_ident": "i" * 255, "sw_ver": "v" * 255, "sw_sys": "s" * 255}
    beat = {"type": "worker-heartbeat", "timestamp": now, "freq": 60.0, "processed": 1, "active": 1, **texts}
    for number in range(WORKERS):
        yield {**beat, "hostname": f"worker-{number}@box", "pid": number, "loadavg": [1.5, 2.5, 3.5]}


def sent(now: float, number: int, names: int, queues: int, retries: int = 0) -> Event:
    where = {"name": long(f"name-{number % names}"), "queue": long(f"queue-{number % queues}")}
    common = {"uuid": long(f"{number:08}"), "hostname": "client@box", "retries": retries}
    return {"type": "task-sent", "timestamp": now, **common, **where}


def happened(kind: str, now: float, number: int, **more: Any) -> Event:
    which = {"uuid": long(f"{number:08}"), "hostname": f"worker-{number % WORKERS}@box", "pid": 1}
    return {"type": kind, "timestamp": now + 1, **which, **more}


def named(now: float) -> Iterator[Event]:
    return (sent(now, 10**7 + number, NAMES, QUEUES) for number in range(NAMES))


def failed(now: float) -> Iterator[Event]:
    for number in range(2 * 10**7, 2 * 10**7 + FAILED):
        yield sent(now, number, COMMON_NAMES, COMMON_QUEUES)
        yield happened("task-failed", now, number, exception=long(f"Error{number}") + "('x')")


def unfinished(now: float) -> Iterator[Event]:
    """Yield tasks that were started, and whose retry was sent: that is the most to know of one."""
    for number in range(OPEN):
        yield sent(now, number, COMMON_NAMES, COMMON_QUEUES)
        yield happened("task-received", now, number, name=long(f"name-{number % COMMON_NAMES}"), retries=0)
        yield happened("task-started", now, number)
        yield sent(now, number, COMMON_NAMES, COMMON_QUEUES, retries=1)


def early(now: float) -> Iterator[Event]:
    """Yield receipts of tasks that nobody sent: they wait for that."""
    times = {"eta": "x" * 255, "expires": "x" * 255}
    for number in range(3 * 10**7, 3 * 10**7 + EARLY):
        yield happened("task-received", now, number, **times, name=long("early"), exchange=long("exchange"))


def memory(app: Exporter, field: str) -> int:
    """Return what the kernel counts of it, in MB (2^20 bytes): VmRSS is now, VmHWM the most that ever was."""
    found = re.search(rf"{field}:\s*(\d+) kB", Path(f"/proc/{app.pid}/status").read_text())
    assert found
    return int(found[1]) // 2**10


def limits() -> set[int]:
    """Return the limits of the exporter that are shipped, in MB."""
    files = {
        "deploy/systemd/celery-exporter.service": r"MemoryMax=(\d+)M",
        "deploy/kubernetes/deployment.yaml": r"limits:\n(?:.*\n)*? +memory: (\d+)Mi",
        "docker-compose.yml": r"x-exporter:(?:.*\n)*? +mem_limit: (\d+)m",
    }
    found = {name: re.search(pattern, (ROOT / name).read_text()) for name, pattern in files.items()}
    assert all(found.values()), found
    return {int(match[1]) for match in found.values() if match}


def test_the_shipped_limits_are_one():
    assert len(limits()) == 1


@pytest.mark.long
@pytest.mark.timeout(DEADLINE)
def test_all_bounds_at_once_stay_within_the_limit(request, running, tmp_path):
    (limit,) = limits()
    server = running(RedisServer(tmp_path / "redis"))
    app = running(Exporter(tmp_path / "exporter", server.url, "--state-file", str(tmp_path / "state")))
    app.connected()
    now, total = time.time(), 0
    for what in (heartbeats, named, failed, unfinished, early):
        total = publish(app, server.url, what(now), total)
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
    """Send them, and wait until `total` and these were counted; return how many that are."""
    rest = iter(events)
    with kombu.Connection(url) as connection:
        producer = connection.Producer(exchange=get_exchange(connection))
        while some := list(islice(rest, AT_ONCE)):
            for start in range(0, len(some), IN_MESSAGE):
                batch = some[start : start + IN_MESSAGE]
                producer.publish(batch, serializer="json", routing_key="task.multi")
            total += len(some)
            until_equal(lambda: counted(app), total, 600)
    return total


def counted(app: Exporter) -> float:
    """Return how many events its page has, which is too long to be parsed each time."""
    page = app.get("/metrics", SCRAPER).text
    return sum(map(float, re.findall(r"^celery_exporter_events_total\{.*\} (\S+)$", page, re.MULTILINE)))
