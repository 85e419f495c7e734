"""Measures the exporter, a lower bound and its peers on real brokers (make bench).

CPU is the CPU time of a process minus its CPU time while idle. Other processes affect it through caches and
clock rates only, but they fully affect wall times. The contenders therefore take turns in several rounds, and
the table has medians, minimum and maximum. Compare ratios within one run.

A missed target is a result, with exit code 0. A run in which the exporter or the lower bound did not count
every event is void and is repeated. If it stays void, there is no figure, and the exit code is 1.
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
from benchmarks.event_stream import Cluster, EventStream, Form, record
from benchmarks.measure import Rate, Replayed, measure_replay, sustained
from benchmarks.table import Line, Row, Target, draw, median, ratio
from tools.docgen.marks import filled

#: Clients of Celery send a message for each event. Prefork workers put several into one message under load.
FORMS = {"messages of one": Form(1, 1), "messages of ten": Form(10, 10)}
TENS = "messages of ten"
#: Changes, one at a time, to a cluster of 10 workers and 10 task names.
VARIANTS = {"1 worker": {"workers": 1}, "100 workers": {"workers": 100}, "1,000 task names": {"names": 1_000}}
#: A run is void if one of these does not count all events. For the others, the table shows the share.
EXACT = (Floor, Ours, OursOverKombu)
#: Attempts of a run that is void.
ATTEMPTS = 3
#: Tasks of the event stream that is replayed repeatedly: more than the exporter stores, so that they are
#: new each time.
LONG_STREAM_TASKS = 60_000
#: The search for the highest rate starts at this share of the rate that the CPU time of an event allows.
START_SHARE = 0.7
#: Samples of the timed pages, and the number of processes that render each.
PAGES, PAGE_ROUNDS = (1_000, 100_000), 3
PAGE = ROOT / "docs" / "explanation" / "performance.md"
CHART = ROOT / "docs" / "img" / "bench.svg"

#: (broker, form) → targets for the CPU time of an event, relative to the lower bound and to the peer.
OF_FLOOR = {("Redis", form): Target("<= 2 x floor", 2) for form in FORMS}
OF_PEER = {
    **{("Redis", form): Target("<= 1/15 of peer", 1 / 15) for form in FORMS},
    ("RabbitMQ", TENS): Target("<= 1/12 of peer", 1 / 12),
}
SUSTAINED = Target(">= 12 x peer", 12, at_least=True)
SCRAPE = Target("8 x faster than prometheus_client", 8, at_least=True)
STALL, IDLE, START = Target("<= 50 ms", 50), Target("<= 55 MB", 55), Target("<= 1,000 ms", 1_000)
#: With the details that the history in memory shows; 400 without.
TASK = Target("<= 550 bytes", 550)
SINK = Target("<= 2 us", 2)
BROKERS = Target("<= 1.2 x one broker", 1.2)
PROFILES = Target("<= 1.1 x one profile", 1.1)


class Options(argparse.Namespace):
    """The options of the command line."""

    rounds: int
    tasks: int
    hold: float
    samples: int
    in_flight: int
    page: Path
    chart: Path


class Bench:
    """Runs the contenders, and holds the results."""

    def __init__(self, options: Options) -> None:
        self.options = options
        self.replays: defaultdict[tuple[str, str, type[Contender]], list[Replayed]] = defaultdict(list)
        self.rates: dict[tuple[str, type[Contender]], Rate] = {}
        self.void: list[str] = []
        self.failed = False
        python = peer.installed()
        if python is not None:
            Peer.python = python
        self.contenders = [contender for contender in ALL if contender is not Peer or python is not None]

    # -- measuring ---------------------------------------------------------------------------------------

    def run(self, brokers: list[Broker], folder: Path) -> None:
        """Measure all contenders."""
        forms = {
            (broker.wire, name): self.event_stream(broker, form)
            for broker in brokers
            for name, form in FORMS.items()
        }
        variants = {
            (broker.wire, name): self.event_stream(broker, FORMS[TENS], **change)
            for broker in brokers
            for name, change in VARIANTS.items()
        }
        for number in range(self.options.rounds):
            log(f"round {number + 1} of {self.options.rounds}")
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
            self.measure_rates(broker, folder)

    def event_stream(self, broker: Broker, form: Form, **change: int) -> EventStream:
        return record(Cluster(tasks=self.options.tasks, **change), form, broker.wire)

    def replay(
        self, contender: type[Contender], broker: Broker, folder: Path, event_stream: EventStream, name: str
    ) -> None:
        """Replay an event stream to a contender, again if the run is void."""
        for _ in range(ATTEMPTS):
            try:
                result = measure_replay(contender, broker, folder, event_stream)
            except VoidError as error:
                self.void.append(f"{broker.name}, {name}: {error}")
                continue
            if contender not in EXACT or result.share == 1:
                self.replays[broker.name, name, contender].append(result)
                return
            self.void.append(
                f"{broker.name}, {name}: {contender.name} counted {result.share:.3%} of the events"
            )
        self.failed = True

    def measure_rates(self, broker: Broker, folder: Path) -> None:
        """Find the highest rate of the exporter and of the peer."""
        log(f"{broker.name}: events a second")
        event_stream = record(Cluster(tasks=LONG_STREAM_TASKS), FORMS[TENS], broker.wire)
        for contender in (Ours, Peer):
            cost = self.cpu(broker.name, TENS, contender)
            if cost is None:
                continue
            try:
                guess = START_SHARE * 1e6 / cost
                self.rates[broker.name, contender] = sustained(
                    contender, broker, folder, event_stream, guess, self.options.hold
                )
            except VoidError as error:
                self.void.append(f"{broker.name}, events a second: {error}")
                self.failed = True

    # -- report ------------------------------------------------------------------------------------------

    def cpu(self, broker: str, name: str, contender: type[Contender]) -> float | None:
        """Return the median CPU time of an event in microseconds."""
        return median([replayed.cpu for replayed in self.replays[broker, name, contender]])

    def cpu_row(self, broker: str, name: str, contender: type[Contender], label: str) -> Row:
        """Return the row of a contender, with its targets."""
        replays = self.replays[broker, name, contender]
        floor, peers = self.cpu(broker, name, Floor), self.cpu(broker, name, Peer)
        cpu = self.cpu(broker, name, contender)
        targets = []
        if contender is Ours:
            for table, other in ((OF_FLOOR, floor), (OF_PEER, peers)):
                if (broker, name) in table:
                    targets.append((table[broker, name], ratio(cpu, other)))
        share = median([replayed.share for replayed in replays])
        return Row(
            label,
            "us",
            [replayed.cpu for replayed in replays],
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
                lines += [
                    self.cpu_row(broker.name, name, contender, f"  {contender.name}") for contender in ALL
                ]
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
            ours, peers = (self.rates.get((broker.name, contender)) for contender in (Ours, Peer))
            other = peers.rate if peers else None
            for contender, rate in ((Ours, ours), (Peer, peers)):
                values = [rate.rate] if rate else []
                remark = f"at {rate.cores:.0%} of a core" if rate else ""
                remark += ", more could not be published" if rate and rate.is_limit else ""
                is_ours = contender is Ours
                target = [(SUSTAINED, ratio(rate.rate if rate else None, other))] if is_ours else []
                label = f"  {broker.name}: {contender.name}"
                peer_rate = other if is_ours else None
                lines.append(Row(label, "events/s", values, None, peer_rate, target, remark, 0))
        return lines

    def start_lines(self, brokers: list[Broker]) -> list[Line]:
        lines: list[Line] = ["start, and memory when nothing has happened yet"]
        for broker in brokers:
            runs = [run for name in FORMS for run in self.replays[broker.name, name, Ours]]
            peers = median([run.memory for name in FORMS for run in self.replays[broker.name, name, Peer]])
            start = [run.start for run in runs if run.start is not None]
            idle = [run.memory for run in runs]
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
                costs = [(contender, self.cpu(broker.name, name, contender)) for contender in ALL]
                groups[f"{broker.name}, {name}"] = [
                    chart.Bar(contender.name, cost, kinds.get(contender, "bar"))
                    for contender, cost in costs
                    if cost
                ]
        self.options.chart.write_text(chart.draw(groups, source))


def inside(*arguments: str) -> dict[str, float]:
    """Run a measurement of `benchmarks.inside` in a separate process, and return its figures."""
    command = [sys.executable, "-m", "benchmarks.inside", *arguments]
    result = subprocess.run(command, stdout=subprocess.PIPE, check=True, env=dict(os.environ))
    return json.loads(result.stdout)


def inside_lines(options: Options) -> list[Line]:
    """Return the lines of scrapes, stalls, memory and stages."""
    log("scrapes, stalls, memory")
    lines: list[Line] = []
    for samples in (*PAGES, options.samples):
        rounds = 1 if samples > max(PAGES) else PAGE_ROUNDS
        results = [inside("scrape", str(samples)) for _ in range(rounds)]
        theirs, later = ([result[figure] for result in results] for figure in ("theirs", "later"))
        times = ratio(median(theirs), median(later))
        target = [(SCRAPE, times)] if samples == 100_000 else []
        size = f"{results[0]['samples']:,} samples, {results[0]['bytes'] / 1e6:.1f} MB"
        lines += [
            f"scrape of {size}",
            Row("  this exporter", "ms", later, None, None, target, f"{times:.1f} x faster"),
            Row("  this exporter, the first time", "ms", [result["first"] for result in results]),
            Row(f"  prometheus_client {version('prometheus-client')}, encoding", "ms", theirs),
        ]
    stages = inside("stages", str(options.tasks))
    profiles = inside("profiles", str(options.tasks))
    single_profile, *_ = profiles.values()
    sinks = inside("sinks", str(options.tasks))
    histories = inside("history", str(options.tasks))
    brokers = inside("brokers", str(options.tasks // 10))
    shards = inside("shards", str(options.tasks))
    stall = inside("stall", str(options.samples))
    task = inside("memory", str(options.in_flight))
    return [
        "where it goes, an event, Redis, messages of ten (without the system's share)",
        *(Row(f"  {stage}", "us", [cost], digits=2) for stage, cost in stages.items()),
        "the same in all, by the profiles that are on",
        *(
            Row(f"  {names}", "us", [cost], None, None, [(PROFILES, ratio(cost, single_profile))], "", 2)
            for names, cost in profiles.items()
        ),
        "an event with a sink, until its record is delivered, so much more than without one",
        *(Row(f"  {name}", "us", [cost], None, None, [(SINK, cost)], "", 2) for name, cost in sinks.items()),
        "an event by the number of brokers in the process",
        *(
            Row(f"  {count}", "us", [cost], None, None, [(BROKERS, ratio(cost, brokers["1"]))], "", 2)
            for count, cost in brokers.items()
        ),
        "an event in one shard, by the number of shards",
        *(Row(f"  {count}", "us", [cost], digits=2) for count, cost in shards.items()),
        "an event by its history",
        *(Row(f"  {name}", "us", [cost], digits=2) for name, cost in histories.items()),
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
            Row(f"  each, {state}", "bytes", [size], None, None, [(TASK, size)], "", 0)
            for state, size in task.items()
        ),
    ]


def describe(brokers: list[Broker]) -> str:
    """Return the machine and the versions."""
    models = re.findall(r"model name\s*: (.+)", Path("/proc/cpuinfo").read_text())
    packages = ("celery-event-exporter", "celery", "kombu", "redis", "hiredis", "msgspec", "uvicorn")
    return (
        f"{dt.datetime.now(dt.UTC):%Y-%m-%d}, {models[0] if models else platform.machine()}, "
        f"{os.cpu_count()} cores, Python {platform.python_version()}, "
        f"{', '.join(broker.version for broker in brokers)}\n"
        f"{', '.join(f'{package} {version(package)}' for package in packages)}\n"
        f"peer: {', '.join(peer.PINNED)}".replace("==", " ")
    )


def log(text: str) -> None:
    """Print the progress."""
    print(f"bench: {text}", file=sys.stderr, flush=True)


def parse() -> Options:
    """Return the options of the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--rounds", type=int, default=5, help="default: 5")
    add(
        "--tasks",
        type=int,
        default=12_500,
        help="tasks on an event stream, with four events each; default: 12500",
    )
    add("--hold", type=float, default=10.0, help="seconds for which a rate is kept; default: 10")
    add("--samples", type=int, default=1_000_000, help="samples of the largest scrape; default: 1000000")
    add("--in-flight", type=int, default=1_000_000, help="tasks in flight; default: 1000000")
    add("--page", type=Path, default=PAGE, help="default: docs/explanation/performance.md")
    add("--chart", type=Path, default=CHART, help="default: docs/img/bench.svg")
    return parser.parse_args(namespace=Options())


def write(page: Path, report: str) -> None:
    """Write a report into a page, between its marks."""
    day = report.partition(",")[0]
    heading = f"What it printed on {day} (machines are noisy; compare numbers of one run):"
    page.write_text(filled(page.read_text(), {"bench": f"{heading}\n\n```text\n{report}\n```"}))


def main() -> int:
    """Measure, print the report, and write the page and the chart."""
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
    void = [f"void: {reason}" for reason in bench.void]
    report = "\n".join([about, f"{size}; {loads}\n", draw(lines), *void])
    print(report)
    write(options.page, report)
    bench.draw_chart(brokers, about.splitlines()[0])
    return 1 if bench.failed else 0


if __name__ == "__main__":
    sys.exit(main())
