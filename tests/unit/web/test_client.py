"""A client of an exporter: its URLs, what is sent to it, and each kind of answer."""

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
from celery_exporter.status.model import Status
from celery_exporter.web.client import NoAnswerError, exporter_at, local_urls, one_line
from celery_exporter.web.listen_config import ListenConfig
from unit.web.configs import GOOD

BODY = msgspec.json.encode(STATUS)
PATH = "/api/v1/status"


def read(url: str) -> Status:
    return exporter_at(url, "find", ", or ask").get(PATH, Status)


def test_an_answer_is_decoded_as_it_was_sent():
    with answering(200, BODY) as place:
        assert msgspec.json.encode(read(f"http://{place}")) == BODY


def test_unknown_fields_of_a_later_exporter_are_ignored():
    more = msgspec.json.encode({**msgspec.to_builtins(STATUS), "more": {"unknown": "field"}})
    with answering(200, more) as place:
        assert read(f"http://{place}").at == AT


def test_a_query_is_encoded():
    seen: list = []
    with answering(200, b"[1]", seen) as place:
        numbers = exporter_at(f"http://{place}", "find").get(PATH, list[int], {"name": "a b&c", "of": "é"})
    assert numbers == [1]
    assert seen[0][0] == f"{PATH}?name=a+b%26c&of=%C3%A9"


def test_login_and_prefix_of_the_url_are_used_and_the_password_is_not_shown():
    seen: list = []
    with answering(200, BODY, seen) as place:
        exporter = exporter_at(f"http://me:s3%40cret@{place}/celery/", "find")
        exporter.get(PATH, Status)
    ((path, headers),) = seen
    assert path == "/celery/api/v1/status"
    assert headers["Authorization"] == "Basic bWU6czNAY3JldA=="
    assert headers["User-Agent"].startswith("celery-exporter-find/")
    with pytest.raises(NoAnswerError) as error:
        exporter.get(PATH, Status)
    assert "cret" not in str(error.value) + exporter.url


@pytest.mark.parametrize("path", ["", "/", PATH, "/api/v1/tasks/"])
def test_the_url_may_be_one_of_the_api(path):
    with answering(200, BODY) as place:
        assert exporter_at(f"http://{place}/prefix{path}", "find").url == f"http://{place}/prefix"


@pytest.mark.parametrize(
    ("status", "body", "texts"),
    [
        (404, b"", ["404", "--no-status-page", "correct --url, or ask"]),
        (401, b"", ["401", "CELERY_EXPORTER_URL=http://user:password@"]),
        (403, b"", ["403", "client certificate, which find cannot send", "curl --cert, or ask"]),
        (500, b"", ["500", "log"]),
        (302, b"", ["302", "--url"]),
        (200, b"<html>", ["unexpected answer", "run find in the version of that exporter"]),
        (200, b'{"version":1}', ["unexpected answer", "at"]),
        (200, b'{"version":"\xff"}', ["unexpected answer"]),
        (200, b"[" * 100_000, ["unexpected answer"]),
        (200, b"", ["unexpected answer"]),
    ],
    ids=lambda value: str(value)[:30],
)
def test_the_error_of_an_unusable_answer_says_what_to_do(status, body, texts):
    with answering(status, body) as place, pytest.raises(NoAnswerError) as error:
        read(f"http://{place}")
    for part in (place, *texts):
        assert part in str(error.value)


def test_the_error_has_the_body_of_the_answer():
    with answering(404, b'{"error":"no task"}') as place, pytest.raises(NoAnswerError) as error:
        read(f"http://{place}")
    assert error.value.body == b'{"error":"no task"}'


def test_the_error_of_a_failed_connection_says_what_to_do():
    with pytest.raises(NoAnswerError, match=r"connection refused; .*correct --url, or ask"):
        read(f"http://127.0.0.1:{free_port()}")
    with (
        answering(200, BODY) as place,
        pytest.raises(NoAnswerError, match="check whether --url begins with http://"),
    ):
        read(f"https://{place}")
    with pytest.raises(NoAnswerError, match="correct --url"):
        read("http://no.such.name.invalid:9808")


def test_the_certificate_is_verified(monkeypatch, tmp_path):
    authority = trustme.CA()
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("localhost").configure_cert(tls)
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    with answering(200, BODY, tls=tls) as place:
        url = f"https://{place.replace('127.0.0.1', 'localhost')}"
        with pytest.raises(NoAnswerError, match=r"certificate not trusted .*SSL_CERT_FILE"):
            read(url)
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
        assert read(url).at == AT
        with pytest.raises(NoAnswerError, match=r"not trusted \(IP address mismatch.*correct --url"):
            read(f"https://{place}")


def test_an_exporter_that_does_not_answer_is_a_timeout(monkeypatch):
    monkeypatch.setattr("celery_exporter.web.client.TIMEOUT_SECONDS", 0.1)
    with socket.create_server(("127.0.0.1", 0)) as silent, pytest.raises(NoAnswerError, match="no answer in"):
        read(f"http://127.0.0.1:{silent.getsockname()[1]}")


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
        exporter_at(url, "find")
    assert "s3cret" not in str(error.value)


# -- the exporter on this machine ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("0.0.0.0", "127.0.0.1"),
        ("::", "[::1]"),
        ("10.0.0.7", "10.0.0.7"),
        ("::1", "[::1]"),
        ("localhost", "localhost"),
    ],
)
def test_a_listening_address_has_a_url(host, expected):
    listener = ListenConfig(host=host, port=9808, web_config_file=None)
    assert local_urls(listener) == [f"http://{expected}:9808"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (GOOD["TLS"], ["https://h:1", "http://h:1"]),
        ("{}", ["http://h:1", "https://h:1"]),
        ("invalid: [", ["https://h:1", "http://h:1"]),
        (None, ["https://h:1", "http://h:1"]),
    ],
    ids=["TLS", "plain", "invalid", "missing"],
)
def test_the_scheme_of_the_file_is_the_more_likely_one(tmp_path, text, expected):
    path = tmp_path / "web.yml"
    if text is not None:
        path.write_text(text)
    assert local_urls(ListenConfig(host="h", port=1, web_config_file=path)) == expected


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (ConnectionRefusedError(111, "Connection refused"), "Connection refused"),
        (OSError(), "OSError"),
        (ValueError("a\x1b[2J\nb" + "c" * 200), "a?[2J b" + "c" * 93),
    ],
    ids=["refused", "no text", "long text"],
)
def test_the_text_of_an_error_is_one_printable_line(error, expected):
    assert one_line(error) == expected
