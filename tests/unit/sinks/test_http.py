"""Answers of receivers: which are tried again, which are not, and what is read of them."""

from __future__ import annotations

import base64

import pytest
from harness.processes import free_port
from harness.receiver import Answer, Receiver

from celery_exporter.sinks.base import TOO_LARGE, PermanentError, TemporaryError
from celery_exporter.sinks.http import MAX_ANSWER_BYTES, MAX_SHOWN, HttpClient, Response, check

URL = "http://receiver/write"


def post(url: str, timeout: float = 30.0) -> Response:
    client = HttpClient(url, lambda: {"X-Test": "1"})
    try:
        return client.post(b"body", timeout)
    finally:
        client.close()


@pytest.mark.parametrize("status", [301, 307, 401, 403, 404, 408, 429, 500, 502, 503, 599])
def test_what_may_succeed_later_is_tried_again(status):
    with pytest.raises(TemporaryError, match=f"status {status}: why"):
        check(Response(status, "why", None), URL)


@pytest.mark.parametrize(("status", "outcome"), [(400, "rejected"), (422, "rejected"), (413, TOO_LARGE)])
def test_what_cannot_succeed_is_not_tried_again(status, outcome):
    with pytest.raises(PermanentError) as error:
        check(Response(status, "", None), URL)
    assert (error.value.outcome, error.value.count) == (outcome, None)


@pytest.mark.parametrize("status", [200, 204, 299])
def test_any_2xx_is_a_success(status):
    check(Response(status, "", None), URL)


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        ("7", 7),
        (" 7 ", 7),
        ("Thu, 01 Jan 1970 00:00:00 GMT", 0),
        ("soon", None),
        ("-1", None),
        ("9" * 400, 21_600),
    ],
)
def test_retry_after_is_seconds_or_a_date(header, seconds):
    with Receiver(Answer(429, headers={"Retry-After": header})) as receiver:
        assert post(receiver.url).retry_after == seconds


def test_a_long_answer_is_read_in_part_and_printed_on_one_line():
    with Receiver(Answer(500, b"\x1b[31m\n" + b"x" * 10 * MAX_ANSWER_BYTES)) as receiver:
        response = post(receiver.url)
    assert len(response.body) <= MAX_ANSWER_BYTES
    with pytest.raises(TemporaryError) as error:
        check(response, URL)
    text = str(error.value)
    assert len(text) < MAX_SHOWN + 100
    assert text.isprintable()


def test_a_redirect_is_not_followed():
    with Receiver() as other, Receiver(Answer(307, headers={"Location": other.url})) as receiver:
        assert post(receiver.url).status == 307
        assert other.requests == []


def test_no_answer_is_an_error_of_one_line_that_names_the_url():
    url = f"http://127.0.0.1:{free_port()}/write"
    with pytest.raises(TemporaryError, match="no answer from") as error:
        post(url)
    assert url in str(error.value)
    assert "0x" not in str(error.value), "no addresses of objects"
    assert "Connection(" not in str(error.value)


def test_a_frozen_receiver_is_left_after_the_timeout():
    with Receiver(Answer(is_frozen=True)) as receiver, pytest.raises(TemporaryError, match="timed out"):
        post(receiver.url, timeout=0.2)


def test_the_proxy_of_the_environment_gets_the_request_and_its_login(monkeypatch):
    with Receiver() as proxy:
        monkeypatch.setenv("http_proxy", proxy.url.replace("//", "//me:p%40ss@"))
        monkeypatch.delenv("no_proxy", raising=False)
        assert post("http://influxdb.test/write").status == 204
        (request,) = proxy.requests
    assert request.path == "http://influxdb.test/write"
    login = base64.b64encode(b"me:p@ss").decode()
    assert request.headers["proxy-authorization"] == f"Basic {login}"
