"""The routes of the status page, its static files, and the same data as JSON."""

from __future__ import annotations

import asyncio
import gzip
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple, TypeVar

import msgspec
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

from celery_exporter.metrics.exposition.negotiation import accepts_gzip
from celery_exporter.status.model import Status
from celery_exporter.web import status_page

#: Seconds for which a status is cached for all requests. Pages refresh every two: ten cost as much as one.
CACHE_SECONDS = 1.9
#: A status is cached for at least this many times the CPU seconds of making it. So the status of a cluster of
#: any size needs at most 1 % of a core.
CACHE_CPU_FACTOR = 100
#: The longest text that tasks are filtered by, in characters.
MAX_FILTER_LENGTH = 255

_T = TypeVar("_T")
Page = Callable[[Request], Awaitable[Response]]

NOSNIFF = {"X-Content-Type-Options": "nosniff"}
SAFE = {**NOSNIFF, "Referrer-Policy": "no-referrer", "Cache-Control": "no-store"}
_CONTENT_TYPES = {
    "css": "text/css; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "svg": "image/svg+xml",
}


def pages(status: Callable[[], Status]) -> dict[str, Page]:
    """Return the pages by path. `status` is called in a thread, once for all requests at a time."""
    cache = _StatusCache(status)

    async def html(request: Request) -> Response:
        query = request.query_params
        sort, contains = query.get("sort", status_page.SORT), query.get("filter", "")[:MAX_FILTER_LENGTH]
        newest = (await cache.get()).status
        text = await cache.run(lambda: status_page.html(newest, sort=sort, contains=contains))
        return HTMLResponse(text, headers={**SAFE, "Content-Security-Policy": status_page.POLICY})

    async def api(request: Request) -> Response:
        encoded = await cache.get()
        headers = {**SAFE, "Vary": "Accept-Encoding"}
        if accepts_gzip(request.headers.get("accept-encoding", "")):
            headers["Content-Encoding"] = "gzip"
        body = encoded.zipped if "Content-Encoding" in headers else encoded.json
        return Response(body, media_type="application/json", headers=headers)

    return {"/": html, "/api/v1/status": api}


def static_pages() -> dict[str, Page]:
    """Return the static files of the pages, by path."""
    return {f"/static/{name}": _static(name, body) for name, body in status_page.STATIC.items()}


def _static(name: str, body: bytes) -> Page:
    # The URL contains a content hash, so a cached file is never outdated.
    content_type = _CONTENT_TYPES[name.rpartition(".")[2]]
    headers = {**SAFE, "Cache-Control": "max-age=86400", "Content-Type": content_type}

    async def static(_: Request) -> Response:
        return Response(body, headers=headers)

    return static


class _EncodedStatus(NamedTuple):
    """A status, and its JSON: compressed for browsers, plain for scripts that accept no gzip."""

    status: Status
    json: bytes
    zipped: bytes


class _StatusCache:
    """The newest status, made in one thread for all requests."""

    def __init__(self, make: Callable[[], Status]) -> None:
        self._make = make
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="status")
        self._newest: asyncio.Task[_EncodedStatus] | None = None
        self._expires = 0.0  # monotonic seconds

    async def get(self) -> _EncodedStatus:
        """Return the newest status, made now if the cached one has expired."""
        if self._newest is None or (self._newest.done() and time.monotonic() > self._expires):
            self._expires = time.monotonic() + CACHE_SECONDS
            self._newest = asyncio.create_task(self.run(self._encode))
        return await asyncio.shield(self._newest)

    async def run(self, function: Callable[[], _T]) -> _T:
        """Return the result of a function that runs in the thread."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, function)

    def _encode(self) -> _EncodedStatus:
        started = time.thread_time()
        status = self._make()
        body = msgspec.json.encode(status)
        encoded = _EncodedStatus(status, body, gzip.compress(body, 1))
        cpu_seconds = time.thread_time() - started
        self._expires = max(self._expires, time.monotonic() + CACHE_CPU_FACTOR * cpu_seconds)
        return encoded
