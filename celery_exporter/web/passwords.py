"""Checks passwords against bcrypt hashes, one at a time, in a thread beside the event loop.

The number of waiting checks is bounded, so that many login attempts cannot occupy the exporter.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import threading
from collections import OrderedDict, deque
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial

import bcrypt
from msgspec import Struct

#: Successful checks that are cached: there are a few scrapers. (The exporter-toolkit caches 100 as well.)
MAX_CACHED = 100
#: Checks that wait, of all clients and of one address. Each takes some 60 ms at the usual cost, and addresses
#: take turns. So a client with the right password waits for at most 8 s, if its own address has the maximum
#: of waiting attempts. After that the result is cached.
MAX_WAITING = 512
MAX_WAITING_PER_ADDRESS = 128
#: The bytes of a password that bcrypt uses. Its library rejects longer passwords; other tools cut them.
_MAX_BYTES = 72
#: A salt and a hash for which no password is known.
_UNMATCHABLE = "QOauhQNbBCuQDKes6eFzPeMqBSjb7Mr5DUmpZ/VcEd00UAV/LDeSi"
_USUAL_COST = b"10"
#: Niceness of the thread that compares: events and scrapes have priority.
_NICENESS = 10


class TooManyAttemptsError(Exception):
    """The limit of waiting checks is reached, so the password was not checked."""


class _Check(Struct, frozen=True, eq=False):
    """A password and a hash to compare, and the future of the result."""

    password: bytes
    hashed: bytes
    result: asyncio.Future[bool]


class PasswordChecker:
    """Checks users and passwords. For one event loop."""

    def __init__(self) -> None:
        self._cached: OrderedDict[bytes, None] = OrderedDict()  # digests of successful checks
        self._pending: dict[bytes, asyncio.Future[bool]] = {}  # all that wait, and the one that runs
        self._waiting: dict[str, deque[_Check]] = {}  # by address, in the order of their turns
        self._is_comparing = False
        self._secret = os.urandom(32)  # a key for the digests, so that they reveal nothing about passwords
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="bcrypt", initializer=_lower_priority)

    async def match(self, users: Mapping[bytes, bytes], user: bytes, password: bytes, address: str) -> bool:
        """Return whether it is the user's password.

        Raises TooManyAttemptsError. An unknown user takes as long as a wrong password. The cache does not
        apply after a change of the user's hash.
        """
        hashed = users.get(user) or self._unmatchable_hash(users, user)
        digest = self._digest(repr((user, hashed, password)).encode())
        if digest in self._cached:
            self._cached.move_to_end(digest)
            return True
        # Equal requests at the same time share one comparison.
        result = self._pending.get(digest) or self._enqueue(digest, hashed, password, address)
        is_match = await asyncio.shield(result) and user in users
        if is_match:
            self._cached[digest] = None
            if len(self._cached) > MAX_CACHED:
                self._cached.popitem(last=False)
        return is_match

    def _enqueue(self, digest: bytes, hashed: bytes, password: bytes, address: str) -> asyncio.Future[bool]:
        waiting = self._waiting.get(address, deque())
        if len(self._pending) >= MAX_WAITING or len(waiting) >= MAX_WAITING_PER_ADDRESS:
            raise TooManyAttemptsError
        result = self._pending[digest] = asyncio.get_running_loop().create_future()
        result.add_done_callback(lambda _: self._pending.pop(digest))
        self._waiting.setdefault(address, waiting).append(_Check(password, hashed, result))
        if not self._is_comparing:
            self._compare_next()
        return result

    def _compare_next(self) -> None:
        """Start the oldest check of the address whose turn it is."""
        self._is_comparing = bool(self._waiting)
        if not self._waiting:
            return
        address = next(iter(self._waiting))
        waiting = self._waiting.pop(address)
        check = waiting.popleft()
        if waiting:
            self._waiting[address] = waiting
        loop = asyncio.get_running_loop()
        comparison = loop.run_in_executor(self._thread, _compare, check.password, check.hashed)
        comparison.add_done_callback(partial(self._finish, check.result))

    def _finish(self, result: asyncio.Future[bool], comparison: asyncio.Future[bool]) -> None:
        if comparison.cancelled() or comparison.exception() is not None:
            result.set_result(False)
        else:
            result.set_result(comparison.result())
        self._compare_next()

    def _unmatchable_hash(self, users: Mapping[bytes, bytes], user: bytes) -> bytes:
        """Return a hash that no password matches.

        Its cost is that of some user's hash, always the same one for one name. So the time of a check does
        not reveal whether a user exists.
        """
        costs = sorted(hashed[4:6] for hashed in users.values()) or [_USUAL_COST]
        index = int.from_bytes(self._digest(user), "big") % len(costs)
        return b"$2b$" + costs[index] + b"$" + _UNMATCHABLE.encode()

    def _digest(self, data: bytes) -> bytes:
        return hashlib.blake2b(data, key=self._secret).digest()


def _compare(password: bytes, hashed: bytes) -> bool:
    try:
        return bcrypt.checkpw(password[:_MAX_BYTES], hashed)
    except ValueError:  # some versions reject a NUL byte
        return False


def _lower_priority() -> None:
    """Lower the priority of the current thread (Linux: of this thread alone)."""
    with suppress(OSError):  # a sandbox may forbid it; checks work without it
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICENESS)
