"""The HTTP server: a thread that can be started, and stopped within a bounded time."""

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

from celery_exporter.runtime.systemd import READY, WATCHDOG, SystemdNotifier
from celery_exporter.web.connections import IDLE_TIMEOUT_SECONDS, Connection, ConnectionPool
from celery_exporter.web.web_config_reloader import WebSecurity, no_security

log = logging.getLogger(__name__)

#: Seconds for the requests under way when the server stops.
SHUTDOWN_SECONDS = 1
#: Connections at a time. A further one evicts the one that waits for its client for longest. The limit is
#: never more than half of the file descriptors of the process, because the broker connection needs some as
#: well.
MAX_CONNECTIONS = 1_000
#: Connections that the kernel queues before they are accepted. If the queue is full, a client tries again
#: only after a second, so the queue may hold all.
BACKLOG = MAX_CONNECTIONS
#: Bytes of an answer that the kernel buffers; Linux doubles it. By default it buffers megabytes for each
#: client that does not read, outside of our limits.
SEND_BUFFER_BYTES = 131_072
#: The share of the connections that are accepted at a time. Then those with requests are served, and the file
#: descriptors of evicted ones become free.
MAX_ACCEPTED_SHARE = 0.1
#: Seconds before the next accept() if the process has no free file descriptor.
ACCEPT_RETRY_SECONDS = 0.1


class CannotListenError(Exception):
    """The address is in use or not available; the text is one line."""


def bind(host: str, port: int) -> socket.socket:
    """Return a listening socket. Raises CannotListenError."""
    try:
        address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        # Without the protocol, asyncio would not set TCP_NODELAY: Nagle's algorithm delays answers by 40 ms.
        listener = socket.socket(*address[:3])
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)
        listener.bind(address[4])
        listener.listen(BACKLOG)  # it fails here if another process has bound the address with SO_REUSEADDR
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or "no such host"
        raise CannotListenError(
            f"cannot listen on {host} port {port}: {reason}; choose another with --host and --port"
        ) from None
    return listener


class Server:
    """Serves an ASGI application on a listening socket.

    `current` returns the settings of TLS and the headers.

    `notifier` notifies systemd when the server is ready, and sends the watchdog message from the event loop.
    """

    def __init__(
        self,
        app: Any,
        listener: socket.socket,
        current: Callable[[], WebSecurity] = no_security,
        notifier: SystemdNotifier | None = None,
    ) -> None:
        self._listener = listener
        config = uvicorn.Config(
            app,
            log_config=None,
            access_log=False,
            lifespan="off",
            loop="asyncio",
            http="h11",
            ws="none",
            server_header=False,
            proxy_headers=False,  # any client can send X-Forwarded-For
            timeout_keep_alive=int(IDLE_TIMEOUT_SECONDS),
        )
        self._server = _Server(config, current, notifier or SystemdNotifier({}))
        self._thread = threading.Thread(target=self._run, name="web", daemon=True)

    def start(self) -> None:
        """Start to serve."""
        self._thread.start()

    def is_alive(self) -> bool:
        """Return whether it serves. Without a `stop` it ends only because of an error, which it logs."""
        return self._thread.is_alive()

    def stop(self) -> None:
        """Begin to stop; requests under way have `SHUTDOWN_SECONDS`."""
        self._server.should_exit = True

    def join(self, deadline: float) -> None:
        """Wait for the end, until a monotonic time."""
        self._thread.join(max(0.0, deadline - time.monotonic()))

    def _run(self) -> None:
        self._server.run(sockets=[self._listener])


class _Server(uvicorn.Server):
    """uvicorn's server with our own accept loop: each connection is in the pool from accept() on."""

    def __init__(
        self, config: uvicorn.Config, current: Callable[[], WebSecurity], notifier: SystemdNotifier
    ) -> None:
        super().__init__(config)
        self._notifier = notifier
        self._current = current
        limit = _connection_limit()
        self._pool = ConnectionPool(limit)
        self._max_accepted = max(1, int(MAX_ACCEPTED_SHARE * limit))
        self._is_accept_failing = False

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start to accept connections."""
        for listener in sockets or []:
            listener.setblocking(False)
            self._listen(listener)
        self.started = True
        self._notifier.send(READY)
        self._notify_watchdog()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Stop accepting connections, and wait until the answers under way are read."""
        for listener in sockets or []:
            asyncio.get_running_loop().remove_reader(listener)
            listener.close()
        deadline = time.monotonic() + SHUTDOWN_SECONDS
        for connection in self._pool.connections():
            connection.shutdown()
        while self._pool.connections() and time.monotonic() < deadline:  # noqa: ASYNC110  as uvicorn does
            await asyncio.sleep(0.02)
        for connection in self._pool.connections():
            connection.abort()

    def _accept(self, listener: socket.socket) -> None:
        for _ in range(self._max_accepted):
            try:
                accepted, _ = listener.accept()
            except (BlockingIOError, ConnectionError):
                return  # there is none, or its client has closed it
            except OSError as error:
                if not self._is_accept_failing:
                    log.warning("accept() failed: %s; closing the longest-waiting connection", error)
                self._is_accept_failing = True
                self._pool.evict_longest_waiting()
                self._pause(listener)
                return
            self._is_accept_failing = False
            accepted.setblocking(False)
            Connection(self.config, self.server_state, self._pool, self._current).open(accepted)

    def _notify_watchdog(self) -> None:
        # Sent from the event loop, not from a timer thread, so that systemd detects a blocked loop.
        interval = self._notifier.watchdog_interval
        if interval is not None and not self.should_exit:
            self._notifier.send(WATCHDOG)
            asyncio.get_running_loop().call_later(interval, self._notify_watchdog)

    def _listen(self, listener: socket.socket) -> None:
        if not self.should_exit:
            asyncio.get_running_loop().add_reader(listener, self._accept, listener)

    def _pause(self, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        loop.remove_reader(listener)
        loop.call_later(ACCEPT_RETRY_SECONDS, self._listen, listener)


def _connection_limit() -> int:
    descriptors, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return (
        MAX_CONNECTIONS if descriptors == resource.RLIM_INFINITY else min(MAX_CONNECTIONS, descriptors // 2)
    )
