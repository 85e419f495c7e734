"""Who leaves danihodovic's exporter for ours: the same numbers, the same options.

The numbers are those that contracts/record_danihodovic.py recorded of the original, 0.11.2.
"""

from __future__ import annotations

import re

import pytest
from contracts.record_danihodovic import CASES, HERE, STREAM, bodies, samples
from test_tapes import replay

from celery_exporter.exposition import Exposition
from celery_exporter.profiles import Shape
from celery_exporter.profiles.catalogue import select

#: What the original does not take from events, or not yet, and what is our own.
OURS = re.compile(r"celery_(queue_length|active_|task_queue_wait_time|exporter_)|process_")
#: A task that nobody sent: the workers of a replay say that they know it.
REGISTERED = 'name="tasks.idle"'

SHAPES = {
    "danihodovic": Shape(),
    "danihodovic-generic-sent": Shape(generic_sent=True),
    "danihodovic-buckets": Shape(buckets=(0.25, 1.0, 30.0)),
    "danihodovic-unsent": Shape(default_queue_name="celery"),
}


@pytest.mark.parametrize("case", CASES)
def test_a_stream_is_shown_as_by_the_original_sample_by_sample(case):
    selection = select(("danihodovic",), SHAPES[case])
    snapshot = replay(bodies(STREAM, sendings=CASES[case][1]), selection)
    page = samples(Exposition(selection.rows).render(snapshot).decode()).splitlines()
    shown = [line for line in page if not OURS.match(line) and REGISTERED not in line]
    assert shown == (HERE / f"{case}.txt").read_text().splitlines()
