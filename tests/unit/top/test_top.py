"""The command `top` without a terminal: the text, errors, exit codes."""

from __future__ import annotations

import msgspec
import pytest
from harness.example_status import STATUS
from harness.exporter import run_cli
from harness.http_stub import answering
from harness.processes import free_port

from celery_exporter.top.view import plain


def test_without_a_terminal_the_status_is_printed_once():
    with answering(200, msgspec.json.encode(STATUS)) as place:
        done = run_cli("top", "--url", f"http://{place}")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == plain(STATUS) + "\n"


def test_without_a_terminal_textual_is_not_needed(tmp_path):
    """As in the container image, which has no extras."""
    for module in ("textual", "rich"):
        (tmp_path / f"{module}.py").write_text("raise ModuleNotFoundError")
    with answering(200, msgspec.json.encode(STATUS)) as place:
        done = run_cli("top", "--url", f"http://{place}", environment={"PYTHONPATH": str(tmp_path)})
    assert (done.returncode, done.stderr) == (0, "")


def test_an_exporter_that_does_not_run_is_one_line_on_stderr():
    done = run_cli("top", environment={"CELERY_EXPORTER_URL": f"http://me:s3cret@127.0.0.1:{free_port()}"})
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.count("\n") == 1
    assert "connection refused" in done.stderr
    assert "s3cret" not in done.stderr


def test_by_default_the_exporter_of_this_machine_is_read():
    port = free_port()
    done = run_cli("top", environment={"PROMETHEUS_PORT": str(port)})
    assert f"http://127.0.0.1:{port}/api/v1/status: connection refused" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--url", "http://s3cret:x@h", "--broker-url", "redis://h"], "--broker-url"),
        (["--url", "nosuch"], "--url"),
        (["--broker-url", "nosuch://h"], "--broker-url"),
    ],
)
def test_an_invalid_option_is_one_line_on_stderr(arguments, text):
    done = run_cli("top", *arguments)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert text in done.stderr
    assert "s3cret" not in done.stderr
