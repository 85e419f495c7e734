"""/metrics: made in a thread, a few at a time, and sent at the pace of whoever reads it.

Until it is read a page waits in memory, compressed also for those that want it plain: a tenth of what it is.
So some hundred clients that do not read hold up nobody, and none is cut off for the sake of another.
"""

from __future__ import annotations

import asyncio
import gzip
import time
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from msgspec import Struct
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.types import Receive, Scope, Send

from celery_exporter.core.snapshot import Snapshot
from celery_exporter.metrics.exposition.negotiation import accepts_gzip, negotiate
from celery_exporter.metrics.exposition.series_tracker import ScrapeSession, SeriesTracker
from celery_exporter.metrics.exposition.text import Exposition
from celery_exporter.web.connections import READ, Connection
from celery_exporter.web.status_routes import NOSNIFF

#: Expositions made at a time. Two Prometheus servers are usual; more would only share the same core.
RENDERERS = 2
#: Bytes of pages that wait in memory to be read; while there are more, none is made.
MOST_UNREAD = 64 * 2**20
#: Seconds that a request waits for that, and after which a client that reads makes room if others wait:
#: Prometheus' own patience is 10 s, unless it is told otherwise.
PATIENCE = 4.0
#: Bytes that are given to the connection at a time.
PIECE = 2**14
#: Compressed bytes that zlib gets at a time: it copies what it has not used yet.
FED = 2**10

#: What is used of zlib: its gzip format.
_GZIP = 16 + zlib.MAX_WBITS

#: Content type, address of the scraper (None for people).
_Wanted = tuple[str, str | None]


class _Made(Struct, frozen=True):
    """A page, and what it shows to whom if it is for a scraper."""

    zipped: bytes
    length: int  # when it is not
    session: ScrapeSession | None


class MetricsPage:
    """Answers a request for /metrics from a snapshot."""

    def __init__(
        self, snapshot: Callable[[], Snapshot], exposition: Exposition, tracker: SeriesTracker
    ) -> None:
        self._snapshot = snapshot
        self._exposition = exposition
        self._tracker = tracker
        self._renderers = ThreadPoolExecutor(RENDERERS, thread_name_prefix="render")
        self._free = asyncio.Semaphore(RENDERERS)
        self._queued: dict[_Wanted, asyncio.Task[_Made]] = {}
        self._readers = _Readers()

    async def answer(self, request: Request) -> Response:
        """Return the page; 503 if so much of others waits to be read that it is not made."""
        content_type = negotiate(request.headers.get("accept"))
        zipped = accepts_gzip(request.headers.get("accept-encoding", ""))
        scraper = _scraper(request)
        if not await self._readers.has_room():
            why = f"{self._readers.unread()} bytes of pages wait for clients that do not read them\n"
            return PlainTextResponse(why, 503, {**NOSNIFF, "Retry-After": "1"})
        page = await self._made((content_type, scraper))
        session = page.session
        headers = {**NOSNIFF, "Content-Type": content_type, "Vary": "Accept, Accept-Encoding"}
        headers |= {"Content-Encoding": "gzip"} if zipped else {"Content-Length": str(page.length)}
        connection: Connection | None = request.scope.get("state", {}).get("connection")
        if session is not None and scraper is not None and request.method == "GET":
            (connection.when_read if connection else _call)(partial(self._end, scraper, session))
        if connection is None:  # not our server
            return Response(page.zipped if zipped else gzip.decompress(page.zipped), headers=headers)
        return _InPieces(page, headers, connection, self._readers)

    def _end(self, scraper: str, session: ScrapeSession) -> None:
        self._tracker.end(scraper, session, time.monotonic())

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

    def _render(self, content_type: str, scraper: str | None) -> _Made:
        session = None if scraper is None else self._tracker.begin(scraper, time.monotonic())
        text = self._exposition.render(self._snapshot(), content_type, session)
        return _Made(gzip.compress(text, 1), len(text), session)


class _Readers:
    """The answers that are being read, since when (monotonic), the longest first."""

    def __init__(self) -> None:
        self._since: dict[_InPieces, float] = {}
        self._fewer = asyncio.Event()

    def unread(self) -> int:
        """Return how many bytes wait to be read."""
        return sum(len(answer.body) for answer in self._since)

    def enter(self, answer: _InPieces) -> None:
        """Take one in."""
        self._since[answer] = time.monotonic()

    def leave(self, answer: _InPieces) -> None:
        """Forget one."""
        self._since.pop(answer, None)
        self._fewer.set()

    async def has_room(self) -> bool:
        """Wait until less is unread; then end the answer that has been read for longest, if that is long."""
        deadline = time.monotonic() + PATIENCE
        while self.unread() > MOST_UNREAD:
            self._fewer.clear()
            try:
                await asyncio.wait_for(self._fewer.wait(), max(0.0, deadline - time.monotonic()))
            except asyncio.TimeoutError:
                longest, since = next(iter(self._since.items()))
                if time.monotonic() - since < PATIENCE:
                    return False
                longest.cut()
        return True


class _InPieces(Response):
    """A page that is given to the connection as fast as its client reads."""

    def __init__(
        self, made: _Made, headers: dict[str, str], connection: Connection, readers: _Readers
    ) -> None:
        super().__init__(made.zipped, headers=headers)
        self._zipped = made.zipped
        self._is_plain = "Content-Encoding" not in headers
        self._connection = connection
        self._readers = readers

    async def __call__(self, _scope: Scope, _receive: Receive, send: Send) -> None:
        self._readers.enter(self)
        try:
            await asyncio.wait_for(self._send_all(send), READ)
        except asyncio.TimeoutError:
            self.cut()
        finally:
            self._readers.leave(self)

    def cut(self) -> None:
        """End the connection in the middle of the answer."""
        self._readers.leave(self)
        self._connection.abort()

    async def _send_all(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        for piece in _plain(self._zipped) if self._is_plain else _parts(self._zipped):
            await send({"type": "http.response.body", "body": piece, "more_body": True})
            await asyncio.sleep(0)  # the others have their turn, also while it is read as fast as it is sent
        await send({"type": "http.response.body", "body": b""})


def _parts(body: bytes) -> Iterator[memoryview]:
    whole = memoryview(body)
    return (whole[start : start + PIECE] for start in range(0, len(whole), PIECE))


def _plain(zipped: bytes) -> Iterator[bytes]:
    unzip = zlib.decompressobj(_GZIP)
    for start in range(0, len(zipped), FED):
        rest = zipped[start : start + FED]
        while piece := unzip.decompress(rest, PIECE):
            yield piece
            rest = unzip.unconsumed_tail


def _scraper(request: Request) -> str | None:
    """Return the address of a Prometheus server, which says how long it will wait; None for people."""
    scrapes = "x-prometheus-scrape-timeout-seconds" in request.headers
    return request.client.host if scrapes and request.client else None


def _call(done: Callable[[], None]) -> None:
    done()
