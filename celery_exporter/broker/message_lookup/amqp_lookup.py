"""What RabbitMQ shows of queues. AMQP cannot read a message without taking it, so its place is unknown.

`basic.get` with a later requeue would move the message, and count as a redelivery of it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import kombu

from celery_exporter.broker.message_lookup.base import MAX_QUEUES, Budget
from celery_exporter.broker.queues.passive_declare import PassiveDeclareReader
from celery_exporter.core.message_location import MessageLocation, QueueLook
from celery_exporter.core.queues import Absence
from celery_exporter.core.snapshot import QueueStats

#: The queues of native delayed delivery, in which a message with an eta waits for a part of the time each
#: (kombu/transport/native_delayed_delivery.py). A worker declares all of them or none.
DELAYED_QUEUES = tuple(f"celery_delayed_{level}" for level in range(27, -1, -1))
NOT_READABLE = "RabbitMQ does not show which messages are in a queue without taking them from it"


class AmqpMessageLookup:
    """See `MessageLookup`."""

    def __init__(self, connection: kombu.Connection) -> None:
        self._reader = PassiveDeclareReader(connection, counts_consumers=True)

    def look_up(
        self,
        uuid: str,  # noqa: ARG002  ids cannot be read
        queues: Sequence[str],
        others: Sequence[str] = (),  # noqa: ARG002  and so other queues show nothing of the task
    ) -> MessageLocation:
        """Return that the place is unknown, with the lengths and consumers of the queues."""
        budget = Budget.new()
        answers = self._read(queues[:MAX_QUEUES], budget)
        return MessageLocation(
            "unknown",
            queues=[_look(name, answer) for name, answer in answers.items()],
            delayed=self._count_delayed(budget),
            reason=NOT_READABLE,
        )

    def _count_delayed(self, budget: Budget) -> int | None:
        """Return how many messages wait in the queues of delayed delivery; None if that is unknown."""
        # A missing queue is an error in the log of RabbitMQ. So the others are read only if the first exists.
        answers = self._read(DELAYED_QUEUES[:1], budget)
        if all(isinstance(answer, QueueStats) for answer in answers.values()):
            answers |= self._read(DELAYED_QUEUES[1:], budget)
        lengths = [answer.length for answer in answers.values() if isinstance(answer, QueueStats)]
        return sum(lengths) if len(lengths) == len(DELAYED_QUEUES) else None

    def _read(self, queues: Iterable[str], budget: Budget) -> dict[str, QueueStats | Absence]:
        answers: dict[str, QueueStats | Absence] = {}
        for queue in queues:
            if budget.spent():
                break
            answers |= self._reader.read([queue], requested=(), consumed=())
        return answers


def _look(name: str, answer: QueueStats | Absence) -> QueueLook:
    if isinstance(answer, Absence):
        return QueueLook(name, None, is_missing=answer is Absence.MISSING)
    return QueueLook(name, answer.length, answer.consumers)
