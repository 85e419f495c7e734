"""ASGI middleware: client certificates and passwords, as `--web.config.file` requires them.

All paths but those of liveness probes need them. The middleware also rejects headers and queries that are
longer than any client needs: they would be parsed on the event loop.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import ipaddress
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from typing import Any

from starlette.responses import PlainTextResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from celery_exporter.web.passwords import PasswordChecker, TooManyAttemptsError
from celery_exporter.web.web_config_reloader import WebSecurity

#: Paths without authentication. A liveness probe that restarts the process has no password, and the answer
#: contains no information.
UNAUTHENTICATED_PATHS = frozenset({"/-/healthy", "/healthcheck"})
#: Headers that the exporter parses. Others, such as a proxy's cookies, may be as long as the server allows.
_PARSED_HEADERS = frozenset({b"accept", b"accept-encoding", b"authorization"})
#: The longest such header, and the longest query. Prometheus' Accept header has some 400 bytes.
MAX_HEADER_BYTES = 1_024


def require_auth(app: ASGIApp, current: Callable[[], WebSecurity]) -> ASGIApp:
    """Return the application behind the security settings that `current` returns at each request."""
    passwords = PasswordChecker()

    async def check_and_answer(scope: Scope, receive: Receive, send: Send) -> None:
        security = current()
        # A connection from before a change of the TLS context answers this request and is closed then.
        is_outdated = scope["state"].get("context") is not security.context
        extra = [*security.headers, *([(b"connection", b"close")] if is_outdated else [])]

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], *extra]
            await send(message)

        refusal = _check_lengths(scope)
        if refusal is None and scope["path"] not in UNAUTHENTICATED_PATHS:
            refusal = _check_certificate(scope, security) or await _check_password(scope, security, passwords)
        await (refusal or app)(scope, receive, send_with_headers)

    async def until_cancelled(scope: Scope, receive: Receive, send: Send) -> None:
        # The server may stop while an answer is being made; uvicorn would log that as an error.
        with suppress(asyncio.CancelledError):
            await check_and_answer(scope, receive, send)

    return until_cancelled


def _check_lengths(scope: Scope) -> Response | None:
    """Return the response to a request that is too long, None if it is not."""
    for name, value in scope["headers"]:
        if name in _PARSED_HEADERS and len(value) > MAX_HEADER_BYTES:
            text = f"header {name.decode()} has {len(value)} bytes; the limit is {MAX_HEADER_BYTES}\n"
            return PlainTextResponse(text, 431)
    size = len(scope["query_string"])
    if size > MAX_HEADER_BYTES:
        return PlainTextResponse(f"the query has {size} bytes; the limit is {MAX_HEADER_BYTES}\n", 414)
    return None


# -- certificates --------------------------------------------------------------------------------------


def _check_certificate(scope: Scope, security: WebSecurity) -> Response | None:
    """Return the response to a request without the required client certificate, None if it has one."""
    if not security.requires_certificate:
        return None
    certificate = scope["state"].get("certificate")
    if not certificate:
        return PlainTextResponse("a client certificate is required\n", 403)
    allowed = security.allowed_sans
    if allowed is not None and allowed.isdisjoint(_names(certificate)):
        return PlainTextResponse("the client certificate has none of the allowed names\n", 403)
    return None


def _names(certificate: Mapping[str, Any]) -> Iterator[str]:
    """Yield the subject alternative names as the exporter-toolkit writes them."""
    for kind, name in certificate.get("subjectAltName", ()):
        if kind in ("DNS", "email", "URI"):
            yield name
        elif kind == "IP Address":
            yield str(ipaddress.ip_address(name.strip()))


# -- passwords -----------------------------------------------------------------------------------------


async def _check_password(scope: Scope, security: WebSecurity, passwords: PasswordChecker) -> Response | None:
    """Return the response to a request without a valid user and password, None if it has them."""
    if not security.users:
        return None
    credentials = _credentials(scope)
    if credentials is not None:
        address = scope["client"][0] if scope["client"] else ""
        try:
            if await passwords.match(security.users, *credentials, address):
                return None
        except TooManyAttemptsError:
            return PlainTextResponse("too many login attempts\n", 429, {"Retry-After": "1"})
    return PlainTextResponse("unauthorized\n", 401, {"WWW-Authenticate": 'Basic realm="celery-exporter"'})


def _credentials(scope: Scope) -> tuple[bytes, bytes] | None:
    """Return user and password; None without a well-formed `Authorization: Basic` header."""
    header = next((value for name, value in scope["headers"] if name == b"authorization"), b"")
    scheme, _, token = header.partition(b" ")
    if scheme.lower() != b"basic":
        return None
    try:
        user, colon, password = base64.b64decode(token.strip(), validate=True).partition(b":")
    except binascii.Error:
        return None
    return (user, password) if colon else None
