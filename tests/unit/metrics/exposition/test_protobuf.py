"""The protobuf page, read by a decoder that knows the wire format and the numbers of metrics.proto alone."""

from __future__ import annotations

import math
import struct
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from celery_exporter.core.histogram import ZERO_INDEX, Histogram
from celery_exporter.metrics.exposition.series_tracker import SeriesTracker
from celery_exporter.metrics.exposition.text import PROTOBUF, Exposition
from unit.metrics.exposition.test_text import AWKWARD, BOUNDS, moment, row

Fields = list[tuple[int, Any]]


def varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        value |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128:
            return value, at


def fields(data: bytes) -> Fields:
    """Return the fields of a message with their numbers."""
    found: Fields = []
    at = 0
    while at < len(data):
        tag, at = varint(data, at)
        if tag & 7 == 0:
            value, at = varint(data, at)
        elif tag & 7 == 1:
            (value,), at = struct.unpack_from("<d", data, at), at + 8
        else:
            assert tag & 7 == 2
            size, at = varint(data, at)
            value, at = data[at : at + size], at + size
            assert len(value) == size
        found.append((tag >> 3, value))
    return found


def signed(value: int) -> int:
    return (value >> 1) ^ -(value & 1)


def families(page: bytes) -> dict[str, tuple[int, list[Fields]]]:
    """Return name → type and metrics."""
    found = {}
    at = 0
    while at < len(page):
        size, at = varint(page, at)
        family = fields(page[at : at + size])
        at += size
        about = dict(each for each in family if each[0] != 4)
        found[about[1].decode()] = about[3], [fields(value) for number, value in family if number == 4]
    return found


def labels(metric: Fields) -> list[list[str]]:
    return [[text.decode() for _, text in fields(value)] for number, value in metric if number == 1]


def native(histogram: Fields) -> dict[int, int]:
    """Return the counts of the native buckets by index."""
    deltas = dict(histogram).get(13, b"")
    found, index, count, at = {}, 0, 0, 0
    for span in (dict(fields(value)) for number, value in histogram if number == 12):
        index += signed(span[1])
        for _ in range(span[2]):
            delta, at = varint(deltas, at)
            count += signed(delta)
            found[index] = count
            index += 1
    assert at == len(deltas)
    return found


def test_numbers_have_their_labels_and_types():
    rows = [
        row("celery_sent_total", "counter", [((text,), 7) for text in AWKWARD]),
        row("celery_level", "gauge", [(("a",), -1.5)]),
        row("celery_none", "gauge", []),
    ]
    found = families(Exposition(rows, static_labels={"aa": "b"}).render(moment(1.0), PROTOBUF))
    kind, metrics = found["celery_sent_total"]
    assert kind == 0
    assert [labels(metric) for metric in metrics] == [[["aa", "b"], ["task_name", text]] for text in AWKWARD]
    assert [fields(dict(metric)[3]) for metric in metrics] == [[(1, 7.0)]] * len(AWKWARD)
    assert (found["celery_level"][0], fields(dict(found["celery_level"][1][0])[2])) == (1, [(1, -1.5)])
    assert "celery_none" not in found
    assert "process_cpu_seconds_total" in found


@given(st.lists(st.floats(0, 1e9) | st.sampled_from([0.0, 1e-9, 2.0**-20, 1.0, 2.0, 1e12])))
def test_a_histogram_says_what_was_observed_in_both_ways(values):
    observed = Histogram([0] * (len(BOUNDS) + 1), native={}, exemplars={})
    for value in values:
        observed.observe(BOUNDS, value, "uuid")
    page = Exposition([row("celery_h", "histogram", [(("a",), observed)], bounds=lambda _: BOUNDS)])
    kind, (metric,) = families(page.render(moment(1.0), PROTOBUF))["celery_h"]
    histogram = fields(dict(metric)[7])
    said = dict(histogram)
    assert (kind, said[1], said[2]) == (4, len(values), observed.total)
    buckets = [dict(fields(value)) for number, value in histogram if number == 3]
    # The last one is the count, and is there if its exemplar has to be.
    bounds = [*BOUNDS, math.inf] if observed.counts[-1] else BOUNDS
    assert [(bucket[2], bucket[1]) for bucket in buckets] == [
        (bound, sum(value <= bound for value in values)) for bound in bounds
    ]
    assert [3 in bucket for bucket in buckets] == [count > 0 for count in observed.counts[: len(bounds)]]
    assert (signed(said[5]), said[6], said[7]) == (3, 2.0**-20, sum(value <= 2.0**-20 for value in values))
    assert native(histogram) == {
        index: count for index, count in observed.native.items() if index != ZERO_INDEX
    }


def created(exposition: Exposition, snapshot: Any, tracker: SeriesTracker) -> dict[str, list[float | None]]:
    """Return the created timestamp of each metric by its family, as a Prometheus server gets them."""
    page = exposition.render(snapshot, PROTOBUF, tracker.begin("one", 1.0))
    field = {0: (3, 3), 1: (2, 3), 4: (7, 15)}  # of the value, and therein of the timestamp
    found = {}
    for name, (kind, metrics) in families(page).items():
        of_value, of_timestamp = field[kind]
        values = [dict(fields(dict(metric)[of_value])) for metric in metrics]
        stamps = [dict(fields(value[of_timestamp])) if of_timestamp in value else None for value in values]
        found[name] = [stamp and stamp[1] + stamp[2] / 1e9 for stamp in stamps]
    return found


def test_counting_series_say_since_when_they_count():
    rows = [
        row("celery_sent_total", "counter", [(("a",), 7), (("other",), 1)]),
        row("celery_done_total", "counter", [(("a",), 7)], has_external_baseline=True),
        row("celery_level", "gauge", [(("a",), 7)]),
        row("celery_h", "histogram", [(("a",), Histogram([0] * (len(BOUNDS) + 1)))], bounds=lambda _: BOUNDS),
    ]
    found = created(Exposition(rows), moment(1.0), SeriesTracker(0.0, 1_700_000_000.5))
    assert {name: stamps for name, stamps in found.items() if name.startswith("celery_")} == {
        "celery_sent_total": [1_700_000_000.5, None],  # other has what was counted under other names before
        "celery_done_total": [None],
        "celery_level": [None],
        "celery_h": [1_700_000_000.5],
    }
