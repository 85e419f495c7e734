"""A running exporter as a source. Its client is tested in tests/unit/web, brokers in tests/integration."""

from __future__ import annotations

import msgspec
import pytest
from harness.example_status import STATUS
from harness.http_stub import answering

from celery_exporter.top.status_source import exporter
from celery_exporter.web.client import NoAnswerError

BODY = msgspec.json.encode(STATUS)


def test_a_status_is_read_as_it_was_sent():
    with answering(200, BODY) as place:
        source = exporter(f"http://me:s3cret@{place}/")
        assert msgspec.json.encode(source.read()) == BODY
    assert source.name == f"http://{place}/api/v1/status"


@pytest.mark.parametrize(
    ("status", "body", "texts"),
    [
        (404, b"", ["--no-status-page", "or use --broker-url"]),
        (200, b"<html>", ["run top in the version of that exporter"]),
        (
            200,
            BODY.replace(b'"version":1', b'"version":2', 1),
            ["version is 2", "version 1", "run top in the version of that exporter"],
        ),
    ],
    ids=["404", "HTML", "version"],
)
def test_the_error_of_an_answer_without_a_status_says_what_to_do(status, body, texts):
    with answering(status, body) as place, pytest.raises(NoAnswerError) as error:
        exporter(f"http://{place}").read()
    for part in (place, *texts):
        assert part in str(error.value)
