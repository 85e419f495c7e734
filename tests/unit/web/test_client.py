"""A running exporter as a source: what is sent to it, and each kind of answer."""

from __future__ import annotations

import socket
import ssl

import msgspec
import pytest
import trustme
from harness.example_status import AT, STATUS
from harness.http_stub import answering
from harness.processes import free_port

from celery_exporter.errors import BadSettingError
from celery_exporter.top.status_source import NoStatusError, exporter_at

BODY = msgspec.json.encode(STATUS)


def test_a_status_is_read_as_it_was_sent():
    with answering(200, BODY) as place:
        assert msgspec.json.encode(exporter_at(f"http://{place}").read()) == BODY


def test_unknown_fields_of_a_later_exporter_are_ignored():
    more = msgspec.json.encode({**msgspec.to_builtins(STATUS), "more": {"unknown": "field"}})
    with answering(200, more) as place:
        assert exporter_at(f"http://{place}").read().at == AT


def test_login_and_prefix_of_the_url_are_used_and_the_password_is_not_shown():
    seen: list = []
    with answering(200, BODY, seen) as place:
        source = exporter_at(f"http://me:s3%40cret@{place}/celery/")
        source.read()
    ((path, headers),) = seen
    assert path == "/celery/api/v1/status"
    assert headers["Authorization"] == "Basic bWU6czNAY3JldA=="
    with pytest.raises(NoStatusError) as error:
        source.read()
    assert "cret" not in str(error.value) + source.name


@pytest.mark.parametrize(
    ("status", "body", "texts"),
    [
        (404, b"", ["404", "--no-status-page", "--broker-url"]),
        (401, b"", ["401", "CELERY_EXPORTER_URL=http://user:password@"]),
        (403, b"", ["403", "client certificate"]),
        (500, b"", ["500", "log"]),
        (302, b"", ["302", "--url"]),
        (
            200,
            BODY.replace(b'"version":1', b'"version":2', 1),
            ["version is 2", "version 1", "run top in the version of that exporter"],
        ),
        (200, b"<html>", ["did not answer with a status"]),
        (200, b'{"version":1}', ["did not answer with a status", "at"]),
        (200, b'{"version":"\xff"}', ["did not answer with a status"]),
        (200, b"[" * 100_000, ["did not answer with a status"]),
        (200, b"", ["did not answer with a status"]),
    ],
    ids=lambda value: str(value)[:30],
)
def test_the_error_of_an_answer_without_a_status_says_what_to_do(status, body, texts):
    with answering(status, body) as place, pytest.raises(NoStatusError) as error:
        exporter_at(f"http://{place}").read()
    for part in (place, *texts):
        assert part in str(error.value)


def test_the_error_of_a_failed_connection_says_what_to_do():
    with pytest.raises(NoStatusError, match="connection refused; start celery-exporter"):
        exporter_at(f"http://127.0.0.1:{free_port()}").read()
    with (
        answering(200, BODY) as place,
        pytest.raises(NoStatusError, match="check whether --url begins with http://"),
    ):
        exporter_at(f"https://{place}").read()
    with pytest.raises(NoStatusError, match="correct --url"):
        exporter_at("http://no.such.name.invalid:9808").read()


def test_the_certificate_is_verified(monkeypatch, tmp_path):
    authority = trustme.CA()
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("localhost").configure_cert(tls)
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    with answering(200, BODY, tls=tls) as place:
        source = exporter_at(f"https://{place.replace('127.0.0.1', 'localhost')}")
        with pytest.raises(NoStatusError, match=r"certificate not trusted .*SSL_CERT_FILE"):
            source.read()
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
        assert source.read().at == AT
        with pytest.raises(NoStatusError, match=r"not trusted \(IP address mismatch.*correct --url"):
            exporter_at(f"https://{place}").read()


def test_an_exporter_that_does_not_answer_is_a_timeout(monkeypatch):
    monkeypatch.setattr("celery_exporter.top.status_source.HTTP_TIMEOUT_SECONDS", 0.1)
    with socket.create_server(("127.0.0.1", 0)) as silent, pytest.raises(NoStatusError, match="no answer in"):
        exporter_at(f"http://127.0.0.1:{silent.getsockname()[1]}").read()


@pytest.mark.parametrize(
    "url",
    [
        "127.0.0.1:9808",
        "ftp://s3cret@h",
        "http://",
        "http://h:x",
        "http://h:99999",
        "http://a b",
        "http://h/\x1b",
        "http://[::1",
    ],
)
def test_an_invalid_url_is_rejected_without_showing_it(url):
    with pytest.raises(BadSettingError, match="--url: ") as error:
        exporter_at(url)
    assert "s3cret" not in str(error.value)
