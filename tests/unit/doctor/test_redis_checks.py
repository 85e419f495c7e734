"""Limits and policies of Redis that are wrong; the rest needs a server, see integration/test_doctor.py."""

from __future__ import annotations

from celery_exporter.doctor.problems import EVICTS_QUEUES, EVICTS_RESULTS, EVICTS_WHEN_LIMITED
from celery_exporter.doctor.redis_checks import eviction_problem, max_lag, pubsub_limits


def test_limits_of_redis():
    assert pubsub_limits("normal 0 0 0 slave 268435456 67108864 60 pubsub 33554432 8388608 60") == (
        2**25,
        2**23,
        60,
    )
    assert max_lag(2**25, 2**23, 60) is None
    assert max_lag(0, 0, 0) is None
    assert max_lag(2**20, 0, 0) == "1,048,576 bytes"
    assert max_lag(0, 2**20, 60) == "1,048,576 bytes for 60 s"
    assert max_lag(0, 2**24, 5) == "16,777,216 bytes for 5 s"
    assert eviction_problem("noeviction", 1) is None
    assert eviction_problem("allkeys-lru", 0) is EVICTS_WHEN_LIMITED
    assert eviction_problem("volatile-ttl", 1) is EVICTS_RESULTS
    assert eviction_problem("allkeys-lfu", 1) is EVICTS_QUEUES
