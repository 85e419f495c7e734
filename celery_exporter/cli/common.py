"""What commands have in common: exit codes, signals, and lines for people."""

from __future__ import annotations

import math
import os
import signal
import sys
import time
from collections.abc import Callable
from contextlib import suppress

import click

from celery_exporter.quoting import printable
from celery_exporter.runtime.signals import ending

EXIT_FAILED, EXIT_USAGE = 1, 2
#: As a shell has it of who is ended by Ctrl-C.
EXIT_INTERRUPTED = 130


def take_signals() -> None:
    """Let Ctrl-C and SIGTERM end this command at once, until it takes them in its own way."""
    signal.signal(signal.SIGINT, _exit_interrupted)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, ending())


def _exit_interrupted(*_: object) -> None:
    # Not by KeyboardInterrupt: Python drops what is raised in a finalizer, of which each import has several.
    with suppress(OSError, RuntimeError):  # a pipe that nobody reads; a line that is just being written
        sys.stdout.flush()
    os._exit(EXIT_INTERRUPTED)


def ended_by(seconds: float | None) -> Callable[[], bool]:
    """Return what tells whether a signal to end has come, or so many seconds have passed."""
    asked: list[int] = []
    for each in (signal.SIGTERM, signal.SIGINT):
        signal.signal(each, lambda number, _: asked.append(number))
    end = math.inf if seconds is None else time.monotonic() + seconds
    return lambda: bool(asked) or time.monotonic() > end


def say(line: str) -> None:
    """Print a line about what is going on, to stderr."""
    click.echo(printable(line), err=True)


def fail(message: str, code: int) -> int:
    """Print an error in one line; return the exit code."""
    click.echo(f"celery-exporter: {printable(message)}", err=True)
    return code
