"""The protobuf format, read by a decoder with only the wire format and the field numbers of metrics.proto."""

from __future__ import annotations

import math
import struct
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from celery_exporter.core.histogram import ZERO_INDEX, Histogram
from celery_exporter.core.measurements import Summary
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
    decoded: Fields = []
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
        decoded.append((tag >> 3, value))
    return decoded


def signed(value: int) -> int:
    return (value >> 1) ^ -(value & 1)


def families(page: bytes) -> dict[str, tuple[int, list[Fields]]]:
    """Return the type and the metrics of each family, by name."""
    types_and_metrics = {}
    at = 0
    while at < len(page):
        size, at = varint(page, at)
        family = fields(page[at : at + size])
        at += size
        head = {number: value for number, value in family if number != 4}
        metrics = [fields(value) for number, value in family if number == 4]
        types_and_metrics[head[1].decode()] = head[3], metrics
    return types_and_metrics


def labels(metric: Fields) -> list[list[str]]:
    return [[text.decode() for _, text in fields(value)] for number, value in metric if number == 1]


def native(histogram: Fields) -> dict[int, int]:
    """Return the counts of the native buckets by index."""
    deltas = dict(histogram).get(13, b"")
    counts, index, count, at = {}, 0, 0, 0
    for span in (dict(fields(value)) for number, value in histogram if number == 12):
        index += signed(span[1])
        for _ in range(span[2]):
            delta, at = varint(deltas, at)
            count += signed(delta)
            counts[index] = count
            index += 1
    assert at == len(deltas)
    return counts


def test_metrics_have_their_labels_types_and_values():
    rows = [
        row("celery_sent_total", "counter", [((text,), 7) for text in AWKWARD]),
        row("celery_level", "gauge", [(("a",), -1.5)]),
        row("celery_none", "gauge", []),
    ]
    page = families(Exposition(rows, static_labels={"aa": "b"}).render(moment(1.0), PROTOBUF))
    kind, metrics = page["celery_sent_total"]
    assert kind == 0
    assert [labels(metric) for metric in metrics] == [[["aa", "b"], ["task_name", text]] for text in AWKWARD]
    assert [fields(dict(metric)[3]) for metric in metrics] == [[(1, 7.0)]] * len(AWKWARD)
    assert (page["celery_level"][0], fields(dict(page["celery_level"][1][0])[2])) == (1, [(1, -1.5)])
    assert "celery_none" not in page
    assert "process_cpu_seconds_total" in page


@given(st.lists(st.floats(0, 1e9) | st.sampled_from([0.0, 1e-9, 2.0**-20, 1.0, 2.0, 1e12])))
def test_histogram_has_classic_and_native_buckets(values):
    observed = Histogram([0] * (len(BOUNDS) + 1), native={}, exemplars={})
    for value in values:
        observed.observe(BOUNDS, value, "uuid")
    page = Exposition([row("celery_h", "histogram", [(("a",), observed)], bounds=lambda _: BOUNDS)])
    kind, (metric,) = families(page.render(moment(1.0), PROTOBUF))["celery_h"]
    histogram = fields(dict(metric)[7])
    values_by_field = dict(histogram)
    assert (kind, values_by_field[1], values_by_field[2]) == (4, len(values), observed.total)
    buckets = [dict(fields(value)) for number, value in histogram if number == 3]
    # The +Inf bucket equals the count of the histogram. It is written only if it has an exemplar.
    bounds = [*BOUNDS, math.inf] if observed.counts[-1] else BOUNDS
    assert [(bucket[2], bucket[1]) for bucket in buckets] == [
        (bound, sum(value <= bound for value in values)) for bound in bounds
    ]
    assert [3 in bucket for bucket in buckets] == [count > 0 for count in observed.counts[: len(bounds)]]
    schema, threshold, zeros = (values_by_field[number] for number in (5, 6, 7))
    assert (signed(schema), threshold, zeros) == (3, 2.0**-20, sum(value <= 2.0**-20 for value in values))
    assert native(histogram) == {
        index: count for index, count in observed.native.items() if index != ZERO_INDEX
    }


def test_an_exemplar_has_the_id_of_the_trace_beside_that_of_the_task():
    observed = Histogram([0] * (len(BOUNDS) + 1), exemplars={})
    observed.observe(BOUNDS, 0.0, "u1", "8c9973a6-c3dc-4aff-a799-b6cff97bdfd0")
    page = Exposition([row("celery_h", "histogram", [(("a",), observed)], bounds=lambda _: BOUNDS)])
    _, (metric,) = families(page.render(moment(1.0), PROTOBUF))["celery_h"]
    (bucket, *_) = (fields(value) for number, value in fields(dict(metric)[7]) if number == 3)
    exemplar = fields(dict(bucket)[3])
    assert labels(exemplar) == [["task_id", "u1"], ["trace_id", "8c9973a6c3dc4affa799b6cff97bdfd0"]]


def test_summary_has_count_and_sum_and_no_quantiles():
    page = Exposition([row("celery_m", "summary", [(("a", "b"), Summary(3, 0.5))], ("task_name", "field"))])
    kind, (metric,) = families(page.render(moment(1.0), PROTOBUF))["celery_m"]
    assert (kind, labels(metric)) == (2, [["field", "b"], ["task_name", "a"]])
    assert fields(dict(metric)[4]) == [(1, 3), (2, 0.5)]


def created(exposition: Exposition, snapshot: Any, tracker: SeriesTracker) -> dict[str, list[float | None]]:
    """Return the created timestamps that a Prometheus server reads, by family."""
    page = exposition.render(snapshot, PROTOBUF, tracker.begin("one", 1.0))
    field = {0: (3, 3), 1: (2, 3), 2: (4, 4), 4: (7, 15)}  # type → fields of the value, and of its timestamp
    timestamps = {}
    for name, (kind, metrics) in families(page).items():
        value_field, timestamp_field = field[kind]
        values = [dict(fields(dict(metric)[value_field])) for metric in metrics]
        encoded = [value.get(timestamp_field) for value in values]
        parts = [None if timestamp is None else dict(fields(timestamp)) for timestamp in encoded]
        timestamps[name] = [part and part[1] + part[2] / 1e9 for part in parts]
    return timestamps


def test_only_counting_series_have_a_created_timestamp():
    rows = [
        row("celery_sent_total", "counter", [(("a",), 7), (("other",), 1)]),
        row("celery_done_total", "counter", [(("a",), 7)], has_external_baseline=True),
        row("celery_level", "gauge", [(("a",), 7)]),
        row("celery_h", "histogram", [(("a",), Histogram([0] * (len(BOUNDS) + 1)))], bounds=lambda _: BOUNDS),
        row("celery_m", "summary", [(("a",), Summary()), (("other",), Summary())]),
    ]
    timestamps = created(Exposition(rows), moment(1.0), SeriesTracker(0.0, 1_700_000_000.5))
    assert {name: values for name, values in timestamps.items() if name.startswith("celery_")} == {
        "celery_sent_total": [1_700_000_000.5, None],  # other includes counts from before, of other names
        "celery_done_total": [None],
        "celery_level": [None],
        "celery_h": [1_700_000_000.5],
        "celery_m": [1_700_000_000.5, None],
    }
