"""The demo's client: `python -m celery_exporter.demo.client [--with-problems]` sends tasks until SIGTERM.

About 25 a second.
"""

from __future__ import annotations

import random
import signal
import sys
import time
from datetime import datetime, timedelta, timezone
from itertools import cycle
from typing import TYPE_CHECKING, Any

from celery_exporter.demo import Stop
from celery_exporter.demo.tasks import FAILURES, app, ledger

if TYPE_CHECKING:
    from collections.abc import Callable

#: The argument with which more tasks fail and are retried than should.
WITH_PROBLEMS = "--with-problems"
# Seconds after each send: a burst that outruns the workers, then a trickle in which they catch up.
PAUSES = [0.0] * 150 + [0.08] * 110

dice = random.Random()  # noqa: S311  a demo, not a lottery


def send(queue: str, name: str, *args: Any, **options: Any) -> str:
    """Counted first: a task that runs before it is counted would make the others look finished."""
    ledger().add_sent()
    return str(app.send_task(name, args, queue=queue, **options).id)


def soon() -> datetime:
    """A time in the next two seconds."""
    return datetime.now(timezone.utc) + timedelta(seconds=dice.uniform(0.5, 2))


def synced(*retries: int) -> str:
    """Send a task that is retried so often: one of these."""
    return send("emails", "mail.sync_contacts", dice.choice(retries))


# What to send → how often, in shares: of a cluster that is well, and of one that CeleryHighFailureRate and
# CeleryHighRetryRate are about.
MENU: dict[Callable[[], object], tuple[int, int]] = {
    lambda: send("emails", "mail.send", dice.uniform(0.05, 0.25), priority=dice.choice((0, 3, 6, 9))): (
        44,
        35,
    ),
    lambda: send("emails", "mail.send", 0.01, dice.choice(list(FAILURES))): (2, 16),
    lambda: send("emails", "mail.send", 0.02, countdown=dice.uniform(0.5, 2)): (4, 4),
    lambda: synced(0, 0, 1, 2): (4, 0),
    lambda: synced(0, 1, 2): (0, 12),
    lambda: send("reports", "report.build", dice.randint(1, 12)): (22, 20),
    lambda: send("reports", "report.build", dice.randint(14, 20)): (1, 8),  # fails
    lambda: send("reports", "report.build", 3, eta=soon()): (4, 4),
    lambda: send(dice.choice(("emails", "reports")), "audit.log"): (12, 12),
    lambda: app.control.revoke(send("emails", "mail.send", 0.02, countdown=1.5)): (3, 3),
    lambda: send("reports", "report.build", 1, expires=0): (2, 2),  # revoked instead of received
    lambda: send("reports", "report.build", 1, countdown=1, expires=0.5): (2, 2),  # revoked while it waits
}


def main(argv: list[str]) -> None:
    """Stop between two sends: a task whose `task-sent` was cut off would have no queue to be booked under."""
    stop = Stop(signal.SIGTERM)
    shares = [both[WITH_PROBLEMS in argv] for both in MENU.values()]
    for pause in cycle(PAUSES):
        if stop.asked:
            return
        dice.choices(list(MENU), shares)[0]()
        time.sleep(pause)


if __name__ == "__main__":
    main(sys.argv[1:])
