"""The addresses and schemes that a health check uses. Its requests are in tests/distribution."""

from __future__ import annotations

import pytest

from celery_exporter.web.healthcheck import _reason, _schemes, reachable
from unit.web.configs import GOOD


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("0.0.0.0", "127.0.0.1"),
        ("::", "::1"),
        ("10.0.0.7", "10.0.0.7"),
        ("::1", "::1"),
        ("localhost", "localhost"),
    ],
)
def test_listening_address_is_reachable_at(host, expected):
    assert reachable(host) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (GOOD["TLS"], ("https", "http")),
        ("{}", ("http", "https")),
        ("invalid: [", ("https", "http")),
        (None, ("https", "http")),
    ],
    ids=["TLS", "plain", "invalid", "missing"],
)
def test_scheme_of_the_file_is_tried_first(tmp_path, text, expected):
    path = tmp_path / "web.yml"
    if text is not None:
        path.write_text(text)
    assert _schemes(path) == expected


def test_without_a_file_the_scheme_is_http():
    assert _schemes(None) == ("http",)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (TimeoutError(), "no answer in 2 s"),
        (ConnectionRefusedError(111, "Connection refused"), "Connection refused"),
        (OSError(), "OSError"),
        (ValueError("a\x1b[2J\nb" + "c" * 200), "a?[2J b" + "c" * 93),
    ],
    ids=["timeout", "refused", "no text", "long text"],
)
def test_reason_is_one_printable_line(error, expected):
    assert _reason(error) == expected
