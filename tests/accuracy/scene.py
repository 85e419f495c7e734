"""A broker, workers, a client and the exporter, and the recorded outcomes that it is compared with."""

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

from .explained import Explained
from .sums import TASKS, UNKNOWN, differences, excesses, exposed_sums, recorded_sums

if TYPE_CHECKING:
    from typing import Self

    from celery import Celery

#: `make truth` runs the full form of the scenarios, which takes minutes. The short form takes seconds.
FULL = os.environ.get("TRUTH_SIZE") == "full"
#: Accepted error of the reported number of missed events, as a share of the missed events.
TOLERANCE = 0.05
#: Time until the last events are counted. The exporter waits 2 s for a task-sent.
COUNT_TIMEOUT_SECONDS = 10.0
#: Time for tasks to run. Two idle cores run about 300 a second.
RUN_TIMEOUT_SECONDS = 1_200.0 if FULL else 60.0
END_STATES = ("SUCCESS", "FAILURE", "REVOKED")


def size(short: int, full: int) -> int:
    """Return the number for the current form."""
    return full if FULL else short


class Result(NamedTuple):
    """The result of a scenario."""

    tasks: int  # sent by clients
    differences: int  # sums that differ from the recorded outcomes
    unknowns: int  # transitions with the name or queue "unknown"
    missed_really: int  # started tasks minus counted task-started events
    missed_reported: int

    def cells(self) -> dict[str, int]:
        """Return the cells of the row in the table."""
        return {name.replace("_", " "): value for name, value in self._asdict().items()}


class Scene:
    """Starts processes, sends tasks, and compares the exporter with the recorded outcomes at the end.

    If the exporter cannot see all events, a scenario sets `expected`, which turns the recorded outcomes
    into the expected ones, and `has_sent_event` (see `sums.recorded_sums`).
    """

    def __init__(
        self, folder: Path, broker: Any, outcomes: RedisOutcomes, running: Callable[..., Any]
    ) -> None:
        self.broker = broker
        self.outcomes = outcomes
        self.expected: Callable[[Counter[Outcome]], Counter[Outcome]] = lambda entries: entries
        self.has_sent_event: Callable[[str], bool] = lambda _: True
        self.uuids: list[str] = []  # of the tasks of the client
        self.results: list[Result] = []
        self._folder = folder
        self._running = running
        self._workers: list[Worker] = []
        self._explained = Explained(self)
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        self._stack.callback(record_signals(self.outcomes))
        self.client = self.make_client()
        self.exporter = self.make_exporter()
        self._stack.enter_context(self._explained)
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    # -- processes

    def make_client(self, **configuration: Any) -> Celery:
        """Return a client with this configuration."""
        app: Celery = self._stack.enter_context(workers.client(self.broker.url, **configuration))
        return app

    def make_exporter(self, *arguments: str, url: str | None = None) -> Exporter:
        """Return an exporter that has not started."""
        labels = ("--task-labels", "queue_name,worker")
        self.exporter = Exporter(self._folder / "exporter", url or self.broker.url, *labels, *arguments)
        return self.exporter

    def make_worker(self, node: str = "worker@test", **options: Any) -> Worker:
        """Return a worker that has not started."""
        folder = self._folder / f"worker-{len(self._workers)}"
        worker = Worker(folder, self.broker.url, node, outcomes=self.outcomes, **options)
        self._workers.append(worker)
        return worker

    def start(self, *processes: Any) -> None:
        """Start processes in parallel; wait until they are ready and the workers are inspected."""
        self._running(*processes)
        if self.exporter.alive():
            self.await_inspection(is_new=self.exporter in processes)

    def await_inspection(self, *, is_new: bool) -> None:
        """Wait until the exporter, which may be new, receives events and has inspected the workers."""
        self.exporter.connected()
        if is_new:
            self._explained.listens()
        names = {worker.name for worker in self._workers if worker.alive()}
        eventually(lambda: names <= self.inspected_workers(), what=f"answers of {names}")

    def inspected_workers(self) -> set[str]:
        """Return the workers that the exporter has inspected, and whose queues are known."""
        return self.exporter.samples().label_values("worker", "celery_worker_pool_size")

    def workers_up(self) -> set[str]:
        """Return the workers that are up according to the exporter."""
        workers_by_state = self.exporter.samples().by("celery_worker_up", "worker")
        return {worker for (worker,), up in workers_by_state.items() if up}

    # -- tasks

    def send(self, task: str, *arguments: Any, times: int = 1, queue: str = "celery", **options: Any) -> None:
        """Send a task from the client, once or several times."""
        for _ in range(times):
            self.uuids.append(self.client.send_task(task, arguments, queue=queue, **options).id)

    @property
    def sent(self) -> int:
        """How many tasks the client sent."""
        return len(self.uuids)

    def total(self, *states: str) -> int:
        """Return how many entries of these states are in the recorded outcomes."""
        return self.outcomes.total(*states)

    def await_total(self, count: int, *states: str) -> None:
        """Wait until the recorded outcomes has at least this number of entries of these states."""
        eventually(
            lambda: self.total(*states) >= count, RUN_TIMEOUT_SECONDS, what=f"{count} {states} recorded"
        )

    def await_ends(self, *, lost: int = 0) -> None:
        """Wait until each task has ended or was sent again for a retry.

        A task that was delivered twice may end twice. `lost` tasks do not end.
        """

        def has_ended() -> bool:
            counts: Counter[str] = Counter()
            for entry, count in self.outcomes.counts_by_worker().items():
                counts[entry.state] += count
            ends = sum(counts[state] for state in END_STATES)
            assert ends + lost >= counts["PENDING"] - counts["RETRY"], counts
            return True

        eventually(has_ended, RUN_TIMEOUT_SECONDS, what="all tasks ended")

    def await_flush(self) -> None:
        """Wait until the workers have sent their events.

        Events of one turn of the event loop are sent in the next one.
        """
        workers = sum(worker.alive() for worker in self._workers)
        for _ in range(2):
            answers = self.client.control.ping(timeout=ANSWER_TIMEOUT, limit=workers)
            assert len(answers) == workers, answers

    def stop_workers(self) -> None:
        """Stop the workers, and wait until the exporter has received worker-offline, their last event."""
        alive = [worker for worker in self._workers if worker.alive()]
        for worker in alive:
            os.kill(worker.pid, signal.SIGTERM)
        for worker in alive:
            worker.wait(15)
        names = {worker.name for worker in alive}
        eventually(lambda: not names & self.workers_up(), what=f"worker-offline of {names}")

    # -- results

    def differences(self, samples: Samples | None = None) -> dict[tuple[str, ...], tuple[int, int]]:
        """Return the sums of the exporter that differ from the recorded outcomes."""
        entries = self.expected(self.outcomes.counts_by_worker())
        exposed = exposed_sums(samples or self.exporter.samples())
        return differences(exposed, recorded_sums(entries, self.has_sent_event))

    def await_counted(self) -> None:
        """Wait until the exporter has counted all entries of the recorded outcomes."""
        until_equal(self.differences, {}, COUNT_TIMEOUT_SECONDS)

    def assert_exact(self) -> Samples:
        """Stop the workers, assert that all sums are exact, and return the last scrape.

        No task may be in flight, no event may be reported as missed, and no explanation may have been false.
        """
        try:
            self.await_counted()
            self._explained.all_counted()
            self.stop_workers()
            self.await_counted()
        finally:
            samples = self.exporter.samples()
            result = self._add_result(samples, len(self.differences(samples)))
        assert (result.missed_really, result.missed_reported) == (0, 0)
        assert samples.total("celery_exporter_events_malformed_total") == 0
        in_flight = {
            state: count for (state,), count in samples.by("celery_tasks_in_flight", "state").items() if count
        }
        assert in_flight == {}
        self._explained.assert_true()
        return samples

    def assert_losses_reported(self) -> Samples:
        """Assert that lost events are reported and none is counted twice; return the last scrape.

        No explanation may have been false.
        """
        entries = self.expected(self.outcomes.counts_by_worker())
        try:
            eventually(self._are_losses_reported, COUNT_TIMEOUT_SECONDS)
        finally:
            samples = self.exporter.samples()
            counted_twice = excesses(exposed_sums(samples), recorded_sums(entries))
            self._add_result(samples, len(counted_twice))
        assert counted_twice == {}
        self._explained.assert_true(are_lost=True)
        return samples

    def missed(self, samples: Samples) -> tuple[int, int]:
        """Return how many task-started events are missing, and how many are reported as missed."""
        entries = self.expected(self.outcomes.counts_by_worker())
        started = sum(count for entry, count in entries.items() if entry.state == "STARTED")
        reported = samples.total("celery_exporter_events_missed_total")
        return started - int(samples.total(TASKS[0], state="STARTED")), int(reported)

    def _are_losses_reported(self) -> bool:
        missed, reported = self.missed(self.exporter.samples())
        assert missed > 0
        assert abs(reported - missed) <= TOLERANCE * missed, f"missed {missed}, reported {reported}"
        return True

    def _add_result(self, samples: Samples, differing_sums: int) -> Result:
        unknown_name = samples.total(TASKS[0], task_name=UNKNOWN)
        unknown_queue = samples.total(TASKS[0], queue_name=UNKNOWN)
        both_unknown = samples.total(TASKS[0], task_name=UNKNOWN, queue_name=UNKNOWN)
        unknowns = int(unknown_name + unknown_queue - both_unknown)
        result = Result(self.sent, differing_sums, unknowns, *self.missed(samples))
        self.results.append(result)
        return result
