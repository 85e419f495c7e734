"""Compares two checkouts: `PYTHONPATH=tests .venv/bin/python -m benchmarks.compare ../before`.

The other checkout needs its own virtual environment (`make .venv/synced` there). Both take turns on the same
event streams and brokers, and each of them starts every second round. A row has the minimum of each, which
other processes affect less than the median, and the ratios of minimum and median.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections import defaultdict
from pathlib import Path

from harness.processes import ROOT
from harness.servers import RabbitServer, RedisServer

from benchmarks.__main__ import FORMS, TENS, VARIANTS
from benchmarks.brokers import Broker, Rabbit, Redis
from benchmarks.contenders import Ours
from benchmarks.event_stream import Cluster, EventStream, record
from benchmarks.measure import measure_replay

#: Measurements of `benchmarks.inside`, and figures of them that are no results.
INSIDE = (("scrape", "100000"), ("stall", "100000"), ("memory", "100000"), ("stages", "12500"))
NOT_RESULTS = {"samples", "bytes", "tasks", "theirs"}

Rows = defaultdict[str, tuple[list[float], list[float]]]


class Other(Ours):
    """The exporter of another checkout."""

    letter = "o"
    root: Path

    def environment(self) -> dict[str, str]:
        return {**os.environ, "PYTHONPATH": str(self.root)}

    def command(self) -> list[str]:
        return [str(self.root / ".venv/bin/python"), *super().command()[1:]]


def main() -> None:
    """Measure both checkouts, and print a table."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.compare",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("other", type=Path, help="folder of the other checkout")
    parser.add_argument("--rounds", type=int, default=6, help="default: 6")
    parser.add_argument("--tasks", type=int, default=12_500, help="tasks on an event stream; default: 12500")
    options = parser.parse_args()
    Other.root = options.other.resolve()
    for root in (ROOT, Other.root):  # compilation would count as start time and memory
        compile_all = ["-m", "compileall", "-q", str(root / "celery_exporter"), str(root / ".venv/lib")]
        subprocess.run([str(root / ".venv/bin/python"), *compile_all], check=False)
    rows: Rows = defaultdict(lambda: ([], []))
    with (
        tempfile.TemporaryDirectory(prefix="celery-exporter-bench-") as folder,
        RedisServer(Path(folder) / "redis") as redis,
        RabbitServer(Path(folder) / "rabbit") as rabbit,
    ):
        brokers: list[Broker] = [Redis(redis.url), Rabbit(rabbit.url)]
        event_streams = [
            (broker, *event_stream)
            for broker in brokers
            for event_stream in event_streams_for(broker, options.tasks)
        ]
        for number in range(options.rounds):
            sys.stderr.write(f"compare: round {number + 1} of {options.rounds}\n")
            for broker, name, event_stream in event_streams:
                replay_both(rows, broker, name, event_stream, Path(folder), this_first=number % 2 == 1)
            measure_both(rows, this_first=number % 2 == 1)
    draw(rows)


def event_streams_for(broker: Broker, tasks: int) -> list[tuple[str, EventStream]]:
    """Return the names and event streams of a broker."""
    variants = [
        (name, record(Cluster(tasks=tasks, **change), FORMS[TENS], broker.wire))
        for name, change in VARIANTS.items()
    ]
    return [
        (name, record(Cluster(tasks=tasks), form, broker.wire)) for name, form in FORMS.items()
    ] + variants


def replay_both(
    rows: Rows, broker: Broker, name: str, event_stream: EventStream, folder: Path, *, this_first: bool
) -> None:
    """Replay an event stream to the exporters of both checkouts."""
    for contender in (Ours, Other) if this_first else (Other, Ours):
        replayed = measure_replay(contender, broker, folder, event_stream)
        if replayed.share != 1:
            raise SystemExit(f"{contender.name} counted {replayed.share:.3%} of the events")
        figures = {
            f"{broker.name}, {name}: CPU an event, us": replayed.cpu,
            f"{broker.name}: idle memory, MB": replayed.memory,
            f"{broker.name}: start to first /metrics, ms": replayed.start,
        }
        for row, value in figures.items():
            if value is not None:
                rows[row][contender is Ours].append(value)


def measure_both(rows: Rows, *, this_first: bool) -> None:
    """Run `benchmarks.inside` of both checkouts."""
    for arguments in INSIDE:
        for root in (ROOT, Other.root) if this_first else (Other.root, ROOT):
            command = [str(root / ".venv/bin/python"), "-m", "benchmarks.inside", *arguments]
            environment = {**os.environ, "PYTHONPATH": f"{root}:{root / 'tests'}"}
            result = subprocess.run(command, stdout=subprocess.PIPE, check=True, cwd=root, env=environment)
            for figure, value in json.loads(result.stdout).items():
                if figure not in NOT_RESULTS:
                    rows[f"{arguments[0]} ({int(arguments[1]):,}): {figure}"][root is ROOT].append(value)


def draw(rows: Rows) -> None:
    """Print the table."""
    width = max(map(len, rows))
    sys.stdout.write(f"{'':{width}}  {'other':>9}  {'this':>9}  {'of min':>8}  {'of median':>9}\n")
    for row, (other, this) in rows.items():
        of_min = min(this) / min(other)
        of_median = statistics.median(this) / statistics.median(other)
        sys.stdout.write(
            f"{row:{width}}  {min(other):9.2f}  {min(this):9.2f}  {of_min:7.3f}x  {of_median:8.3f}x\n"
        )


if __name__ == "__main__":
    main()
