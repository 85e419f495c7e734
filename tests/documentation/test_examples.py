"""The commands of README and pages are run, on a real cluster.

Those of programs that are not ours to start here are named in `ELSEWHERE`, with where they are held.
"""

from __future__ import annotations

import os
import re
import shlex
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
from harness.workers import Worker
from harness.workers import client as make_client

from documentation.test_docs import BLOCKS
from tools.docgen import metrics

#: Programs that are run here, but for those of our own.
RUN = ("celery", "curl", "promtool", "redis-cli", "zcat")
#: Program → why it is not run here.
ELSEWHERE = {
    ".venv/bin/pip": "tests/distribution/test_package.py",
    "deploy/secrets.sh": "tests/distribution/test_compose.py",
    "dmesg": "of the machine",
    "echo": "into a file of root's; tests/distribution/test_systemd.py",
    "python3": "asks for a password, or makes the environment that this runs in",
    "sudo": "changes the machine; tests/distribution/test_systemd.py",
    "rabbitmq-diagnostics": "of RabbitMQ's host; tests/integration/test_blocked_publishers.py has the alarm",
    "docker": "no engine; tests/distribution/test_image.py, test_compose.py",
    "export": "sets what the others have here anyhow",
    "journalctl": "of the machine",
    "kubectl": "no cluster; tests/distribution/test_kubernetes.py",
    "make": "tests/integration/test_harness.py, tests/integration/test_benchmarks.py",
    "py-spy": "of who wants it",
    "sed": "changes the rules; on a copy in tests/alerts/test_rules.py",
    "systemctl": "of the machine; tests/distribution/test_systemd.py",
}
#: Page → the test that runs its commands.
TESTED_ELSEWHERE = {
    "docs/reference/status-api.md": "test_docs.py",
    "docs/tutorials/getting-started.md": "test_getting_started.py",
}
#: What runs until it is ended, is: after so many seconds.
ENOUGH = 4
#: What docs/how-to/migrate.md shows the error of.
CLASH = "celery-exporter --broker-url redis://127.0.0.1:6379/0 --profile native,danihodovic"
#: How they end that say by it what they found.
CODES = {"celery-exporter doctor": {0, 1}, CLASH: {2}}


def commands(page: str) -> list[str]:
    """Return a page's commands in their order, each once."""
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


#: Page → its commands of programs that are run here.
PAGES = {
    page: mine
    for page in dict.fromkeys(block.page for block in BLOCKS)
    if page not in TESTED_ELSEWHERE
    and (mine := [each for each in commands(page) if program(each) in (*RUN, "celery-exporter")])
}


@pytest.fixture(scope="module")
def cluster(tmp_path_factory) -> Iterator[SimpleNamespace]:
    """Return where things are: a broker, a worker that ran tasks of each kind, an exporter, a Prometheus."""
    folder = tmp_path_factory.mktemp("cluster")
    with ExitStack() as stack:
        broker = stack.enter_context(RedisServer(folder / "redis"))
        exporter = stack.enter_context(Exporter(folder / "exporter", broker.url)).connected()
        stack.callback(exporter.stop_cleanly)
        worker = stack.enter_context(Worker(folder / "worker", broker.url, "w@box"))
        server = stack.enter_context(Prometheus(folder / "prometheus", f"127.0.0.1:{exporter.port}"))
        with make_client(broker.url) as client:
            for name in ("tasks.succeed", "tasks.fail_with_value_error", "tasks.retry_once"):
                client.send_task(name, queue="celery")
        until_equal(lambda: exporter.total("celery_tasks_total", state="SUCCESS"), 2, 30)
        eventually(lambda: server.query("celery_tasks_total"), 20)
        assert worker.alive()
        yield SimpleNamespace(broker=broker, exporter=exporter, prometheus=server)


def here(command: str, cluster: SimpleNamespace) -> str:
    """Return a command with what it has in capitals, and addresses, as they are here."""
    ours = f"http://127.0.0.1:{cluster.exporter.port}"
    words = {
        "TASK_NAME": "tasks.succeed",
        "QUEUE_NAME": "celery",
        "WORKER": "w@box",
        "https://exporter.example:9808": ours,
        "http://127.0.0.1:9808": ours,
        "redis://127.0.0.1:6379/0": cluster.broker.url,
        "redis://127.0.0.1:6380/0": cluster.broker.url,
        "--seconds 60": "--seconds 1",
    }
    return re.sub("|".join(map(re.escape, words)), lambda found: words[found[0]], command)


def run(command: str, cluster: SimpleNamespace, folder: Path) -> str | None:
    """Run it; return what was wrong, or None. A command that is endless may need longer on a busy machine."""
    if not is_endless(command):
        return run_once(command, cluster, folder)
    wrong = run_once(command, cluster, folder, ENOUGH)
    return wrong and run_once(command, cluster, folder, BUSY_FACTOR * ENOUGH)


def run_once(command: str, cluster: SimpleNamespace, folder: Path, seconds: int | None = None) -> str | None:
    """Run it, for so many seconds at most; its code is that of the first program of a pipe."""
    environment = clean_environment(
        {
            "PATH": f"{strict_curl(folder)}:{Path(sys.executable).parent}:{os.environ['PATH']}",
            "PYTHONPATH": str(TESTS),
            BROKER_URL: cluster.broker.url,
            "CELERY_BROKER_URL": cluster.broker.url,
            "CELERY_EXPORTER_PORT": str(cluster.exporter.port if is_of_another(command) else free_port()),
            "APP": "harness.tasks",
            "BROKER": cluster.broker.url,
            "EXPORTER": f"http://127.0.0.1:{cluster.exporter.port}",
            "PROMETHEUS": f"http://127.0.0.1:{cluster.prometheus.port}",
        }
    )
    text = here(command, cluster)
    bounded = f"timeout --preserve-status --signal INT {seconds} {text}" if seconds else text
    done = subprocess.run(
        ["bash", "-c", f"{bounded}; exit ${{PIPESTATUS[0]}}"],
        cwd=folder,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    codes = next((codes for begin, codes in CODES.items() if command.startswith(begin)), {0})
    well = done.returncode in codes and "Traceback" not in done.stderr and (done.stdout or done.stderr)
    quiet = " | grep " in command  # what is looked for may not be there
    if well or (quiet and done.returncode in codes and not done.stderr):
        return None
    return f"{text}: {done.returncode}\n{done.stdout[-500:]}{done.stderr[-500:]}"


def strict_curl(folder: Path) -> Path:
    """Return a folder with a curl that ends with an error where the server answers with one."""
    path = folder / "strict" / "curl"
    if not path.exists():
        path.parent.mkdir(exist_ok=True)
        made = path.with_name(f"curl.{threading.get_ident()}")
        made.write_text(f'#!/bin/sh\nexec {need("curl")} --fail-with-body "$@"\n')
        made.chmod(0o755)
        made.rename(path)
    return path.parent


def looked_for(command: str) -> Iterator[str]:
    """Yield each beginning of a metric's name that it greps for; with a brace where a name is whole."""
    asked, found, rest = command.partition("/metrics | grep ")
    if not found or not asked.startswith("curl "):
        return
    patterns = [next(word for word in shlex.split(rest) if not word.startswith("-")).replace("\\{", "{")]
    while patterns:
        pattern = patterns.pop()
        group = re.search(r"\(([^()]*)\)", pattern)
        if group:
            begin, end = pattern[: group.start()], pattern[group.end() :]
            patterns += [begin + each + end for each in group[1].split("|")]
        else:
            yield re.match(r"\^?(\w*\{?)", pattern)[1]


def unknown(command: str, names: set[str]) -> list[str]:
    """Return what it looks for among metrics and no metric is called."""
    lines = [name + "{" for name in names]
    return [begin for begin in looked_for(command) if not any(line.startswith(begin) for line in lines)]


def is_of_another(command: str) -> bool:
    """Tell whether it asks an exporter that runs, or is none."""
    return program(command) != "celery-exporter" or " top" in command


def is_endless(command: str) -> bool:
    """Tell whether it runs until somebody ends it."""
    words = command.split()
    serves = words[0] == "celery-exporter" and (len(words) == 1 or words[1] == "--broker-url")
    return (serves and command != CLASH) or command.endswith("events --dump")


@pytest.mark.parametrize("page", PAGES)
def test_the_commands_of_a_page_do_what_they_are_for(page, cluster, tmp_path):
    for name in RUN:
        need(name)
    mine = PAGES[page]
    # In order where one makes what the next one reads; celery takes its time to start.
    with ThreadPoolExecutor(1 if any("events.gz" in each for each in mine) else 2) as pool:
        wrong = list(filter(None, pool.map(lambda each: run(each, cluster, tmp_path), mine)))
    assert wrong == []


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
    asked = [command for command in pages if [*looked_for(command)]]
    assert len(asked) > 10
    assert {command: wrong for command in asked if (wrong := unknown(command, names))} == {}
    for pattern in ("^celery_broker_upp", "-E '^celery_(broker_upp|tasks)'", "'^celery_task{.*STARTED'"):
        assert unknown(f"curl -s $EXPORTER/metrics | grep {pattern}", names), pattern
    alternatives = "curl -s $EXPORTER/metrics | grep -E '^celery_(broker_up|exporter_(series|nosuch))'"
    assert unknown(alternatives, names) == ["celery_exporter_nosuch"]


def test_every_command_is_run_somewhere():
    pages = {block.page for block in BLOCKS if block.language == "console"}
    assert pages > TESTED_ELSEWHERE.keys()
    programs = {program(each) for page in pages - TESTED_ELSEWHERE.keys() for each in commands(page)}
    assert programs <= {*RUN, "celery-exporter", *ELSEWHERE}
