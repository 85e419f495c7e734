"""ASGI middleware: a record of each request, for sinks that want them."""

from __future__ import annotations

import re
import time
import uuid
from collections.abc import Callable, Collection

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from celery_exporter.core.types import OTHER
from celery_exporter.sinks.http_request import HttpRequest

#: Methods in routes; a client may send any text as a method.
METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
#: Ids of requests that are taken from the header X-Request-ID: uuids and the like.
_request_id = re.compile(rb"[\w.:@/+=-]{1,128}", re.ASCII)


def record_requests(
    app: ASGIApp, paths: Collection[str], on_request: Callable[[HttpRequest], None]
) -> ASGIApp:
    """Return the application, and call `on_request` at the end of each answer.

    `paths` are those that routes name; the others are `other`, because clients can send any.
    """

    async def answer_and_record(scope: Scope, receive: Receive, send: Send) -> None:
        timestamp, begin = time.time(), time.monotonic()
        status: int | None = None

        async def send_and_note(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await app(scope, receive, send_and_note)
        except Exception:
            status = status or 500  # which the server answers then
            raise
        finally:
            if status is not None:  # otherwise the exporter stops
                seconds = time.monotonic() - begin
                on_request(HttpRequest(timestamp, _route(scope, paths), status, seconds, _id(scope)))

    return answer_and_record


def _route(scope: Scope, paths: Collection[str]) -> str:
    method, path = scope["method"], scope["path"]
    return f"{method if method in METHODS else OTHER}:{path if path in paths else OTHER}"


def _id(scope: Scope) -> str:
    """Return the id that a proxy or the client gave to the request, or a random one."""
    for name, value in scope["headers"]:
        if name == b"x-request-id" and _request_id.fullmatch(value):
            return str(value, "ascii")
    return uuid.uuid4().hex
