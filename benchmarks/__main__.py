"""`make bench`: the exporter beside a floor and its peers, on real brokers: a page and its chart.

CPU is what the kernel booked on a process, less what it spends when nothing comes. What else runs on the
machine disturbs it through caches and clock rates only; wall times it disturbs fully. Hence several rounds in
which all take their turns, medians, and the least and the most beside them. Ratios within one run count.

A target missed is a result, exit code 0. A run in which the exporter or the floor did not count every event
is void and repeated; where that does not help, there is no figure, and the exit code is 1.
"""

from __future__ import annotations

import argparse
import datetime as dt
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
from collections import defaultdict
from importlib.metadata import version
from pathlib import Path

from harness.processes import ROOT
from harness.servers import RabbitServer, RedisServer

from benchmarks import chart, peer
from benchmarks.brokers import Broker, Rabbit, Redis, VoidError
from benchmarks.contenders import ALL, Contender, Floor, Ours, OursOverKombu, Peer
from benchmarks.measure import Rate, Replayed, measure_replay, sustained
from benchmarks.table import Line, Row, Target, draw, median, ratio
from benchmarks.tape import Cluster, Form, Tape, record
from tools.docgen.marks import filled

#: Celery's clients send each event by itself; its prefork workers fill messages as far as they are busy.
FORMS = {"messages of one": Form(1, 1), "messages of ten": Form(10, 10)}
TENS = "messages of ten"
#: What is changed, one at a time, of a cluster of 10 workers and 10 task names.
VARIANTS = {"1 worker": {"workers": 1}, "100 workers": {"workers": 100}, "1,000 task names": {"names": 1_000}}
#: Who counts less than everything is void; of the other two it is said.
EXACT = (Floor, Ours, OursOverKombu)
#: Times that a void run is made again.
AGAIN = 3
#: Tasks of the tape that is played over and over: more than the exporter remembers, so all are new to it.
LONG = 60_000
#: Where the search for the highest rate begins: this share of what CPU an event leaves room for.
FIRST = 0.7
#: Samples of the pages that are timed, and times that each is, in processes that take turns.
PAGES, PAGE_ROUNDS = (1_000, 100_000), 3
PAGE = ROOT / "docs" / "explanation" / "performance.md"
CHART = ROOT / "docs" / "img" / "bench.svg"

#: (broker, form) → how much of the floor's and of the peer's CPU an event may cost.
OF_FLOOR = {("Redis", form): Target("<= 2 x floor", 2) for form in FORMS}
OF_PEER = {
    **{("Redis", form): Target("<= 1/15 of peer", 1 / 15) for form in FORMS},
    ("RabbitMQ", TENS): Target("<= 1/12 of peer", 1 / 12),
}
SUSTAINED = Target(">= 12 x peer", 12, at_least=True)
SCRAPE = Target("8 x faster than prometheus_client", 8, at_least=True)
STALL, IDLE, START = Target("<= 50 ms", 50), Target("<= 55 MB", 55), Target("<= 1,000 ms", 1_000)
TASK = Target("<= 400 bytes", 400)
PROFILES = Target("<= 1.1 x one profile", 1.1)


class Options(argparse.Namespace):
    rounds: int
    tasks: int
    hold: float
    samples: int
    in_flight: int
    page: Path
    chart: Path


class Bench:
    """What was measured so far."""

    def __init__(self, options: Options) -> None:
        self.options = options
        self.replays: defaultdict[tuple[str, str, type[Contender]], list[Replayed]] = defaultdict(list)
        self.rates: dict[tuple[str, type[Contender]], Rate] = {}
        self.void: list[str] = []
        self.failed = False
        python = peer.installed()
        if python is not None:
            Peer.python = python
        self.contenders = [each for each in ALL if each is not Peer or python is not None]

    # -- measuring ---------------------------------------------------------------------------------------

    def run(self, brokers: list[Broker], folder: Path) -> None:
        forms = {
            (broker.wire, name): self.tape(broker, form) for broker in brokers for name, form in FORMS.items()
        }
        variants = {
            (broker.wire, name): self.tape(broker, FORMS[TENS], **change)
            for broker in brokers
            for name, change in VARIANTS.items()
        }
        for number in range(self.options.rounds):
            tell(f"round {number + 1} of {self.options.rounds}")
            for broker in brokers:
                for name in FORMS:
                    for contender in self.contenders:
                        self.replay(contender, broker, folder, forms[broker.wire, name], name)
                for name in VARIANTS if number <= self.options.rounds // 2 else ():
                    self.replay(Ours, broker, folder, variants[broker.wire, name], name)
                    if broker.wire == "redis" and Peer in self.contenders:
                        self.replay(Peer, broker, folder, variants[broker.wire, name], name)
        forms.clear()
        variants.clear()
        for broker in brokers:
            self.hold(broker, folder)

    def tape(self, broker: Broker, form: Form, **change: int) -> Tape:
        return record(Cluster(tasks=self.options.tasks, **change), form, broker.wire)

    def replay(self, contender: type[Contender], broker: Broker, folder: Path, tape: Tape, name: str) -> None:
        for _ in range(AGAIN):
            try:
                found = measure_replay(contender, broker, folder, tape)
            except VoidError as error:
                self.void.append(f"{broker.name}, {name}: {error}")
                continue
            if contender not in EXACT or found.share == 1:
                self.replays[broker.name, name, contender].append(found)
                return
            self.void.append(
                f"{broker.name}, {name}: {contender.name} counted {found.share:.3%} of the events"
            )
        self.failed = True

    def hold(self, broker: Broker, folder: Path) -> None:
        tell(f"{broker.name}: events a second")
        tape = record(Cluster(tasks=LONG), FORMS[TENS], broker.wire)
        for contender in (Ours, Peer):
            cost = self.cpu(broker.name, TENS, contender)
            if cost is None:
                continue
            try:
                guess = FIRST * 1e6 / cost
                self.rates[broker.name, contender] = sustained(
                    contender, broker, folder, tape, guess, self.options.hold
                )
            except VoidError as error:
                self.void.append(f"{broker.name}, events a second: {error}")
                self.failed = True

    # -- telling -----------------------------------------------------------------------------------------

    def cpu(self, broker: str, name: str, contender: type[Contender]) -> float | None:
        return median([each.cpu for each in self.replays[broker, name, contender]])

    def cpu_row(self, broker: str, name: str, contender: type[Contender], label: str) -> Row:
        replays = self.replays[broker, name, contender]
        floor, peers = self.cpu(broker, name, Floor), self.cpu(broker, name, Peer)
        found = self.cpu(broker, name, contender)
        targets = []
        if contender is Ours:
            for table, other in ((OF_FLOOR, floor), (OF_PEER, peers)):
                if (broker, name) in table:
                    targets.append((table[broker, name], ratio(found, other)))
        share = median([each.share for each in replays])
        return Row(
            label,
            "us",
            [each.cpu for each in replays],
            None if contender is Floor else floor,
            None if contender is Peer else peers,
            targets,
            f"counted {share:.2%}" if share not in (None, 1) else "",
        )

    def cpu_lines(self, brokers: list[Broker]) -> list[Line]:
        lines: list[Line] = []
        for broker in brokers:
            for name in FORMS:
                lines.append(f"CPU an event, {broker.name}, {name}")
                lines += [self.cpu_row(broker.name, name, each, f"  {each.name}") for each in ALL]
        for broker in brokers:
            lines.append(f"CPU an event, {broker.name}, {TENS}, but for")
            for name in VARIANTS:
                lines.append(self.cpu_row(broker.name, name, Ours, f"  {name}: {Ours.name}"))
                if self.replays[broker.name, name, Peer]:
                    lines.append(self.cpu_row(broker.name, name, Peer, f"  {name}: {Peer.name}"))
        return lines

    def rate_lines(self, brokers: list[Broker]) -> list[Line]:
        lines: list[Line] = [f"events a second for {self.options.hold:g} s without falling behind, {TENS}"]
        for broker in brokers:
            ours, peers = (self.rates.get((broker.name, each)) for each in (Ours, Peer))
            other = peers.rate if peers else None
            for contender, rate in ((Ours, ours), (Peer, peers)):
                values = [rate.rate] if rate else []
                remark = f"at {rate.cores:.0%} of a core" if rate else ""
                remark += ", more could not be published" if rate and rate.is_limit else ""
                mine = contender is Ours
                target = [(SUSTAINED, ratio(rate.rate if rate else None, other))] if mine else []
                label = f"  {broker.name}: {contender.name}"
                lines.append(Row(label, "events/s", values, None, other if mine else None, target, remark, 0))
        return lines

    def start_lines(self, brokers: list[Broker]) -> list[Line]:
        lines: list[Line] = ["start, and memory when nothing has happened yet"]
        for broker in brokers:
            runs = [each for name in FORMS for each in self.replays[broker.name, name, Ours]]
            peers = median([each.memory for name in FORMS for each in self.replays[broker.name, name, Peer]])
            start = [each.start for each in runs if each.start is not None]
            idle = [each.memory for each in runs]
            lines += [
                Row(
                    f"  {broker.name}: start to first /metrics",
                    "ms",
                    start,
                    None,
                    None,
                    [(START, median(start))],
                ),
                Row(f"  {broker.name}: idle memory", "MB", idle, None, peers, [(IDLE, median(idle))]),
            ]
        return lines

    def draw_chart(self, brokers: list[Broker], source: str) -> None:
        kinds: dict[type[Contender], str] = {Ours: "ours", Floor: "floor"}
        groups = {}
        for broker in brokers:
            for name in FORMS:
                found = [(each, self.cpu(broker.name, name, each)) for each in ALL]
                groups[f"{broker.name}, {name}"] = [
                    chart.Bar(each.name, cost, kinds.get(each, "bar")) for each, cost in found if cost
                ]
        self.options.chart.write_text(chart.draw(groups, source))


def inside(*arguments: str) -> dict[str, float]:
    """Measure something in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.inside", *arguments]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True, env=dict(os.environ))
    return json.loads(done.stdout)


def inside_lines(options: Options) -> list[Line]:
    tell("scrapes, stalls, memory")
    lines: list[Line] = []
    for samples in (*PAGES, options.samples):
        rounds = 1 if samples > max(PAGES) else PAGE_ROUNDS
        found = [inside("scrape", str(samples)) for _ in range(rounds)]
        theirs, later = ([each[what] for each in found] for what in ("theirs", "later"))
        times = ratio(median(theirs), median(later))
        target = [(SCRAPE, times)] if samples == 100_000 else []
        size = f"{found[0]['samples']:,} samples, {found[0]['bytes'] / 1e6:.1f} MB"
        lines += [
            f"scrape of {size}",
            Row("  this exporter", "ms", later, None, None, target, f"{times:.1f} x faster"),
            Row("  this exporter, the first time", "ms", [each["first"] for each in found]),
            Row(f"  prometheus_client {version('prometheus-client')}, encoding", "ms", theirs),
        ]
    spent = inside("stages", str(options.tasks))
    profiles = inside("profiles", str(options.tasks))
    one, *_ = profiles.values()
    stall = inside("stall", str(options.samples))
    task = inside("memory", str(options.in_flight))
    return [
        "where it goes, an event, Redis, messages of ten (without the system's share)",
        *(Row(f"  {stage}", "us", [cost], digits=2) for stage, cost in spent.items()),
        "the same in all, by the profiles that are on",
        *(
            Row(f"  {names}", "us", [cost], None, None, [(PROFILES, ratio(cost, one))], "", 2)
            for names, cost in profiles.items()
        ),
        *lines,
        f"events while {stall['samples']:,} samples are scraped",
        Row("  a message is late at worst, without scrapes", "ms", [stall["still"]]),
        Row(
            "  a message is late at worst, during them",
            "ms",
            [stall["stall"]],
            None,
            None,
            [(STALL, stall["stall"])],
        ),
        f"memory with {task.pop('tasks'):,.0f} tasks in flight",
        *(
            Row(f"  each, {state}", "bytes", [took], None, None, [(TASK, took)], "", 0)
            for state, took in task.items()
        ),
    ]


def describe(brokers: list[Broker]) -> str:
    models = re.findall(r"model name\s*: (.+)", Path("/proc/cpuinfo").read_text())
    packages = ("celery-event-exporter", "celery", "kombu", "redis", "hiredis", "msgspec", "uvicorn")
    return (
        f"{dt.datetime.now(dt.timezone.utc):%Y-%m-%d}, {models[0] if models else platform.machine()}, "
        f"{os.cpu_count()} cores, Python {platform.python_version()}, "
        f"{', '.join(broker.version for broker in brokers)}\n"
        f"{', '.join(f'{package} {version(package)}' for package in packages)}\n"
        f"peer: {', '.join(peer.PINNED)}".replace("==", " ")
    )


def tell(text: str) -> None:
    print(f"bench: {text}", file=sys.stderr, flush=True)


def parse() -> Options:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--rounds", type=int, default=5, help="default: 5")
    add("--tasks", type=int, default=12_500, help="on a tape, at four events each; default: 12500")
    add("--hold", type=float, default=10.0, help="seconds for which a rate is held; default: 10")
    add("--samples", type=int, default=1_000_000, help="of the largest scrape; default: 1000000")
    add("--in-flight", type=int, default=1_000_000, help="tasks at a time; default: 1000000")
    add("--page", type=Path, default=PAGE, help="default: docs/explanation/performance.md")
    add("--chart", type=Path, default=CHART, help="default: docs/img/bench.svg")
    return parser.parse_args(namespace=Options())


def write(page: Path, report: str) -> None:
    """Put a report into a page, between its marks."""
    day = report.partition(",")[0]
    said = f"What it printed on {day} (machines are noisy; compare numbers of one run):"
    page.write_text(filled(page.read_text(), {"bench": f"{said}\n\n```text\n{report}\n```"}))


def main() -> int:
    options = parse()
    load = os.getloadavg()[0]
    bench = Bench(options)
    with (
        tempfile.TemporaryDirectory(prefix="celery-exporter-bench-") as name,
        RedisServer(Path(name) / "redis") as redis_server,
        RabbitServer(Path(name) / "rabbit") as rabbit_server,
    ):
        brokers: list[Broker] = [Redis(redis_server.url), Rabbit(rabbit_server.url)]
        about = describe(brokers)
        bench.run(brokers, Path(name))
    rest = inside_lines(options)
    lines = [*bench.cpu_lines(brokers), *bench.rate_lines(brokers), *rest, *bench.start_lines(brokers)]
    size = f"{4 * options.tasks:,} events a replay, 10 workers, 10 task names, {options.rounds} rounds"
    loads = f"load {load:.1f} before, {os.getloadavg()[0]:.1f} after"
    void = [f"void: {each}" for each in bench.void]
    report = "\n".join([about, f"{size}; {loads}\n", draw(lines), *void])
    print(report)
    write(options.page, report)
    bench.draw_chart(brokers, about.splitlines()[0])
    return 1 if bench.failed else 0


if __name__ == "__main__":
    sys.exit(main())
