"""`celery-exporter top` in a terminal, with an exporter and directly with a broker."""

from __future__ import annotations

import os
import re
import signal
import socket
from concurrent.futures import ThreadPoolExecutor

import pytest
from harness import workers
from harness.exporter import Exporter, run_cli
from harness.processes import free_port
from harness.terminal import Terminal
from harness.waiting import eventually
from harness.workers import Worker

NODE = "worker@top"
HOSTILE_NAME = "\x1b]0;pwned\x07[red]evil\x1b[2J"


@pytest.fixture(scope="module")
def cluster(redis_server, tmp_path_factory):
    """Return the URL of a broker with one worker."""
    url = redis_server.clean()
    with Worker(tmp_path_factory.mktemp("worker"), url, NODE, concurrency=1):
        yield url


@pytest.fixture
def app(running, tmp_path, cluster) -> Exporter:
    return running(Exporter(tmp_path / "exporter", cluster)).connected()


@pytest.fixture
def terminal(running, tmp_path):
    """`terminal(*arguments)` starts `top` in a terminal."""

    def start(*arguments: str, **options) -> Terminal:
        return running(Terminal(tmp_path / "terminal", "top", *arguments, **options))

    return start


def wait_for_exit(top: Terminal) -> None:
    """Wait until it exits with code 0, and the terminal is restored."""
    assert top.wait() == 0
    eventually(top.is_restored)


def test_top_shows_an_exporter_and_reports_its_end(app, terminal):
    """The port of the exporter is in the environment."""
    top = terminal(environment={"CELERY_EXPORTER_PORT": str(app.port)}).shows(NODE)
    top.resize(150, 40)
    top.shows("Task events")
    app.stop()
    top.shows("not updated since")
    top.shows("connection refused")
    top.press("q")
    wait_for_exit(top)


def test_top_shows_a_broker_without_an_exporter(terminal, cluster):
    """Control characters in task names do not reach the terminal."""
    top = terminal("--broker-url", cluster).shows(NODE)
    with workers.client(cluster) as client:

        def is_shown() -> bool:
            client.send_task(HOSTILE_NAME, queue="elsewhere")
            return "[red]evil" in top.written()

        eventually(is_shown, 20, every=1.0)
    assert b"pwned\x07" not in top.raw
    assert b"\x1b]0;pwned" not in top.raw
    top.press("\x03")
    wait_for_exit(top)


@pytest.mark.parametrize(
    "number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP], ids=lambda number: number.name
)
def test_a_signal_ends_top_and_restores_the_terminal(terminal, number):
    top = terminal("--url", f"http://127.0.0.1:{free_port()}").shows("connection refused")
    assert top.stop(number) == 0
    eventually(top.is_restored)


def test_q_ends_top_while_a_request_is_pending(terminal):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        top = terminal("--url", f"http://127.0.0.1:{silent.getsockname()[1]}").shows("q Quit")
        top.press("q")
        assert top.wait() == 0
        assert top.ending.seconds < 2, "the request times out after 5 s"
        eventually(top.is_restored)


def test_top_ends_when_its_terminal_is_closed(terminal):
    top = terminal("--url", f"http://127.0.0.1:{free_port()}").shows("connection refused")
    top.close()
    top.wait()


def test_no_color_disables_colors(terminal, app):
    """By default, the colors are those of the terminal."""
    color_code = re.compile(rb"\x1b\[(?:\d+;)*(?:3[0-8]|4[0-8]|9[0-7])(?:;\d+)*m")
    url = f"http://127.0.0.1:{app.port}"
    for environment, expected in (({}, True), ({"NO_COLOR": "1"}, False)):
        top = terminal("--url", url, environment=environment).shows(NODE)
        assert bool(color_code.search(top.raw)) is expected
        top.press("q")
        wait_for_exit(top)


def test_without_textual_one_line_says_what_installs_it(terminal, tmp_path):
    module = "raise ModuleNotFoundError(\"No module named 'textual'\", name='textual')"
    (tmp_path / "textual.py").write_text(module)
    top = terminal(environment={"PYTHONPATH": f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}"})
    assert top.wait() == 1
    top.shows("-m pip install 'textual>=8.0'")
    assert top.written().count("\n") == 1


def test_without_a_terminal_top_prints_one_snapshot_or_an_error(cluster):
    """Both commands run at the same time, since each listens for some seconds."""
    unreachable = f"redis://:s3cret@127.0.0.1:{free_port()}/0"
    with ThreadPoolExecutor(2) as pool:
        completed, failed = pool.map(
            lambda url: run_cli("top", "--broker-url", url, deadline=30), [cluster, unreachable]
        )
    assert completed.returncode == 0
    assert completed.stderr == f"top: listening to {cluster} for 6 s, for a heartbeat of each worker\n"
    assert NODE in completed.stdout
    assert "\x1b" not in completed.stdout
    assert (failed.returncode, failed.stdout) == (1, "")
    assert "listening to redis://:***@127.0.0.1" in failed.stderr
    assert failed.stderr.count("\n") == 2
    assert "s3cret" not in failed.stderr


def test_without_a_terminal_top_prints_what_it_waits_for():
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        completed = run_cli("top", "--url", url, deadline=30)
    waiting, error = completed.stderr.splitlines()
    assert waiting == f"top: waiting for {url}/api/v1/status"
    assert error.startswith(f"top: {url}/api/v1/status: no answer in 5 s")
