"""The cache of answers."""

from __future__ import annotations

import asyncio
import time
from collections import Counter

import pytest

from celery_exporter.web.answers import CACHE_SECONDS, MAX_CACHED, Cache, Worker


def test_an_expensive_answer_is_cached_for_longer():
    """So open pages need at most 1 % of a core, whatever the size of the cluster."""
    calls = []

    def expensive_answer(key: str) -> str:
        calls.append(key)
        end = time.thread_time() + 0.03
        while time.thread_time() < end:
            pass
        return key

    async def request_repeatedly() -> None:
        cache = Cache(Worker(), expensive_answer)
        started = time.monotonic()
        while time.monotonic() < started + CACHE_SECONDS + 0.3:
            assert await cache.get("x") == "x"
            await asyncio.sleep(0.1)

    asyncio.run(request_repeatedly())
    assert calls == ["x"]


def test_requests_at_the_same_time_share_one_answer():
    calls: Counter[int] = Counter()

    def count(key: int) -> int:
        calls[key] += 1
        time.sleep(0.05)
        return key

    async def request() -> list[int]:
        cache = Cache(Worker(), count)
        return await asyncio.gather(*(cache.get(number % 2) for number in range(10)))

    assert asyncio.run(request()) == [0, 1] * 5
    assert calls == {0: 1, 1: 1}


def test_the_number_of_cached_answers_is_bounded():
    async def request() -> int:
        cache = Cache(Worker(), str)
        for number in range(3 * MAX_CACHED):
            assert await cache.get(number) == str(number)
        return len(cache._cached)

    assert asyncio.run(request()) == MAX_CACHED


def test_a_failed_answer_is_made_again():
    results = [ValueError("first"), "second"]

    def fail_once(_: None) -> str:
        result = results.pop(0)
        if isinstance(result, ValueError):
            raise result
        return result

    async def request() -> str:
        cache = Cache(Worker(), fail_once)
        with pytest.raises(ValueError, match="first"):
            await cache.get(None)
        cache._cached[None].expires = 0.0
        return await cache.get(None)

    assert asyncio.run(request()) == "second"
