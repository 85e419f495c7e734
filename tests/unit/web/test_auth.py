"""Authentication and limits of requests, without a server."""

from __future__ import annotations

import asyncio
import base64
from typing import Any

import pytest
from starlette.responses import PlainTextResponse

from celery_exporter.web.auth import MAX_HEADER_BYTES, UNAUTHENTICATED_PATHS, require_auth
from celery_exporter.web.passwords import PasswordChecker, TooManyAttemptsError
from celery_exporter.web.web_config_reloader import WebSecurity
from unit.web.configs import HASH

PASSWORDS = WebSecurity(users={b"alice": HASH.encode()})
CERTIFICATES = WebSecurity(requires_certificate=True)
NAMES = WebSecurity(requires_certificate=True, allowed_sans=frozenset({"prometheus.example", "10.0.0.7"}))


def get(
    security: WebSecurity,
    path: str = "/metrics",
    *,
    query: bytes = b"",
    context: object = None,
    certificate: dict[str, Any] | None = None,
    **headers: bytes,
) -> dict[str, Any]:
    """Return the start of the answer; its status is 200 if the request reached the application."""
    scope = {
        "type": "http",
        "method": "GET",
        "path": path,
        "query_string": query,
        "headers": [(name.encode(), value) for name, value in headers.items()],
        "client": ("10.0.0.1", 1),
        "state": {"context": context, "certificate": certificate},
    }
    messages: list[dict[str, Any]] = []

    async def send(message: dict[str, Any]) -> None:
        messages.append(message)

    async def request() -> None:
        await require_auth(PlainTextResponse("secret"), lambda: security)(scope, None, send)

    asyncio.run(request())
    return messages[0]


def basic(credentials: bytes) -> bytes:
    return b"Basic " + base64.b64encode(credentials)


@pytest.mark.parametrize(
    ("authorization", "status"),
    [
        (basic(b"alice:right"), 200),
        (basic(b"alice:right").replace(b"Basic", b"bASIC"), 200),
        (basic(b"alice:wrong"), 401),
        (basic(b"bob:right"), 401),
        (basic(b"alice"), 401),
        (b"Basic %%%", 401),
        (b"Bearer right", 401),
        (b"", 401),
    ],
)
def test_password_is_required(authorization, status):
    start = get(PASSWORDS, authorization=authorization)
    assert start["status"] == status
    assert ((b"www-authenticate", b'Basic realm="celery-exporter"') in start["headers"]) == (status == 401)


def test_too_many_attempts_are_rejected(monkeypatch):
    async def match(*_: object) -> bool:
        raise TooManyAttemptsError

    monkeypatch.setattr(PasswordChecker, "match", match)
    start = get(PASSWORDS, authorization=basic(b"alice:right"))
    assert (start["status"], (b"retry-after", b"1") in start["headers"]) == (429, True)


@pytest.mark.parametrize(
    ("security", "names", "status"),
    [
        (CERTIFICATES, None, 403),
        (CERTIFICATES, [], 200),
        (NAMES, [("DNS", "prometheus.example")], 200),
        (NAMES, [("DNS", "other.example"), ("IP Address", "10.0.0.7")], 200),
        (NAMES, [("DNS", "other.example")], 403),
        (NAMES, [("DirName", "prometheus.example")], 403),
        (NAMES, [], 403),
    ],
)
def test_client_certificate_with_an_allowed_name_is_required(security, names, status):
    certificate = None if names is None else {"serialNumber": "1", "subjectAltName": names}
    assert get(security, certificate=certificate)["status"] == status


@pytest.mark.parametrize("path", sorted(UNAUTHENTICATED_PATHS))
@pytest.mark.parametrize("security", [PASSWORDS, CERTIFICATES], ids=["password", "certificate"])
def test_liveness_needs_no_authentication(path, security):
    assert get(security, path)["status"] == 200


@pytest.mark.parametrize(("size", "status"), [(MAX_HEADER_BYTES, 200), (MAX_HEADER_BYTES + 1, 431)])
def test_parsed_header_is_limited(size, status):
    assert get(WebSecurity(), accept=b"," * size)["status"] == status
    assert get(WebSecurity(), cookie=b"," * size)["status"] == 200, "it is not parsed"


@pytest.mark.parametrize(("size", "status"), [(MAX_HEADER_BYTES, 200), (MAX_HEADER_BYTES + 1, 414)])
def test_query_is_limited(size, status):
    assert get(WebSecurity(), query=b"a" * size)["status"] == status


def test_each_answer_has_the_configured_headers():
    security = WebSecurity(users=PASSWORDS.users, headers=((b"x-frame-options", b"deny"),))
    for authorization in (basic(b"alice:right"), b""):
        assert (b"x-frame-options", b"deny") in get(security, authorization=authorization)["headers"]


def test_connection_from_before_a_change_of_the_tls_context_is_closed():
    close = (b"connection", b"close")
    assert close not in get(WebSecurity(), context=None)["headers"]
    assert close in get(WebSecurity(), context=object())["headers"]
