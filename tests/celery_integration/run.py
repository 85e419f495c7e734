"""One run of Celery's integration tests on one broker, with an exporter and a recorder beside them."""

from __future__ import annotations

import json
import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from celery import Celery
from harness.exporter import Exporter, Samples
from harness.processes import TESTS, Process
from harness.servers import RabbitServer, RedisServer
from harness.waiting import eventually

from celery_integration import blame, comparison, source
from celery_integration.comparison import Difference, Sums, Unpublished, Written

BROKERS = ("Redis", "RabbitMQ")
FILES = ("t/integration/test_canvas.py", "t/integration/test_tasks.py")
#: Tests that cannot run here, and why; Celery's own skips are not among them.
DESELECTED: dict[str, str] = {}
#: How often a failed test is repeated: Celery's five times are minutes each on a busy machine.
RERUNS = 1
#: The file by which Celery's conftest takes settings from outside; both are what users switch on for events.
SETTINGS_FILE = "integration-tests-config.json"
SETTINGS = {"worker_send_task_events": True, "task_send_sent_event": True}
#: The line that our plugin writes after the last test.
FINISHED = '"kind": "finished"'
#: Seconds: both brokers at a time take some seven minutes on two quiet cores.
TESTS_DEADLINE = 3_600.0
#: Seconds for tasks that outlive their tests; one is retried with Celery's default delay of three minutes.
QUIET_DEADLINE = 600.0
CONNECTED_DEADLINE = 120.0
#: Seconds for what the exporter received to be counted, and for its gauges to come down without an event.
COUNTED_DEADLINE = 60.0
GAUGES_DEADLINE = 120.0


@dataclass(frozen=True)
class Job:
    """Tests by their ids, or options of pytest, with the package and the interpreter to run them."""

    package: Path
    python: Path
    tests: Sequence[str]


@dataclass(frozen=True)
class Outcome:
    """What a run on a broker came to."""

    broker: str
    seconds: float
    tests: Counter[str]  # by outcome
    failed: list[str]
    reruns: int
    written: Sums
    shown: Sums
    published: Sums
    differences: list[Difference]
    unpublished: list[Unpublished]
    in_flight: dict[tuple[str, str], int]
    blamed: dict[str, set[str]]  # tests, by the names of tasks that they get shown wrongly

    @property
    def agrees(self) -> bool:
        return not self.differences and not self.in_flight


class Recorder(Process):
    """Celery's own receiver, which writes the events into a file."""

    name = "recorder"

    def __init__(self, folder: Path, url: str) -> None:
        super().__init__(folder)
        self.url = url
        self.file = folder / "events.jsonl"

    def command(self) -> list[str]:
        return [sys.executable, "-m", "celery_integration.receiver", self.url, str(self.file)]

    def environment(self) -> dict[str, str]:
        return {**os.environ, "PYTHONPATH": str(TESTS)}

    def ready(self) -> bool:
        return "ready" in self.text()

    def events(self) -> list[dict[str, Any]]:
        """Return the events so far."""
        return comparison.read_events(self.file)


class CeleryTests(Process):
    """pytest on Celery's source package, in Celery's own environment, with our plugin."""

    name = "celery's tests"

    def __init__(self, folder: Path, job: Job, url: str, backend: RedisServer) -> None:
        super().__init__(folder)
        self.job = job
        self.ledger = folder / "ledger.jsonl"
        self.stop_file = folder / "stop"
        self.extra = {
            "TEST_BROKER": url,
            "TEST_BACKEND": backend.url,
            "REDIS_HOST": "127.0.0.1",  # what the tests' own Redis keys are written to
            "REDIS_PORT": str(backend.port),
            "WORKER_LOGLEVEL": "INFO",  # some tests read the worker's log
            "INTEGRATION_LEDGER": str(self.ledger),
            "INTEGRATION_STOP": str(self.stop_file),
            "PYTHONPATH": os.pathsep.join((str(job.package), str(source.HERE))),
        }

    def command(self) -> list[str]:
        package = self.job.package
        plugins = ("-p", "celery.contrib.pytest", "-p", "plugin", "-p", "no:cacheprovider")
        where = ("--rootdir", str(package), "-c", str(package / "pyproject.toml"))
        deselected = [f"--deselect={name}" for name in DESELECTED]
        tests = [str(package / name) if name.startswith("t/") else name for name in self.job.tests]
        return [
            str(self.job.python),
            "-m",
            "pytest",
            "-v",
            "--tb=short",
            *where,
            *plugins,
            *deselected,
            *tests,
        ]

    def environment(self) -> dict[str, str]:
        return {**os.environ, **self.extra}

    def written(self) -> Written:
        lines = self.ledger.read_text().splitlines() if self.ledger.exists() else []
        return comparison.read_written(lines)

    def await_last_test(self) -> None:
        """Wait until the last test has run; the worker goes on until `let_stop`."""

        def is_over() -> bool:
            if not self.alive():  # no AssertionError: that would mean "not yet"
                raise RuntimeError(f"pytest ended with {self.exit_code()} before the end:\n{self.tail()}")
            return self.ledger.exists() and FINISHED in self.ledger.read_text()

        eventually(is_over, TESTS_DEADLINE, every=1.0, what="the last test")

    def let_stop(self) -> int:
        """Have the worker stop; return pytest's exit code."""
        self.stop_file.touch()
        return self.wait(120)


def prepare(tests: Sequence[str] = FILES) -> Job:
    """Return these tests with all that they need, and the settings in their place."""
    job = Job(source.unpacked(), source.interpreter(), tests)
    (job.package / SETTINGS_FILE).write_text(json.dumps(SETTINGS))
    return job


def run(broker: str, folder: Path, job: Job) -> Outcome:
    """Run the tests on a broker and compare; logs go into a folder of its own under this one."""
    folder /= broker.lower()
    with ExitStack() as stack:
        start: Any = stack.enter_context
        backend = start(RedisServer(folder / "backend"))
        servers = {"Redis": RedisServer, "RabbitMQ": RabbitServer}
        server = start(servers[broker](folder / "broker"))
        exporter = start(Exporter(folder / "exporter", server.url)).connected(CONNECTED_DEADLINE)
        recorder = start(Recorder(folder / "recorder", server.url))
        begin = time.monotonic()
        tests = start(CeleryTests(folder / "tests", job, server.url, backend))
        tests.await_last_test()
        _await_quiet(server.url)
        samples = _last_scrape(exporter, recorder, tests.written())
        events = recorder.events()
        code = tests.let_stop()  # only then pytest tells what came of the last test
        assert code in {0, 1}, f"pytest ended with {code}:\n{tests.tail()}"
        outcome, examples = compare(broker, time.monotonic() - begin, tests.written(), events, samples)
        (tests.folder / "examples.txt").write_text(examples)
        return outcome


def _await_quiet(url: str) -> None:
    """Wait until the worker has nothing to do, now or later."""
    app = Celery(broker=url, set_as_current=False)

    def is_quiet() -> bool:
        inspect = app.control.inspect(timeout=5)
        answers = [inspect.active(), inspect.reserved(), inspect.scheduled()]
        assert all(answers), f"the worker did not answer: {answers}"
        left = [task for answer in answers for tasks in answer.values() for task in tasks]
        assert not left, left
        return True

    eventually(is_quiet, QUIET_DEADLINE, every=1.0, what="all tasks ended")


def _last_scrape(exporter: Exporter, recorder: Recorder, written: Written) -> Samples:
    """Return what the exporter shows when it had time to come to its last word."""
    sums = written.sums()

    def differing() -> list[Difference]:
        gaps = comparison.unpublished(written, recorder.events())
        return comparison.differences(sums, gaps, comparison.shown(exporter.samples()))

    _until_empty(differing, COUNTED_DEADLINE)
    _until_empty(lambda: comparison.in_flight(exporter.samples()), GAUGES_DEADLINE)
    return exporter.samples()


def compare(
    broker: str, seconds: float, written: Written, events: list[dict[str, Any]], samples: Samples
) -> tuple[Outcome, str]:
    """Return the outcome, and the examples of what is wrong as a text."""
    sums, shown, left = written.sums(), comparison.shown(samples), comparison.in_flight(samples)
    gaps = comparison.unpublished(written, events)
    wrong = comparison.differences(sums, gaps, shown)
    names = {row.task for row in wrong} | {name for name, _ in left}
    examples = blame.examples(written, events, gaps, names)
    outcome = Outcome(
        broker=broker,
        seconds=seconds,
        tests=Counter(written.outcomes.values()),
        failed=sorted(test for test, outcome in written.outcomes.items() if outcome == "failed"),
        reruns=written.reruns,
        written=sums,
        published=comparison.published(sums, gaps),
        shown=shown,
        differences=wrong,
        unpublished=gaps,
        in_flight=left,
        blamed=blame.blamed(examples),
    )
    return outcome, blame.report(examples)


def _until_empty(get: Callable[[], object], deadline: float) -> None:
    """Give it time; that there is something left is a result, not an error."""
    end = time.monotonic() + deadline
    while get() and time.monotonic() < end:
        time.sleep(1)
