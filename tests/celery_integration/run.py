"""Runs Celery's integration tests on one broker, with an exporter and a recorder."""

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
from celery_integration.comparison import Difference, Records, Sums, Unpublished

BROKERS = ("Redis", "RabbitMQ")
FILES = ("t/integration/test_canvas.py", "t/integration/test_tasks.py")
#: Tests that cannot run here, with the reason; without those that Celery skips.
DESELECTED: dict[str, str] = {}
#: Repetitions of a failed test. Celery's five repetitions take minutes each on a busy machine.
RERUNS = 1
#: The file from which Celery's conftest reads settings; these are the settings that enable events.
SETTINGS_FILE = "integration-tests-config.json"
SETTINGS = {"worker_send_task_events": True, "task_send_sent_event": True}
#: Part of the line that the plugin writes after the last test.
FINISHED = '"kind": "finished"'
#: Both brokers in parallel take about seven minutes on two idle cores.
TESTS_TIMEOUT_SECONDS = 3_600.0
#: For tasks that end after their tests; one is retried with Celery's default delay of three minutes.
IDLE_TIMEOUT_SECONDS = 600.0
CONNECT_TIMEOUT_SECONDS = 120.0
#: For the last events to be counted, and for gauges to decrease without an event.
COUNT_TIMEOUT_SECONDS = 60.0
GAUGES_TIMEOUT_SECONDS = 120.0


@dataclass(frozen=True)
class Job:
    """Test ids or options of pytest, with the source package and the interpreter."""

    package: Path
    python: Path
    tests: Sequence[str]


@dataclass(frozen=True)
class Outcome:
    """The result of a run on one broker."""

    broker: str
    seconds: float
    tests: Counter[str]  # by outcome
    failed: list[str]
    reruns: int
    recorded: Sums
    exposed: Sums
    published: Sums
    differences: list[Difference]
    unpublished: list[Unpublished]
    in_flight: dict[tuple[str, str], int]
    blamed: dict[str, set[str]]  # tests that cause wrong metrics, by task name

    @property
    def agrees(self) -> bool:
        """Return whether the exporter and the published events have the same sums."""
        return not self.differences and not self.in_flight


class Recorder(Process):
    """Celery's event receiver, which writes the events to a file."""

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
        """Return the received events."""
        return comparison.read_events(self.file)


class CeleryTests(Process):
    """pytest for Celery's source package, in Celery's environment, with the plugin."""

    name = "celery's tests"

    def __init__(self, folder: Path, job: Job, url: str, backend: RedisServer) -> None:
        super().__init__(folder)
        self.job = job
        self.outcomes = folder / "outcomes.jsonl"
        self.stop_file = folder / "stop"
        self.extra = {
            "TEST_BROKER": url,
            "TEST_BACKEND": backend.url,
            "REDIS_HOST": "127.0.0.1",  # the Redis for keys of the tests
            "REDIS_PORT": str(backend.port),
            "WORKER_LOGLEVEL": "INFO",  # some tests read the worker's log
            "INTEGRATION_OUTCOMES": str(self.outcomes),
            "INTEGRATION_STOP": str(self.stop_file),
            "PYTHONPATH": os.pathsep.join((str(job.package), str(source.HERE))),
        }

    def command(self) -> list[str]:
        package = self.job.package
        plugins = ("-p", "celery.contrib.pytest", "-p", "plugin", "-p", "no:cacheprovider")
        paths = ("--rootdir", str(package), "-c", str(package / "pyproject.toml"))
        deselected = [f"--deselect={name}" for name in DESELECTED]
        tests = [str(package / name) if name.startswith("t/") else name for name in self.job.tests]
        return [
            str(self.job.python),
            "-m",
            "pytest",
            "-v",
            "--tb=short",
            *paths,
            *plugins,
            *deselected,
            *tests,
        ]

    def environment(self) -> dict[str, str]:
        return {**os.environ, **self.extra}

    def records(self) -> Records:
        """Return the records of the tasks."""
        lines = self.outcomes.read_text().splitlines() if self.outcomes.exists() else []
        return comparison.read_records(lines)

    def await_last_test(self) -> None:
        """Wait until the last test has run; the worker runs until `let_stop`."""

        def is_finished() -> bool:
            if not self.alive():  # an AssertionError would continue the wait
                raise RuntimeError(f"pytest ended with {self.exit_code()} before the end:\n{self.tail()}")
            return self.outcomes.exists() and FINISHED in self.outcomes.read_text()

        eventually(is_finished, TESTS_TIMEOUT_SECONDS, every=1.0, what="the last test")

    def let_stop(self) -> int:
        """Let the worker stop, and return the exit code of pytest."""
        self.stop_file.touch()
        return self.wait(120)


def prepare(tests: Sequence[str] = FILES) -> Job:
    """Install the package and its environment, write the settings, and return the job."""
    job = Job(source.unpacked(), source.interpreter(), tests)
    (job.package / SETTINGS_FILE).write_text(json.dumps(SETTINGS))
    return job


def run(broker: str, folder: Path, job: Job) -> Outcome:
    """Run the tests on a broker, and compare the sums; logs go into a subfolder."""
    folder /= broker.lower()
    with ExitStack() as stack:
        start: Any = stack.enter_context
        backend = start(RedisServer(folder / "backend"))
        servers = {"Redis": RedisServer, "RabbitMQ": RabbitServer}
        server = start(servers[broker](folder / "broker"))
        exporter = start(Exporter(folder / "exporter", server.url)).connected(CONNECT_TIMEOUT_SECONDS)
        recorder = start(Recorder(folder / "recorder", server.url))
        begin = time.monotonic()
        tests = start(CeleryTests(folder / "tests", job, server.url, backend))
        tests.await_last_test()
        _await_idle(server.url)
        samples = _last_scrape(exporter, recorder, tests.records())
        events = recorder.events()
        code = tests.let_stop()  # pytest reports the result of the last test after this
        assert code in {0, 1}, f"pytest ended with {code}:\n{tests.tail()}"
        outcome, examples = compare(broker, time.monotonic() - begin, tests.records(), events, samples)
        (tests.folder / "examples.txt").write_text(examples)
        return outcome


def _await_idle(url: str) -> None:
    """Wait until the worker has no active, reserved or scheduled tasks."""
    app = Celery(broker=url, set_as_current=False)

    def is_idle() -> bool:
        inspect = app.control.inspect(timeout=5)
        answers = [inspect.active(), inspect.reserved(), inspect.scheduled()]
        assert all(answers), f"the worker did not answer: {answers}"
        remaining = [task for answer in answers for tasks in answer.values() for task in tasks]
        assert not remaining, remaining
        return True

    eventually(is_idle, IDLE_TIMEOUT_SECONDS, every=1.0, what="all tasks ended")


def _last_scrape(exporter: Exporter, recorder: Recorder, records: Records) -> Samples:
    """Return a scrape after the exporter had time to count all events."""
    sums = records.sums()

    def differing() -> list[Difference]:
        gaps = comparison.unpublished(records, recorder.events())
        return comparison.differences(sums, gaps, comparison.exposed_sums(exporter.samples()))

    _until_empty(differing, COUNT_TIMEOUT_SECONDS)
    _until_empty(lambda: comparison.in_flight(exporter.samples()), GAUGES_TIMEOUT_SECONDS)
    return exporter.samples()


def compare(
    broker: str, seconds: float, records: Records, events: list[dict[str, Any]], samples: Samples
) -> tuple[Outcome, str]:
    """Return the outcome, and the examples of wrong metrics as text."""
    sums, exposed, in_flight = records.sums(), comparison.exposed_sums(samples), comparison.in_flight(samples)
    gaps = comparison.unpublished(records, events)
    differences = comparison.differences(sums, gaps, exposed)
    names = {row.task for row in differences} | {name for name, _ in in_flight}
    examples = blame.examples(records, events, gaps, names)
    outcome = Outcome(
        broker=broker,
        seconds=seconds,
        tests=Counter(records.outcomes.values()),
        failed=sorted(test for test, outcome in records.outcomes.items() if outcome == "failed"),
        reruns=records.reruns,
        recorded=sums,
        published=comparison.published(sums, gaps),
        exposed=exposed,
        differences=differences,
        unpublished=gaps,
        in_flight=in_flight,
        blamed=blame.blamed(examples),
    )
    return outcome, blame.report(examples)


def _until_empty(get: Callable[[], object], timeout_seconds: float) -> None:
    """Wait until the value is empty or the time is over; a remaining value is a result, not an error."""
    end = time.monotonic() + timeout_seconds
    while get() and time.monotonic() < end:
        time.sleep(1)
