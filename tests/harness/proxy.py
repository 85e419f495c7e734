"""A TCP proxy between the exporter and a broker, which simulates network faults."""

from __future__ import annotations

import contextlib
import selectors
import socket
import threading
import time
from dataclasses import dataclass, field
from types import TracebackType
from typing import TYPE_CHECKING

from harness.processes import free_port

if TYPE_CHECKING:
    from typing import Self

CHUNK_BYTES = 65_536
POLL_SECONDS = 0.05
#: Bytes that a client sends on the connection of its event subscription only, for each broker.
SUBSCRIPTION = b"celeryev"


@dataclass
class Link:
    """A client's connection and the one to the server; either may be closed."""

    client: socket.socket | None
    server: socket.socket | None
    waiting: list[tuple[float, socket.socket, bytes]] = field(default_factory=list)  # due time, target, bytes
    sent: bytes = b""  # the first bytes from the client
    remaining: int | None = None  # bytes that are still forwarded to the client; None for no limit


class Proxy:
    """Forwards connections to `127.0.0.1:port`. Call its methods from any thread to set a fault:

    forward            forward all bytes, as at the start
    cut                close all connections
    refuse             close all connections, and refuse new ones
    black_hole         drop all bytes in both directions; accept new connections without an answer
    close_server_side  close the connection to the server only: the client's is half-open
    close_client_side  close the connection to the client only: the server's is half-open
    half_close         shut down the sending side of the client's connection
    stall              forward only this many more bytes to the client
    delay              forward each byte this many seconds later

    `close_server_side`, `close_client_side` and `stall` affect only connections that are open; with `only`,
    only those whose client has sent these bytes.
    """

    def __init__(self, port: int, *, source: str = "127.0.0.1") -> None:
        self._target = port
        self._source = source  # address from which it connects to the target
        self._links: list[Link] = []
        self._dropping = False
        self._delay = 0.0
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._listener: socket.socket | None = None
        self._reserved: socket.socket | None = None  # keeps the port while the proxy does not listen
        self._thread = threading.Thread(target=self._run, name="proxy", daemon=True)
        self.port = free_port()
        self._listen()

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stopping.set()
        self._thread.join(5)
        self.refuse()
        if self._reserved is not None:
            self._reserved.close()

    # -- faults ------------------------------------------------------------------------------------------

    def forward(self) -> None:
        """Forward all bytes from now on; close connections whose bytes were dropped."""
        with self._lock:
            if self._dropping or any(link.remaining is not None for link in self._links):
                self._close_all()
            self._dropping, self._delay = False, 0.0
            for link in self._links:  # delayed bytes are due before all later ones
                link.waiting = [(0.0, target, data) for _, target, data in link.waiting]
            if self._listener is None:
                self._listen()

    def cut(self) -> None:
        with self._lock:
            self._close_all()

    def refuse(self) -> None:
        with self._lock:
            self._close_all()
            if self._listener is not None:
                self._listener.shutdown(socket.SHUT_RDWR)  # it stops listening, and keeps its port
                self._listener, self._reserved = None, self._listener

    def black_hole(self) -> None:
        with self._lock:
            self._dropping = True

    def close_server_side(self, only: bytes = b"") -> None:
        with self._lock:
            for link in self._select(only):
                if link.server is not None:
                    link.server.close()
                    link.server = None

    def close_client_side(self, only: bytes = b"") -> None:
        with self._lock:
            for link in self._select(only):
                if link.client is not None:
                    link.client.close()
                    link.client = None

    def stall(self, after: int, only: bytes = b"") -> None:
        with self._lock:
            for link in self._select(only):
                link.remaining = after

    def half_close(self) -> None:
        with self._lock:
            for link in self._links:
                with contextlib.suppress(OSError, AttributeError):
                    link.client.shutdown(socket.SHUT_WR)

    def delay(self, seconds: float) -> None:
        with self._lock:
            self._delay = seconds

    @property
    def connections(self) -> int:
        with self._lock:
            return len(self._links)

    def _select(self, only: bytes) -> list[Link]:
        links = [link for link in self._links if only in link.sent]
        assert links, f"no client has sent {only!r}"
        return links

    # -- the loop ----------------------------------------------------------------------------------------

    def _listen(self) -> None:
        if self._reserved is None:
            self._reserved = socket.socket()
            self._reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            self._reserved.bind(("127.0.0.1", self.port))
        self._listener, self._reserved = self._reserved, None
        self._listener.listen()

    def _run(self) -> None:
        while not self._stopping.is_set():
            with self._lock:
                pairs = [(link.client, link.server) for link in self._links]
                sockets = [end for pair in pairs for end in pair if end is not None]
                listener = self._listener
            with selectors.SelectSelector() as selector:
                for watched in [*sockets, *([listener] if listener else [])]:
                    with contextlib.suppress(ValueError):  # closed meanwhile
                        selector.register(watched, selectors.EVENT_READ)
                with contextlib.suppress(OSError, ValueError):
                    ready = [key.fileobj for key, _ in selector.select(POLL_SECONDS)]
                    with self._lock:
                        self._handle(ready)

    def _handle(self, ready: list[object]) -> None:
        if self._listener is not None and self._listener in ready:
            self._accept(self._listener)
        for link in list(self._links):
            for source, target in ((link.client, link.server), (link.server, link.client)):
                if source is not None and source in ready and source.fileno() != -1:
                    self._read(link, source, target)
        self._deliver()

    def _accept(self, listener: socket.socket) -> None:
        client, _ = listener.accept()
        try:
            server = None if self._dropping else self._connect()
        except OSError:
            client.close()
        else:
            self._links.append(Link(client, server))

    def _connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self._target), 2, source_address=(self._source, 0))

    def _read(self, link: Link, source: socket.socket, target: socket.socket | None) -> None:
        try:
            data = source.recv(CHUNK_BYTES)
        except OSError:
            data = b""
        if not data:
            self._close(link)
        elif target is not None and not self._dropping:
            if source is link.client and len(link.sent) < CHUNK_BYTES:
                link.sent += data
            elif source is link.server and link.remaining is not None:
                data, link.remaining = data[: link.remaining], max(0, link.remaining - len(data))
            link.waiting.append((time.monotonic() + self._delay, target, data))

    def _deliver(self) -> None:
        now = time.monotonic()
        for link in list(self._links):
            due = [item for item in link.waiting if item[0] <= now]
            link.waiting = [item for item in link.waiting if item[0] > now]
            try:
                for _, target, data in due:
                    target.sendall(data)
            except OSError:
                self._close(link)

    def _close(self, link: Link) -> None:
        for end in (link.client, link.server):
            if end is not None:
                end.close()
        if link in self._links:
            self._links.remove(link)

    def _close_all(self) -> None:
        for link in list(self._links):
            self._close(link)
