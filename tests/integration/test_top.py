"""`celery-exporter top` in a real terminal, with a real exporter and a real broker."""

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

NODE = "seen@top"
HOSTILE = "\x1b]0;pwned\x07[red]evil\x1b[2J"


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
    def make(*arguments: str, **options) -> Terminal:
        return running(Terminal(tmp_path / "terminal", "top", *arguments, **options))

    return make


def assert_quits(shown: Terminal) -> None:
    assert shown.wait() == 0
    eventually(shown.is_restored)


def test_a_running_exporter_is_shown(app, terminal):
    """Its port is in the environment, as on the host of the exporter."""
    shown = terminal(environment={"CELERY_EXPORTER_PORT": str(app.port)}).shows(NODE)
    shown.resize(150, 40)
    shown.shows("Task events")
    app.stop()
    shown.shows("not updated since")
    shown.shows("connection refused")
    shown.press("q")
    assert_quits(shown)


def test_a_broker_is_shown_without_an_exporter(terminal, cluster):
    """No name of a task controls the terminal."""
    shown = terminal("--broker-url", cluster).shows(NODE)
    with workers.client(cluster) as client:

        def is_shown() -> bool:
            client.send_task(HOSTILE, queue="elsewhere")
            return "[red]evil" in shown.written()

        eventually(is_shown, 20, every=1.0)
    assert b"pwned\x07" not in shown.raw
    assert b"\x1b]0;pwned" not in shown.raw
    shown.press("\x03")
    assert_quits(shown)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP], ids=lambda each: each.name)
def test_a_signal_leaves_the_terminal_as_it_was(terminal, number):
    shown = terminal("--url", f"http://127.0.0.1:{free_port()}").shows("connection refused")
    assert shown.stop(number) == 0
    eventually(shown.is_restored)


def test_q_does_not_wait_for_an_answer(terminal):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        shown = terminal("--url", f"http://127.0.0.1:{silent.getsockname()[1]}").shows("q Quit")
        shown.press("q")
        assert shown.wait() == 0
        assert shown.ending.seconds < 2, "it waited for the answer"
        eventually(shown.is_restored)


def test_a_closed_terminal_ends_it(terminal):
    shown = terminal("--url", f"http://127.0.0.1:{free_port()}").shows("connection refused")
    shown.close()
    shown.wait()


def test_no_color_is_respected(terminal, app):
    """By default the terminal's own ones."""
    coloured = re.compile(rb"\x1b\[(?:\d+;)*(?:3[0-8]|4[0-8]|9[0-7])(?:;\d+)*m")
    url = f"http://127.0.0.1:{app.port}"
    for environment, expected in (({}, True), ({"NO_COLOR": "1"}, False)):
        shown = terminal("--url", url, environment=environment).shows(NODE)
        assert bool(coloured.search(shown.raw)) is expected
        shown.press("q")
        assert_quits(shown)


def test_without_the_extra_a_line_says_what_to_install(terminal, tmp_path):
    missing = "raise ModuleNotFoundError(\"No module named 'textual'\", name='textual')"
    (tmp_path / "textual.py").write_text(missing)
    shown = terminal(environment={"PYTHONPATH": f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}"})
    assert shown.wait() == 1
    shown.shows("pip install 'celery-event-exporter[top]'")
    assert shown.written().count("\n") == 1


def test_without_a_terminal_a_broker_is_printed_once_or_its_error(cluster):
    """Both at a time, for each listens for a while."""
    nobody = f"redis://:s3cret@127.0.0.1:{free_port()}/0"
    with ThreadPoolExecutor(2) as pool:
        done, failed = pool.map(
            lambda url: run_cli("top", "--broker-url", url, deadline=30), [cluster, nobody]
        )
    assert done.returncode == 0
    assert done.stderr == f"top: listening to {cluster} for 6 s, for a heartbeat of each worker\n"
    assert NODE in done.stdout
    assert "\x1b" not in done.stdout
    assert (failed.returncode, failed.stdout) == (1, "")
    assert "listening to redis://:***@127.0.0.1" in failed.stderr
    assert failed.stderr.count("\n") == 2
    assert "s3cret" not in failed.stderr


def test_a_long_wait_is_announced_on_stderr():
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        done = run_cli("top", "--url", url, deadline=30)
    waits, why = done.stderr.splitlines()
    assert waits == f"top: waiting for {url}/api/v1/status"
    assert why.startswith(f"top: {url}/api/v1/status: no answer in 5 s")
