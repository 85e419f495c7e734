"""This checkout beside another one: `PYTHONPATH=tests .venv/bin/python -m benchmarks.compare ../before`.

The other checkout needs a virtual environment of its own (`make .venv/synced` there). Both take turns, first
one and then the other, on the same tapes and brokers. A row has the least of each, which other processes
disturb less than the median, and the ratios of both.
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
from benchmarks.measure import measure_replay
from benchmarks.tape import Cluster, Tape, record

#: What `benchmarks.inside` is asked for, and which of its figures are not results.
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
    """Measure both and print a table."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.compare",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("other", type=Path, help="the folder of the other checkout")
    parser.add_argument("--rounds", type=int, default=6, help="default: 6")
    parser.add_argument("--tasks", type=int, default=12_500, help="on a tape; default: 12500")
    options = parser.parse_args()
    Other.root = options.other.resolve()
    for root in (ROOT, Other.root):  # what a process compiles when it starts is in its time and its memory
        compile_all = ["-m", "compileall", "-q", str(root / "celery_exporter"), str(root / ".venv/lib")]
        subprocess.run([str(root / ".venv/bin/python"), *compile_all], check=False)
    rows: Rows = defaultdict(lambda: ([], []))
    with (
        tempfile.TemporaryDirectory(prefix="celery-exporter-bench-") as folder,
        RedisServer(Path(folder) / "redis") as redis,
        RabbitServer(Path(folder) / "rabbit") as rabbit,
    ):
        brokers: list[Broker] = [Redis(redis.url), Rabbit(rabbit.url)]
        tapes = [(broker, *tape) for broker in brokers for tape in tapes_for(broker, options.tasks)]
        for number in range(options.rounds):
            sys.stderr.write(f"compare: round {number + 1} of {options.rounds}\n")
            for broker, what, tape in tapes:
                replay_both(rows, broker, what, tape, Path(folder), turned=number % 2 == 1)
            ask_both(rows, turned=number % 2 == 1)
    draw(rows)


def tapes_for(broker: Broker, tasks: int) -> list[tuple[str, Tape]]:
    """Return the tapes of a broker, by what is special of them."""
    changed = [
        (name, record(Cluster(tasks=tasks, **change), FORMS[TENS], broker.wire))
        for name, change in VARIANTS.items()
    ]
    return [(name, record(Cluster(tasks=tasks), form, broker.wire)) for name, form in FORMS.items()] + changed


def replay_both(rows: Rows, broker: Broker, what: str, tape: Tape, folder: Path, *, turned: bool) -> None:
    """Replay a tape to both; `turned`: to the other one last."""
    for contender in (Ours, Other) if turned else (Other, Ours):
        found = measure_replay(contender, broker, folder, tape)
        if found.share != 1:
            raise SystemExit(f"{contender.name} counted {found.share:.3%} of the events")
        figures = {
            f"{broker.name}, {what}: CPU an event, us": found.cpu,
            f"{broker.name}: idle memory, MB": found.memory,
            f"{broker.name}: start to first /metrics, ms": found.start,
        }
        for row, value in figures.items():
            if value is not None:
                rows[row][contender is Ours].append(value)


def ask_both(rows: Rows, *, turned: bool) -> None:
    """Have both checkouts measure what is inside of a process."""
    for arguments in INSIDE:
        for root in (ROOT, Other.root) if turned else (Other.root, ROOT):
            command = [str(root / ".venv/bin/python"), "-m", "benchmarks.inside", *arguments]
            environment = {**os.environ, "PYTHONPATH": f"{root}:{root / 'tests'}"}
            done = subprocess.run(command, stdout=subprocess.PIPE, check=True, cwd=root, env=environment)
            for what, value in json.loads(done.stdout).items():
                if what not in NOT_RESULTS:
                    rows[f"{arguments[0]} ({int(arguments[1]):,}): {what}"][root is ROOT].append(value)


def draw(rows: Rows) -> None:
    """Print the table."""
    width = max(map(len, rows))
    sys.stdout.write(f"{'':{width}}  {'other':>9}  {'this':>9}  {'of least':>8}  {'of median':>9}\n")
    for row, (other, this) in rows.items():
        least = min(this) / min(other)
        middle = statistics.median(this) / statistics.median(other)
        sys.stdout.write(
            f"{row:{width}}  {min(other):9.2f}  {min(this):9.2f}  {least:7.3f}x  {middle:8.3f}x\n"
        )


if __name__ == "__main__":
    main()
