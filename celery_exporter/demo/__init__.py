"""A Celery cluster on one machine that shows the exporter in use: `celery-exporter demo`.

`runner` runs the demo and `processes` its processes. `tasks` defines the tasks of the workers, `client` sends
them, and `outcomes` counts their outcomes independently of events. The demo uses only the exporter's command
line and HTTP interface.
"""

from __future__ import annotations

import signal


class Stop:
    """A signal handler that sets a flag.

    An exception could be raised after a process is started and before it is registered.
    """

    requested = False

    def __init__(self, *signals: signal.Signals) -> None:
        for number in signals:
            signal.signal(number, self)

    def __call__(self, *_: object) -> None:
        """Set the flag."""
        self.requested = True


def run(port: int, seconds: float | None, *, with_problems: bool = False) -> int:
    """Run the demo with the exporter on this port; return the exit code.

    It runs until Ctrl-C, or for about this many seconds and then compares the metrics with the tasks' own
    counts. With `with_problems`, too many tasks fail and are retried.
    """
    stop = Stop(signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    # Imported here, after the signal handlers are set: it takes half a second. Workers import this package
    # too.
    from celery_exporter.demo.runner import run_demo  # noqa: PLC0415

    return run_demo(port, seconds, stop, *(["--with-problems"] if with_problems else []))
