"""/metrics: rendered in a few threads, and sent as fast as each client reads.

While a page is sent, memory holds only its compressed form, a tenth of its size, also for clients that accept
no compression. So some hundred clients that do not read neither delay other clients nor have to be closed for
them.
"""

from __future__ import annotations

import asyncio
import gzip
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import NamedTuple

from msgspec import Struct
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.types import Receive, Scope, Send

from celery_exporter.core.snapshot import Snapshot
from celery_exporter.metrics.exposition.negotiation import accepts_gzip, negotiate
from celery_exporter.metrics.exposition.series_tracker import ScrapeSession, SeriesTracker
from celery_exporter.metrics.exposition.text import Exposition, Part, render
from celery_exporter.web.answers import NOSNIFF
from celery_exporter.web.connections import READ_TIMEOUT_SECONDS, Connection

#: Pages that are rendered at a time. Two Prometheus servers are usual; more threads would share the same
#: core.
RENDERERS = 2
#: Bytes of unread pages in memory above which no further page is rendered.
MAX_UNREAD_BYTES = 64 * 2**20
#: Seconds that a request waits while there are more, and after which an answer may be cut for waiting
#: requests. The default timeout of a Prometheus scrape is 10 s.
MAX_WAIT_SECONDS = 4.0
#: Bytes that are passed to the connection at a time.
CHUNK_BYTES = 2**14
#: Compressed bytes that zlib gets at a time: it copies those that it has not used yet.
INPUT_BYTES = 2**10

#: zlib's window size, with the flag of the gzip format.
_GZIP = 16 + zlib.MAX_WBITS

#: Content type, and address of the Prometheus server (None for other clients).
_PageKey = tuple[str, str | None]


class PageSource(NamedTuple):
    """What a page, or a part of it, is made of."""

    snapshot: Callable[[], Snapshot]
    exposition: Exposition
    tracker: SeriesTracker


class _Page(Struct, frozen=True):
    """A rendered page, with the scrape sessions of its parts if it is for a Prometheus server."""

    zipped: bytes
    length: int  # bytes before compression
    sessions: tuple[tuple[SeriesTracker, ScrapeSession], ...]


class Renderers:
    """What all pages share: the threads that render them, and the limit of unread bytes."""

    def __init__(self) -> None:
        self.threads = ThreadPoolExecutor(RENDERERS, thread_name_prefix="render")
        self.free = asyncio.Semaphore(RENDERERS)
        self.unread = _UnreadAnswers()


class MetricsPage:
    """Answers requests for /metrics, each from new snapshots.

    `sources` returns the parts of the page, one or more. `scope` tells scrapes of this page apart from those
    of another one that shows the same series to the same Prometheus server.
    """

    def __init__(
        self, sources: Callable[[], Sequence[PageSource]], renderers: Renderers | None = None, scope: str = ""
    ) -> None:
        self._sources = sources
        self._renderers = renderers or Renderers()
        self._scope = scope
        self._queued: dict[_PageKey, asyncio.Task[_Page]] = {}

    async def answer(self, request: Request) -> Response:
        """Return the page; status 503 if too many bytes of other pages are unread."""
        content_type = negotiate(request.headers.get("accept"))
        zipped = accepts_gzip(request.headers.get("accept-encoding", ""))
        scraper = _scraper(request)
        unread = self._renderers.unread
        if not await unread.wait_for_space():
            reason = f"{unread.size()} bytes of other pages are unread; the limit is {MAX_UNREAD_BYTES}\n"
            return PlainTextResponse(reason, 503, {**NOSNIFF, "Retry-After": "1"})
        page = await self._page((content_type, scraper))
        headers = {**NOSNIFF, "Content-Type": content_type, "Vary": "Accept, Accept-Encoding"}
        headers |= {"Content-Encoding": "gzip"} if zipped else {"Content-Length": str(page.length)}
        connection: Connection | None = request.scope.get("state", {}).get("connection")
        if page.sessions and scraper is not None and request.method == "GET":
            (connection.when_read if connection else _call)(partial(self._end, scraper, page))
        if connection is None:  # another server than ours
            return Response(page.zipped if zipped else gzip.decompress(page.zipped), headers=headers)
        return _ChunkedPage(page, headers, connection, unread)

    def _end(self, scraper: str, page: _Page) -> None:
        for tracker, session in page.sessions:
            tracker.end(scraper + self._scope, session, time.monotonic())

    async def _page(self, key: _PageKey) -> _Page:
        # Equal requests share a page that is not being rendered yet. So many requests wait no longer than
        # two.
        if key not in self._queued:
            self._queued[key] = asyncio.create_task(self._make(key))
        return await asyncio.shield(self._queued[key])

    async def _make(self, key: _PageKey) -> _Page:
        async with self._renderers.free:
            del self._queued[key]  # later requests get a newer snapshot
            # In a thread, so that the event loop can answer other requests meanwhile.
            return await asyncio.get_running_loop().run_in_executor(
                self._renderers.threads, self._render, *key
            )

    def _render(self, content_type: str, scraper: str | None) -> _Page:
        parts, sessions = [], []
        for snapshot, exposition, tracker in self._sources():
            session = None
            if scraper is not None:
                session = tracker.begin(scraper + self._scope, time.monotonic())
                sessions.append((tracker, session))
            parts.append(Part(exposition, snapshot(), session))
        text = render(parts, content_type)
        return _Page(gzip.compress(text, 1), len(text), tuple(sessions))


class _UnreadAnswers:
    """The answers that clients are reading, by their start (monotonic seconds), the oldest first."""

    def __init__(self) -> None:
        self._started: dict[_ChunkedPage, float] = {}
        self._removed = asyncio.Event()

    def size(self) -> int:
        """Return how many bytes of pages are unread."""
        return sum(len(answer.body) for answer in self._started)

    def add(self, answer: _ChunkedPage) -> None:
        """Add an answer."""
        self._started[answer] = time.monotonic()

    def remove(self, answer: _ChunkedPage) -> None:
        """Remove an answer that was read or cut."""
        self._started.pop(answer, None)
        self._removed.set()

    async def wait_for_space(self) -> bool:
        """Wait until fewer bytes are unread than the limit; return whether they are.

        After the maximum wait, cut the oldest answer if its client has read it for as long.
        """
        deadline = time.monotonic() + MAX_WAIT_SECONDS
        while self.size() > MAX_UNREAD_BYTES:
            self._removed.clear()
            try:
                await asyncio.wait_for(self._removed.wait(), max(0.0, deadline - time.monotonic()))
            except TimeoutError:
                oldest, started = next(iter(self._started.items()))
                if time.monotonic() - started < MAX_WAIT_SECONDS:
                    return False
                oldest.cut()
        return True


class _ChunkedPage(Response):
    """A page that is passed to the connection as fast as the client reads."""

    def __init__(
        self, page: _Page, headers: dict[str, str], connection: Connection, unread: _UnreadAnswers
    ) -> None:
        super().__init__(page.zipped, headers=headers)
        self._zipped = page.zipped
        self._is_plain = "Content-Encoding" not in headers
        self._connection = connection
        self._unread = unread

    async def __call__(self, _scope: Scope, _receive: Receive, send: Send) -> None:
        self._unread.add(self)
        try:
            await asyncio.wait_for(self._send_all(send), READ_TIMEOUT_SECONDS)
        except TimeoutError:
            self.cut()
        finally:
            self._unread.remove(self)

    def cut(self) -> None:
        """Close the connection during the answer."""
        self._unread.remove(self)
        self._connection.abort()

    async def _send_all(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        for chunk in _decompressed(self._zipped) if self._is_plain else _chunks(self._zipped):
            await send({"type": "http.response.body", "body": chunk, "more_body": True})
            await asyncio.sleep(0)  # lets the loop serve other requests, also if the client reads very fast
        await send({"type": "http.response.body", "body": b""})


def _chunks(body: bytes) -> Iterator[memoryview]:
    view = memoryview(body)
    return (view[start : start + CHUNK_BYTES] for start in range(0, len(view), CHUNK_BYTES))


def _decompressed(zipped: bytes) -> Iterator[bytes]:
    decompressor = zlib.decompressobj(_GZIP)
    for start in range(0, len(zipped), INPUT_BYTES):
        rest = zipped[start : start + INPUT_BYTES]
        while chunk := decompressor.decompress(rest, CHUNK_BYTES):
            yield chunk
            rest = decompressor.unconsumed_tail


def _scraper(request: Request) -> str | None:
    """Return the address of a Prometheus server, which sends its scrape timeout; None for other clients."""
    is_scrape = "x-prometheus-scrape-timeout-seconds" in request.headers
    return request.client.host if is_scrape and request.client else None


def _call(function: Callable[[], None]) -> None:
    function()
