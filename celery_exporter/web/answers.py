"""Answers that many requests share: each is made once in a while, in one thread."""

from __future__ import annotations

import asyncio
import gzip
import time
from collections.abc import Awaitable, Callable, Hashable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Generic, NamedTuple, TypeVar

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from celery_exporter.metrics.exposition.negotiation import accepts_gzip

#: Seconds for which an answer is cached for all requests. Pages refresh every two: ten cost as much as one.
CACHE_SECONDS = 1.9
#: An answer is cached for at least this many times the CPU seconds of making it. So one that is requested all
#: the time needs at most 1 % of a core.
CACHE_CPU_FACTOR = 100
#: Answers of one kind that are cached. The oldest one makes place.
MAX_CACHED = 32

NOSNIFF = {"X-Content-Type-Options": "nosniff"}
SAFE = {**NOSNIFF, "Referrer-Policy": "no-referrer", "Cache-Control": "no-store"}
#: The policy of pages without scripts, styles and pictures.
PLAIN_POLICY = "default-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"

Page = Callable[[Request], Awaitable[Response]]

T = TypeVar("T")
K = TypeVar("K", bound=Hashable)


class Encoded(NamedTuple):
    """A value, and its JSON: compressed for browsers, plain for scripts that accept no gzip."""

    value: Any
    json: bytes
    zipped: bytes


def encode(value: Any) -> Encoded:
    """Return a value with its JSON."""
    body = msgspec.json.encode(value)
    return Encoded(value, body, gzip.compress(body, 1))


def plain_json(answer: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """Return the JSON of an answer that one request gets, without compression."""
    return Response(msgspec.json.encode(answer), status, {**SAFE, **(headers or {})}, "application/json")


def json_response(request: Request, encoded: Encoded) -> Response:
    """Return the JSON in the encoding that the client accepts."""
    headers = {**SAFE, "Vary": "Accept-Encoding"}
    if accepts_gzip(request.headers.get("accept-encoding", "")):
        return Response(
            encoded.zipped, media_type="application/json", headers={**headers, "Content-Encoding": "gzip"}
        )
    return Response(encoded.json, media_type="application/json", headers=headers)


class Worker:
    """A thread that makes answers, so that the event loop stays free for scrapes."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="status")

    async def run(self, function: Callable[[], T]) -> T:
        """Return the result of a function that runs in the thread."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, function)


class _Cached(Generic[T]):
    """An answer that is being made, or is made, and when it expires in monotonic seconds."""

    def __init__(self, seconds: float) -> None:
        self.expires = time.monotonic() + seconds
        self.task: asyncio.Task[T] | None = None

    def is_fresh(self) -> bool:
        return self.task is not None and (not self.task.done() or time.monotonic() <= self.expires)


class Cache(Generic[K, T]):
    """Answers by key, each for some seconds. `make` runs in the thread of the worker."""

    def __init__(self, worker: Worker, make: Callable[[K], T], seconds: float = CACHE_SECONDS) -> None:
        self._worker, self._make, self._seconds = worker, make, seconds
        self._cached: dict[K, _Cached[T]] = {}

    def get(self, key: K) -> Awaitable[T]:
        """Return the answer of a key, made now if the cached one has expired."""
        cached = self._cached.get(key)
        if cached is None or not cached.is_fresh():
            self._cached.pop(key, None)
            while len(self._cached) >= MAX_CACHED:
                del self._cached[next(iter(self._cached))]
            cached = self._cached[key] = _Cached(self._seconds)
            cached.task = asyncio.create_task(self._worker.run(lambda: self._measured(key, cached)))
        assert cached.task is not None  # noqa: S101  set above
        return asyncio.shield(cached.task)

    def _measured(self, key: K, cached: _Cached[T]) -> T:
        started = time.thread_time()
        answer = self._make(key)
        cpu_seconds = time.thread_time() - started
        cached.expires = max(cached.expires, time.monotonic() + CACHE_CPU_FACTOR * cpu_seconds)
        return answer
