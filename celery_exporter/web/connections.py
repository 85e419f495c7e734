"""Connections, and how long each may keep us waiting: uvicorn's, with a bound on all that one can put off.

uvicorn bounds the time between two requests. A client that connects and says nothing, says it byte by byte,
never ends its TLS handshake, or does not read its answer is kept for ever there, with what it costs.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import sys
from asyncio.sslproto import SSLProtocol
from collections.abc import Callable

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.server import ServerState

from celery_exporter.web.web_config_reloader import WebSecurity

log = logging.getLogger(__name__)

#: Seconds for the TLS handshake, and for the head of a request from its first byte (or the connection's) on.
HEAD = 10.0
#: Seconds for reading an answer. Prometheus' own patience is 10 s, unless it is told otherwise.
READ = 30.0
#: Seconds between two requests: longer than the usual scrape interval.
IDLE = 75.0
#: Bytes of answers that wait in memory to be read: some large answers, of which everybody has a copy.
UNREAD = 32_000_000
#: Seconds after which an answer that was taken, and not refused, counts as read.
TAKEN = 1.0
#: Bytes of an answer that may wait before we call it unread: many such clients are few bytes still.
HIGH_WATER = 16_384
#: Bytes read from a TLS connection at once: its largest record is as long.
TLS_BUFFER = 16_384


# Python 3.11 and later read each TLS connection through a buffer of 256 KiB of its own; a request is a few
# hundred bytes. (Older ones have no such attribute, and no such buffer.)
SSLProtocol.max_size = TLS_BUFFER  # type: ignore[attr-defined]


def buffered(transport: asyncio.Transport) -> int:
    """Return how many bytes wait in a transport to be sent.

    One of TLS that is closed for the second time, as uvicorn and we may do it, cannot tell: it forgets its
    other half (CPython 3.11, _SSLProtocolTransport.close in asyncio/sslproto.py), which asyncio ends.
    """
    if getattr(transport, "_ssl_protocol", transport) is None:
        return 0
    return transport.get_write_buffer_size()


def _layers(transport: asyncio.Transport) -> list[asyncio.Transport]:
    """Return all transports that hold a part of what is not sent yet.

    asyncio's TLS passes on what it is given, and neither counts it from then on nor pauses for it. Before
    Python 3.11 it held nothing itself, and asked the one below, which in the end is not there any more.
    """
    below = getattr(getattr(transport, "_ssl_protocol", None), "_transport", None)
    if below is None:
        return [transport]
    return [transport, below] if sys.version_info >= (3, 11) else [below]


class ConnectionPool:
    """All connections; those that wait for their client, in the order in which they began to."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._all: set[Connection] = set()
        self._waiting: dict[Connection, None] = {}

    def everybody(self) -> list[Connection]:
        """Return all of them, those in their handshake too."""
        return list(self._all)

    def make_room(self) -> None:
        """Turn out who has kept us waiting for longest.

        So a crowd that does nothing shuts nobody out: who has something to say says it at once.
        """
        longest = next(iter(self._waiting), None)
        if longest is not None:
            longest.abort()
            self.leave(longest)

    def enter(self, one: Connection) -> None:
        """Take one in."""
        if len(self._all) >= self._limit:
            self.make_room()
        self._all.add(one)
        self._waiting[one] = None

    def leave(self, one: Connection) -> None:
        """Forget one."""
        self._all.discard(one)
        self._waiting.pop(one, None)

    def turn(self, one: Connection, *, ours: bool) -> None:
        """Note whether it is our turn now to do something, or its client's."""
        self._waiting.pop(one, None)
        if not ours and one in self._all:
            self._waiting[one] = None

    def evict_slow_readers(self, newest: Connection) -> None:
        """Turn out those that have not read their answers for longest, until the rest is within bounds."""
        unread = {one: one.unread() for one in self._waiting if one is not newest}
        excess = sum(unread.values()) + newest.unread() - UNREAD
        for one, size in unread.items():
            if excess <= 0:
                return
            if size:
                one.abort()
                excess -= size


class Connection(H11Protocol):
    """One connection, from its being accepted on."""

    def __init__(
        self,
        config: uvicorn.Config,
        state: ServerState,
        pool: ConnectionPool,
        current: Callable[[], WebSecurity],
    ) -> None:
        super().__init__(config, state, {})
        self._crowd = pool
        self._current = current
        self._opening: asyncio.Task[None] | None = None
        self._transports: list[asyncio.Transport] = []
        self._bound: float | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._done: Callable[[], None] | None = None  # what follows from its answer being read
        pool.enter(self)

    def open(self, sock: socket.socket) -> None:
        """Begin: with the handshake, where the listener speaks TLS."""
        self._opening = self.loop.create_task(self._open(sock))
        self._opening.add_done_callback(self._opened)

    async def _open(self, sock: socket.socket) -> None:
        context = self._current().context
        # What the guard wants to know of the connection that a request came by.
        self.app_state = {"context": context, "connection": self}
        await self.loop.connect_accepted_socket(
            lambda: self, sock, ssl=context, ssl_handshake_timeout=HEAD if context else None
        )

    def _opened(self, task: asyncio.Task[None]) -> None:
        self._opening = None
        if self.transport is None:
            self._crowd.leave(self)
        error = None if task.cancelled() else task.exception()
        if isinstance(error, OSError):  # as all are that TLS can be unhappy with
            log.debug("handshake: %s", error)
        elif error is not None:
            log.error("a connection could not be opened", exc_info=error)

    def abort(self) -> None:
        """End it now, whatever it is in the middle of."""
        self._done = None
        if self._transports:
            self._transports[-1].abort()  # the lowest: one of TLS that was closed twice cannot pass it on
        elif self.transport is not None:
            self.transport.abort()
        elif self._opening is not None:
            self._opening.cancel()

    def unread(self) -> int:
        """Return how many bytes of its answers wait to be read."""
        return sum(map(buffered, self._transports))

    # what asyncio and uvicorn call

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait for a request."""
        super().connection_made(transport)
        transport.set_write_buffer_limits(HIGH_WATER)
        self._transports = _layers(transport)
        tls = transport.get_extra_info("ssl_object")
        if tls is not None:
            self.app_state["certificate"] = tls.getpeercert()
        self._rebound()

    def data_received(self, data: bytes) -> None:
        """Take bytes of a request."""
        self._has_read()
        super().data_received(data)
        self._rebound()

    def on_response_complete(self) -> None:
        """Wait for the answer to be read, and for the next request."""
        super().on_response_complete()
        if self.unread():
            self._crowd.evict_slow_readers(self)
        self._rebound()
        self.loop.call_later(TAKEN, self._has_read)

    def pause_writing(self) -> None:
        """Wait for the client to read."""
        super().pause_writing()
        self._rebound()

    def resume_writing(self) -> None:
        """Go on: it has read."""
        super().resume_writing()
        self._rebound()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget it."""
        if exc is None:
            self._has_read()
        self._done = None
        self._crowd.leave(self)
        self._transports = []
        if self._timer is not None:
            self._timer.cancel()
        super().connection_lost(exc)

    def timeout_keep_alive_handler(self) -> None:
        """End it: no further request came. (Our bound is as long.)"""
        self.abort()

    def shutdown(self) -> None:
        """End it as soon as its answer, if there is one under way, is read."""
        if self.transport is None or not (self._answering() or self.unread()):
            self.abort()
        elif self._answering():
            self.cycle.keep_alive = False
        else:
            self.transport.close()

    def send_400_response(self, msg: str) -> None:
        """Answer what is no HTTP, with the headers that every answer has."""
        if self._answering():
            self.cycle.disconnected = True  # it stood behind a good request, which gets this instead
        if self.conn.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
            self.abort()  # and that one has its answer, or a part of it
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

    # what follows from its answers

    def when_read(self, done: Callable[[], None]) -> None:
        """Have `done` called when the answer that is made now was read."""
        self._done = done

    def _has_read(self) -> None:
        """Take the answer for read that the client's kernel has taken, if it did not refuse it since."""
        if self._done is not None and not self._answering() and not self.unread():
            done, self._done = self._done, None
            done()

    # bounds

    def _answering(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _rebound(self) -> None:
        """See to it that what we wait for now, if it is the client's turn, has its bound, from now on."""
        if (self.cycle is not None and self.unread()) or self.transport.is_closing():
            bound: float | None = READ
        elif self._answering():
            bound = None
        else:
            bound = IDLE if self.timeout_keep_alive_task is not None else HEAD
        if bound == self._bound:
            return
        self._bound = bound
        self._crowd.turn(self, ours=bound is None)
        if self._timer is not None:
            self._timer.cancel()
        self._timer = None if bound is None else self.loop.call_later(bound, self._out_of_time)

    def _out_of_time(self) -> None:
        if self._bound == READ and not self.unread() and not self.transport.is_closing():
            self._rebound()  # it has read all, which nobody tells us
        else:
            self.abort()
