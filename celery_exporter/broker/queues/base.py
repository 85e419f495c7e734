"""The interface of queue readers.

A queue that cannot be read is an `Absence` in the result, never 0, and does not affect the other queues.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Protocol

from celery_exporter.core.queues import Absence
from celery_exporter.core.snapshot import QueueStats


class QueueReader(Protocol):
    """Reads the lengths of queues."""

    #: Whether each queue costs a round trip, and a missing one an error on the broker.
    costly: bool

    def read(
        self, queues: Iterable[str], *, requested: Collection[str], consumed: Collection[str]
    ) -> Mapping[str, QueueStats | Absence]:
        """Return the contents of these queues, or why they are unknown; a queue that was skipped is missing.

        A `requested` queue that does not exist counts as empty, so that autoscalers can scale from zero. A
        queue that a worker has `consumed` exists, even if the broker does not store empty queues.
        """

    def unacked(self) -> int | None:
        """Return the number of unacknowledged messages of all queues, None if it is unknown."""
