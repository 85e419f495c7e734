"""The entry point: `celery-exporter` and `python -m celery_exporter`."""

from __future__ import annotations

import os
import signal
import sys
from contextlib import suppress

from celery_exporter.runtime.signals import stop_signals


def main() -> None:
    """Run the command line and end the process with its exit code.

    The stop signals are blocked before the slow imports. So an early one stays pending until `serve` waits
    for it; PID 1 would ignore it otherwise. Commands that use the default handlers unblock them.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, stop_signals())
    from celery_exporter.cli.main import run  # noqa: PLC0415

    code = run()
    with suppress(OSError, AttributeError):  # stderr may be full or closed
        sys.stderr.flush()
    # Not sys.exit: the interpreter would wait for threads that render pages.
    os._exit(code)


if __name__ == "__main__":
    main()
