"""Measures what several brokers, shards and a relay take, and writes it into docs/explanation/capacity.md.

`PYTHONPATH=tests .venv/bin/python -m benchmarks.capacity` prints the memory of idle brokers, the CPU time of
an event in the relay, in RabbitMQ and in a shard, by the number of shards, and what these parts take for
1,000,000 events a second. The events are in messages of ten.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

import kombu
import psutil
from harness.exporter import Exporter
from harness.processes import ROOT
from harness.relay import Relay
from harness.servers import RabbitServer, RedisServer
from harness.waiting import eventually

from benchmarks.__main__ import FORMS, TENS
from benchmarks.brokers import Rabbit, replay
from benchmarks.event_stream import Cluster, record
from benchmarks.inside import SHARDS, bodies, in_shard, shard_behind_relay
from tools.docgen.marks import filled

PAGE = ROOT / "docs/explanation/capacity.md"
#: Brokers in one process, and the seconds after which its memory is measured.
IDLE, IDLE_SECONDS = 50, 5.0
#: Numbers of shards.
COUNTS = (*SHARDS, 16)
#: Events a second of the large cluster, and the share of a core that is planned for.
LARGE, MAX_LOAD = 1_000_000, 0.7
#: Seconds without a new message after which the relay has published all.
QUIET_SECONDS = 1.0


class Relayed(NamedTuple):
    """What relaying the event stream took, for an event."""

    relay: float  # us of CPU
    rabbitmq: float  # us of CPU, with that for publishing
    rate: float  # events a second


def main() -> None:
    """Measure, print the report, and write the page."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.capacity", description=__doc__)
    parser.add_argument("--tasks", type=int, default=25_000, help="tasks on the event stream; default: 25000")
    parser.add_argument("--page", type=Path, default=PAGE, help="default: docs/explanation/capacity.md")
    options = parser.parse_args()
    load = os.getloadavg()[0]
    messages = bodies(Cluster(tasks=options.tasks))
    own = {count: shard_behind_relay(messages, count) for count in COUNTS}
    alone = {count: in_shard(messages, count) for count in COUNTS}
    with (
        tempfile.TemporaryDirectory(prefix="celery-exporter-bench-") as folder,
        RedisServer(Path(folder) / "redis") as redis,
        RabbitServer(Path(folder) / "rabbit", vhosts=len(COUNTS)) as rabbit,
    ):
        path = Path(folder)
        idle = [idle_brokers(path / f"idle-{count}", redis.clean(), count) for count in (1, IDLE)]
        relayed = {
            count: relay_all(path / f"relay-{count}", rabbit, count, options.tasks) for count in COUNTS
        }
    report = "\n".join([*idle_lines(*idle), *part_lines(relayed, own, alone), *large_lines(relayed, own)])
    sys.stdout.write(f"{report}\n")
    day = f"{datetime.now(UTC):%Y-%m-%d}"
    heading = f"What it printed on {day}, with a load of {load:.1f} before (compare numbers of one run):"
    options.page.write_text(
        filled(options.page.read_text(), {"capacity": f"{heading}\n\n```text\n{report}\n```"})
    )


def idle_brokers(folder: Path, url: str, count: int) -> tuple[float, int]:
    """Return the resident MB and the threads of an exporter of so many brokers without events."""
    folder.mkdir()
    config = folder / "config.yml"
    config.write_text(json.dumps({"brokers": {f"b{number}": {"url": url} for number in range(count)}}))
    with Exporter(folder, None, "--config.file", str(config), update_interval=None) as exporter:
        eventually(lambda: exporter.samples().total("celery_broker_up") == count, 60)
        time.sleep(IDLE_SECONDS)
        process = psutil.Process(exporter.pid)
        return process.memory_info().rss / 1e6, process.num_threads()


def relay_all(folder: Path, rabbit: RabbitServer, count: int, tasks: int) -> Relayed:
    """Relay an event stream to the queues of shards without consumers."""
    url = rabbit.clean()
    stream = record(Cluster(tasks=tasks), FORMS[TENS], "amqp")
    with Relay(folder, url, count) as relay:
        broker = Rabbit(url)
        processes = [psutil.Process(relay.pid), psutil.Process(rabbit.pid)]
        before = [cpu_seconds(process) for process in processes]
        start = time.monotonic()
        replay(broker, stream.messages)
        end = await_all(url, count)
        relay_seconds, rabbit_seconds = (
            cpu_seconds(process) - seconds for process, seconds in zip(processes, before, strict=True)
        )
    events = sum(stream.sizes)
    return Relayed(relay_seconds / events * 1e6, rabbit_seconds / events * 1e6, events / (end - start))


def await_all(url: str, count: int) -> float:
    """Wait until the relay has published all; return the monotonic time of the last message."""
    changed, before = time.monotonic(), -1
    with kombu.Connection(url) as connection:
        channel = connection.default_channel

        def is_quiet() -> bool:
            nonlocal changed, before
            names = [f"celeryev.{index}-of-{count}" for index in range(count)]
            total = sum(channel.queue_declare(name, passive=True).message_count for name in names)
            if total != before:
                changed, before = time.monotonic(), total
            is_empty = channel.queue_declare("celeryev.relay", passive=True).message_count == 0
            return is_empty and total > 0 and time.monotonic() > changed + QUIET_SECONDS

        eventually(is_quiet, 300, every=0.05)
    return changed


def cpu_seconds(process: psutil.Process) -> float:
    """Return the CPU time of a process and its children."""
    family = [process, *process.children(recursive=True)]
    return sum(sum(one.cpu_times()[:2]) for one in family)


def idle_lines(one: tuple[float, int], many: tuple[float, int]) -> list[str]:
    """Return what further brokers take in one process."""
    each = (many[0] - one[0]) / (IDLE - 1)
    memory = f"{many[0]:.0f} MB, {each:.2f} MB for each further one"
    return [f"{IDLE} idle brokers on Redis: {memory}; {many[1]} threads, one broker has {one[1]}", ""]


def part_lines(relayed: dict[int, Relayed], own: dict[int, float], alone: dict[int, float]) -> list[str]:
    """Return what was measured, by the number of shards."""
    titles = ("shards", "  relay", "RabbitMQ", "one shard", "without relay", "through one relay")
    lines = ["  ".join(titles)]
    for count, part in relayed.items():
        costs = (f"{cost:.2f} us" for cost in (part.relay, part.rabbitmq, own[count], alone[count]))
        cells = (str(count), *costs, f"{part.rate:,.0f} ev./s")
        lines.append("  ".join(cell.rjust(len(title)) for cell, title in zip(cells, titles, strict=True)))
    return [*lines, ""]


def large_lines(relayed: dict[int, Relayed], own: dict[int, float]) -> list[str]:
    """Return what a large cluster takes."""
    lines = [f"{LARGE:,} events/s, each process at {MAX_LOAD:.0%} of a core at most:"]
    for count, part in relayed.items():
        shard, relay, rabbitmq = (us * LARGE / 1e6 for us in (own[count], part.relay, part.rabbitmq))
        brokers = math.ceil(max(LARGE / part.rate, relay / MAX_LOAD, shard / MAX_LOAD))
        lines.append(
            f"{count:>6} shards: {shard:.0%} of a core in each, {relay:.0%} in the relay, "
            f"{rabbitmq:.1f} cores of RabbitMQ; divide it between {brokers} brokers"
        )
    return lines


if __name__ == "__main__":
    main()
