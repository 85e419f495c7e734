"""Passwords against bcrypt hashes: off the event loop, one at a time; a flood of guesses ends there."""

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

#: Good comparisons remembered: there are a few scrapers. (The toolkit keeps 100 as well.)
REMEMBERED = 100
#: Comparisons that wait for their turn, of all clients and of one address. Each takes some 60 ms at the usual
#: cost, and addresses take turns: so who knows the password waits for 8 s at worst, once, while no more than
#: these are guessed at a time from his address; then it is remembered.
WAITING = 512
WAITING_OF_ONE = 128
#: What bcrypt looks at; its library refuses to be given more, other tools just cut.
_LONGEST = 72
#: Any salt, and a hash that no password is known for.
_NOBODY = "QOauhQNbBCuQDKes6eFzPeMqBSjb7Mr5DUmpZ/VcEd00UAV/LDeSi"
_USUAL_COST = b"10"


class TooManyGuessesError(Exception):
    """So many passwords wait to be compared that this one is not."""


class _Question(Struct, frozen=True, eq=False):
    """Whether a password is that of a hash, and who waits for the answer."""

    password: bytes
    hashed: bytes
    answer: asyncio.Future[bool]


class Passwords:
    """Tells whether a password is right. For one event loop."""

    def __init__(self) -> None:
        self._good: OrderedDict[bytes, None] = OrderedDict()
        self._asked: dict[bytes, asyncio.Future[bool]] = {}  # all that wait, and the one that is compared
        self._waiting: dict[str, deque[_Question]] = {}  # by address, the one whose turn it is first
        self._is_comparing = False
        self._secret = os.urandom(32)  # so that what is remembered says nothing of the password
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="bcrypt", initializer=_step_back)

    async def match(self, users: Mapping[bytes, bytes], user: bytes, password: bytes, address: str) -> bool:
        """Tell whether it is the user's password; raise TooManyGuessesError.

        An unknown user takes as long as a wrong password. A changed hash is another question.
        """
        hashed = users.get(user) or self._nobody(users, user)
        question = self._digest(repr((user, hashed, password)).encode())
        if question in self._good:
            self._good.move_to_end(question)
            return True
        # Asked by several at once, it is compared once: so a crowd of good scrapers is no flood.
        answer = self._asked.get(question) or self._ask(question, hashed, password, address)
        right = await asyncio.shield(answer) and user in users
        if right:
            self._good[question] = None
            if len(self._good) > REMEMBERED:
                self._good.popitem(last=False)
        return right

    def _ask(self, question: bytes, hashed: bytes, password: bytes, address: str) -> asyncio.Future[bool]:
        waiting = self._waiting.get(address, deque())
        if len(self._asked) >= WAITING or len(waiting) >= WAITING_OF_ONE:
            raise TooManyGuessesError
        answer = self._asked[question] = asyncio.get_running_loop().create_future()
        answer.add_done_callback(lambda _: self._asked.pop(question))
        self._waiting.setdefault(address, waiting).append(_Question(password, hashed, answer))
        if not self._is_comparing:
            self._compare_next()
        return answer

    def _compare_next(self) -> None:
        """Compare the oldest password of the address whose turn it is."""
        self._is_comparing = bool(self._waiting)
        if not self._waiting:
            return
        address = next(iter(self._waiting))
        waiting = self._waiting.pop(address)
        question = waiting.popleft()
        if waiting:
            self._waiting[address] = waiting
        loop = asyncio.get_running_loop()
        compared = loop.run_in_executor(self._thread, _compare, question.password, question.hashed)
        compared.add_done_callback(partial(self._answer, question.answer))

    def _answer(self, answer: asyncio.Future[bool], compared: asyncio.Future[bool]) -> None:
        if compared.cancelled() or compared.exception() is not None:
            answer.set_result(False)
        else:
            answer.set_result(compared.result())
        self._compare_next()

    def _nobody(self, users: Mapping[bytes, bytes], user: bytes) -> bytes:
        """Return a hash that nothing matches, as costly as that of some user, always the same one."""
        costs = sorted(hashed[4:6] for hashed in users.values()) or [_USUAL_COST]
        chosen = int.from_bytes(self._digest(user), "big") % len(costs)
        return b"$2b$" + costs[chosen] + b"$" + _NOBODY.encode()

    def _digest(self, data: bytes) -> bytes:
        return hashlib.blake2b(data, key=self._secret).digest()


def _compare(password: bytes, hashed: bytes) -> bool:
    try:
        return bcrypt.checkpw(password[:_LONGEST], hashed)
    except ValueError:  # some versions refuse a NUL byte
        return False


def _step_back() -> None:
    """Leave the processor to events and scrapes where it is scarce (Linux: in this thread alone)."""
    with suppress(OSError):  # a sandbox may forbid it, and a login must not fail for that
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 10)
