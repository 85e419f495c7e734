"""ASGI middleware: what a file asks for, a certificate or a password, stands before all but liveness probes.

And nothing is read by us that is longer than any client has a use for: it would be read on the event loop.
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

from celery_exporter.web.passwords import Passwords, TooManyGuessesError
from celery_exporter.web.web_config_reloader import WebSecurity

#: Open to everybody: what kills the process for its answer has no password, and the answer says nothing.
UNAUTHENTICATED_PATHS = frozenset({"/-/healthy", "/healthcheck"})
#: Headers that we read. Others, a proxy's cookies among them, may be as long as the server takes them.
_READ = frozenset({b"accept", b"accept-encoding", b"authorization"})
#: Bytes of such a header, or of a query: Prometheus' Accept has some 400.
LONGEST = 1_024


def require_auth(app: ASGIApp, current: Callable[[], WebSecurity]) -> ASGIApp:
    """Return the application behind what `current` returns at each request."""
    passwords = Passwords()

    async def guard(scope: Scope, receive: Receive, send: Send) -> None:
        protection = current()
        # A connection outlives what it was opened under; it may answer once more, and then a new one is made.
        stale = scope["state"].get("context") is not protection.context
        extra = [*protection.headers, *([(b"connection", b"close")] if stale else [])]

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], *extra]
            await send(message)

        refusal = _too_long(scope)
        if refusal is None and scope["path"] not in UNAUTHENTICATED_PATHS:
            refusal = _without_certificate(scope, protection) or await _without_password(
                scope, protection, passwords
            )
        await (refusal or app)(scope, receive, send_with_headers)

    async def until_the_end(scope: Scope, receive: Receive, send: Send) -> None:
        # The server ends while the answer is being made; uvicorn would log that as our error.
        with suppress(asyncio.CancelledError):
            await guard(scope, receive, send)

    return until_the_end


def _too_long(scope: Scope) -> Response | None:
    for name, value in scope["headers"]:
        if name in _READ and len(value) > LONGEST:
            return PlainTextResponse(f"{name.decode()}: {len(value)} bytes; {LONGEST} are taken\n", 431)
    if len(scope["query_string"]) > LONGEST:
        return PlainTextResponse(f"the query is too long; {LONGEST} bytes are taken\n", 414)
    return None


# -- certificates --------------------------------------------------------------------------------------


def _without_certificate(scope: Scope, protection: WebSecurity) -> Response | None:
    if not protection.requires_certificate:
        return None
    certificate = scope["state"].get("certificate")
    if not certificate:
        return PlainTextResponse("a client certificate is required\n", 403)
    allowed = protection.allowed_sans
    if allowed is not None and allowed.isdisjoint(_names(certificate)):
        return PlainTextResponse("this client certificate is for none of the allowed names\n", 403)
    return None


def _names(certificate: Mapping[str, Any]) -> Iterator[str]:
    """Yield the subject's alternative names, as the toolkit writes them."""
    for kind, name in certificate.get("subjectAltName", ()):
        if kind in ("DNS", "email", "URI"):
            yield name
        elif kind == "IP Address":
            yield str(ipaddress.ip_address(name.strip()))


# -- passwords -----------------------------------------------------------------------------------------


async def _without_password(scope: Scope, protection: WebSecurity, passwords: Passwords) -> Response | None:
    if not protection.users:
        return None
    login = _login(scope)
    if login is not None:
        address = scope["client"][0] if scope["client"] else ""
        try:
            if await passwords.match(protection.users, *login, address):
                return None
        except TooManyGuessesError:
            return PlainTextResponse("too many passwords to compare\n", 429, {"Retry-After": "1"})
    return PlainTextResponse("unauthorized\n", 401, {"WWW-Authenticate": 'Basic realm="celery-exporter"'})


def _login(scope: Scope) -> tuple[bytes, bytes] | None:
    """Return user and password, None where there is no well-formed `Authorization: Basic`."""
    header = next((value for name, value in scope["headers"] if name == b"authorization"), b"")
    scheme, _, token = header.partition(b" ")
    if scheme.lower() != b"basic":
        return None
    try:
        user, colon, password = base64.b64decode(token.strip(), validate=True).partition(b":")
    except binascii.Error:
        return None
    return (user, password) if colon else None
