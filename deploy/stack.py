#!/usr/bin/env python3
"""`make stack`: what docker-compose.yml starts, without Docker, on free ports, from the same configuration.

That is copied as it is into a temporary folder, beside what differs: Prometheus' targets, and the secrets.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import click

from celery_exporter.demo import Stop
from celery_exporter.demo.processes import DemoError, Stage, StoppedError
from celery_exporter.demo.runner import get

if TYPE_CHECKING:
    from collections.abc import Callable

Addresses: TypeAlias = "dict[str, str]"  # name of a part → 127.0.0.1:port

ROOT = Path(__file__).resolve().parents[1]
#: What the containers have mounted, and its name in the folder in which the programs start.
FILES = {
    "deploy/redis/redis.conf": "redis.conf",
    "deploy/prometheus/prometheus.yml": "prometheus.yml",
    "deploy/alertmanager/alertmanager.yml": "alertmanager.yml",
    "alerts/celery.rules.yml": "alerts/celery.rules.yml",
}
#: The parts in the order of their start, with Debian's names of the programs.
COMMANDS = {
    "redis": "redis-server redis.conf --bind 127.0.0.1 --port {port}",
    "exporter": "{python} -m celery_exporter --broker-url-file secrets/redis_url"
    " --host 127.0.0.1 --port {port}",
    "worker": "{python} -m celery -q -A celery_exporter.demo.tasks worker -n demo@redis -Q emails,reports"
    " -c 4 -E --loglevel WARNING --without-gossip --without-mingle",
    "prometheus": "prometheus --config.file=prometheus.yml --storage.tsdb.path=prometheus"
    " --web.listen-address=127.0.0.1:{port}",
    "alertmanager": "prometheus-alertmanager --config.file=alertmanager.yml --storage.path=alertmanager"
    " --cluster.listen-address= --web.listen-address=127.0.0.1:{port}",
    "node-exporter": "prometheus-node-exporter --web.listen-address=127.0.0.1:{port}",
    "redis-exporter": "prometheus-redis-exporter --web.listen-address=127.0.0.1:{port}"
    " --redis.addr=redis://{redis} --redis.password-file=secrets/redis_exporter.json",
    "client": "{python} -m celery_exporter.demo.client",
}
#: Who is scraped.
SERVING = ("exporter", "prometheus", "alertmanager", "node-exporter", "redis-exporter")
JOBS = {"prometheus": "prometheus", "node": "node-exporter", "redis": "redis-exporter"}
START_LIMIT = 60.0  # seconds for every target to be up, of which the first scrape takes up to 15


def main() -> int:
    """Run it until Ctrl-C, or for so many seconds; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--seconds", type=float, default=math.inf, help="end after so long, instead of on Ctrl-C"
    )
    seconds = parser.parse_args().seconds
    stop = Stop(signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    with tempfile.TemporaryDirectory(prefix="celery-stack-") as folder:
        stage = Stage(Path(folder), stop)
        try:
            run(stage)
            stage.wait(lambda: False, seconds)
        except StoppedError:
            click.echo("stopping")
        except (DemoError, OSError, subprocess.CalledProcessError) as error:
            click.echo(f"stack: {error}", err=True)
            return 1
        finally:
            stage.end_all()
    return 0


def run(stage: Stage) -> None:
    """Start all of it, and wait until Prometheus finds each of its targets up."""
    began = time.monotonic()
    click.echo(f"starting {', '.join(COMMANDS)}")
    addresses = free_addresses()
    configure(stage.folder, addresses)
    for name in COMMANDS:
        if name == "client":  # what it sends before the exporter listens would not be counted
            wait(stage, lambda: answers(addresses["exporter"], "/-/ready"), "the exporter to be ready")
        start(stage, name, addresses)
        if name == "redis":
            wait(stage, lambda: listens(addresses["redis"]), "Redis")
    wait(stage, lambda: all_up(addresses["prometheus"]), "all targets to be up")
    took = time.monotonic() - began
    click.echo(f"Every target is up, {took:.0f} s after the start. Logs are in {stage.folder}.")
    for name in SERVING:
        click.echo(f"  {name:15} http://{addresses[name]}/")
    click.echo("Ctrl-C stops everything.")


def free_addresses() -> Addresses:
    """Return a free one for each: held all at the same time, or two would get the same."""
    with ExitStack() as held:
        servers = {name: held.enter_context(socket.create_server(("127.0.0.1", 0))) for name in COMMANDS}
        return {name: f"127.0.0.1:{server.getsockname()[1]}" for name, server in servers.items()}


def configure(folder: Path, addresses: Addresses) -> None:
    """Put the configuration there, and what differs: targets, and secrets that name the address of Redis."""
    for source, name in FILES.items():
        (folder / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / source, folder / name)
    subprocess.run([ROOT / "deploy/secrets.sh", folder / "secrets", addresses["redis"]], check=True)  # noqa: S603
    targets = {
        "celery": [{"targets": [addresses["exporter"]]}],
        "alertmanager": [{"targets": [addresses["alertmanager"]], "labels": {"job": "alertmanager"}}],
        "stack": [{"targets": [addresses[name]], "labels": {"job": job}} for job, name in JOBS.items()],
    }
    (folder / "targets").mkdir()
    for name, groups in targets.items():
        (folder / f"targets/{name}.yml").write_text(json.dumps(groups))  # JSON is YAML


def start(stage: Stage, name: str, addresses: Addresses) -> None:
    """Start one of them. Of the environment only Celery takes notice."""
    values = {**addresses, "port": addresses[name].rpartition(":")[2], "python": sys.executable}
    command = [word.format_map(values) for word in COMMANDS[name].split()]
    stage.start(
        name,
        program(command[0]),
        *command[1:],
        CELERY_BROKER_URL_FILE=str(stage.folder / "secrets/redis_url"),
    )


def program(name: str) -> str:
    """Return its path, which may be where only root looks."""
    path = os.pathsep.join((os.environ.get("PATH", ""), "/usr/sbin", "/sbin"))
    if found := shutil.which(name, path=path):
        return found
    raise DemoError(f"{name} is not installed: make servers")


def wait(stage: Stage, condition: Callable[[], bool], what: str) -> None:
    """Wait for it, but not for ever."""
    if not stage.wait(condition, START_LIMIT):
        raise DemoError(f"waited {START_LIMIT:.0f} s for {what}")


def listens(address: str) -> bool:
    """Whether somebody accepts connections; an OSError if not."""
    host, _, port = address.rpartition(":")
    socket.create_connection((host, int(port)), timeout=1).close()
    return True


def answers(address: str, path: str) -> bool:
    """Whether it is served."""
    return get(int(address.rpartition(":")[2]), path)[0] == 200


def all_up(prometheus: str) -> bool:
    """Whether it has scraped each of its targets."""
    status, text = get(int(prometheus.rpartition(":")[2]), "/api/v1/targets?state=active")
    if status != 200:
        return False
    targets = json.loads(text)["data"]["activeTargets"]
    return len(targets) == len(SERVING) and all(target["health"] == "up" for target in targets)


if __name__ == "__main__":
    sys.exit(main())
