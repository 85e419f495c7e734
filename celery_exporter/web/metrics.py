"""/metrics: made in a thread, a few at a time, and sent at the pace of whoever reads it."""

from __future__ import annotations

import asyncio
import gzip
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.types import Receive, Scope, Send

from celery_exporter.core.snapshot import Snapshot
from celery_exporter.exposition import Exposition, negotiate
from celery_exporter.firsts import Firsts, Visit
from celery_exporter.web.connections import READ, Connection
from celery_exporter.web.encodings import takes_gzip
from celery_exporter.web.status import NOSNIFF

#: Expositions made at a time. Two Prometheus servers are usual; more would only share the same core.
RENDERERS = 2
#: Bytes of pages that wait in memory to be read; while there are more, none is made.
MOST_UNREAD = 64 * 2**20
#: Seconds that a request waits for that, and after which a client that reads makes room if others wait:
#: Prometheus' own patience is 10 s, unless it is told otherwise.
PATIENCE = 4.0
#: Bytes that are given to the connection at a time.
PIECE = 2**14

#: Content type, address of the scraper (None for people), gzipped.
_Wanted = tuple[str, str | None, bool]
#: The answer's body, and what it shows to whom if it is for a scraper.
_Made = tuple[bytes, Visit | None]


class MetricsPage:
    """Answers a request for /metrics from a snapshot. `native` tells whether there are native histograms."""

    def __init__(
        self, snapshot: Callable[[], Snapshot], exposition: Exposition, firsts: Firsts, *, native: bool
    ) -> None:
        self._snapshot = snapshot
        self._exposition = exposition
        self._firsts = firsts
        self._native = native
        self._renderers = ThreadPoolExecutor(RENDERERS, thread_name_prefix="render")
        self._free = asyncio.Semaphore(RENDERERS)
        self._queued: dict[_Wanted, asyncio.Task[_Made]] = {}
        self._sent: dict[_InPieces, float] = {}  # what is being sent since when, the longest first
        self._read = asyncio.Event()

    async def answer(self, request: Request) -> Response:
        """Return the page; 503 if so much of others waits to be read that it is not made."""
        content_type = negotiate(request.headers.get("accept"), native=self._native)
        zipped = takes_gzip(request.headers.get("accept-encoding", ""))
        scraper = _scraper(request)
        if not await self._has_room():
            why = f"{self._unread()} bytes of pages wait for clients that do not read them\n"
            return PlainTextResponse(why, 503, {**NOSNIFF, "Retry-After": "1"})
        body, visit = await self._made((content_type, scraper, zipped))
        headers = {**NOSNIFF, "Content-Type": content_type, "Vary": "Accept, Accept-Encoding"}
        if zipped:
            headers["Content-Encoding"] = "gzip"
        connection: Connection | None = request.scope.get("state", {}).get("connection")
        if visit is not None and scraper is not None and request.method == "GET":
            (connection.when_read if connection else _call)(partial(self._end, scraper, visit))
        if connection is None:  # not our server
            return Response(body, headers=headers)
        return _InPieces(body, headers, connection, self._sent, self._read)

    def _end(self, scraper: str, visit: Visit) -> None:
        self._firsts.end(scraper, visit, time.monotonic())

    def _unread(self) -> int:
        return sum(len(answer.body) for answer in self._sent)

    async def _has_room(self) -> bool:
        """Wait until less is unread, and then turn out who has been reading for longest."""
        deadline = time.monotonic() + PATIENCE
        while self._unread() > MOST_UNREAD:
            self._read.clear()
            try:
                await asyncio.wait_for(self._read.wait(), deadline - time.monotonic())
            except asyncio.TimeoutError:
                longest, since = next(iter(self._sent.items()))
                if time.monotonic() - since < PATIENCE:
                    return False
                longest.cut()
                await asyncio.sleep(0)
        return True

    async def _made(self, wanted: _Wanted) -> _Made:
        # Whoever wants the same while it waits to be made shares it: a crowd waits no longer than two do.
        if wanted not in self._queued:
            self._queued[wanted] = asyncio.create_task(self._make(wanted))
        return await asyncio.shield(self._queued[wanted])

    async def _make(self, wanted: _Wanted) -> _Made:
        async with self._free:
            del self._queued[wanted]  # who asks from now on gets a newer one
            # In a thread: the loop goes on answering the other requests while text is made.
            return await asyncio.get_running_loop().run_in_executor(self._renderers, self._render, *wanted)

    def _render(self, content_type: str, scraper: str | None, zipped: bool) -> _Made:
        visit = None if scraper is None else self._firsts.begin(time.monotonic())
        text = self._exposition.render(self._snapshot(), content_type, visit)
        return gzip.compress(text, 1) if zipped else text, visit


class _InPieces(Response):
    """An answer that is given to the connection as fast as its client reads."""

    def __init__(
        self,
        body: bytes,
        headers: dict[str, str],
        connection: Connection,
        sent: dict[_InPieces, float],
        read: asyncio.Event,
    ) -> None:
        super().__init__(body, headers=headers)
        self._connection = connection
        self._sent, self._read = sent, read

    async def __call__(self, _scope: Scope, _receive: Receive, send: Send) -> None:
        self._sent[self] = time.monotonic()
        try:
            await asyncio.wait_for(self._send_all(send), READ)
        except asyncio.TimeoutError:
            self.cut()
        finally:
            self._sent.pop(self, None)
            self._read.set()

    def cut(self) -> None:
        """End the connection in the middle of the answer."""
        self._sent.pop(self, None)
        self._connection.turn_out()

    async def _send_all(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        pieces = memoryview(self.body)
        while len(pieces) > PIECE:
            await send({"type": "http.response.body", "body": pieces[:PIECE], "more_body": True})
            pieces = pieces[PIECE:]
        await send({"type": "http.response.body", "body": pieces})


def _scraper(request: Request) -> str | None:
    """Return the address of a Prometheus server, which says how long it will wait; None for people."""
    scrapes = "x-prometheus-scrape-timeout-seconds" in request.headers
    return request.client.host if scrapes and request.client else None


def _call(done: Callable[[], None]) -> None:
    done()
