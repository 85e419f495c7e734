"""A whole Celery cluster on one machine, to see the exporter at work: `celery-exporter demo`.

`show` is its course, `stage` runs the parts as processes, `tasks` is what the workers do, `client` what they
are asked, `ledger` the truth as the tasks tell it. Nothing here knows the exporter's insides.
"""

from __future__ import annotations

import signal


class Stop:
    """A signal handler. Only a flag: an exception could come between a process's start and its listing."""

    asked = False

    def __init__(self, *signals: signal.Signals) -> None:
        for number in signals:
            signal.signal(number, self)

    def __call__(self, *_: object) -> None:
        """Take note."""
        self.asked = True


def run(port: int, seconds: float | None, *, with_problems: bool = False) -> int:
    """Play it on that port until Ctrl-C, or for about so many seconds, and then check; the exit code.

    All is well there, or more tasks fail and are retried than should.
    """
    stop = Stop(signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    # Here, as it takes half a second, in which Ctrl-C is already clean; workers import this package too.
    from celery_exporter.demo.runner import show  # noqa: PLC0415

    return show(port, seconds, stop, *(["--with-problems"] if with_problems else []))
