"""The HTTP server: a thread with a start, a stop and a bound on both."""

from __future__ import annotations

import asyncio
import logging
import resource
import socket
import threading
import time
from collections.abc import Callable
from typing import Any

import uvicorn

from celery_exporter.runtime.systemd import READY, WATCHDOG, Notifier
from celery_exporter.web.connections import IDLE, Connection, ConnectionPool
from celery_exporter.web.web_config_reloader import WebSecurity, unprotected

log = logging.getLogger(__name__)

#: Seconds that requests under way have to end in when the server stops.
GRACE = 1
#: Connections at a time; for a further one, that which has kept us waiting for longest goes. Never more
#: than half of the descriptors that the process may have: the broker needs some as well.
MAX_CONNECTIONS = 1_000
#: Connections that the kernel keeps until they are taken: a whole crowd, as for one that it cannot keep
#: the client tries again after a second only.
BACKLOG = MAX_CONNECTIONS
#: Bytes of an answer that the kernel takes; Linux doubles it. Left to itself it takes megabytes for each
#: client that does not read, which we neither see nor bound.
SEND_BUFFER = 131_072
#: Part of them that is taken before those that have something to say get their turn. The descriptors of those
#: that make room come free only then.
AT_ONCE = 0.1
#: Seconds between two attempts to take a connection when the system has no more descriptors.
RETRY = 0.1


class CannotListenError(Exception):
    """The address is taken or is not ours; the text is one line."""


def bind(host: str, port: int) -> socket.socket:
    """Return a listening-ready socket; raise CannotListenError. Before anything else is started."""
    try:
        address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        # With its protocol, or asyncio does not take it for TCP and leaves Nagle's 40 ms in large answers.
        bound = socket.socket(*address[:3])
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)
        bound.bind(address[4])
        bound.listen(BACKLOG)  # here already: another process may have bound it too
    except (OSError, UnicodeError) as error:
        why = getattr(error, "strerror", None) or "no such host"
        raise CannotListenError(
            f"cannot listen on {host} port {port}: {why}; choose another with --host and --port"
        ) from None
    return bound


class Server:
    """Serves an ASGI application on a bound socket, with the TLS and the headers that `current` returns.

    `notifier` is told when it does, and hears from its event loop for as long as that turns.
    """

    def __init__(
        self,
        app: Any,
        bound: socket.socket,
        current: Callable[[], WebSecurity] = unprotected,
        notifier: Notifier | None = None,
    ) -> None:
        self._bound = bound
        config = uvicorn.Config(
            app,
            log_config=None,
            access_log=False,
            lifespan="off",
            loop="asyncio",
            http="h11",
            ws="none",
            server_header=False,
            proxy_headers=False,  # anybody may write X-Forwarded-For
            timeout_keep_alive=int(IDLE),
        )
        self._server = _Server(config, current, notifier or Notifier({}))
        self._thread = threading.Thread(target=self._run, name="web", daemon=True)

    def start(self) -> None:
        """Serve from now on."""
        self._thread.start()

    def is_alive(self) -> bool:
        """Tell whether it still serves; it ends by itself only for an error, which it logs."""
        return self._thread.is_alive()

    def stop(self) -> None:
        """Begin to stop; requests under way get `GRACE` seconds."""
        self._server.should_exit = True

    def join(self, deadline: float) -> None:
        """Wait for the end, until a monotonic time."""
        self._thread.join(max(0.0, deadline - time.monotonic()))

    def _run(self) -> None:
        self._server.run(sockets=[self._bound])


class _Server(uvicorn.Server):
    """uvicorn's, but for how connections come and go: each is in the crowd from its first moment on."""

    def __init__(
        self, config: uvicorn.Config, current: Callable[[], WebSecurity], notifier: Notifier
    ) -> None:
        super().__init__(config)
        self._notifier = notifier
        self._current = current
        most = _most_connections()
        self._crowd = ConnectionPool(most)
        self._at_once = max(1, int(AT_ONCE * most))
        self._short = False  # of descriptors

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Take connections from now on."""
        for listener in sockets or []:
            listener.setblocking(False)
            self._listen(listener)
        self.started = True
        self._notifier.send(READY)
        self._live()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Take no more, and wait until the answers under way are read."""
        for listener in sockets or []:
            asyncio.get_running_loop().remove_reader(listener)
            listener.close()
        deadline = time.monotonic() + GRACE
        for one in self._crowd.everybody():
            one.shutdown()
        while self._crowd.everybody() and time.monotonic() < deadline:  # noqa: ASYNC110  as uvicorn does
            await asyncio.sleep(0.02)
        for one in self._crowd.everybody():
            one.abort()

    def _take_connections(self, listener: socket.socket) -> None:
        for _ in range(self._at_once):
            try:
                taken, _ = listener.accept()
            except (BlockingIOError, ConnectionError):
                return  # there is none; or it has gone already
            except OSError as error:
                if not self._short:
                    log.warning("cannot take a connection, and end others for it: %s", error)
                self._short = True
                self._crowd.make_room()
                self._pause(listener)
                return
            self._short = False
            taken.setblocking(False)
            Connection(self.config, self.server_state, self._crowd, self._current).open(taken)

    def _live(self) -> None:
        # From the loop, not from a timer's thread: what is to be noticed is a loop that is stuck.
        if self._notifier.every is not None and not self.should_exit:
            self._notifier.send(WATCHDOG)
            asyncio.get_running_loop().call_later(self._notifier.every, self._live)

    def _listen(self, listener: socket.socket) -> None:
        if not self.should_exit:
            asyncio.get_running_loop().add_reader(listener, self._take_connections, listener)

    def _pause(self, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        loop.remove_reader(listener)
        loop.call_later(RETRY, self._listen, listener)


def _most_connections() -> int:
    descriptors, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return (
        MAX_CONNECTIONS if descriptors == resource.RLIM_INFINITY else min(MAX_CONNECTIONS, descriptors // 2)
    )
