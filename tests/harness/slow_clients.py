"""Clients that keep a server waiting, many at a time. Each class is one behaviour of a connected client."""

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
    from typing import Self

REQUEST = (
    b"GET /metrics HTTP/1.1\r\nHost: slow\r\nAccept: text/plain\r\nX-Padding: " + b"a" * 1000 + b"\r\n\r\n"
)
DEFAULT_CONTEXT = ssl.create_default_context()
#: Seconds between two steps of a client, each of one byte.
STEP_SECONDS = 1.0


class SlowClient:
    """One client. `closed_at` is the monotonic time at which the server closed its connection, or None."""

    def __init__(self, port: int, tls: ssl.SSLContext | None = None) -> None:
        raw = socket.socket()
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)  # the rest of a page stays in the server
        raw.settimeout(ANSWER_TIMEOUT)
        self.connected_at = time.monotonic()
        raw.connect(("127.0.0.1", port))
        self.socket = tls.wrap_socket(raw, server_hostname="localhost") if tls else raw
        self.begin()
        self.socket.setblocking(False)
        self.closed_at: float | None = None
        self.has_read = False

    def begin(self) -> None:
        """Do the first step, right after connecting."""

    def step(self) -> None:
        """Do the next step; raise OSError when the server has closed the connection."""
        self._read(1)

    def _read(self, size: int) -> None:
        with contextlib.suppress(BlockingIOError, ssl.SSLWantReadError):
            if not self.socket.recv(size):
                raise ConnectionResetError
            self.has_read = True


class IdleClient(SlowClient):
    """Sends nothing. On a TLS port it does not begin the handshake."""


class HalfClosedClient(SlowClient):
    """Closes its side of the connection without sending anything."""

    def begin(self) -> None:
        self.socket.shutdown(socket.SHUT_WR)


class SlowSender(SlowClient):
    """Sends its request byte by byte."""

    def begin(self) -> None:
        self._rest = iter(REQUEST)

    def step(self) -> None:
        self.socket.send(bytes([next(self._rest)]))
        self._read(1)


class SlowReader(SlowClient):
    """Sends a request, and reads the response byte by byte."""

    def begin(self) -> None:
        self.socket.sendall(REQUEST)


class StalledHandshake(SlowClient):
    """Sends a TLS ClientHello, and nothing after it."""

    def begin(self) -> None:
        outgoing = ssl.MemoryBIO()
        with contextlib.suppress(ssl.SSLWantReadError):
            DEFAULT_CONTEXT.wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname="localhost").do_handshake()
        self.socket.sendall(outgoing.read())

    def step(self) -> None:
        self._read(65_536)  # the ServerHello


Factory = Callable[[], SlowClient]


class SlowClients:
    """Many clients at once, in one thread."""

    def __init__(self, factories: list[Factory]) -> None:
        self.clients = [factory() for factory in factories]
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def of(self, kind: type[SlowClient]) -> list[SlowClient]:
        return [client for client in self.clients if type(client) is kind]

    def connected(self, *kinds: type[SlowClient]) -> int:
        """Return how many clients of these kinds are still connected."""
        return sum(client.closed_at is None for kind in kinds for client in self.of(kind))

    def shortest_connection(self, *kinds: type[SlowClient]) -> float:
        """Return the duration of the first closed connection of these kinds; inf if none is closed."""
        clients = (client for kind in kinds for client in self.of(kind))
        closed = (client for client in clients if client.closed_at is not None)
        return min((client.closed_at - client.connected_at for client in closed), default=math.inf)

    def served(self, *kinds: type[SlowClient]) -> bool:
        """Return whether the server has answered or disconnected all clients of these kinds."""
        clients = (client for kind in kinds for client in self.of(kind))
        return all(client.has_read or client.closed_at is not None for client in clients)

    def _run(self) -> None:
        while not self._stopping.wait(STEP_SECONDS):
            for client in self.clients:
                if client.closed_at is None:
                    try:
                        client.step()
                    except (OSError, StopIteration):
                        client.closed_at = time.monotonic()

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        self._thread.join()
        for client in self.clients:
            client.socket.close()


@contextlib.contextmanager
def slow_clients(count: int, *factories: Factory) -> Iterator[SlowClients]:
    """Connect `count` clients of each kind; the kinds alternate."""
    with SlowClients([factory for _ in range(count) for factory in factories]) as clients:
        yield clients
