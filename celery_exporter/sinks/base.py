"""What every sink does: encode records as one payload, and send it. `Pusher` decides when."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

from msgspec import Struct
from msgspec.structs import asdict

from celery_exporter.core.measurements import memory_of
from celery_exporter.core.records import (
    NO_ARGUMENTS,
    NO_MEASUREMENTS,
    MeasuredRecord,
    Measurements,
    Record,
)
from celery_exporter.core.types import State

#: The label value of records that a sink has taken; the others say why a record was dropped.
DELIVERED = "delivered"
#: The buffer was full, and this record was the oldest.
BUFFER_FULL = "buffer_full"
#: The receiver does not accept the record, and never will: a 4xx, or a point outside of its retention.
REJECTED = "rejected"
#: The payload of this record alone is larger than the receiver takes.
TOO_LARGE = "too_large"
#: The file cannot be written, most likely because its disk is full.
NOT_WRITTEN = "not_written"
#: The sink raised, which would be a fault of ours; the log has the traceback.
FAULT = "fault"
#: The exporter stopped before the receiver took the record.
SHUTDOWN = "shutdown"
#: The record has no field that the sink could write.
INCOMPLETE = "incomplete"
#: Outcomes of records that should have been delivered.
LOST = (BUFFER_FULL, REJECTED, TOO_LARGE, NOT_WRITTEN, FAULT, SHUTDOWN)
OUTCOMES = (DELIVERED, *LOST, INCOMPLETE)


#: Bytes of a usual record in a buffer: 500 for itself and its numbers, and its ids.
RECORD_BYTES = 600


def weight(records: Sequence[Any]) -> int:
    """Return for how many usual records these count: arguments and measurements may be long."""
    large = [
        record
        for record in records
        if type(record) is not Record
        or record.arguments is not NO_ARGUMENTS
        or record.measurements is not NO_MEASUREMENTS
    ]
    if not large:  # the usual case
        return len(records)
    return len(records) + sum(_large_bytes(record) // RECORD_BYTES for record in large)


def _large_bytes(record: Any) -> int:
    if type(record) is Record:
        return memory_of(asdict(record.arguments)) + _memory_of(record.measurements)
    return _memory_of(record.measurements) if type(record) is MeasuredRecord else 0


def _memory_of(measurements: Measurements) -> int:
    return memory_of(measurements.tags) + memory_of(measurements.fields)


class Payload(Struct, frozen=True):
    """Records as the receiver reads them; `left_out` counts those that are not in the body, by outcome."""

    body: bytes
    left_out: Mapping[str, int] = {}


class TemporaryError(Exception):
    """The receiver did not take the payload, and may take it later; the text is one line without secrets.

    `retry_after` is how many seconds the receiver asks to wait, None if it does not say.
    """

    def __init__(self, text: str, retry_after: float | None = None) -> None:
        super().__init__(text)
        self.retry_after = retry_after


class PermanentError(Exception):
    """The receiver will never take some of the payload; the text is one line without secrets.

    `outcome` is that of the records that are lost, and `count` how many these are; None for all.
    """

    def __init__(self, text: str, outcome: str = REJECTED, count: int | None = None) -> None:
        super().__init__(text)
        self.outcome = outcome
        self.count = count


class Sink(Protocol):
    """One receiver of records. All methods but `select` are called by the thread of one `Pusher`."""

    #: The value of the label `sink`.
    name: str
    #: Where it writes to, without secrets, for people.
    address: str
    #: Bytes of a body above which the records are divided between several payloads.
    max_body_bytes: int
    #: Seconds in which so many bytes are sent at most, in one body or several; 0 for as fast as possible.
    min_interval: float

    #: The states of the transitions that it writes. A sink may also have `takes_requests`, true if it writes
    #: requests to this exporter, and `reopen`, which opens its file again.
    states: tuple[State, ...]

    def select(self, records: Iterable[Any]) -> list[Any]:
        """Return the records that the sink writes; the others are not counted."""

    def encode(self, records: Sequence[Any]) -> Payload:
        """Return the payload of these records."""

    def send(self, body: bytes, timeout: float) -> None:
        """Send a body within some seconds; raise TemporaryError or PermanentError if it is not taken."""

    def probe(self, timeout: float) -> None:
        """Ask the receiver whether it would take records, without writing any; raise as `send` does."""

    def close(self) -> None:
        """Close connections and files."""
