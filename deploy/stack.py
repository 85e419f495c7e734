#!/usr/bin/env python3
"""Starts the services of docker-compose.yml without Docker, on free ports (make stack).

COMPOSE_PROFILES=influxdb adds InfluxDB, as for Docker Compose; the profile monitoring is always on. The
configuration files are copied into a temporary folder. Only the targets of Prometheus and the secrets differ,
and that Debian's InfluxDB is version 1.
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
from http.client import HTTPConnection
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import click
import yaml

from celery_exporter.demo import Stop
from celery_exporter.demo.processes import DemoError, DemoProcesses, StoppedError
from celery_exporter.demo.runner import get

if TYPE_CHECKING:
    from collections.abc import Callable

Addresses: TypeAlias = "dict[str, str]"  # name of a service → 127.0.0.1:port

ROOT = Path(__file__).resolve().parents[1]
#: Files that the containers mount → their names in the working directory of the programs.
FILES = {
    "deploy/redis/redis.conf": "redis.conf",
    "deploy/prometheus/prometheus.yml": "prometheus.yml",
    "deploy/alertmanager/alertmanager.yml": "alertmanager.yml",
    "alerts/celery.rules.yml": "alerts/celery.rules.yml",
}
#: Commands of the services in the order of their start, with the program names of Debian.
COMMANDS = {
    "redis": "redis-server redis.conf --bind 127.0.0.1 --port {port}",
    "influxdb": "influxd",
    "exporter": "{python} -m celery_exporter --broker-url-file secrets/redis_url"
    " --host 127.0.0.1 --port {port}",
    "worker": "{python} -m celery -q -A celery_exporter.demo.tasks worker -n demo@redis -Q emails,reports"
    " -c 4 -E --loglevel WARNING --without-gossip --without-mingle",
    "prometheus": "prometheus --config.file=prometheus.yml --storage.tsdb.path=prometheus"
    " --enable-feature=exemplar-storage"
    " --web.listen-address=127.0.0.1:{port}",
    "alertmanager": "prometheus-alertmanager --config.file=alertmanager.yml --storage.path=alertmanager"
    " --cluster.listen-address= --web.listen-address=127.0.0.1:{port}",
    "node-exporter": "prometheus-node-exporter --web.listen-address=127.0.0.1:{port}",
    "redis-exporter": "prometheus-redis-exporter --web.listen-address=127.0.0.1:{port}"
    " --redis.addr=redis://{redis} --redis.password-file=secrets/redis_exporter.json",
    "client": "{python} -m celery_exporter.demo.client",
}
#: Services of profiles that are off by default.
PROFILES = {"influxdb": ("influxdb",)}
#: Variables of services: of the exporter those that docker-compose.yml sets, too.
VARIABLES: dict[str, dict[str, str]] = {
    "exporter": {"CELERY_EXPORTER_EXEMPLARS": "true"},
    "influxdb": {
        "INFLUXDB_HTTP_BIND_ADDRESS": "{influxdb}",
        "INFLUXDB_BIND_ADDRESS": "127.0.0.1:0",  # for backups
        "INFLUXDB_META_DIR": "influxdb/meta",
        "INFLUXDB_DATA_DIR": "influxdb/data",
        "INFLUXDB_DATA_WAL_DIR": "influxdb/wal",
        "INFLUXDB_DATA_QUERY_LOG_ENABLED": "false",
        "INFLUXDB_HTTP_LOG_ENABLED": "false",
        "INFLUXDB_MONITOR_STORE_ENABLED": "false",
        "INFLUXDB_REPORTING_DISABLED": "true",
    },
}
DATABASE = "celery"
#: Variables of the exporter if InfluxDB runs.
TO_INFLUXDB = {
    "CELERY_EXPORTER_INFLUX_URL": "http://{influxdb}",
    "CELERY_EXPORTER_INFLUX_VERSION": "1",
    "CELERY_EXPORTER_INFLUX_DATABASE": DATABASE,
}
#: Services that Prometheus scrapes.
SCRAPED = ("exporter", "prometheus", "alertmanager", "node-exporter", "redis-exporter")
JOBS = {"prometheus": "prometheus", "node": "node-exporter", "redis": "redis-exporter"}
START_TIMEOUT_SECONDS = 60.0  # until every target is up; the first scrape takes up to 15


def main() -> int:
    """Run the stack until Ctrl-C or for --seconds, and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--seconds", type=float, default=math.inf, help="stop after this time instead of on Ctrl-C"
    )
    seconds = parser.parse_args().seconds
    stop = Stop(signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    with tempfile.TemporaryDirectory(prefix="celery-stack-") as folder:
        processes = DemoProcesses(Path(folder), stop)
        try:
            run(processes)
            processes.wait(lambda: False, seconds)
        except StoppedError:
            click.echo("stopping")
        except (DemoError, OSError, subprocess.CalledProcessError) as error:
            click.echo(f"stack: {error}", err=True)
            return 1
        finally:
            processes.end_all()
    return 0


def run(processes: DemoProcesses) -> None:
    """Start all services, and wait until all targets of Prometheus are up."""
    start_time = time.monotonic()
    profiles = {"monitoring", *os.environ.get("COMPOSE_PROFILES", "").replace(",", " ").split()}
    names = services(profiles)
    click.echo(f"starting {', '.join(names)}")
    click.echo(f"left out, because they need Docker: {', '.join(left_out(profiles))}")
    addresses = free_addresses(names)
    configure(processes.folder, addresses)
    for name in names:
        if name == "client":  # the exporter does not count tasks that are sent before it is ready
            wait(processes, lambda: answers(addresses["exporter"], "/-/ready"), "the exporter to be ready")
        start(processes, name, addresses)
        if name == "redis":
            wait(processes, lambda: listens(addresses["redis"]), "Redis")
        elif name == "influxdb":
            wait(processes, lambda: creates_database(addresses["influxdb"]), "InfluxDB")
    wait(processes, lambda: all_up(addresses["prometheus"]), "all targets to be up")
    seconds = time.monotonic() - start_time
    click.echo(f"Every target is up, {seconds:.0f} s after the start. Logs are in {processes.folder}.")
    for name in (*SCRAPED, *(name for name in PROFILES if name in names)):
        click.echo(f"  {name:15} http://{addresses[name]}/")
    click.echo("Ctrl-C stops everything.")


def services(profiles: set[str]) -> list[str]:
    """Return the services to start, in this order."""
    optional = {name: profile for profile, names in PROFILES.items() for name in names}
    return [name for name in COMMANDS if optional.get(name, "monitoring") in profiles]


def left_out(profiles: set[str]) -> list[str]:
    """Return the services of these profiles that this program cannot start."""
    content = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
    wanted = {
        name for name, service in content.items() if profiles.intersection(service.get("profiles", profiles))
    }
    return sorted(wanted - COMMANDS.keys())


def free_addresses(names: list[str]) -> Addresses:
    """Return a free address for each service. All are open at the same time, so that they differ."""
    with ExitStack() as sockets:
        servers = {name: sockets.enter_context(socket.create_server(("127.0.0.1", 0))) for name in names}
        return {name: f"127.0.0.1:{server.getsockname()[1]}" for name, server in servers.items()}


def configure(folder: Path, addresses: Addresses) -> None:
    """Write the configuration, the targets, and the secrets with the address of Redis."""
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


def start(processes: DemoProcesses, name: str, addresses: Addresses) -> None:
    """Start a service."""
    values = {**addresses, "port": addresses[name].rpartition(":")[2], "python": sys.executable}
    command = [word.format_map(values) for word in COMMANDS[name].split()]
    variables = dict(VARIABLES.get(name, {}))
    if name == "exporter" and "influxdb" in addresses:
        variables |= TO_INFLUXDB
    processes.start(
        name,
        program(command[0]),
        *command[1:],
        CELERY_BROKER_URL_FILE=str(processes.folder / "secrets/redis_url"),
        **{variable: text.format_map(values) for variable, text in variables.items()},
    )


def program(name: str) -> str:
    """Return the path of a program; raise DemoError if it is not installed.

    Debian installs some of them in directories that are in the PATH of root only.
    """
    search_path = os.pathsep.join((os.environ.get("PATH", ""), "/usr/sbin", "/sbin"))
    if path := shutil.which(name, path=search_path):
        return path
    raise DemoError(f"{name} is not installed. Run make servers.")


def wait(processes: DemoProcesses, condition: Callable[[], bool], what: str) -> None:
    """Wait for a condition; raise DemoError after `START_TIMEOUT_SECONDS`."""
    if not processes.wait(condition, START_TIMEOUT_SECONDS):
        raise DemoError(f"waited {START_TIMEOUT_SECONDS:.0f} s for {what}")


def listens(address: str) -> bool:
    """Return True if a server accepts connections; raise OSError if none does."""
    host, _, port = address.rpartition(":")
    socket.create_connection((host, int(port)), timeout=1).close()
    return True


def creates_database(address: str) -> bool:
    """Create the database for points; return whether InfluxDB has done so."""
    connection = HTTPConnection(address, timeout=2)
    try:
        connection.request("POST", f"/query?q=CREATE+DATABASE+{DATABASE}")
        return connection.getresponse().status == 200
    finally:
        connection.close()


def answers(address: str, path: str) -> bool:
    """Return whether an HTTP server answers this path with 200."""
    return get(int(address.rpartition(":")[2]), path)[0] == 200


def all_up(prometheus: str) -> bool:
    """Return whether Prometheus has scraped all targets with success."""
    status, text = get(int(prometheus.rpartition(":")[2]), "/api/v1/targets?state=active")
    if status != 200:
        return False
    targets = json.loads(text)["data"]["activeTargets"]
    return len(targets) == len(SCRAPED) and all(target["health"] == "up" for target in targets)


if __name__ == "__main__":
    sys.exit(main())
