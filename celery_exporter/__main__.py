"""The entry point: `celery-exporter` and `python -m celery_exporter`."""

from __future__ import annotations

import os
import signal
import sys

from celery_exporter.runtime.signals import ending


def main() -> None:
    """Run the command line and end the process with its exit code.

    The signals that end the exporter are blocked before anything slow is imported, so that an early one
    waits until `serve` looks for it; as PID 1 it would be lost otherwise. Commands that want the usual
    handlers unblock them.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, ending())
    from celery_exporter.cli.main import run  # noqa: PLC0415

    code = run()
    sys.stdout.flush()
    sys.stderr.flush()
    # Not sys.exit: the interpreter would wait for a page that is being made for a client that does not read.
    os._exit(code)


if __name__ == "__main__":
    main()
