"""Exit codes, signals and output that the commands share."""

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
from celery_exporter.runtime.signals import stop_signals

EXIT_FAILED, EXIT_USAGE = 1, 2
#: The exit code that a shell reports after Ctrl-C: 128 + SIGINT.
EXIT_INTERRUPTED = 130


def unblock_signals() -> None:
    """Let Ctrl-C and SIGTERM end this command at once, until it sets its own handlers."""
    signal.signal(signal.SIGINT, _exit_interrupted)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, stop_signals())


def _exit_interrupted(*_: object) -> None:
    # Not by KeyboardInterrupt: Python ignores exceptions in finalizers, and each import runs several.
    with suppress(OSError, RuntimeError):  # a closed pipe; a line that is being written
        sys.stdout.flush()
    os._exit(EXIT_INTERRUPTED)


def stop_condition(seconds: float | None) -> Callable[[], bool]:
    """Return a function that returns whether to stop: after SIGTERM or SIGINT, or after these seconds.

    It replaces the handlers of both signals.
    """
    received: list[int] = []
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, _: received.append(number))
    deadline = math.inf if seconds is None else time.monotonic() + seconds
    return lambda: bool(received) or time.monotonic() > deadline


def print_progress(line: str) -> None:
    """Print a line about the progress of a command to stderr."""
    click.echo(printable(line), err=True)


def fail(message: str, code: int) -> int:
    """Print an error as one line to stderr; return the exit code."""
    click.echo(f"celery-exporter: {printable(message)}", err=True)
    return code
