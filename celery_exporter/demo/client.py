"""The demo's client: `python -m celery_exporter.demo.client [--with-problems]`.

It sends about 25 tasks a second until SIGTERM.
"""

from __future__ import annotations

import random
import signal
import sys
import time
from datetime import UTC, datetime, timedelta
from itertools import cycle
from typing import TYPE_CHECKING, Any

from celery_exporter.demo import Stop
from celery_exporter.demo.tasks import FAILURES, MAX_RETRIES, app, outcome_store

if TYPE_CHECKING:
    from collections.abc import Callable

#: The argument with which too many tasks fail and are retried.
WITH_PROBLEMS = "--with-problems"
#: Seconds after each send: a burst that is faster than the workers, then a slow phase in which they catch up.
PAUSES_SECONDS = [0.0] * 150 + [0.08] * 110

rng = random.Random()  # noqa: S311  it needs no security


def send(queue: str, name: str, *args: Any, **options: Any) -> str:
    """Send a task and return its id.

    It is counted first: a task that ends before it is counted would hide another unfinished one.
    """
    outcome_store().add_sent()
    return str(app.send_task(name, args, queue=queue, **options).id)


def soon() -> datetime:
    """Return a random time within the next two seconds."""
    return datetime.now(UTC) + timedelta(seconds=rng.uniform(0.5, 2))


def send_retried(*retries: int) -> str:
    """Send a task that is retried a random one of these numbers of times."""
    return send("emails", "mail.sync_contacts", rng.choice(retries))


#: Task → its shares of all tasks, without and with problems. With problems, the alerts CeleryHighFailureRate
#: and CeleryHighRetryRate fire.
SHARES: dict[Callable[[], object], tuple[int, int]] = {
    lambda: send("emails", "mail.send", rng.uniform(0.05, 0.25), priority=rng.choice((0, 3, 6, 9))): (
        44,
        35,
    ),
    lambda: send("emails", "mail.send", 0.01, rng.choice(list(FAILURES))): (2, 16),
    lambda: send("emails", "mail.send", 0.02, countdown=rng.uniform(0.5, 2)): (4, 4),
    lambda: send_retried(0, 0, 1, 2): (2, 0),
    lambda: send_retried(0, 1, 2): (0, 12),
    lambda: send_retried(MAX_RETRIES + 1): (1, 1),  # fails
    lambda: send("reports", "report.build", rng.randint(1, 12)): (23, 19),
    lambda: send("reports", "report.build", rng.randint(14, 20)): (1, 8),  # fails
    lambda: send("reports", "report.build", 3, eta=soon()): (4, 4),
    lambda: send(rng.choice(("emails", "reports")), "audit.log"): (12, 12),
    lambda: app.control.revoke(send("emails", "mail.send", 0.02, countdown=1.5)): (3, 3),
    lambda: send("reports", "report.build", 1, expires=0): (2, 2),  # revoked instead of received
    lambda: send("reports", "report.build", 1, countdown=1, expires=0.5): (2, 2),  # revoked while waiting
}


def main(argv: list[str]) -> None:
    """Send tasks until SIGTERM.

    It stops between two sends. A task whose `task-sent` event was not published would have an unknown queue.
    """
    stop = Stop(signal.SIGTERM)
    shares = [pair[WITH_PROBLEMS in argv] for pair in SHARES.values()]
    for pause in cycle(PAUSES_SECONDS):
        if stop.requested:
            return
        rng.choices(list(SHARES), shares)[0]()
        time.sleep(pause)


if __name__ == "__main__":
    main(sys.argv[1:])
