"""What is asked by people who look: the status page, what it is made of, and the same for scripts."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from importlib import resources
from typing import TypeVar

import msgspec
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

from celery_exporter.status import Status
from celery_exporter.web import page

#: Seconds for which a status is given to all who ask. Pages ask every two: ten of them cost as much as one.
LASTS = 1.9
#: Longest part of a name that tasks are looked for by.
LONGEST = 255

_T = TypeVar("_T")
Page = Callable[[Request], Awaitable[Response]]

_SAFE = {"X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer", "Cache-Control": "no-store"}
_STATIC = {
    "status.css": "text/css; charset=utf-8",
    "status.js": "text/javascript; charset=utf-8",
    "icon.svg": "image/svg+xml",
}


def pages(status: Callable[[], Status]) -> dict[str, Page]:
    """Return the pages by path; `status` is called in a thread of its own, once for all who ask at a time."""
    newest = _Newest(status)

    async def html(request: Request) -> Response:
        asked = request.query_params
        sort, contains = asked.get("sort", page.SORT), asked.get("filter", "")[:LONGEST]
        found = (await newest.get())[0]
        text = await newest.work(lambda: page.html(found, sort=sort, contains=contains))
        return HTMLResponse(text, headers={**_SAFE, "Content-Security-Policy": page.POLICY})

    async def api(_: Request) -> Response:
        body = (await newest.get())[1]
        return Response(body, media_type="application/json", headers=_SAFE)

    return {"/": html, "/api/v1/status": api, **{f"/static/{name}": _static(name) for name in _STATIC}}


def _static(name: str) -> Page:
    body = (resources.files("celery_exporter.web") / "static" / name).read_bytes()
    # Its address has the version in it.
    headers = {**_SAFE, "Cache-Control": "max-age=86400", "Content-Type": _STATIC[name]}

    async def static(_: Request) -> Response:
        return Response(body, headers=headers)

    return static


class _Newest:
    """The newest status and its JSON, made by one thread for all who ask."""

    def __init__(self, make: Callable[[], Status]) -> None:
        self._make = make
        self._threads = ThreadPoolExecutor(1, thread_name_prefix="status")
        self._made: asyncio.Task[tuple[Status, bytes]] | None = None
        self._at = 0.0

    async def get(self) -> tuple[Status, bytes]:
        now = time.monotonic()
        if self._made is None or (self._made.done() and now - self._at > LASTS):
            self._at = now
            self._made = asyncio.create_task(self.work(self._encoded))
        return await asyncio.shield(self._made)

    async def work(self, function: Callable[[], _T]) -> _T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, function)

    def _encoded(self) -> tuple[Status, bytes]:
        status = self._make()
        return status, msgspec.json.encode(status)
