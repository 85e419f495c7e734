"""The files of each tutorial are written, and its commands run in order on a real Redis, with its output."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest
from harness.broker_marks import on_redis
from harness.exporter import clean_environment
from harness.processes import ROOT, free_port, need
from harness.waiting import eventually

from documentation.test_docs import Block, blocks

TUTORIALS = sorted((ROOT / "docs/tutorials").glob("*.md"))
#: A process that does not end by itself, such as a worker.
BACKGROUND = " &"
#: Ends a job of the background, by its number in an interactive shell.
END_OF_JOB = re.compile(r"kill %(\d); wait %\1")


class Reader:
    """Does what a page says, in an empty folder, with the addresses of the test."""

    def __init__(self, folder: Path, broker_url: str, stack: ExitStack) -> None:
        self.folder = folder
        self.stack = stack
        self.jobs: list[subprocess.Popen[str]] = []
        exporter_port = str(free_port())
        self.addresses = {
            "redis://127.0.0.1:6379/0": broker_url,
            "127.0.0.1:9808": f"127.0.0.1:{exporter_port}",
            "127.0.0.1:9090": f"127.0.0.1:{free_port()}",
            "@HOST": f"@{socket.gethostname()}",
        }
        path = f"{Path(sys.executable).parent}:{Path(need('prometheus')).parent}:{os.environ['PATH']}"
        self.environment = clean_environment({"PATH": path, "CELERY_EXPORTER_PORT": exporter_port})

    def execute(self, block: Block) -> None:
        if block.title:
            with (self.folder / block.title).open("a") as file:
                file.write(self.with_addresses(block.text))
        elif block.language == "console":
            for part in block.text.removeprefix("$ ").split("\n$ "):
                command, _, output = part.partition("\n")
                self.run(command, output.strip())

    def run(self, command: str, output: str) -> None:
        """Run a command: in the background, until it prints this output, or once."""
        if command.endswith(BACKGROUND):
            job = self.start(f"exec {command.removesuffix(BACKGROUND)}", subprocess.Popen)
            self.stack.callback(stop, job)
            self.jobs.append(job)
        elif job_number := END_OF_JOB.fullmatch(command):
            stop(self.jobs[int(job_number[1]) - 1])
        elif output:
            shown = self.with_addresses(output)
            eventually(
                lambda: self.start(command, capture_output=True).stdout.strip() == shown,
                30,
                what=f"the output of {command} is that of the page",
            )
        else:
            self.start(command, check=True)

    def start(self, command: str, how=subprocess.run, **options):
        command = self.with_addresses(command)
        return how(["bash", "-c", command], cwd=self.folder, env=self.environment, text=True, **options)

    def with_addresses(self, text: str) -> str:
        for of_the_page, of_the_test in self.addresses.items():
            text = text.replace(of_the_page, of_the_test)
        return text


def stop(process: subprocess.Popen[str]) -> None:
    """Stop a process, and wait for its end."""
    process.terminate()
    process.wait()


@on_redis
@pytest.mark.parametrize("page", TUTORIALS, ids=lambda page: page.stem)
def test_a_reader_sees_what_the_page_shows(page, broker, tmp_path):
    with ExitStack() as stack:
        reader = Reader(tmp_path, broker.url, stack)
        for block in blocks(page):
            reader.execute(block)
