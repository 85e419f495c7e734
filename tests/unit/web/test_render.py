"""/metrics, requested without a server."""

from __future__ import annotations

import asyncio
import itertools
import re
import threading
import time
from types import SimpleNamespace
from typing import Any

from celery_exporter.metrics.exposition.series_tracker import SeriesTracker
from celery_exporter.metrics.exposition.text import Exposition
from celery_exporter.metrics.model import MetricFamily
from celery_exporter.web.app import build
from celery_exporter.web.render import RENDERERS, MetricsPage, PageSource

TIMEOUT_SECONDS = 10.0  # for events that take milliseconds


class NumberedPages:
    """An application whose only metric is the number of the snapshot. Snapshots wait until `go` is set."""

    def __init__(self) -> None:
        self.go = threading.Event()
        self.begun = threading.Semaphore(0)
        self._numbers = itertools.count(1)
        row = MetricFamily(
            "celery_snapshot",
            "gauge",
            "Number of the snapshot.",
            (),
            lambda snapshot: [((), snapshot.number)],
        )
        page = MetricsPage(lambda: [PageSource(self._snapshot, Exposition([row]), SeriesTracker(0.0, 0.0))])
        self.app = build(page, lambda: True, str)

    def _snapshot(self) -> Any:
        number = next(self._numbers)
        self.begun.release()
        assert self.go.wait(TIMEOUT_SECONDS)
        return SimpleNamespace(number=number, exporter=SimpleNamespace(at=time.time(), started=time.time()))

    async def get(self, *headers: tuple[bytes, bytes], client: str = "10.0.0.1") -> float:
        scope = {
            "type": "http",
            "method": "GET",
            "path": "/metrics",
            "query_string": b"",
            "headers": list(headers),
            "client": (client, 1),
        }
        sent = []

        async def send(message) -> None:
            sent.append(message)

        await self.app(scope, None, send)
        return float(re.search(rb"^celery_snapshot (\S+)$", sent[1]["body"], re.MULTILINE)[1])


def test_equal_requests_share_the_next_page():
    async def scenario() -> None:
        pages = NumberedPages()
        busy = []
        for _ in range(RENDERERS):
            busy.append(asyncio.create_task(pages.get()))
            assert await asyncio.to_thread(pages.begun.acquire, timeout=TIMEOUT_SECONDS)
        requests = [asyncio.create_task(pages.get()) for _ in range(200)]
        await asyncio.sleep(0)
        pages.go.set()
        assert await asyncio.gather(*busy) == [*range(1, RENDERERS + 1)]
        assert set(await asyncio.gather(*requests)) == {RENDERERS + 1}

    asyncio.run(scenario())


def test_snapshot_is_newer_than_the_request():
    async def scenario() -> None:
        pages = NumberedPages()
        first = asyncio.create_task(pages.get())
        assert await asyncio.to_thread(pages.begun.acquire, timeout=TIMEOUT_SECONDS)
        second = asyncio.create_task(pages.get())
        assert await asyncio.to_thread(pages.begun.acquire, timeout=TIMEOUT_SECONDS), (
            "the page under way must not be used"
        )
        pages.go.set()
        assert (await first, await second) == (1, 2)

    asyncio.run(scenario())


def test_scrapers_and_formats_have_separate_pages():
    async def scenario() -> list[float]:
        pages = NumberedPages()
        pages.go.set()
        scrape = (b"x-prometheus-scrape-timeout-seconds", b"10")
        requests = (
            pages.get(),
            pages.get(scrape),
            pages.get(scrape, client="10.0.0.2"),
            pages.get((b"accept", b"application/openmetrics-text")),
        )
        return await asyncio.gather(*requests)

    assert sorted(asyncio.run(scenario())) == [1, 2, 3, 4]
