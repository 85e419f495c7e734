"""Runs workers, a client and a beat of a Celery version against the exporter, on one broker."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import kombu
from harness.exporter import Exporter, Samples
from harness.processes import TESTS, Process
from harness.servers import RabbitServer, RedisServer
from harness.waiting import eventually

from compatibility.app import BROKER_URL, SENT, WAITING
from compatibility.environments import Environment, clean_environment

#: The newest patch of each minor version, and the packages of its time.
VERSIONS: Mapping[str, tuple[str, ...]] = {
    "5.2": ("celery[redis]==5.2.*", "kombu==5.2.*", "redis<5"),
    "5.3": ("celery[redis]==5.3.*", "kombu[redis]==5.3.*"),
    "5.4": ("celery[redis]==5.4.*", "kombu[redis]==5.4.*"),
    "5.5": ("celery[redis]==5.5.*", "kombu[redis]==5.5.*"),
    "5.6": ("celery[redis]==5.6.*", "kombu[redis]==5.6.*"),
    "5.7": ("celery[redis]==5.7.*", "kombu[redis]==5.7.*"),
}
BROKERS: Mapping[str, type[RedisServer | RabbitServer]] = {"Redis": RedisServer, "RabbitMQ": RabbitServer}
NODE, CONCURRENCY = "worker@box", 2
#: Seconds on a quiet machine (see `eventually`).
DEADLINE = 4.0
#: Check → the first version that passes it, and why older ones do not.
SINCE: Mapping[str, tuple[str, str]] = {
    "beat": ("5.7", "Beat replies to ping from Celery 5.7 on. Older beats have no `celery_beat_*` metrics."),
}
NOT_IN_VERSION = "not in this version"  # the result of a check that this version does not pass, as expected
Result = str | None  # None if it passes; NOT_IN_VERSION, or what differs
Pair = tuple[object, object]
Check = Callable[[Samples], Pair]


class OfVersion(Process):
    """A process of `celery` of some version."""

    def __init__(self, folder: Path, environment: Environment, url: str, name: str, *arguments: str) -> None:
        super().__init__(folder)
        self.name = name
        self.deadline = 40.0
        self._command = environment.python("-m", "celery", "--app", "compatibility.app", name, *arguments)
        self._url = url

    def command(self) -> list[str]:
        return self._command

    def environment(self) -> dict[str, str]:
        return clean_environment(PYTHONPATH=str(TESTS), **{BROKER_URL: self._url})

    def ready(self) -> bool:
        return {"worker": f"{NODE} ready.", "beat": "beat: Starting..."}[self.name] in self.text()


class OfWheel(Exporter):
    """The exporter of the wheel."""

    def __init__(self, folder: Path, environment: Environment, url: str) -> None:
        super().__init__(folder, url)
        self._python = environment

    def command(self) -> list[str]:
        return self._python.python("-m", "celery_exporter", *self.arguments)


def run(folder: Path, environment: Environment, exporter: Environment, url: str) -> dict[str, Result]:
    """Return by check what differs from what the client sent."""
    options = ("--hostname", NODE, "--queues", "celery,other", "--concurrency", str(CONCURRENCY))
    with ExitStack() as stack:
        start: Any = stack.enter_context
        app = start(OfWheel(folder / "exporter", exporter, url)).connected()
        stack.callback(app.stop_cleanly)
        worker = OfVersion(folder / "worker", environment, url, "worker", *options, "--loglevel", "INFO")
        start(worker)
        schedule = ("--loglevel", "INFO", "--pidfile=", "--schedule", "schedule")
        start(OfVersion(folder / "beat", environment, url, "beat", *schedule))
        send(environment, url)
        version = environment.versions()["celery"]
        checks = while_running(version)
        absent = {name for name, (first, _) in SINCE.items() if _numbers(version) < _numbers(first)}
        results = {name: difference(app, check) for name, check in checks.items() if name not in absent}
        results |= {name: absence(app, checks[name]) for name in absent}
        worker.stop(deadline=30)
        results["worker down"] = difference(app, is_down)
        send(environment, url, "waiting")
        results["queue length"] = difference(app, queue_lengths)
    return results


def server_version(server: RedisServer | RabbitServer) -> str:
    """Return the version of a running broker."""
    if isinstance(server, RedisServer):
        return str(server.client().info("server")["redis_version"])
    with kombu.Connection(server.url) as connection:
        return str(connection.connection.server_properties["version"])


def send(environment: Environment, url: str, *arguments: str) -> None:
    """Send tasks with this version of Celery."""
    command = environment.python("-m", "compatibility.app", *arguments)
    variables = clean_environment(PYTHONPATH=str(TESTS), **{BROKER_URL: url})
    subprocess.run(command, env=variables, check=True, cwd="/", capture_output=True)


def absence(app: Exporter, check: Check) -> Result:
    """Return NOT_IN_VERSION if a check does not pass; other checks have waited before."""
    got, want = check(app.samples())
    return NOT_IN_VERSION if got != want else f"got {got}, which `SINCE` does not expect"


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(map(int, version.split(".")[:2]))


def difference(app: Exporter, check: Check) -> Result:
    """Wait until a check passes; return None, or what differs in the end."""
    pair: tuple[object, object] = (None, None)

    def passes() -> bool:
        nonlocal pair
        pair = check(app.samples())
        return pair[0] == pair[1]

    try:
        eventually(passes, DEADLINE)
    except AssertionError:
        return f"got {pair[0]}, want {pair[1]}"
    return None


# -- checks: what the exporter has, and what it should have ------------------------------------------------


def while_running(version: str) -> dict[str, Check]:
    """Return the checks of a running worker, by their title in the table."""
    return {
        "tasks": tasks,
        "exceptions": exceptions,
        "times": times,
        "worker up": partial(is_up, version),
        "inspection": inspection,
        "beat": beat,
    }


def expected_tasks() -> Iterator[tuple[tuple[str, str, str], float]]:
    """Yield the count of each task name, queue and state."""
    ends = {"tasks.succeed": "SUCCESS", "tasks.fail": "FAILURE", "tasks.retry_once": "SUCCESS"}
    for name, queue, count in SENT:
        retried = count if name == "tasks.retry_once" else 0
        revoked = 1 if name == "tasks.succeed" else 0
        counts = {
            "PENDING": count + retried + revoked,
            "RECEIVED": count + retried,  # Celery sends no such event of a revoked task
            "STARTED": count + retried,
            "RETRY": retried,
            "REVOKED": revoked,
            ends[name]: count,
        }
        for state, number in counts.items():
            if number:
                yield (name, queue, state), number


def tasks(samples: Samples) -> Pair:
    sums = samples.by("celery_tasks_total", "task_name", "queue_name", "state")
    counts = {labels: count for labels, count in sums.items() if count}
    return (counts, samples.total("celery_tasks_in_flight")), (dict(expected_tasks()), 0)


def exceptions(samples: Samples) -> Pair:
    failures = samples.by("celery_task_failures_total", "task_name", "exception")
    return failures, {("tasks.fail", "ValueError"): 3}


def times(samples: Samples) -> Pair:
    runtimes = samples.by("celery_task_runtime_seconds_count", "task_name")
    has_waits = samples.total("celery_task_queue_wait_seconds_count") > 0
    return (runtimes, has_waits), (
        {("tasks.succeed",): 5, ("tasks.fail",): 3, ("tasks.retry_once",): 4},
        True,
    )


def is_up(version: str, samples: Samples) -> Pair:
    software = samples.by("celery_worker_info", "software", "version")
    has_processed = bool(samples.value("celery_worker_processed_tasks_total", worker=NODE))
    return (
        (samples.by("celery_worker_up", "worker"), software, has_processed),
        ({(NODE,): 1}, {("py-celery", version): 1}, True),
    )


def inspection(samples: Samples) -> Pair:
    sizes = samples.by("celery_worker_pool_size", "worker")
    consumers = samples.by("celery_queue_consumers", "queue_name")
    has_memory = bool(samples.value("celery_worker_max_resident_memory_bytes", worker=NODE))
    return (
        (sizes, consumers, has_memory),
        ({(NODE,): CONCURRENCY}, {("celery",): 1, ("other",): 1}, True),
    )


def beat(samples: Samples) -> Pair:
    return list(samples.by("celery_beat_up", "worker").values()), [1]


def is_down(samples: Samples) -> Pair:
    return samples.by("celery_worker_up", "worker"), {(NODE,): 0}


def queue_lengths(samples: Samples) -> Pair:
    lengths = samples.by("celery_queue_length", "queue_name")
    return lengths, {("celery",): WAITING[0][2], ("other",): 0}
