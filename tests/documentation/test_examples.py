"""Runs the commands of README and pages on a real cluster.

`NOT_RUN` names the programs that do not run here, with the reason or the test that covers them.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace

import pytest
from harness.exporter import Exporter, clean_environment
from harness.processes import TESTS, free_port, need
from harness.servers import Prometheus, RedisServer
from harness.tasks import BROKER_URL
from harness.waiting import BUSY_FACTOR, eventually, until_equal
from harness.workers import Beat, Worker
from harness.workers import client as make_client

from documentation.test_docs import BLOCKS
from tools.docgen import metrics

#: Programs that run here, besides celery-exporter.
RUN = ("celery", "curl", "promtool", "redis-cli", "zcat")
#: Program → why it does not run here, or the test that covers it.
NOT_RUN = {
    ".venv/bin/pip": "tests/distribution/test_package.py",
    ".venv/bin/uv": "uploads to the package index",
    "cosign": "signs with an account",
    "deploy/secrets.sh": "tests/distribution/test_secrets.py",
    "dmesg": "reads the log of the machine",
    "echo": "writes a file of root; tests/distribution/test_systemd.py",
    "python3": "asks for a password, or creates the environment of the tests",
    "sudo": "changes the machine; tests/distribution/test_systemd.py",
    "rabbitmq-diagnostics": "runs on the host of RabbitMQ; tests/integration/test_blocked.py has the alarm",
    "docker": "not installed; tests/distribution/test_image.py, test_compose_podman.py use podman",
    "export": "sets variables that all commands have here",
    "gh": "changes the repository on GitHub",
    "git": "makes a tag",
    "helm": "no cluster; tests/distribution/test_helm.py",
    "kill": "tests/integration/test_several_brokers.py",
    "journalctl": "reads the log of the machine",
    "kubectl": "no cluster; tests/distribution/test_kubernetes.py",
    "make": "tests/integration/test_harness.py, tests/integration/test_benchmarks.py",
    "pip": "tests/distribution/test_install.py",
    "podman": "tests/distribution/test_image.py, test_compose_podman.py",
    "py-spy": "not installed",
    "sed": "changes the rules; tests/alerts/test_rules.py runs it on a copy",
    "sha256sum": "tests/distribution/test_release.py",
    "systemctl": "changes the machine; tests/distribution/test_systemd.py",
}
#: Page → the test that runs its commands.
TESTED_ELSEWHERE = {
    "docs/how-to/relay.md": "tests/accuracy/test_relay.py",
    "docs/how-to/standby.md": "tests/resilience/test_standby.py",
    "docs/reference/status-api.md": "test_docs.py",
    "docs/tutorials/django.md": "test_tutorials.py",
    "docs/tutorials/getting-started.md": "test_tutorials.py",
}
#: The configuration file of commands, which has several brokers.
CONFIG_FILE = "config.yml"
#: The application of commands that import one, and its text.
APPLICATION = "shop.celery"
PERIODIC = """
from celery import Celery
app = Celery("shop")
app.conf.beat_schedule = {"sync": {"task": "shop.sync", "schedule": 3600}}
"""
#: A command that does not end by itself is stopped after this time.
RUN_SECONDS = 4
#: The command whose error docs/how-to/migrate.md shows.
CLASH = "celery-exporter --broker-url redis://127.0.0.1:6379/0 --profile native,danihodovic"
#: Expected exit codes of commands whose code is a result.
CODES = {
    "celery-exporter doctor": {0, 1},
    "celery-exporter find": {0, 1},
    "curl -s http://127.0.0.1:9808/api/v1/tasks/": {0, 22},  # no such task
    CLASH: {2},
}


def commands(page: str) -> list[str]:
    """Return the commands of a page in order, without repetitions."""
    lines = [
        line.removeprefix("$ ").partition("    #")[0].strip()
        for block in BLOCKS
        if (block.page, block.language) == (page, "console")
        for line in block.text.splitlines()
        if line.startswith("$ ")
    ]
    return list(dict.fromkeys(lines))


def program(command: str) -> str:
    """Return the program of a command, without the variables before it."""
    return next(word for word in shlex.split(command, comments=True) if "=" not in word)


#: Page → its commands that run here.
PAGES = {
    page: runnable
    for page in dict.fromkeys(block.page for block in BLOCKS)
    if page not in TESTED_ELSEWHERE
    and (runnable := [command for command in commands(page) if program(command) in (*RUN, "celery-exporter")])
}


@pytest.fixture(scope="module")
def cluster(tmp_path_factory) -> Iterator[SimpleNamespace]:
    """Yield a broker, an exporter and a Prometheus, with a worker that ran tasks of each kind."""
    folder = tmp_path_factory.mktemp("cluster")
    with ExitStack() as stack:
        broker = stack.enter_context(RedisServer(folder / "redis"))
        exporter = stack.enter_context(Exporter(folder / "exporter", broker.url)).connected()
        stack.callback(exporter.stop_cleanly)
        worker = stack.enter_context(Worker(folder / "worker", broker.url, "w@box"))
        stack.enter_context(Beat(folder / "beat", broker.url))
        server = stack.enter_context(Prometheus(folder / "prometheus", f"127.0.0.1:{exporter.port}"))
        with make_client(broker.url) as client:
            for name in ("tasks.succeed", "tasks.fail_with_value_error", "tasks.retry_once"):
                client.send_task(name, queue="celery")
        until_equal(lambda: exporter.total("celery_tasks_total", state="SUCCESS"), 2, 30)
        eventually(lambda: server.query("celery_tasks_total"), 20)
        assert worker.alive()
        yield SimpleNamespace(broker=broker, exporter=exporter, prometheus=server)


def with_addresses(command: str, cluster: SimpleNamespace) -> str:
    """Return a command with the names and addresses of the cluster in place of those of the page."""
    exporter_url = f"http://127.0.0.1:{cluster.exporter.port}"
    words = {
        "TASK_NAME": "tasks.succeed",
        "QUEUE_NAME": "celery",
        "WORKER": "w@box",
        "BEAT_NAME": f"celerybeat@{socket.gethostname()}",
        "https://exporter.example:9808": exporter_url,
        "http://127.0.0.1:9808": exporter_url,
        "redis://127.0.0.1:6379/0": cluster.broker.url,
        "redis://127.0.0.1:6380/0": cluster.broker.url,
        "--seconds 60": "--seconds 1",
        "--port 9809": f"--port {free_port()}",
        "celery-exporter doctor": "celery-exporter doctor --seconds 8",  # the minimum; the default is 20
        f"/etc/celery-exporter/{CONFIG_FILE}": CONFIG_FILE,
    }
    return re.sub("|".join(map(re.escape, words)), lambda match: words[match[0]], command)


def run(command: str, cluster: SimpleNamespace, folder: Path) -> str | None:
    """Run a command, and return its error or None; an endless command has a second, longer attempt."""
    if not is_endless(command):
        return run_once(command, cluster, folder)
    error = run_once(command, cluster, folder, RUN_SECONDS)
    return error and run_once(command, cluster, folder, BUSY_FACTOR * RUN_SECONDS)


def run_once(command: str, cluster: SimpleNamespace, folder: Path, seconds: int | None = None) -> str | None:
    """Run a command for some seconds at most; the exit code of a pipe is that of its first program."""
    environment = clean_environment(
        {
            "PATH": f"{strict_curl(folder)}:{Path(sys.executable).parent}:{os.environ['PATH']}",
            "PYTHONPATH": str(TESTS),
            BROKER_URL: cluster.broker.url,
            "CELERY_BROKER_URL": cluster.broker.url,
            "CELERY_EXPORTER_PORT": str(cluster.exporter.port if uses_the_exporter(command) else free_port()),
            "APP": "harness.tasks",
            "BROKER": cluster.broker.url,
            "EXPORTER": f"http://127.0.0.1:{cluster.exporter.port}",
            "PROMETHEUS": f"http://127.0.0.1:{cluster.prometheus.port}",
        }
    )
    text = with_addresses(command, cluster)
    if CONFIG_FILE in text:
        del environment["CELERY_BROKER_URL"]
        brokers = {name: {"url": cluster.broker.url} for name in ("shop", "billing")}
        (folder / CONFIG_FILE).write_text(json.dumps({"brokers": brokers}))
    if APPLICATION in text:
        (folder / "shop").mkdir(exist_ok=True)
        (folder / "shop" / "celery.py").write_text(PERIODIC)
    bounded = f"timeout --preserve-status --signal INT {seconds} {text}" if seconds else text
    result = subprocess.run(
        ["bash", "-c", f"{bounded}; exit ${{PIPESTATUS[0]}}"],
        cwd=folder,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    codes = next((codes for begin, codes in CODES.items() if command.startswith(begin)), {0})
    is_expected = result.returncode in codes
    has_output = "Traceback" not in result.stderr and (result.stdout or result.stderr)
    may_be_empty = " | grep " in command and not result.stderr  # grep may find no line
    if is_expected and (has_output or may_be_empty):
        return None
    return f"{text}: {result.returncode}\n{result.stdout[-500:]}{result.stderr[-500:]}"


def strict_curl(folder: Path) -> Path:
    """Return a folder with a curl that fails if the response is an error."""
    path = folder / "strict" / "curl"
    if not path.exists():
        path.parent.mkdir(exist_ok=True)
        script = path.with_name(f"curl.{threading.get_ident()}")
        script.write_text(f'#!/bin/sh\nexec {need("curl")} --fail-with-body "$@"\n')
        script.chmod(0o755)
        script.rename(path)
    return path.parent


def metric_prefixes(command: str) -> Iterator[str]:
    """Yield the prefixes of metrics in a grep pattern; a whole name ends with a brace."""
    request, separator, rest = command.partition("/metrics | grep ")
    if not separator or not request.startswith("curl "):
        return
    patterns = [next(word for word in shlex.split(rest) if not word.startswith("-")).replace("\\{", "{")]
    while patterns:
        pattern = patterns.pop()
        group = re.search(r"\(([^()]*)\)", pattern)
        if group:
            begin, end = pattern[: group.start()], pattern[group.end() :]
            patterns += [begin + alternative + end for alternative in group[1].split("|")]
        else:
            yield re.match(r"\^?(\w*\{?)", pattern)[1]


def unknown(command: str, names: set[str]) -> list[str]:
    """Return the prefixes in a grep pattern that no metric has."""
    lines = [name + "{" for name in names]
    return [
        prefix for prefix in metric_prefixes(command) if not any(line.startswith(prefix) for line in lines)
    ]


def uses_the_exporter(command: str) -> bool:
    """Return whether a command uses the running exporter, instead of starting one."""
    return program(command) != "celery-exporter" or " top" in command


def is_endless(command: str) -> bool:
    """Return whether a command runs until it is stopped."""
    words = command.split()
    serves = words[0] == "celery-exporter" and (
        len(words) == 1 or words[1] in {"--broker-url", "--config.file"}
    )
    return (serves and command != CLASH) or command.endswith("events --dump")


@pytest.mark.parametrize("page", PAGES)
def test_the_commands_of_a_page_succeed(page, cluster, tmp_path):
    for name in RUN:
        need(name)
    runnable = PAGES[page]
    # In order if one command writes a file for the next; otherwise in parallel, since celery starts slowly.
    with ThreadPoolExecutor(1 if any("events.gz" in command for command in runnable) else 2) as pool:
        errors = list(filter(None, pool.map(lambda command: run(command, cluster, tmp_path), runnable)))
    assert errors == []


def test_a_wrong_command_is_found(cluster, tmp_path):
    for wrong in (
        "curl -s $EXPORTER/metricz | grep ^celery_tasks_total",
        "curl -si $EXPORTER/-/raedy",
        "curl -s $EXPORTER/api/v9/status",
        "curl -s http://127.0.0.1:1/metrics | grep celery",
        "celery --app $APP inspect nosuch",
        "promtool query instant $PROMETHEUS 'rate(celery_tasks_total)'",
        "celery-exporter record",
    ):
        assert run(wrong, cluster, tmp_path), wrong


def test_the_metrics_that_the_pages_grep_for_exist(cluster):
    names = {row.name for row in metrics.rows()} | {name for name, _ in cluster.exporter.samples()}
    pages = [line[2:] for block in BLOCKS for line in block.text.splitlines() if line.startswith("$ ")]
    requests = [command for command in pages if [*metric_prefixes(command)]]
    assert len(requests) > 10
    assert {command: prefixes for command in requests if (prefixes := unknown(command, names))} == {}
    for pattern in ("^celery_broker_upp", "-E '^celery_(broker_upp|tasks)'", "'^celery_task{.*STARTED'"):
        assert unknown(f"curl -s $EXPORTER/metrics | grep {pattern}", names), pattern
    alternatives = "curl -s $EXPORTER/metrics | grep -E '^celery_(broker_up|exporter_(series|nosuch))'"
    assert unknown(alternatives, names) == ["celery_exporter_nosuch"]


def test_every_program_is_run_or_has_a_reason():
    pages = {block.page for block in BLOCKS if block.language == "console"}
    assert pages > TESTED_ELSEWHERE.keys()
    programs = {program(command) for page in pages - TESTED_ELSEWHERE.keys() for command in commands(page)}
    assert programs <= {*RUN, "celery-exporter", *NOT_RUN}
