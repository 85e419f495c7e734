"""The cache of the status, and its JSON."""

from __future__ import annotations

import asyncio
import re
import time

import msgspec
from harness import statuses
from harness.statuses import NOW, status

from celery_exporter.status.model import Status
from celery_exporter.web.status_routes import CACHE_SECONDS, _StatusCache


def test_expensive_status_is_cached_for_longer():
    """So open pages need at most 1 % of a core, whatever the size of the cluster."""
    calls = []

    def expensive_status() -> Status:
        calls.append(end := time.thread_time() + 0.03)
        while time.thread_time() < end:
            pass
        return status()

    async def request_repeatedly() -> None:
        cache = _StatusCache(expensive_status)
        started = time.monotonic()
        while time.monotonic() < started + CACHE_SECONDS + 0.3:
            await cache.get()
            await asyncio.sleep(0.1)

    asyncio.run(request_repeatedly())
    assert len(calls) == 1


def test_json_decodes_to_the_same_status():
    original = statuses.full_status()
    decoded = msgspec.json.decode(msgspec.json.encode(original), type=Status)
    assert msgspec.json.encode(decoded) == msgspec.json.encode(original)
    assert decoded.at == NOW
    assert re.fullmatch(rb'\{"version":1,.*\}', msgspec.json.encode(original))
