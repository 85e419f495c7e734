"""HTTP connections: those of uvicorn, with a timeout for each thing that the server waits for.

uvicorn has a timeout only between two requests. It keeps forever a client that sends no request, sends it
byte by byte, does not finish its TLS handshake or does not read its answer.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from asyncio.sslproto import SSLProtocol
from collections.abc import Callable

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.server import ServerState

from celery_exporter.web.web_config_reloader import WebSecurity

log = logging.getLogger(__name__)

#: Seconds for the TLS handshake, and for the head of a request. The latter count from the first byte of the
#: head; for the first request of a connection from the start of the connection.
REQUEST_HEAD_TIMEOUT_SECONDS = 10.0
#: Seconds for reading an answer. The default timeout of a Prometheus scrape is 10 s.
READ_TIMEOUT_SECONDS = 30.0
#: Seconds between two requests: longer than the usual scrape interval.
IDLE_TIMEOUT_SECONDS = 75.0
#: Bytes of unread answers in memory, of all connections: some large answers, each of them a copy.
MAX_UNREAD_BYTES = 32_000_000
#: Seconds after which an answer that was sent counts as read if the connection was not reset.
READ_DELAY_SECONDS = 1.0
#: Unsent bytes above which a connection is paused: for many slow clients that is still little memory.
HIGH_WATER_BYTES = 16_384
#: Bytes that are read from a TLS connection at once: the size of its largest record.
TLS_BUFFER_BYTES = 16_384


# asyncio has a read buffer of 256 KiB for each TLS connection, and a request is a few hundred bytes.
SSLProtocol.max_size = TLS_BUFFER_BYTES


def unsent_bytes(transport: asyncio.Transport) -> int:
    """Return how many bytes in a transport's buffer are not sent yet.

    A TLS transport that was closed twice, as uvicorn and this module may do, has no buffer any more: it drops
    its protocol, and asyncio closes that (CPython 3.11, _SSLProtocolTransport.close in asyncio/sslproto.py).
    """
    if getattr(transport, "_ssl_protocol", transport) is None:
        return 0
    return transport.get_write_buffer_size()


def _layers(transport: asyncio.Transport) -> list[asyncio.Transport]:
    """Return all transports whose buffers may hold unsent bytes.

    asyncio's TLS transport passes bytes on to the one below, and then neither counts them nor pauses for
    them.
    """
    below = getattr(getattr(transport, "_ssl_protocol", None), "_transport", None)
    return [transport] if below is None else [transport, below]


class ConnectionPool:
    """All connections, and those that wait for their client, the one that waits for longest first."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._all: set[Connection] = set()
        self._waiting: dict[Connection, None] = {}

    def connections(self) -> list[Connection]:
        """Return all connections, including those in their TLS handshake."""
        return list(self._all)

    def evict_longest_waiting(self) -> None:
        """Abort the connection that has waited for its client for longest.

        So idle connections cannot keep out a client that sends a request at once.
        """
        longest = next(iter(self._waiting), None)
        if longest is not None:
            longest.abort()
            self.remove(longest)

    def add(self, connection: Connection) -> None:
        """Add a connection; if the limit is reached, evict another one."""
        if len(self._all) >= self._limit:
            self.evict_longest_waiting()
        self._all.add(connection)
        self._waiting[connection] = None

    def remove(self, connection: Connection) -> None:
        """Remove a connection."""
        self._all.discard(connection)
        self._waiting.pop(connection, None)

    def set_waiting_for_client(self, connection: Connection, *, waiting: bool) -> None:
        """Record whether a connection waits for its client from now on."""
        self._waiting.pop(connection, None)
        if waiting and connection in self._all:
            self._waiting[connection] = None

    def evict_slow_readers(self, newest: Connection) -> None:
        """Abort the connections whose answers are unread for longest, down to the limit of unread bytes."""
        unread = {
            connection: connection.unread_bytes() for connection in self._waiting if connection is not newest
        }
        excess = sum(unread.values()) + newest.unread_bytes() - MAX_UNREAD_BYTES
        for connection, size in unread.items():
            if excess <= 0:
                return
            if size:
                connection.abort()
                excess -= size


class Connection(H11Protocol):
    """One connection, from accept() on."""

    def __init__(
        self,
        config: uvicorn.Config,
        state: ServerState,
        pool: ConnectionPool,
        current: Callable[[], WebSecurity],
    ) -> None:
        super().__init__(config, state, {})
        self._pool = pool
        self._current = current
        self._opening: asyncio.Task[None] | None = None
        self._transports: list[asyncio.Transport] = []
        self._timeout: float | None = None  # of what it waits for now, None if not for its client
        self._timer: asyncio.TimerHandle | None = None
        self._on_read: Callable[[], None] | None = None  # called when its answer was read
        pool.add(self)

    def open(self, sock: socket.socket) -> None:
        """Start to serve an accepted socket; with TLS, by the handshake."""
        self._opening = self.loop.create_task(self._open(sock))
        self._opening.add_done_callback(self._opened)

    async def _open(self, sock: socket.socket) -> None:
        context = self._current().context
        self.app_state = {"context": context, "connection": self}  # for the authentication of its requests
        await self.loop.connect_accepted_socket(
            lambda: self,
            sock,
            ssl=context,
            ssl_handshake_timeout=REQUEST_HEAD_TIMEOUT_SECONDS if context else None,
        )

    def _opened(self, task: asyncio.Task[None]) -> None:
        self._opening = None
        if self.transport is None:
            self._pool.remove(self)
        error = None if task.cancelled() else task.exception()
        if isinstance(error, OSError):  # all TLS errors are
            log.debug("TLS handshake failed: %s", error)
        elif error is not None:
            log.error("cannot open a connection", exc_info=error)

    def abort(self) -> None:
        """Close it now, also during a request or an answer."""
        self._on_read = None
        if self._transports:
            self._transports[
                -1
            ].abort()  # the lowest: a TLS transport that was closed twice cannot pass it on
        elif self.transport is not None:
            self.transport.abort()
        elif self._opening is not None:
            self._opening.cancel()

    def unread_bytes(self) -> int:
        """Return how many bytes of its answers are in memory because the client has not read them."""
        return sum(map(unsent_bytes, self._transports))

    # -- callbacks of asyncio and uvicorn ------------------------------------------------------------------

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Wait for a request."""
        super().connection_made(transport)
        transport.set_write_buffer_limits(HIGH_WATER_BYTES)
        self._transports = _layers(transport)
        tls = transport.get_extra_info("ssl_object")
        if tls is not None:
            self.app_state["certificate"] = tls.getpeercert()
        self._update_timeout()

    def data_received(self, data: bytes) -> None:
        """Process bytes of a request."""
        self._check_read()
        super().data_received(data)
        self._update_timeout()

    def on_response_complete(self) -> None:
        """Wait until the answer is read, and for the next request."""
        super().on_response_complete()
        if self.unread_bytes():
            self._pool.evict_slow_readers(self)
        self._update_timeout()
        self.loop.call_later(READ_DELAY_SECONDS, self._check_read)

    def pause_writing(self) -> None:
        """Wait until the client reads."""
        super().pause_writing()
        self._update_timeout()

    def resume_writing(self) -> None:
        """Continue: the client has read."""
        super().resume_writing()
        self._update_timeout()

    def connection_lost(self, exc: Exception | None) -> None:
        """Remove it from the pool."""
        if exc is None:
            self._check_read()
        self._on_read = None
        self._pool.remove(self)
        self._transports = []
        if self._timer is not None:
            self._timer.cancel()
        super().connection_lost(exc)

    def timeout_keep_alive_handler(self) -> None:
        """Close it: no further request was received. (Our timeout is as long.)"""
        self.abort()

    def shutdown(self) -> None:
        """Close it as soon as the answer under way, if there is one, is read."""
        if self.transport is None or not (self._is_answering() or self.unread_bytes()):
            self.abort()
        elif self._is_answering():
            self.cycle.keep_alive = False
        else:
            self.transport.close()

    def send_400_response(self, msg: str) -> None:
        """Answer bytes that are no HTTP request, with the headers of every answer."""
        if self._is_answering():
            self.cycle.disconnected = True  # they follow a valid request, which gets this answer instead
        if self.conn.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
            self.abort()  # the valid request has its answer, or a part of it
            return
        body = msg.encode()
        answer = h11.Response(
            status_code=400,
            reason=b"Bad Request",
            headers=[
                *self.server_state.default_headers,
                (b"content-type", b"text/plain; charset=utf-8"),
                (b"content-length", str(len(body)).encode()),
                (b"connection", b"close"),
                *self._current().headers,
            ],
        )
        for event in (answer, h11.Data(data=body), h11.EndOfMessage()):
            self.transport.write(self.conn.send(event) or b"")
        self.transport.close()

    # -- answers that were read ----------------------------------------------------------------------------

    def when_read(self, on_read: Callable[[], None]) -> None:
        """Register a callback for when the client has read the current answer."""
        self._on_read = on_read

    def _check_read(self) -> None:
        """Call the callback if the answer is sent completely: it counts as read then."""
        if self._on_read is not None and not self._is_answering() and not self.unread_bytes():
            on_read, self._on_read = self._on_read, None
            on_read()

    # -- timeouts ------------------------------------------------------------------------------------------

    def _is_answering(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _update_timeout(self) -> None:
        """Start the timeout of what the connection waits for now, unless it is running."""
        if (self.cycle is not None and self.unread_bytes()) or self.transport.is_closing():
            timeout: float | None = READ_TIMEOUT_SECONDS
        elif self._is_answering():
            timeout = None
        elif self.timeout_keep_alive_task is not None:
            timeout = IDLE_TIMEOUT_SECONDS
        else:
            timeout = REQUEST_HEAD_TIMEOUT_SECONDS
        if timeout == self._timeout:
            return
        self._timeout = timeout
        self._pool.set_waiting_for_client(self, waiting=timeout is not None)
        if self._timer is not None:
            self._timer.cancel()
        self._timer = None if timeout is None else self.loop.call_later(timeout, self._on_timeout)

    def _on_timeout(self) -> None:
        is_read = not self.unread_bytes() and not self.transport.is_closing()
        if self._timeout == READ_TIMEOUT_SECONDS and is_read:
            self._update_timeout()  # the client has read all, of which asyncio does not notify
        else:
            self.abort()
