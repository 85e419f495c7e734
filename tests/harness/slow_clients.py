"""Clients that keep a server waiting, in crowds: each kind is what it does once it is connected."""

from __future__ import annotations

import contextlib
import math
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from harness.waiting import ANSWER_TIMEOUT

if TYPE_CHECKING:
    from typing_extensions import Self

REQUEST = (
    b"GET /metrics HTTP/1.1\r\nHost: slow\r\nAccept: text/plain\r\nX-Padding: " + b"a" * 1000 + b"\r\n\r\n"
)
ANYBODY = ssl.create_default_context()
PACE = 1.0  # seconds between two bytes, of those that give or take them one by one


class Slow:
    """One of them. `gone` is when, by the monotonic clock, the server hung up; None while it has not."""

    def __init__(self, port: int, tls: ssl.SSLContext | None = None) -> None:
        raw = socket.socket()
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)  # so that the server is left with the rest
        raw.settimeout(ANSWER_TIMEOUT)
        self.since = time.monotonic()
        raw.connect(("127.0.0.1", port))
        self.socket = tls.wrap_socket(raw, server_hostname="localhost") if tls else raw
        self.begin()
        self.socket.setblocking(False)
        self.gone: float | None = None
        self.heard = False  # whether it has read anything

    def begin(self) -> None:
        """Do what this kind does at first."""

    def step(self) -> None:
        """Do what this kind does each second; raise OSError when the server has hung up."""
        self._read(1)

    def _read(self, size: int) -> None:
        with contextlib.suppress(BlockingIOError, ssl.SSLWantReadError):
            if not self.socket.recv(size):
                raise ConnectionResetError
            self.heard = True


class Silent(Slow):
    """Says nothing. On a TLS port, it does not begin the handshake."""


class HalfClosed(Slow):
    """Says that it will say nothing."""

    def begin(self) -> None:
        self.socket.shutdown(socket.SHUT_WR)


class Dribbling(Slow):
    """Sends its request byte by byte."""

    def begin(self) -> None:
        self._rest = iter(REQUEST)

    def step(self) -> None:
        self.socket.send(bytes([next(self._rest)]))
        self._read(1)


class Deaf(Slow):
    """Asks, and reads its answer byte by byte."""

    def begin(self) -> None:
        self.socket.sendall(REQUEST)


class HandshakeStuck(Slow):
    """Says hello, as TLS does, and nothing more."""

    def begin(self) -> None:
        outgoing = ssl.MemoryBIO()
        with contextlib.suppress(ssl.SSLWantReadError):
            ANYBODY.wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname="localhost").do_handshake()
        self.socket.sendall(outgoing.read())

    def step(self) -> None:
        self._read(65_536)  # the server's hello


Factory = Callable[[], Slow]


class Crowd:
    """Many of them at once, kept busy by one thread."""

    def __init__(self, factories: list[Factory]) -> None:
        self.members = [make() for make in factories]
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def of(self, kind: type[Slow]) -> list[Slow]:
        return [one for one in self.members if type(one) is kind]

    def connected(self, *kinds: type[Slow]) -> int:
        """Return how many, of these kinds, the server still has."""
        return sum(one.gone is None for kind in kinds for one in self.of(kind))

    def shortest_stay(self, *kinds: type[Slow]) -> float:
        """Return the seconds after which the server hung up on the first of these kinds; inf for on none."""
        members = (one for kind in kinds for one in self.of(kind))
        return min((one.gone - one.since for one in members if one.gone is not None), default=math.inf)

    def served(self, *kinds: type[Slow]) -> bool:
        """Tell whether the server has answered, or turned out, all of these kinds."""
        return all(one.heard or one.gone is not None for kind in kinds for one in self.of(kind))

    def _run(self) -> None:
        while not self._over.wait(PACE):
            for one in self.members:
                if one.gone is None:
                    try:
                        one.step()
                    except (OSError, StopIteration):
                        one.gone = time.monotonic()

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()
        for one in self.members:
            one.socket.close()


@contextlib.contextmanager
def crowd(count: int, *factories: Factory) -> Iterator[Crowd]:
    """Have so many of each kind connected, those of all kinds mixed."""
    with Crowd([make for _ in range(count) for make in factories]) as found:
        yield found
