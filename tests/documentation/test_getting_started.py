"""The commands of the tutorial run in order on a real Redis, and print what the page shows."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from harness.broker_marks import on_redis
from harness.exporter import clean_environment
from harness.processes import ROOT, free_port
from harness.waiting import eventually

from documentation.test_docs import blocks

PAGE = ROOT / "docs/tutorials/getting-started.md"


def commands() -> Iterator[tuple[str, str]]:
    """Yield each command of the page with its output."""
    for block in blocks(PAGE):
        if block.language == "console":
            for part in block.text.removeprefix("$ ").split("\n$ "):
                command, _, output = part.partition("\n")
                yield command, output.strip()


@pytest.fixture
def run_command(broker, tmp_path):
    """Return a function that runs a command of the page with the addresses of the test."""
    port = str(free_port())
    (program,) = [block.text for block in blocks(PAGE) if block.language == "python"]
    (tmp_path / "tasks.py").write_text(program.replace("redis://127.0.0.1:6379/0", broker.url))
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = clean_environment({"PATH": path, "CELERY_EXPORTER_PORT": port})

    def run(command: str, start=subprocess.run, **options):
        command = command.replace("redis://127.0.0.1:6379/0", broker.url).replace(":9808/", f":{port}/")
        return start(["bash", "-c", command], cwd=tmp_path, env=environment, text=True, **options)

    return run


def stop(process: subprocess.Popen[str]) -> None:
    """Stop a process, and wait for its end."""
    process.terminate()
    process.wait()


@on_redis
def test_the_commands_of_the_page(run_command):
    with ExitStack() as stack:
        for command, output in commands():
            if command.endswith(" &"):
                process = run_command(f"exec {command.removesuffix(' &')}", subprocess.Popen)
                stack.callback(stop, process)
            elif output:
                eventually(
                    lambda: run_command(command, capture_output=True).stdout.strip() == output,  # noqa: B023
                    30,
                    what=f"the output of {command} is that of the page",
                )
            else:
                run_command(command, check=True)
