"""What a ledger can be told, as values: one for each of its doors."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from operator import methodcaller

from celery_exporter.core.aggregates import Aggregates, Failure
from celery_exporter.core.types import LabelSet

Booking = Callable[[Aggregates], None]

Moved = partial(methodcaller, "count_transition")
SentBy = partial(methodcaller, "count_sender")


def Raised(key: LabelSet, exception: str, uuid: str = "u1") -> Booking:  # noqa: N802  as the others
    return methodcaller("count_failure", Failure(1.0, key, "w@h", exception, uuid))


Ran = partial(methodcaller, "observe_runtime")
Queued = partial(methodcaller, "observe_queue_wait")
Prefetched = partial(methodcaller, "observe_prefetch_wait")
Redelivered = partial(methodcaller, "count_redelivery")
Folded = partial(methodcaller, "merge")


def book(ledger: Aggregates, bookings: Iterable[Booking]) -> None:
    for each in bookings:
        each(ledger)
