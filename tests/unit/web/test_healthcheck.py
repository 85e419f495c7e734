"""The reasons of a failed health check. tests/distribution has its requests, and test_client.py its URLs."""

from __future__ import annotations

import pytest

from celery_exporter.web.healthcheck import _reason, check_health
from celery_exporter.web.listen_config import ListenConfig


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (TimeoutError(), "no answer in 2 s"),
        (ConnectionRefusedError(111, "Connection refused"), "Connection refused"),
    ],
    ids=["timeout", "refused"],
)
def test_the_reason_of_a_failed_request(error, expected):
    assert _reason(error) == expected


def test_any_free_port_cannot_be_checked():
    is_healthy, line = check_health(ListenConfig(host="127.0.0.1", port=0, web_config_file=None))
    assert (is_healthy, "--port: got 0" in line) == (False, True)
