"""Measurements inside a process: scrapes, the delay that they cause for events, memory, stages.

`python -m benchmarks.inside scrape 100000` prints one line of JSON. Each measurement needs a new process, so
that the memory of one does not slow the next.
"""

from __future__ import annotations

import gc
import json
import math
import multiprocessing
import os
import statistics
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from multiprocessing.connection import Connection
from typing import Any

import hiredis
import psutil
from prometheus_client import generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families

from benchmarks.event_stream import START, Cluster, Form, make_events, pack_messages, record
from celery_exporter.broker.codecs import JSON
from celery_exporter.broker.consumers.base import BATCH_MESSAGES, BatchFull
from celery_exporter.broker.consumers.redis_consumer import FEED_BYTES, RedisConsumer
from celery_exporter.broker.message import Message, events_of
from celery_exporter.broker.source import ConfigSource
from celery_exporter.config.loader import load
from celery_exporter.core.aggregates import Aggregates
from celery_exporter.core.cluster import SWEEP_SECONDS
from celery_exporter.core.cluster import Cluster as Cluster_
from celery_exporter.core.events import Event, decode
from celery_exporter.core.limits import Limits
from celery_exporter.core.types import Timestamp
from celery_exporter.metrics.exposition.series_tracker import SeriesTracker
from celery_exporter.metrics.exposition.text import Exposition
from celery_exporter.metrics.model import MetricOptions
from celery_exporter.metrics.registry import PROFILES, ProfilesClashError, Selection, select
from celery_exporter.monitor.monitor import Monitor
from celery_exporter.relay.split import EVERY_SHARD, split
from celery_exporter.runtime import malloc
from celery_exporter.sinks.factory import pushers_for
from celery_exporter.sinks.loki import LokiSink

#: Samples of a label set whose tasks succeed. The exporter has some hundred samples of its own.
SAMPLES_PER_LABEL_SET = 66
#: The address of the Prometheus server; series are new or old for each server.
SCRAPER = "127.0.0.1"
#: Numbers of brokers in one process.
BROKERS = (1, 10, 50)
#: Numbers of shards.
SHARDS = (1, 2, 4, 8)
#: Scrapes after the first one, and measurements of each selection of profiles.
SCRAPES, TURNS = 5, 10
READ_INTERVAL_SECONDS = 0.001
#: Events of a task before it ends.
OPEN = ("sent", "received", "started")


class Exporter:
    """The exporter without its threads; the methods do their work."""

    def __init__(self, **options: str) -> None:
        malloc.return_large()  # as cli.py does
        limits = {"max_series": "10000000", "max_tasks": "2000000"}
        settings = load({"broker_url": "redis://127.0.0.1:1/0", **limits, **options}, {})
        config = settings.monitor
        self.pushers = pushers_for(settings.sinks)
        self._monitor = Monitor(config, pushers=self.pushers)
        self.history = self._monitor.history
        self._tracker = SeriesTracker(time.monotonic(), time.time())
        self._exposition = Exposition(config.metrics.selection.rows)

    def receive(self, messages: Iterable[bytes]) -> None:
        """Process the messages of one read, like the event subscription."""
        self._monitor.state.advance(READ_INTERVAL_SECONDS)
        self._monitor.subscription.apply([Message(body, JSON) for body in messages])

    def scrape(self) -> bytes:
        """Return the page of a scrape, without HTTP."""
        snapshot = self._monitor.snapshot(web_config_up_to_date=None)
        session = self._tracker.begin(SCRAPER, time.monotonic())
        page = self._exposition.render(snapshot, session=session)
        self._tracker.end(SCRAPER, session, time.monotonic())
        return page

    @classmethod
    def with_samples(cls, samples: int) -> Exporter:
        """Return an exporter whose pages have about this number of samples, of tasks that succeeded."""
        exporter = cls()
        label_sets = max(1, samples // SAMPLES_PER_LABEL_SET)
        for message in bodies(Cluster(tasks=2 * label_sets, names=label_sets, queues=1)):
            exporter.receive([message])
        return exporter


def bodies(cluster: Cluster) -> list[bytes]:
    """Return the bodies of the messages on an event stream."""
    return [json.dumps(body).encode() for _, body in pack_messages(make_events(cluster), Form(10, 10))]


def batches(messages: list[bytes]) -> list[list[bytes]]:
    """Return the messages in batches as a consumer reads them while many wait."""
    return [messages[start : start + BATCH_MESSAGES] for start in range(0, len(messages), BATCH_MESSAGES)]


def timed(function: Any) -> tuple[float, Any]:
    """Return the duration of a call in milliseconds, and its result."""
    start = time.perf_counter()
    result = function()
    return (time.perf_counter() - start) * 1e3, result


def scrape(samples: int) -> dict[str, float]:
    """Return the duration of a scrape, and that of prometheus_client's encoder for the same families."""
    exporter = Exporter.with_samples(samples)
    first, text = timed(exporter.scrape)
    timed(exporter.scrape)  # the first scrape shows new series at 0, so measure from the third on
    later, text = zip(*(timed(exporter.scrape) for _ in range(SCRAPES)), strict=True)
    page = text[-1]
    families = Families(page.decode())
    gc.freeze()  # the garbage collector would traverse a million samples, which is no part of encoding
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
    """A registry with the metric families of a page."""

    def __init__(self, page: str) -> None:
        self._families = list(text_string_to_metric_families(page))

    def collect(self) -> list[Metric]:
        return self._families


def count(page: bytes) -> int:
    """Return the number of samples of a page."""
    return sum(not line.startswith(b"#") for line in page.splitlines())


def stall(samples: int) -> dict[str, float]:
    """Return the maximum delay of a message, without scrapes and during scrapes."""
    exporter = Exporter.with_samples(samples)
    exporter.scrape()
    max_delay, stopped = 0.0, threading.Event()
    messages = bodies(Cluster(tasks=20_000))

    def listen() -> None:
        nonlocal max_delay
        position = 0
        while not stopped.is_set():
            start = time.perf_counter()
            time.sleep(READ_INTERVAL_SECONDS)
            exporter.receive([messages[position % len(messages)]])
            max_delay = max(max_delay, time.perf_counter() - start - READ_INTERVAL_SECONDS)
            position += 1

    thread = threading.Thread(target=listen)
    thread.start()
    time.sleep(1)
    max_delay = 0.0
    time.sleep(2)
    still, max_delay = max_delay, 0.0
    pages = [exporter.scrape() for _ in range(2)]
    stopped.set()
    thread.join()
    return {"samples": count(pages[-1]), "still": still * 1e3, "stall": max_delay * 1e3}


def memory(tasks: int) -> dict[str, float]:
    """Return the resident bytes of a task in each open state.

    The same tasks receive the event of each state. Each message has one event, so that no two share a time.
    """
    exporter, process, figures = Exporter(), psutil.Process(), {"tasks": float(tasks)}
    for kind in OPEN:
        exporter.receive([open_task(kind, number) for number in range(1_000)])
    gc.collect()
    before = process.memory_info().rss
    for kind in OPEN:
        for number in range(1_000, tasks + 1_000):
            exporter.receive([open_task(kind, number)])
        for _ in range(int(2 * SWEEP_SECONDS / READ_INTERVAL_SECONDS)):
            exporter.receive([])
        figures[kind] = (process.memory_info().rss - before) / tasks
    return figures


def open_task(kind: str, number: int) -> bytes:
    """Return an event of a task that does not finish it."""
    task = str(uuid.UUID(int=number * 0x9E3779B97F4A7C15F39CC0605CEDC835 % 2**128, version=4))
    event = {"type": f"task-{kind}", "uuid": task, "name": f"shop.tasks.handle_{number % 10:02}"}
    fields = {"timestamp": START + number / 1e3 + OPEN.index(kind), "queue": "queue-1"}
    return json.dumps(event | fields | {"hostname": "w@web-1.example.org", "pid": 4711}).encode()


def stages(tasks: int) -> dict[str, float]:
    """Return the us of each stage for an event, in messages of ten from Redis; the best of some rounds."""
    event_stream = record(Cluster(tasks=tasks), Form(10, 10), "redis")
    stream = b"".join(map(pushed, event_stream.messages))
    native = select(("native",), MetricOptions())
    rounds = [stages_once(stream, native) for _ in range(SCRAPES)]
    best = min(rounds, key=lambda seconds: sum(seconds.values()))
    return {name: seconds / event_stream.kinds.total() * 1e6 for name, seconds in best.items()}


def stages_once(stream: bytes, selection: Selection) -> dict[str, float]:
    """Return the CPU seconds of each stage for a stream."""
    consumer = RedisConsumer(ConfigSource(load({"broker_url": "redis://127.0.0.1:1/0"}, {}).monitor.broker))
    aggregates, now = Aggregates(selection.runtime_bounds, selection.wait_bounds), Timestamp(10.0, START)
    cluster = Cluster_(Limits(), aggregates, selection.labels, clients=selection.clients)
    seconds = dict.fromkeys(("reading", "decoding", "Cluster.apply"), 0.0)

    def measure(stage: str, function: Any) -> Any:
        start = time.process_time()
        result = function()
        seconds[stage] += time.process_time() - start
        return result

    def decode(batch: Iterable[Message]) -> list[Event]:
        return [event for message in batch for event in events_of(message, {JSON})]

    for start in range(0, len(stream), FEED_BYTES):
        measure("reading", lambda: consumer._parser.feed(stream[start : start + FEED_BYTES]))  # noqa: B023, SLF001
        is_full = True
        while is_full:
            is_full = measure("reading", lambda: parse_batch(consumer))
            batch = consumer._batch  # noqa: SLF001
            events = measure("decoding", lambda: decode(batch))  # noqa: B023
            measure("Cluster.apply", lambda: [cluster.apply(event, now) for event in events])  # noqa: B023
    return seconds


def profiles(tasks: int) -> dict[str, float]:
    """Return the us of an event with one profile, and with all profiles that can be active with it.

    The two take turns. The result has the best of each, with the stages of `stages`.
    """
    names: tuple[str, ...] = ()
    for name in PROFILES:
        with suppress(ProfilesClashError):
            names = select((*names, name), MetricOptions()).names
    event_stream = record(Cluster(tasks=tasks), Form(10, 10), "redis")
    stream = b"".join(map(pushed, event_stream.messages))
    best: dict[str, float] = {}
    for _ in range(TURNS):
        for selected in (names[:1], names):
            seconds = sum(stages_once(stream, select(selected, MetricOptions())).values())
            label = ", ".join(selected)
            best[label] = min(best.get(label, math.inf), seconds / event_stream.kinds.total() * 1e6)
    return best


def sinks(tasks: int) -> dict[str, float]:
    """Return the us by which each kind of sink makes an event dearer: its thread, and the process.

    Encoding and sending are included. They take turns; the result has the best of each. Receivers run in
    another process.
    """
    reads = batches(bodies(Cluster(tasks=tasks)))
    best: dict[tuple[str, str], float] = {}
    # These events come at once. Records that wait for their turn of bytes a second would leave the cache.
    LokiSink.min_interval = 0.0
    with answering() as url:
        options = {"": {}, **{name: fill(url) for name, fill in SINK_OPTIONS.items()}}
        for _ in range(TURNS):
            for name, chosen in options.items():
                for part, seconds in sink_once(reads, chosen).items():
                    best[name, part] = min(best.get((name, part), math.inf), seconds)
    return {
        f"{name}, {part}": (seconds - best["", part]) / (4 * tasks) * 1e6
        for (name, part), seconds in best.items()
        if name
    }


#: Sink → the options that turn it on, with the URL of a receiver that takes everything.
SINK_OPTIONS: dict[str, Callable[[str], dict[str, str]]] = {
    "event log": lambda _: {"event_log": os.devnull},
    "InfluxDB": lambda url: {"influx_url": url, "influx_org": "bench", "influx_bucket": "bench"},
    "Loki": lambda url: {"loki_url": url},
    "OTLP": lambda url: {"otlp_endpoint": url},
}


def history(tasks: int) -> dict[str, float]:
    """Return the us of an event without a history, in memory and with a file: of its thread, and of all.

    They take turns; the result has the best of each.
    """
    reads = batches(bodies(Cluster(tasks=tasks)))
    best: dict[str, float] = {}
    for _ in range(SCRAPES):
        for name in ("none", "memory", "file"):
            for part, seconds in history_once(reads, name).items():
                key = f"{name}, {part}"
                best[key] = min(best.get(key, math.inf), seconds)
    return {key: seconds / (4 * tasks) * 1e6 for key, seconds in best.items()}


def history_once(reads: list[list[bytes]], name: str) -> dict[str, float]:
    """Return the CPU seconds of the event thread and of the process until all tasks are written."""
    with tempfile.TemporaryDirectory() as folder:
        options = {"none": {"no_history": "true"}, "file": {"history_file": f"{folder}/history"}}
        exporter = Exporter(**options.get(name, {}))
        writer = exporter.history
        thread, process = time.thread_time(), time.process_time()
        if writer is not None:
            writer.start()
        for read in reads:
            exporter.receive(read)
        thread = time.thread_time() - thread
        if writer is not None:
            writer.stop()
            writer.join(time.monotonic() + 60.0)
            if writer.view().error or writer.view().written == 0:
                raise SystemExit(f"the history file was not written: {writer.view().error}")
        return {"event thread": thread, "process": time.process_time() - process}


def shards(tasks: int) -> dict[str, float]:
    """Return the us of an event in one shard of N, the best of some rounds."""
    messages = bodies(Cluster(tasks=tasks))
    return {str(count): in_shard(messages, count) for count in SHARDS}


def in_shard(messages: list[bytes], count: int) -> float:
    """Return the us of an event of the cluster in shard 0, which gets all messages."""
    return best_of_shard(messages, messages, count)


def shard_behind_relay(messages: list[bytes], count: int) -> float:
    """Return the us of an event of the cluster in shard 0, which gets its own events of all messages."""
    own = [
        line
        for read in batches(messages)
        for part in split(map(Message, read), count)
        for line in part.message.body.split(b"\n")
        if part.shard in {"0", EVERY_SHARD}
    ]
    return best_of_shard(messages, own, count)


def best_of_shard(messages: list[bytes], own: list[bytes], count: int) -> float:
    """Return the us of an event of all messages in shard 0, which gets its own ones."""
    events = sum(len(decode(message)) for message in messages)
    return min(shard_once(own, {"shard": f"0/{count}"}) for _ in range(SCRAPES)) / events * 1e6


def shard_once(messages: list[bytes], options: dict[str, str]) -> float:
    """Return the CPU seconds for the messages in one shard."""
    exporter = Exporter(**options)
    start = time.process_time()
    for message in messages:
        exporter.receive([message])
    return time.process_time() - start


def brokers(tasks: int) -> dict[str, float]:
    """Return the us of an event for several numbers of brokers in one process, each with its own thread.

    The result has the best of some rounds. Each broker has this number of tasks.
    """
    messages = bodies(Cluster(tasks=tasks))
    rounds = [{str(count): brokers_once(messages, count) for count in BROKERS} for _ in range(SCRAPES)]
    return {count: min(round_[count] for round_ in rounds) / (4 * tasks) * 1e6 for count in rounds[0]}


def brokers_once(messages: list[bytes], count: int) -> float:
    """Return the CPU seconds of this process for the messages of one of `count` brokers."""
    exporters = [Exporter() for _ in range(count)]

    def receive(exporter: Exporter) -> None:
        for message in messages:
            exporter.receive([message])

    threads = [threading.Thread(target=receive, args=[exporter]) for exporter in exporters]
    start = time.process_time()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return (time.process_time() - start) / count


def sink_once(reads: list[list[bytes]], options: dict[str, str]) -> dict[str, float]:
    """Return the CPU seconds of the event thread, and of the process until all records are delivered.

    What it takes to wait for that is no part of either.
    """
    exporter = Exporter(**options)
    start, thread = time.process_time(), time.thread_time()
    for pusher in exporter.pushers:
        pusher.start()
    for read in reads:
        exporter.receive(read)
    thread = time.thread_time() - thread
    waiting = time.thread_time()
    for pusher in exporter.pushers:
        while pusher.view().buffered:  # a sink may limit its bytes a second
            time.sleep(0.05)
    waiting = time.thread_time() - waiting
    for pusher in exporter.pushers:
        pusher.stop()
        pusher.join()
    seconds = time.process_time() - start - waiting
    for pusher in exporter.pushers:
        if pusher.view().lost:
            raise SystemExit(f"{pusher.name} lost records: {pusher.view().error}")
    return {"event thread": thread, "process": seconds}


@contextmanager
def answering() -> Iterator[str]:
    """Run a server in another process that answers each POST with 204, and yield its URL."""
    parent, child = multiprocessing.get_context("spawn").Pipe()
    server = multiprocessing.get_context("spawn").Process(target=answer, args=[child], daemon=True)
    server.start()
    try:
        yield f"http://127.0.0.1:{parent.recv()}"
    finally:
        server.terminate()
        server.join()


class Taker(BaseHTTPRequestHandler):
    """Reads a body, and answers 204."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(204)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


def answer(pipe: Connection) -> None:
    """Serve until the process is terminated; send the port first."""
    with ThreadingHTTPServer(("127.0.0.1", 0), Taker) as server:
        pipe.send(server.server_address[1])
        server.serve_forever()


def parse_batch(consumer: RedisConsumer) -> bool:
    """Parse a batch of messages, and return whether it is full."""
    consumer._start_batch()  # noqa: SLF001
    try:
        consumer._parse()  # noqa: SLF001
    except BatchFull:
        return True
    return False


def pushed(published: bytes) -> bytes:
    """Return the message that a subscriber receives for a PUBLISH command."""
    parser = hiredis.Reader()
    parser.feed(published)
    _, channel, data = parser.gets()
    return hiredis.pack_command((b"pmessage", b"/0.celeryev/*", channel, data))


if __name__ == "__main__":
    measurements = {
        function.__name__: function
        for function in (scrape, stall, memory, stages, profiles, sinks, history, brokers, shards)
    }
    print(json.dumps(measurements[sys.argv[1]](int(sys.argv[2]))))
