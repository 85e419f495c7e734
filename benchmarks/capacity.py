"""Measures a relay and the shards behind it: `PYTHONPATH=tests .venv/bin/python -m benchmarks.capacity`.

Prints the CPU time of an event in the relay, in RabbitMQ and in a shard, by the number of shards, and what
these parts take for 1,000,000 events a second. The events are in messages of ten.
"""

from __future__ import annotations

import argparse
import math
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import kombu
import psutil
from harness.relay import Relay
from harness.servers import RabbitServer
from harness.waiting import eventually

from benchmarks.__main__ import FORMS, TENS
from benchmarks.brokers import Rabbit, replay
from benchmarks.event_stream import Cluster, record
from benchmarks.inside import SHARDS, bodies, in_shard, shard_behind_relay

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
    """Measure, and print two tables."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.capacity", description=__doc__)
    parser.add_argument("--tasks", type=int, default=25_000, help="tasks on the event stream; default: 25000")
    options = parser.parse_args()
    messages = bodies(Cluster(tasks=options.tasks))
    own = {str(count): shard_behind_relay(messages, count) for count in COUNTS}
    alone = {str(count): in_shard(messages, count) for count in COUNTS}
    with (
        tempfile.TemporaryDirectory(prefix="celery-exporter-bench-") as folder,
        RabbitServer(Path(folder) / "rabbit", vhosts=len(COUNTS)) as rabbit,
    ):
        relayed = {
            str(count): relay_all(Path(folder) / f"relay-{count}", rabbit, count, options.tasks)
            for count in COUNTS
        }
    print_parts(relayed, own, alone)
    print_large(relayed, own)


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


def print_parts(relayed: dict[str, Relayed], own: dict[str, float], alone: dict[str, float]) -> None:
    """Print what was measured, by the number of shards."""
    sys.stdout.write(
        f"{'shards':>6}  {'relay':>8}  {'RabbitMQ':>8}  {'one shard':>9}  {'without relay':>13}  "
        f"{'through one relay':>17}\n"
    )
    for count, part in relayed.items():
        sys.stdout.write(
            f"{count:>6}  {part.relay:5.2f} us  {part.rabbitmq:5.2f} us  {own[count]:6.2f} us  "
            f"{alone[count]:10.2f} us  {part.rate:10,.0f} ev./s\n"
        )


def print_large(relayed: dict[str, Relayed], own: dict[str, float]) -> None:
    """Print what a large cluster takes, and what gives out first."""
    sys.stdout.write(f"\n{LARGE:,} events/s, each process at {MAX_LOAD:.0%} of a core at most:\n")
    for count, part in relayed.items():
        load = own[count] * LARGE / 1e6
        clusters = math.ceil(max(LARGE / part.rate, part.relay * LARGE / 1e6 / MAX_LOAD, load / MAX_LOAD))
        sys.stdout.write(
            f"{count:>6} shards: {load:.0%} of a core in each, {part.relay * LARGE / 1e6:.0%} in the relay, "
            f"{part.rabbitmq * LARGE / 1e6:.1f} cores of RabbitMQ; divide it between {clusters} brokers\n"
        )


if __name__ == "__main__":
    main()
