"""For how many usual records a record counts in a buffer."""

from __future__ import annotations

import sys
import tracemalloc

import pytest
from msgspec.structs import replace

from celery_exporter.core.records import Arguments, MeasuredRecord, Measurements, Record
from celery_exporter.core.types import State
from celery_exporter.sinks.base import RECORD_BYTES, weight

USUAL = Record("u1", "u1", None, "add", "q", "w@h", None, 0, 0, State.STARTED, 1.7e9)
LONG = Measurements(
    {f"{n:0>255}": "é" * 255 for n in range(20)}, {f"{n:0>255}": "ж" * 255 for n in range(50)}
)


def test_a_usual_record_counts_as_one():
    assert weight([USUAL, USUAL]) == 2


@pytest.mark.parametrize(
    "record",
    [
        MeasuredRecord("u1", None, "add", "w@h", 1.7e9, LONG),
        replace(USUAL, measurements=LONG),
        replace(USUAL, arguments=Arguments("ж" * 4_096, "x" * 4_096, None)),
    ],
)
def test_long_texts_count_by_their_bytes(record):
    texts = (
        [*LONG.tags, *LONG.tags.values(), *LONG.fields, *LONG.fields.values()]
        if not isinstance(record, Record) or record.measurements is LONG
        else [record.arguments.args, record.arguments.kwargs]
    )
    assert weight([record]) >= sum(map(sys.getsizeof, texts)) / RECORD_BYTES


def test_a_usual_record_takes_no_more_memory_than_assumed():
    tracemalloc.start()
    try:
        records = [
            replace(
                USUAL,
                uuid=f"{number:036}",
                root=f"{-number:036}",
                parent=f"{number:037}",
                timestamp=number + 0.1,
                first_sent=number + 0.2,
                sent=number + 0.3,
                received=number + 0.4,
                started=number + 0.5,
                queue_wait=number + 0.6,
                prefetch_wait=number + 0.7,
                runtime=number + 0.8,
            )
            for number in range(1_000)
        ]
        used, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert used / len(records) <= RECORD_BYTES * 1.1
