"""Content types and encodings for the headers that Prometheus and browsers send."""

from __future__ import annotations

import pytest

from celery_exporter.metrics.exposition.negotiation import accepts_gzip, negotiate
from celery_exporter.metrics.exposition.protobuf import PROTOBUF
from celery_exporter.metrics.exposition.text import OPENMETRICS, TEXT

PROMETHEUS_2_42 = (
    "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,"
    "text/plain;version=0.0.4;q=0.5,*/*;q=0.1"
)


PROMETHEUS_3_PROTOBUF = (
    "application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;encoding=delimited,"
    "application/openmetrics-text;version=1.0.0;q=0.8,text/plain;version=0.0.4;q=0.5,*/*;q=0.1"
)


@pytest.mark.parametrize(
    ("accept", "expected"),
    [
        (PROMETHEUS_3_PROTOBUF, PROTOBUF),
        (PROMETHEUS_3_PROTOBUF.replace("delimited", "text"), OPENMETRICS),
        (PROMETHEUS_3_PROTOBUF.replace("delimited", "delimited;q=0.1"), OPENMETRICS),
        (PROMETHEUS_3_PROTOBUF.replace("delimited", "delimited;q=0.8"), PROTOBUF),
        (PROMETHEUS_2_42, OPENMETRICS),
        (None, TEXT),
    ],
)
def test_protobuf_is_chosen_only_on_request(accept, expected):
    assert negotiate(accept) == expected


@pytest.mark.parametrize(
    ("accept", "expected"),
    [
        (None, TEXT),
        ("", TEXT),
        ("*/*", TEXT),
        ("text/html,application/xhtml+xml,*/*;q=0.8", TEXT),
        (PROMETHEUS_2_42, OPENMETRICS),
        ("application/openmetrics-text", OPENMETRICS),
        ("application/openmetrics-text; version=0.0.1", OPENMETRICS),
        ('application/openmetrics-text; version="1.0.0"', OPENMETRICS),
        ("application/openmetrics-text; version=2.0.0", OPENMETRICS),
        ("application/openmetrics-text;q=0.4,text/plain;q=0.5", TEXT),
        ("application/openmetrics-text;q=0.5,text/plain;q=0.5", OPENMETRICS),
        ("text/plain;q=0.5,application/openmetrics-text;q=0.5", OPENMETRICS),
        ("application/openmetrics-text;q=0", TEXT),
        ("application/openmetrics-text;q=high", TEXT),
        (";;;,,q=1", TEXT),
    ],
)
def test_format_with_the_highest_quality_is_chosen(accept, expected):
    assert negotiate(accept) == expected


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ("gzip", True),
        ("GZIP;q=0.5", True),
        ("deflate, gzip", True),
        ("*", True),
        ("gzip;q=0.001", True),
        ("gzip;q=0", False),
        ("gzip; q = 0.000, *", False),
        ("*;q=0", False),
        ("identity", False),
        ("deflate, br", False),
        ("xgzip", False),
        ("", False),
    ],
)
def test_gzip_is_used_where_the_client_accepts_it(header, expected):
    assert accepts_gzip(header) == expected
