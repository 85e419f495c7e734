"""Records of HTTP requests: one for each answer, with labels that clients cannot multiply."""

from __future__ import annotations

import asyncio
import re
import time
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from celery_exporter.sinks.http_request import HttpRequest
from celery_exporter.web.auth import require_auth
from celery_exporter.web.request_records import record_requests
from celery_exporter.web.web_config_reloader import WebSecurity
from unit.web.configs import HASH


async def metrics(_: Request) -> Response:
    return PlainTextResponse("up 1\n")


async def slow(_: Request) -> Response:
    async def chunks():
        yield "a"
        await asyncio.sleep(0.05)
        yield "b"

    return StreamingResponse(chunks())


async def broken(_: Request) -> Response:
    raise ZeroDivisionError


PAGES = Starlette(
    routes=[Route(f"/{page.__name__}", page, methods=["GET"]) for page in (metrics, slow, broken)]
)
PATHS = {"/metrics", "/slow", "/broken"}


def record_of(path: str = "/metrics", method: str = "GET", app: Any = PAGES, **headers: bytes) -> HttpRequest:
    """Return the record of a request to the application."""
    scope = {
        "type": "http",
        "method": method,
        "path": path,
        "query_string": b"",
        "headers": [(name.replace("_", "-").encode(), value) for name, value in headers.items()],
        "client": ("10.0.0.1", 1),
        "state": {"context": None},
    }
    records: list[HttpRequest] = []

    async def send(_: dict[str, Any]) -> None:
        pass

    async def wait_for_the_client() -> None:
        await asyncio.Event().wait()

    try:
        asyncio.run(record_requests(app, PATHS, records.append)(scope, wait_for_the_client, send))
    except ZeroDivisionError:
        assert path == "/broken"
    (record,) = records
    return record


def test_a_request_has_a_route_a_status_and_the_time_until_the_answer_ended():
    before = time.time()
    record = record_of("/slow")
    assert (record.route, record.status) == ("GET:/slow", 200)
    assert before <= record.timestamp <= time.time() - 0.05
    assert 0.05 <= record.seconds < 5


@pytest.mark.parametrize(
    ("method", "path", "route", "status"),
    [
        ("GET", "/metrics", "GET:/metrics", 200),
        ("HEAD", "/metrics", "HEAD:/metrics", 200),
        ("POST", "/metrics", "POST:/metrics", 405),
        ("GET", "/nothing", "GET:other", 404),
        ("BREW", "/metrics", "other:/metrics", 405),
        ("GET", "/broken", "GET:/broken", 500),
    ],
)
def test_unknown_methods_and_paths_are_other(method, path, route, status):
    record = record_of(path, method)
    assert (record.route, record.status) == (route, status)


def test_a_request_without_a_login_is_recorded():
    app = require_auth(PAGES, lambda: WebSecurity(users={b"alice": HASH.encode()}))
    assert record_of(app=app).status == 401


@pytest.mark.parametrize("given", [b"7b1e-4c5d", b"Root=1-67891233-abcdef012345678912345678", b"a" * 128])
def test_a_request_keeps_the_id_of_a_proxy(given):
    assert record_of(x_request_id=given).request_id == given.decode()


@pytest.mark.parametrize("given", [None, b"", b"a" * 129, b"two words", b'"', b"line\nbreak", b"\xe9"])
def test_other_requests_get_a_random_id(given):
    headers = {} if given is None else {"x_request_id": given}
    ids = {record_of(**headers).request_id for _ in range(3)}
    assert len(ids) == 3
    assert all(re.fullmatch("[0-9a-f]{32}", id_) for id_ in ids)


def test_a_request_that_the_exporter_cannot_answer_any_more_is_not_recorded():
    async def stopped(*_: Any) -> None:
        raise asyncio.CancelledError

    records: list[HttpRequest] = []
    app = record_requests(stopped, PATHS, records.append)
    scope = {"type": "http", "method": "GET", "path": "/metrics", "headers": []}
    with pytest.raises(asyncio.CancelledError):
        asyncio.run(app(scope, None, None))
    assert records == []
