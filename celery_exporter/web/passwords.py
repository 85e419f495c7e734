"""Passwords against bcrypt hashes: off the event loop, one at a time; a flood of guesses ends there."""

from __future__ import annotations

import asyncio
import hashlib
import os
import threading
from collections import Counter, OrderedDict
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import bcrypt

#: Good comparisons remembered: there are a few scrapers. (The toolkit keeps 100 as well.)
REMEMBERED = 100
#: Comparisons that wait for their turn, of all clients and of one address. Each takes some 60 ms at the usual
#: cost, so whoever does know the password waits for seconds at worst, once; then it is remembered.
WAITING = 64
WAITING_OF_ONE = 4
#: What bcrypt looks at; its library refuses to be given more, other tools just cut.
_LONGEST = 72
#: Any salt, and a hash that no password is known for.
_NOBODY = "QOauhQNbBCuQDKes6eFzPeMqBSjb7Mr5DUmpZ/VcEd00UAV/LDeSi"
_USUAL_COST = b"10"


class TooManyGuessesError(Exception):
    """So many passwords wait to be compared that this one is not."""


class Passwords:
    """Tells whether a password is right. For one event loop."""

    def __init__(self) -> None:
        self._good: OrderedDict[bytes, None] = OrderedDict()
        self._waiting: dict[bytes, asyncio.Future[bool]] = {}
        self._of_address: Counter[str] = Counter()
        self._secret = os.urandom(32)  # so that what is remembered says nothing of the password
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="bcrypt", initializer=_step_back)

    async def match(self, users: Mapping[bytes, bytes], user: bytes, password: bytes, address: str) -> bool:
        """Tell whether it is the user's password; raise TooManyGuessesError.

        An unknown user takes as long as a wrong password. A changed hash is another question.
        """
        hashed = users.get(user) or _nobody(users)
        question = hashlib.blake2b(repr((user, hashed, password)).encode(), key=self._secret).digest()
        if question in self._good:
            self._good.move_to_end(question)
            return True
        # Asked by several at once, it is compared once: so a crowd of good scrapers is no flood.
        answer = self._waiting.get(question) or self._ask(question, hashed, password, address)
        right = await asyncio.shield(answer) and user in users
        if right:
            self._good[question] = None
            if len(self._good) > REMEMBERED:
                self._good.popitem(last=False)
        return right

    def _ask(self, question: bytes, hashed: bytes, password: bytes, address: str) -> asyncio.Future[bool]:
        if len(self._waiting) >= WAITING or self._of_address[address] >= WAITING_OF_ONE:
            raise TooManyGuessesError
        answer = asyncio.get_running_loop().run_in_executor(self._thread, _compare, password, hashed)
        self._waiting[question] = answer
        self._of_address[address] += 1

        def done(_: object) -> None:
            del self._waiting[question]
            self._of_address[address] -= 1
            if not self._of_address[address]:
                del self._of_address[address]

        answer.add_done_callback(done)
        return answer


def _compare(password: bytes, hashed: bytes) -> bool:
    try:
        return bcrypt.checkpw(password[:_LONGEST], hashed)
    except ValueError:  # some versions refuse a NUL byte
        return False


def _nobody(users: Mapping[bytes, bytes]) -> bytes:
    """Return a hash that nothing matches, as costly as that of the first user."""
    cost = next((hashed[4:6] for hashed in users.values()), _USUAL_COST)
    return b"$2b$" + cost + b"$" + _NOBODY.encode()


def _step_back() -> None:
    """Leave the processor to events and scrapes where it is scarce (Linux: in this thread alone)."""
    with suppress(OSError):  # a sandbox may forbid it, and a login must not fail for that
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 10)
