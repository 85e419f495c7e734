"""A TCP proxy between the exporter and a broker that can fail in the ways that networks do."""

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
    from typing_extensions import Self

CHUNK = 65_536
TICK = 0.05
#: What only the connection of an event subscription says, on each broker; the others have this way, too.
SUBSCRIPTION = b"celeryev"


@dataclass
class Link:
    """One client's connection and the one made for it; either may be closed already."""

    client: socket.socket | None
    server: socket.socket | None
    waiting: list[tuple[float, socket.socket, bytes]] = field(default_factory=list)  # due, to, bytes
    said: bytes = b""  # by the client, at first
    left: int | None = None  # bytes that the client may still get


class Proxy:
    """Forwards to `127.0.0.1:port`. What it does to connections is set by its methods, from any thread.

    `pass_on` (as at first), `cut` (all connections end), `refuse` (and none is taken), `black_hole` (bytes
    are swallowed both ways, connections stay open, new ones are taken and get no answer), `orphan` (the
    server's side ends, the client is not told: a half-open connection), `strand` (the other way round),
    `half_close` (the client is told that no more comes, and may go on sending), `stall` (the client gets so
    many bytes more), `delay` (each byte comes so many seconds later).

    `orphan`, `strand` and `stall` leave new connections alone; with `only`, those too whose client has never
    said this.
    """

    def __init__(self, port: int, *, source: str = "127.0.0.1") -> None:
        self._target = port
        self._source = source  # the address that its target sees
        self._links: list[Link] = []
        self._swallowing = False
        self._delay = 0.0
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._listener: socket.socket | None = None
        self._place: socket.socket | None = None  # keeps the port while nobody listens on it
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
        if self._place is not None:
            self._place.close()

    # faults

    def pass_on(self) -> None:
        """Forward, from now on; connections that swallowed bytes are ended, for their streams have holes."""
        with self._lock:
            if self._swallowing or any(link.left is not None for link in self._links):
                self._end_all()
            self._swallowing, self._delay = False, 0.0
            for link in self._links:  # nothing that comes from now on overtakes it
                link.waiting = [(0.0, to, data) for _, to, data in link.waiting]
            if self._listener is None:
                self._listen()

    def cut(self) -> None:
        with self._lock:
            self._end_all()

    def refuse(self) -> None:
        with self._lock:
            self._end_all()
            if self._listener is not None:
                self._listener.shutdown(socket.SHUT_RDWR)  # it listens no more, and keeps its port
                self._listener, self._place = None, self._listener

    def black_hole(self) -> None:
        with self._lock:
            self._swallowing = True

    def orphan(self, only: bytes = b"") -> None:
        with self._lock:
            for link in self._which(only):
                if link.server is not None:
                    link.server.close()
                    link.server = None

    def strand(self, only: bytes = b"") -> None:
        with self._lock:
            for link in self._which(only):
                if link.client is not None:
                    link.client.close()
                    link.client = None

    def stall(self, after: int, only: bytes = b"") -> None:
        with self._lock:
            for link in self._which(only):
                link.left = after

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

    def _which(self, only: bytes) -> list[Link]:
        found = [link for link in self._links if only in link.said]
        assert found, f"no connection has said {only!r}"
        return found

    # the loop

    def _listen(self) -> None:
        if self._place is None:
            self._place = socket.socket()
            self._place.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            self._place.bind(("127.0.0.1", self.port))
        self._listener, self._place = self._place, None
        self._listener.listen()

    def _run(self) -> None:
        while not self._stopping.is_set():
            with self._lock:
                sockets = [
                    one for link in self._links for one in (link.client, link.server) if one is not None
                ]
                listener = self._listener
            with selectors.SelectSelector() as selector:
                for one in [*sockets, *([listener] if listener else [])]:
                    with contextlib.suppress(ValueError):  # closed meanwhile
                        selector.register(one, selectors.EVENT_READ)
                with contextlib.suppress(OSError, ValueError):
                    ready = [key.fileobj for key, _ in selector.select(TICK)]
                    with self._lock:
                        self._handle(ready)

    def _handle(self, ready: list[object]) -> None:
        if self._listener is not None and self._listener in ready:
            self._accept(self._listener)
        for link in list(self._links):
            for mine, other in ((link.client, link.server), (link.server, link.client)):
                if mine is not None and mine in ready and mine.fileno() != -1:
                    self._read(link, mine, other)
        self._deliver()

    def _accept(self, listener: socket.socket) -> None:
        client, _ = listener.accept()
        try:
            server = None if self._swallowing else self._connect()
        except OSError:
            client.close()
        else:
            self._links.append(Link(client, server))

    def _connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self._target), 2, source_address=(self._source, 0))

    def _read(self, link: Link, mine: socket.socket, other: socket.socket | None) -> None:
        try:
            data = mine.recv(CHUNK)
        except OSError:
            data = b""
        if not data:
            self._end(link)
        elif other is not None and not self._swallowing:
            if mine is link.client and len(link.said) < CHUNK:
                link.said += data
            elif mine is link.server and link.left is not None:
                data, link.left = data[: link.left], max(0, link.left - len(data))
            link.waiting.append((time.monotonic() + self._delay, other, data))

    def _deliver(self) -> None:
        now = time.monotonic()
        for link in list(self._links):
            due = [each for each in link.waiting if each[0] <= now]
            link.waiting = [each for each in link.waiting if each[0] > now]
            try:
                for _, to, data in due:
                    to.sendall(data)
            except OSError:
                self._end(link)

    def _end(self, link: Link) -> None:
        for one in (link.client, link.server):
            if one is not None:
                one.close()
        if link in self._links:
            self._links.remove(link)

    def _end_all(self) -> None:
        for link in list(self._links):
            self._end(link)
