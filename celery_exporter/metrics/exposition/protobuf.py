"""Samples → Prometheus' protobuf format, the only one with native histograms.

Messages and fields are those of io/prometheus/client/metrics.proto (github.com/prometheus/client_model). The
encoding is delimited: each family has its length before it. This module writes the bytes itself, because a
dozen fields do not justify a library.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterable, Iterator, Mapping

from celery_exporter.core.histogram import (
    SCHEMA,
    ZERO_INDEX,
    ZERO_THRESHOLD,
    Exemplar,
    Histogram,
)
from celery_exporter.core.measurements import Summary

PROTOBUF = "application/vnd.google.protobuf; proto=io.prometheus.client.MetricFamily; encoding=delimited"

#: Type of a family → its number, and the field of a metric that holds its value.
_TYPES = {"counter": (0, 3), "gauge": (1, 2), "summary": (2, 4), "histogram": (4, 7)}
_VARINT, _DOUBLE, _BYTES = 0, 1, 2  # wire types


def family(name: str, type_: str, help_: str, metrics: Iterable[bytes]) -> Iterator[bytes]:
    """Yield a family with these metrics, its length before it; nothing if it has no metrics."""
    number, _ = _TYPES[type_]
    parts = [_text(4, metric) for metric in metrics]
    if parts:
        head = _text(1, name.encode()) + _text(2, help_.encode()) + _number(3, number)
        yield varint(len(head) + sum(map(len, parts))) + head
        yield from parts


def labels(pairs: Mapping[str, str]) -> bytes:
    """Return the encoded labels of a metric, in the order of their names."""
    return b"".join(
        _text(1, _text(1, name.encode()) + _text(2, value.encode("utf-8", "replace")))
        for name, value in sorted(pairs.items())
    )


def metric(type_: str, encoded_labels: bytes, value: float, created: float | None = None) -> bytes:
    """Return a metric whose value is a number.

    `created` is the epoch second at which a counter was at 0.
    """
    _, field = _TYPES[type_]
    timestamp = b"" if created is None else _timestamp(3, created)
    return encoded_labels + _text(field, _double(1, value) + timestamp)


def summary(encoded_labels: bytes, value: Summary, created: float | None = None) -> bytes:
    """Return a metric whose value is a summary without quantiles.

    `created` is the epoch second at which it was empty.
    """
    _, field = _TYPES["summary"]
    timestamp = b"" if created is None else _timestamp(4, created)
    return encoded_labels + _text(field, _number(1, value.count) + _double(2, value.total) + timestamp)


def histogram(
    encoded_labels: bytes, bounds: tuple[float, ...], value: Histogram, created: float | None = None
) -> bytes:
    """Return a metric whose value is a histogram: its buckets, and its native buckets if it has any.

    `created` is the epoch second at which it was empty.
    """
    parts = [_number(1, sum(value.counts)), _double(2, value.total)]
    count = 0
    for index, bound in enumerate((*bounds, math.inf)):
        count += value.counts[index]
        exemplar = (value.exemplars or {}).get(index)
        if exemplar is None and bound == math.inf:
            break  # this bucket equals the count of the histogram, which is there already
        parts.append(
            _text(3, _number(1, count) + _double(2, bound) + (_exemplar(exemplar) if exemplar else b""))
        )
    if value.native is not None:
        parts.append(_native(value.native))
    if created is not None:
        parts.append(_timestamp(15, created))
    return encoded_labels + _text(7, b"".join(parts))


def _exemplar(exemplar: Exemplar) -> bytes:
    return _text(3, labels(exemplar.labels()) + _double(2, exemplar.seconds))


def _native(counts: Mapping[int, int]) -> bytes:
    """Return the fields of a native histogram: spans of buckets, and the differences of their counts."""
    spans: list[list[int]] = []  # the gap to the previous span, and the length
    deltas, last_count, last_index = [], 0, 0
    for index, count in sorted(counts.items()):
        if index == ZERO_INDEX:
            continue
        if not spans or index != last_index + 1:
            spans.append([index - last_index - (1 if spans else 0), 0])
        spans[-1][1] += 1
        deltas.append(count - last_count)
        last_count, last_index = count, index
    return b"".join(
        (
            _number(5, _zigzag(SCHEMA)),
            _double(6, ZERO_THRESHOLD),
            _number(7, counts.get(ZERO_INDEX, 0)),
            *(_text(12, _number(1, _zigzag(gap)) + _number(2, length)) for gap, length in spans),
            _text(13, b"".join(varint(_zigzag(delta)) for delta in deltas)) if deltas else b"",
        )
    )


# -- the wire format: protobuf.dev/programming-guides/encoding ---------------------------------------------


def _text(field: int, data: bytes) -> bytes:
    return varint(field << 3 | _BYTES) + varint(len(data)) + data


def _number(field: int, value: int) -> bytes:
    return varint(field << 3 | _VARINT) + varint(value)


def _double(field: int, value: float) -> bytes:
    return varint(field << 3 | _DOUBLE) + struct.pack("<d", value)


def _timestamp(field: int, at: float) -> bytes:
    """Return a google.protobuf.Timestamp: seconds, and the nanoseconds to add to them."""
    seconds = math.floor(at)
    return _text(field, _number(1, seconds) + _number(2, int((at - seconds) * 1e9)))


def _zigzag(value: int) -> int:
    return value << 1 if value >= 0 else (-value << 1) - 1


def varint(value: int) -> bytes:
    """Return an unsigned integer in groups of 7 bits, the lowest group first."""
    if value < 0x80:
        return bytes((value,))
    encoded = bytearray()
    while value >= 0x80:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)
