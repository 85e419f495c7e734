"""The demo's client: `python -m celery_exporter.demo.client` sends tasks until SIGTERM, about 25 a second."""

from __future__ import annotations

import random
import signal
import time
from datetime import datetime, timedelta, timezone
from itertools import cycle
from typing import TYPE_CHECKING, Any

from celery_exporter.demo import Stop
from celery_exporter.demo.tasks import FAILURES, app, ledger

if TYPE_CHECKING:
    from collections.abc import Callable

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


MENU: dict[Callable[[], object], int] = {  # what to send → how often, in hundredths
    lambda: send("emails", "mail.send", dice.uniform(0.05, 0.25), priority=dice.choice((0, 3, 6, 9))): 35,
    lambda: send("emails", "mail.send", 0.01, dice.choice(list(FAILURES))): 7,
    lambda: send("emails", "mail.send", 0.02, countdown=dice.uniform(0.5, 2)): 4,
    lambda: send("emails", "mail.sync_contacts", dice.choice((0, 1, 2))): 8,
    lambda: send("reports", "report.build", dice.randint(1, 12)): 20,
    lambda: send("reports", "report.build", dice.randint(14, 20)): 3,  # fails
    lambda: send("reports", "report.build", 3, eta=soon()): 4,
    lambda: send(dice.choice(("emails", "reports")), "audit.log"): 12,
    lambda: app.control.revoke(send("emails", "mail.send", 0.02, countdown=1.5)): 3,
    lambda: send("reports", "report.build", 1, expires=0): 2,  # revoked instead of received
    lambda: send("reports", "report.build", 1, countdown=1, expires=0.5): 2,  # revoked while it waits
}


def main() -> None:
    """Stop between two sends: a task whose `task-sent` was cut off would have no queue to be booked under."""
    stop = Stop(signal.SIGTERM)
    for pause in cycle(PAUSES):
        if stop.asked:
            return
        dice.choices(list(MENU), list(MENU.values()))[0]()
        time.sleep(pause)


if __name__ == "__main__":
    main()
