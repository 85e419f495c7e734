"""Password checks: results, cache, limits, and times that reveal nothing."""

from __future__ import annotations

import asyncio
import os
import statistics
import time

import bcrypt
import pytest

from celery_exporter.web import passwords
from celery_exporter.web.passwords import PasswordChecker, TooManyAttemptsError
from unit.web.configs import HASH, OTHER_HASH

Attempt = tuple[dict[bytes, bytes], bytes, bytes, str]  # users, user, password, address


def results(*attempts: Attempt, checker: PasswordChecker | None = None) -> list:
    """Return the results, or exceptions, of attempts that are made at the same time."""
    checker = checker or PasswordChecker()

    async def match_all() -> list:
        return await asyncio.gather(
            *(checker.match(*attempt) for attempt in attempts), return_exceptions=True
        )

    return asyncio.run(match_all())


USERS = {b"alice": HASH.encode(), b"bob": OTHER_HASH.encode()}


@pytest.mark.parametrize(
    ("user", "password", "expected"),
    [
        (b"alice", b"right", True),
        (b"bob", b"other", True),
        (b"alice", b"other", False),
        (b"alice", b"", False),
        (b"", b"right", False),
        (b"unknown", b"right", False),
        (b"unknown", b"fakepassword", False),
        (b"alice", b"right\0", False),
        (b"alice", b"r" * 10_000, False),
    ],
)
def test_password_matches_only_its_user(user, password, expected):
    assert results((USERS, user, password, "")) == [expected]


def test_password_longer_than_bcrypts_limit_is_cut_as_by_other_tools():
    users = {b"alice": bcrypt.hashpw(b"x" * 72, bcrypt.gensalt(4))}
    assert results((users, b"alice", b"x" * 80, "")) == [True]


def test_check_works_where_a_sandbox_forbids_to_lower_the_priority(monkeypatch):
    def forbidden(*_: int) -> None:
        raise PermissionError

    monkeypatch.setattr(os, "setpriority", forbidden)
    assert results((USERS, b"alice", b"right", "")) == [True]


def test_successful_check_is_cached_until_the_hash_changes(monkeypatch):
    checker = PasswordChecker()
    assert results((USERS, b"alice", b"right", ""), checker=checker) == [True]
    comparisons = []
    monkeypatch.setattr(bcrypt, "checkpw", lambda *_: comparisons.append(1) or False)
    assert results((USERS, b"alice", b"right", ""), checker=checker) == [True]
    assert comparisons == []
    changed = {b"alice": OTHER_HASH.encode()}
    assert results((changed, b"alice", b"right", ""), checker=checker) == [False]
    removed = {b"bob": OTHER_HASH.encode()}
    assert results((removed, b"alice", b"right", ""), checker=checker) == [False]
    assert len(comparisons) == 2


def test_cache_is_bounded():
    users = {str(number).encode(): HASH.encode() for number in range(passwords.MAX_CACHED + 20)}
    checker = PasswordChecker()
    for user in users:
        assert results((users, user, b"right", ""), checker=checker) == [True]
    assert len(checker._cached) == passwords.MAX_CACHED


def test_unknown_user_takes_as_long_as_a_wrong_password():
    users = {b"alice": bcrypt.hashpw(b"right", bcrypt.gensalt(9))}

    def cpu_seconds(user: bytes) -> float:
        started = time.process_time()  # independent of other processes
        assert results((users, user, b"wrong", "")) == [False]
        return time.process_time() - started

    times = [
        (cpu_seconds(b"alice"), cpu_seconds(b"unknown")) for _ in range(5)
    ]  # alternating, for any machine
    of_user, of_unknown = map(statistics.median, zip(*times, strict=True))
    assert 0.5 < of_user / of_unknown < 2


@pytest.mark.parametrize("costs", [(4, 9), (9, 4)])
def test_unknown_user_takes_as_long_as_one_of_the_users(costs):
    """The cost is always the same for one name, so it does not reveal which users exist."""
    users = {str(cost).encode(): bcrypt.hashpw(b"right", bcrypt.gensalt(cost)) for cost in costs}
    checker = PasswordChecker()
    used = {checker._unmatchable_hash(users, str(number).encode())[4:6] for number in range(50)}
    assert used == {b"04", b"09"}
    assert checker._unmatchable_hash(users, b"x") == checker._unmatchable_hash(
        dict(reversed(users.items())), b"x"
    )


def test_equal_attempts_at_the_same_time_are_one_comparison():
    attempts = [(USERS, b"alice", b"right", str(number)) for number in range(1_000)]
    assert results(*attempts) == [True] * 1_000


def test_right_password_is_accepted_beside_wrong_ones_from_its_address():
    flood = [(USERS, b"alice", str(number).encode(), "10.0.0.1") for number in range(50)]
    assert results(*flood, (USERS, b"alice", b"right", "10.0.0.1"))[-1] is True


def test_addresses_take_turns():
    """Any number of attempts from another address delay an attempt by only one comparison."""
    order = []
    flood = [(USERS, b"alice", str(number).encode(), "10.0.0.1") for number in range(60)]

    async def match_all() -> None:
        checker = PasswordChecker()

        async def match(*attempt) -> None:
            await checker.match(*attempt)
            order.append(attempt[3])

        other = (USERS, b"alice", b"right", "10.0.0.2")
        await asyncio.gather(*(match(*attempt) for attempt in [*flood, other]))

    asyncio.run(match_all())
    assert order.index("10.0.0.2") <= 2


def test_limit_of_waiting_attempts_applies_to_each_address():
    flood = [(USERS, b"alice", str(number).encode(), "10.0.0.1") for number in range(1_000)]
    outcomes = results(*flood, (USERS, b"alice", b"right", "10.0.0.2"))
    assert outcomes[-1] is True
    refused = [outcome for outcome in outcomes if isinstance(outcome, TooManyAttemptsError)]
    assert len(refused) == 1_000 - passwords.MAX_WAITING_PER_ADDRESS - 1, "one is compared at once"


def test_limit_of_waiting_attempts_applies_to_all_addresses():
    flood = [(USERS, b"alice", str(number).encode(), str(number)) for number in range(1_000)]
    checker = PasswordChecker()
    refused = [
        outcome for outcome in results(*flood, checker=checker) if isinstance(outcome, TooManyAttemptsError)
    ]
    assert len(refused) == 1_000 - passwords.MAX_WAITING
    assert (checker._waiting, checker._pending) == ({}, {})
