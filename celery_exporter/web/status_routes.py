"""What is asked by people who look: the status page, what it is made of, and the same for scripts."""

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
from celery_exporter.web import status_page as page

#: Seconds for which a status is given to all who ask. Pages ask every two: ten of them cost as much as one.
LASTS = 1.9
#: … or this many times the CPU seconds that it took: so it takes 1 % of a core, of however large a cluster.
SHARE = 100
#: Longest part of a name that tasks are looked for by.
LONGEST = 255

_T = TypeVar("_T")
Page = Callable[[Request], Awaitable[Response]]

NOSNIFF = {"X-Content-Type-Options": "nosniff"}
SAFE = {**NOSNIFF, "Referrer-Policy": "no-referrer", "Cache-Control": "no-store"}
_KINDS = {"css": "text/css; charset=utf-8", "js": "text/javascript; charset=utf-8", "svg": "image/svg+xml"}


def pages(status: Callable[[], Status]) -> dict[str, Page]:
    """Return the pages by path; `status` is called in a thread of its own, once for all who ask at a time."""
    newest = _Newest(status)

    async def html(request: Request) -> Response:
        asked = request.query_params
        sort, contains = asked.get("sort", page.SORT), asked.get("filter", "")[:LONGEST]
        found = (await newest.get()).status
        text = await newest.work(lambda: page.html(found, sort=sort, contains=contains))
        return HTMLResponse(text, headers={**SAFE, "Content-Security-Policy": page.POLICY})

    async def api(request: Request) -> Response:
        made = await newest.get()
        headers = {**SAFE, "Vary": "Accept-Encoding"}
        if accepts_gzip(request.headers.get("accept-encoding", "")):
            headers["Content-Encoding"] = "gzip"
        body = made.zipped if "Content-Encoding" in headers else made.json
        return Response(body, media_type="application/json", headers=headers)

    return {"/": html, "/api/v1/status": api}


def static_pages() -> dict[str, Page]:
    """Return what pages are made of besides themselves, by path."""
    return {f"/static/{name}": _static(name, body) for name, body in page.STATIC.items()}


def _static(name: str, body: bytes) -> Page:
    # Its address has what is in it in it.
    headers = {**SAFE, "Cache-Control": "max-age=86400", "Content-Type": _KINDS[name.rpartition(".")[2]]}

    async def static(_: Request) -> Response:
        return Response(body, headers=headers)

    return static


class _Made(NamedTuple):
    """A status, and what is sent of it: zipped to all but a few scripts."""

    status: Status
    json: bytes
    zipped: bytes


class _Newest:
    """The newest status, made by one thread for all who ask."""

    def __init__(self, make: Callable[[], Status]) -> None:
        self._make = make
        self._threads = ThreadPoolExecutor(1, thread_name_prefix="status")
        self._made: asyncio.Task[_Made] | None = None
        self._until = 0.0

    async def get(self) -> _Made:
        if self._made is None or (self._made.done() and time.monotonic() > self._until):
            self._until = time.monotonic() + LASTS
            self._made = asyncio.create_task(self.work(self._anew))
        return await asyncio.shield(self._made)

    async def work(self, function: Callable[[], _T]) -> _T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, function)

    def _anew(self) -> _Made:
        begin = time.thread_time()
        status = self._make()
        body = msgspec.json.encode(status)
        made = _Made(status, body, gzip.compress(body, 1))
        self._until = max(self._until, time.monotonic() + SHARE * (time.thread_time() - begin))
        return made
