"""The tutorial does what it says: its commands are run, in their order, on a real Redis."""

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
    """Yield each command of the page with what it prints."""
    for block in blocks(PAGE):
        if block.language == "console":
            for part in block.text.removeprefix("$ ").split("\n$ "):
                command, _, printed = part.partition("\n")
                yield command, printed.strip()


@pytest.fixture
def here(broker, tmp_path):
    """Return what the page's addresses are here, and what it runs in."""
    port = str(free_port())
    (program,) = [block.text for block in blocks(PAGE) if block.language == "python"]
    (tmp_path / "tasks.py").write_text(program.replace("redis://127.0.0.1:6379/0", broker.url))
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = clean_environment({"PATH": path, "CELERY_EXPORTER_PORT": port})

    def run(command: str, start=subprocess.run, **options):
        command = command.replace("redis://127.0.0.1:6379/0", broker.url).replace(":9808/", f":{port}/")
        return start(["bash", "-c", command], cwd=tmp_path, env=environment, text=True, **options)

    return run


def ended(process: subprocess.Popen[str]) -> None:
    process.terminate()
    process.wait()


@on_redis
def test_the_page_does_what_it_says(here):
    with ExitStack() as stack:
        for command, printed in commands():
            if command.endswith(" &"):
                process = here(f"exec {command.removesuffix(' &')}", subprocess.Popen)
                stack.callback(ended, process)
            elif printed:
                eventually(
                    lambda: here(command, capture_output=True).stdout.strip() == printed,  # noqa: B023
                    30,
                    what=f"{command} prints what the page says",
                )
            else:
                here(command, check=True)
