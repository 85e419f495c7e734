"""What is measured inside of a process: scrapes, the stall that they are to events, memory, stages.

`python -m benchmarks.inside scrape 100000` prints one line of JSON. Each is a process of its own, so that
what one leaves in memory does not slow the next.
"""

from __future__ import annotations

import gc
import json
import math
import statistics
import sys
import threading
import time
import uuid
from collections.abc import Iterable
from contextlib import suppress
from typing import Any

import hiredis
import psutil
from prometheus_client import generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families

from benchmarks.tape import START, Cluster, Form, make_events, pack_messages, record
from celery_exporter.broker.codecs import JSON
from celery_exporter.broker.consumers.base import BatchFull
from celery_exporter.broker.consumers.redis_consumer import FEED_BYTES, RedisConsumer
from celery_exporter.broker.message import Message, events_of
from celery_exporter.broker.source import ConfigSource
from celery_exporter.config.loader import load
from celery_exporter.core.aggregates import Aggregates
from celery_exporter.core.cluster import SWEEP_SECONDS
from celery_exporter.core.cluster import Cluster as Cluster_
from celery_exporter.core.limits import Limits
from celery_exporter.core.types import Timestamp
from celery_exporter.metrics.exposition.series_tracker import SeriesTracker
from celery_exporter.metrics.exposition.text import Exposition
from celery_exporter.metrics.model import MetricOptions
from celery_exporter.metrics.registry import PROFILES, ProfilesClashError, Selection, select
from celery_exporter.monitor.monitor import Monitor
from celery_exporter.runtime import malloc

#: Samples of a label set whose tasks succeed; the exporter has some hundred of its own.
SAMPLES = 64
#: Who asks: a Prometheus server, for which new series are told from known ones.
SCRAPER = "127.0.0.1"
#: Scrapes after the first, and turns that profiles take.
SCRAPES, TURNS = 5, 10
#: Seconds between two reads.
EVERY = 0.001
#: What is told of a task before it ends.
OPEN = ("sent", "received", "started")


class Exporter:
    """The exporter without its threads: what they would do is done by hand."""

    def __init__(self) -> None:
        malloc.return_large()  # as cli.py does
        config = load(
            {"broker_url": "redis://127.0.0.1:1/0", "max_series": "10000000", "max_tasks": "2000000"}, {}
        ).monitor
        self._monitor = Monitor(config)
        self._tracker = SeriesTracker(time.monotonic(), time.time())
        self._exposition = Exposition(config.metrics.selection.rows)

    def receive(self, messages: Iterable[bytes]) -> None:
        """Do what the events thread does with what one read returned."""
        self._monitor.state.advance(EVERY)
        self._monitor.subscription.apply([Message(body, JSON) for body in messages])

    def scrape(self) -> bytes:
        """Do what a scrape does, but for HTTP."""
        snapshot = self._monitor.snapshot(web_config_up_to_date=None)
        session = self._tracker.begin(SCRAPER, time.monotonic())
        page = self._exposition.render(snapshot, session=session)
        self._tracker.end(SCRAPER, session, time.monotonic())
        return page

    @classmethod
    def with_samples(cls, samples: int) -> Exporter:
        """Return one whose pages have about so many samples, of tasks that succeeded."""
        exporter = cls()
        sets = max(1, samples // SAMPLES)
        for message in bodies(Cluster(tasks=2 * sets, names=sets, queues=1)):
            exporter.receive([message])
        return exporter


def bodies(cluster: Cluster) -> list[bytes]:
    """Return a tape without its envelopes."""
    return [json.dumps(body).encode() for _, body in pack_messages(make_events(cluster), Form(10, 10))]


def timed(function: Any) -> tuple[float, Any]:
    """Return the milliseconds that it took, and what it returned."""
    start = time.perf_counter()
    result = function()
    return (time.perf_counter() - start) * 1e3, result


def scrape(samples: int) -> dict[str, float]:
    """Compare our scrape with prometheus_client's encoder over the same families, which are ready for it."""
    exporter = Exporter.with_samples(samples)
    first, text = timed(exporter.scrape)
    timed(exporter.scrape)  # news are shown at 0 first, so this one is the first that is like all others
    later, text = zip(*(timed(exporter.scrape) for _ in range(SCRAPES)), strict=True)
    page = text[-1]
    families = Families(page.decode())
    gc.freeze()  # its samples are a million objects, which an encoder by itself would not have to look at
    theirs, encoded = zip(*(timed(lambda: generate_latest(families)) for _ in range(2)), strict=True)
    if count(encoded[-1]) != count(page):
        raise SystemExit("the two pages do not have the same number of samples")
    return {
        "samples": count(page),
        "bytes": len(page),
        "first": first,
        "later": statistics.median(later),
        "theirs": min(theirs),
    }


class Families:
    """A registry that has what a page has."""

    def __init__(self, page: str) -> None:
        self._families = list(text_string_to_metric_families(page))

    def collect(self) -> list[Metric]:
        return self._families


def count(page: bytes) -> int:
    return sum(not line.startswith(b"#") for line in page.splitlines())


def stall(samples: int) -> dict[str, float]:
    """Return by how much the handling of a message is late at worst, without scrapes and during them."""
    exporter = Exporter.with_samples(samples)
    exporter.scrape()
    worst, ended = 0.0, threading.Event()
    messages = bodies(Cluster(tasks=20_000))

    def listen() -> None:
        nonlocal worst
        position = 0
        while not ended.is_set():
            start = time.perf_counter()
            time.sleep(EVERY)
            exporter.receive([messages[position % len(messages)]])
            worst = max(worst, time.perf_counter() - start - EVERY)
            position += 1

    thread = threading.Thread(target=listen)
    thread.start()
    time.sleep(1)
    worst = 0.0
    time.sleep(2)
    still, worst = worst, 0.0
    pages = [exporter.scrape() for _ in range(2)]
    ended.set()
    thread.join()
    return {"samples": count(pages[-1]), "still": still * 1e3, "stall": worst * 1e3}


def memory(tasks: int) -> dict[str, float]:
    """Return the bytes that a task costs which is in each open state, as the system sees it.

    The same ones are told of again for each state, one event at a time, so that none shares its time.
    """
    exporter, process, found = Exporter(), psutil.Process(), {"tasks": float(tasks)}
    for kind in OPEN:
        exporter.receive([open_task(kind, number) for number in range(1_000)])
    gc.collect()
    before = process.memory_info().rss
    for kind in OPEN:
        for number in range(1_000, tasks + 1_000):
            exporter.receive([open_task(kind, number)])
        for _ in range(int(2 * SWEEP_SECONDS / EVERY)):
            exporter.receive([])
        found[kind] = (process.memory_info().rss - before) / tasks
    return found


def open_task(kind: str, number: int) -> bytes:
    """Return an event of a task that is not finished by it."""
    task = str(uuid.UUID(int=number * 0x9E3779B97F4A7C15F39CC0605CEDC835 % 2**128, version=4))
    event = {"type": f"task-{kind}", "uuid": task, "name": f"shop.tasks.handle_{number % 10:02}"}
    told = {"timestamp": START + number / 1e3 + OPEN.index(kind), "queue": "queue-1"}
    return json.dumps(event | told | {"hostname": "w@web-1.example.org", "pid": 4711}).encode()


def stages(tasks: int) -> dict[str, float]:
    """Return what each stage costs an event of messages of ten off Redis, in us; the best of some rounds."""
    tape = record(Cluster(tasks=tasks), Form(10, 10), "redis")
    stream = b"".join(map(pushed, tape.messages))
    native = select(("native",), MetricOptions())
    rounds = [stages_once(stream, native) for _ in range(SCRAPES)]
    best = min(rounds, key=lambda each: sum(each.values()))
    return {name: seconds / tape.kinds.total() * 1e6 for name, seconds in best.items()}


def stages_once(stream: bytes, selection: Selection) -> dict[str, float]:
    reader = RedisConsumer(ConfigSource(load({"broker_url": "redis://127.0.0.1:1/0"}, {}).monitor.broker))
    ledger, now = Aggregates(selection.runtime_bounds, selection.wait_bounds), Timestamp(10.0, START)
    cluster = Cluster_(Limits(), ledger, selection.labels, clients=selection.clients)
    spent = dict.fromkeys(("reading", "decoding", "Cluster.apply"), 0.0)

    def spend(stage: str, function: Any) -> Any:
        start = time.process_time()
        found = function()
        spent[stage] += time.process_time() - start
        return found

    for start in range(0, len(stream), FEED_BYTES):
        spend("reading", lambda: reader._parser.feed(stream[start : start + FEED_BYTES]))  # noqa: B023, SLF001
        full = True
        while full:
            full = spend("reading", lambda: parse_batch(reader))
            batch = reader._batch  # noqa: SLF001
            events = spend("decoding", lambda: [one for each in batch for one in events_of(each, {JSON})])  # noqa: B023
            spend("Cluster.apply", lambda: [cluster.apply(event, now) for event in events])  # noqa: B023
    return spent


def profiles(tasks: int) -> dict[str, float]:
    """Return what an event costs with one profile and with all that can be on with it, as `stages` counts.

    They take turns; the best of each is returned, in us.
    """
    names: tuple[str, ...] = ()
    for name in PROFILES:
        with suppress(ProfilesClashError):
            names = select((*names, name), MetricOptions()).names
    tape = record(Cluster(tasks=tasks), Form(10, 10), "redis")
    stream = b"".join(map(pushed, tape.messages))
    best: dict[str, float] = {}
    for _ in range(TURNS):
        for chosen in (names[:1], names):
            spent = sum(stages_once(stream, select(chosen, MetricOptions())).values())
            label = ", ".join(chosen)
            best[label] = min(best.get(label, math.inf), spent / tape.kinds.total() * 1e6)
    return best


def parse_batch(reader: RedisConsumer) -> bool:
    """Take a batch; tell whether it is full."""
    reader._start_batch()  # noqa: SLF001
    try:
        reader._parse()  # noqa: SLF001
    except BatchFull:
        return True
    return False


def pushed(published: bytes) -> bytes:
    """Return the message that a subscriber gets for a PUBLISH command."""
    parser = hiredis.Reader()
    parser.feed(published)
    _, channel, data = parser.gets()
    return hiredis.pack_command((b"pmessage", b"/0.celeryev/*", channel, data))


if __name__ == "__main__":
    measured = {each.__name__: each for each in (scrape, stall, memory, stages, profiles)}[sys.argv[1]]
    print(json.dumps(measured(int(sys.argv[2]))))
