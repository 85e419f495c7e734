"""A broker, workers, a client and the exporter, and the ledger that the exporter is held against."""

from __future__ import annotations

import os
import signal
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from harness import workers
from harness.exporter import Exporter, Samples
from harness.outcomes import Outcome, RedisOutcomes, record_signals
from harness.waiting import ANSWER_TIMEOUT, eventually, until_equal
from harness.workers import Worker

from .sums import TASKS, UNKNOWN, differences, excesses, shown, written

if TYPE_CHECKING:
    from celery import Celery
    from typing_extensions import Self

#: All of it, in minutes, is what `make truth` runs; otherwise a form of each scenario that takes seconds.
FULL = os.environ.get("TRUTH_SIZE") == "full"
#: The share of the events that were missed, by which what is reported may be off.
TOLERANCE = 0.05
#: Seconds in which the last of what was said is counted: the exporter waits 2 s for a task-sent.
SOON = 10.0
#: Seconds for tasks to run: some 300 a second do, on two cores that have nothing else to do.
PATIENCE = 1_200.0 if FULL else 60.0
ENDS = ("SUCCESS", "FAILURE", "REVOKED")


def size(short: int, full: int) -> int:
    return full if FULL else short


class Result(NamedTuple):
    """What a scenario came to."""

    tasks: int  # sent by clients
    differences: int  # sums that are not what the ledger says
    unknowns: int  # transitions booked under a name or queue that is "unknown"
    missed_really: int  # tasks that started, minus started events that were counted
    missed_reported: int

    def cells(self) -> dict[str, int]:
        return {name.replace("_", " "): value for name, value in self._asdict().items()}


class Scene:
    """Starts things, sends tasks, and holds the exporter to what the ledger says in the end.

    What the exporter cannot have seen, or can only have seen under a stand-in, a scenario says with `seen`,
    which makes the entries that are expected from those in the ledger, and with `is_introduced` (see
    `sums.written`).
    """

    def __init__(self, folder: Path, broker: Any, ledger_url: str, running: Callable[..., Any]) -> None:
        self.broker = broker
        self.ledger = RedisOutcomes(ledger_url)
        self.seen: Callable[[Counter[Outcome]], Counter[Outcome]] = lambda entries: entries
        self.is_introduced: Callable[[str], bool] = lambda _: True
        self.sent = 0  # tasks, by the client
        self.results: list[Result] = []
        self._folder = folder
        self._running = running
        self._workers: list[Worker] = []
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        self._stack.callback(record_signals(self.ledger))
        self.client = self.make_client()
        self.exporter = self.make_exporter()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    # who is there

    def make_client(self, **configuration: Any) -> Celery:
        app: Celery = self._stack.enter_context(workers.client(self.broker.url, **configuration))
        return app

    def make_exporter(self, *arguments: str, url: str | None = None) -> Exporter:
        labels = ("--task-labels", "queue_name,worker")
        self.exporter = Exporter(self._folder / "exporter", url or self.broker.url, *labels, *arguments)
        return self.exporter

    def make_worker(self, node: str = "worker@test", **options: Any) -> Worker:
        folder = self._folder / f"worker-{len(self._workers)}"
        worker = Worker(folder, self.broker.url, node, outcomes=self.ledger, **options)
        self._workers.append(worker)
        return worker

    def start(self, *processes: Any) -> None:
        """Start them side by side; return when they are ready, and the exporter knows the workers."""
        self._running(*processes)
        if self.exporter.alive():
            self.exporter.connected()
            names = {worker.name for worker in self._workers if worker.alive()}
            eventually(lambda: names <= self.shown_workers(), what=f"answers of {names}")

    def shown_workers(self) -> set[str]:
        """Return the workers that answered the exporter; the queues that they consume are known by then."""
        return self.exporter.samples().label_values("worker", "celery_worker_pool_size")

    def shown_up(self) -> set[str]:
        """Return the workers that are up, as the exporter says."""
        ups = self.exporter.samples().by("celery_worker_up", "worker")
        return {worker for (worker,), up in ups.items() if up}

    # what happens

    def send(self, task: str, *arguments: Any, times: int = 1, queue: str = "celery", **options: Any) -> None:
        """Send a task from the client, so many times."""
        for _ in range(times):
            self.client.send_task(task, arguments, queue=queue, **options)
        self.sent += times

    def total(self, *states: str) -> int:
        """Return how many of these states are in the ledger."""
        return self.ledger.total(*states)

    def await_total(self, count: int, *states: str) -> None:
        """Wait until the ledger has so many of these states, or more."""
        eventually(lambda: self.total(*states) >= count, PATIENCE, what=f"{count} {states} in the ledger")

    def await_ends(self, *, lost: int = 0) -> None:
        """Wait until each task that was sent has ended, or was sent anew, which is a retry.

        A task may end twice, when it was delivered twice; `lost` ones never do.
        """

        def has_ended() -> bool:
            counts: Counter[str] = Counter()
            for entry, count in self.ledger.counts_by_worker().items():
                counts[entry.state] += count
            ends = sum(counts[end] for end in ENDS)
            assert ends + lost >= counts["PENDING"] - counts["RETRY"], counts
            return True

        eventually(has_ended, PATIENCE, what="all tasks ended")

    def await_flush(self) -> None:
        """Wait until the workers' events have left them: those of one turn of a loop go out in the next."""
        workers = sum(worker.alive() for worker in self._workers)
        for _ in range(2):
            answers = self.client.control.ping(timeout=ANSWER_TIMEOUT, limit=workers)
            assert len(answers) == workers, answers

    def stop_workers(self) -> None:
        """Have them say goodbye; what a worker said before has come when that has."""
        alive = [worker for worker in self._workers if worker.alive()]
        for worker in alive:
            os.kill(worker.pid, signal.SIGTERM)
        for worker in alive:
            worker.wait(15)
        gone = {worker.name for worker in alive}
        eventually(lambda: not gone & self.shown_up(), what=f"goodbyes of {gone}")

    # what it comes to

    def differences(self, samples: Samples | None = None) -> dict[tuple[str, ...], tuple[int, int]]:
        """Return the sums that are not what the ledger says."""
        entries = self.seen(self.ledger.counts_by_worker())
        return differences(shown(samples or self.exporter.samples()), written(entries, self.is_introduced))

    def await_counted(self) -> None:
        """Wait until the exporter shows all that is in the ledger."""
        until_equal(self.differences, {}, SOON)

    def holds(self) -> Samples:
        """Hold that each sum is what the ledger says after all workers said goodbye, that no task is open and
        that nothing was called missed. Return the last scrape.
        """
        self.stop_workers()
        try:
            self.await_counted()
        finally:
            samples = self.exporter.samples()
            result = self._add_result(samples, len(self.differences(samples)))
        assert (result.missed_really, result.missed_reported) == (0, 0)
        assert samples.total("celery_exporter_events_malformed_total") == 0
        left = {
            state: count for (state,), count in samples.by("celery_tasks_in_flight", "state").items() if count
        }
        assert left == {}
        return samples

    def holds_what_came(self) -> Samples:
        """Hold, where events were lost, that as many are reported, and that nothing was counted twice."""
        entries = self.seen(self.ledger.counts_by_worker())
        try:
            eventually(self._reports_what_is_missing, SOON)
        finally:
            samples = self.exporter.samples()
            too_many = excesses(shown(samples), written(entries))
            self._add_result(samples, len(too_many))
        assert too_many == {}
        return samples

    def missed(self, samples: Samples) -> tuple[int, int]:
        """Return how many started events are missing, and how many are reported."""
        really = self.seen(self.ledger.counts_by_worker())
        started = sum(count for entry, count in really.items() if entry.state == "STARTED")
        reported = samples.total("celery_exporter_events_missed_total")
        return started - int(samples.total(TASKS[0], state="STARTED")), int(reported)

    def _reports_what_is_missing(self) -> bool:
        really, reported = self.missed(self.exporter.samples())
        assert really > 0
        assert abs(reported - really) <= TOLERANCE * really, f"missed {really}, reported {reported}"
        return True

    def _add_result(self, samples: Samples, wrong: int) -> Result:
        unknown = [samples.total(TASKS[0], task_name=UNKNOWN), samples.total(TASKS[0], queue_name=UNKNOWN)]
        both = samples.total(TASKS[0], task_name=UNKNOWN, queue_name=UNKNOWN)
        unknowns = int(sum(unknown) - both)
        result = Result(self.sent, wrong, unknowns, *self.missed(samples))
        self.results.append(result)
        return result
