"""The pages, asked without a server between."""

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
from celery_exporter.web.render import RENDERERS, MetricsPage

PATIENCE = 10.0  # seconds, for what takes milliseconds


class Pages:
    """An application whose only metric is the number of the snapshot, which is taken when `go` is set."""

    def __init__(self) -> None:
        self.go = threading.Event()
        self.begun = threading.Semaphore(0)
        self._numbers = itertools.count(1)
        row = MetricFamily(
            "celery_snapshot", "gauge", "Which one.", (), lambda snapshot: [((), snapshot.number)]
        )
        page = MetricsPage(self._snapshot, Exposition([row]), SeriesTracker(0.0, 0.0))
        self.app = build(page, lambda: True, str)

    def _snapshot(self) -> Any:
        found = next(self._numbers)
        self.begun.release()
        assert self.go.wait(PATIENCE)
        return SimpleNamespace(number=found, exporter=SimpleNamespace(at=time.time(), started=time.time()))

    async def ask(self, *headers: tuple[bytes, bytes], client: str = "10.0.0.1") -> float:
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


def test_a_crowd_that_wants_the_same_waits_for_one_page_more():
    async def driver() -> None:
        pages = Pages()
        busy = []
        for _ in range(RENDERERS):
            busy.append(asyncio.create_task(pages.ask()))
            assert await asyncio.to_thread(pages.begun.acquire, timeout=PATIENCE)
        crowd = [asyncio.create_task(pages.ask()) for _ in range(200)]
        await asyncio.sleep(0)
        pages.go.set()
        assert await asyncio.gather(*busy) == [*range(1, RENDERERS + 1)]
        assert set(await asyncio.gather(*crowd)) == {RENDERERS + 1}

    asyncio.run(driver())


def test_nobody_gets_a_page_whose_snapshot_is_older_than_the_question():
    async def driver() -> None:
        pages = Pages()
        first = asyncio.create_task(pages.ask())
        assert await asyncio.to_thread(pages.begun.acquire, timeout=PATIENCE)
        second = asyncio.create_task(pages.ask())
        assert await asyncio.to_thread(pages.begun.acquire, timeout=PATIENCE), "it has to be made anew"
        pages.go.set()
        assert (await first, await second) == (1, 2)

    asyncio.run(driver())


def test_scrapers_and_people_get_pages_of_their_own():
    async def driver() -> list[float]:
        pages = Pages()
        pages.go.set()
        scrape = (b"x-prometheus-scrape-timeout-seconds", b"10")
        asked = (
            pages.ask(),
            pages.ask(scrape),
            pages.ask(scrape, client="10.0.0.2"),
            pages.ask((b"accept", b"application/openmetrics-text")),
        )
        return await asyncio.gather(*asked)

    assert sorted(asyncio.run(driver())) == [1, 2, 3, 4]
