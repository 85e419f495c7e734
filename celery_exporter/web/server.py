"""The HTTP server: a thread with a start, a stop and a bound on both."""

from __future__ import annotations

import socket
import threading
import time
from typing import Any

import uvicorn

#: Seconds that requests under way have to end in when the server stops.
GRACE = 1
#: Connections at a time; more are refused with 503, so that a flood costs no memory.
MAX_CONNECTIONS = 1_000
#: Connections that the kernel keeps until they are taken.
BACKLOG = 128
#: Seconds an idle connection is kept: longer than the usual scrape interval.
KEEP_ALIVE = 75


class CannotListenError(Exception):
    """The address is taken or is not ours; the text is one line."""


def bind(host: str, port: int) -> socket.socket:
    """Return a listening-ready socket; raise CannotListenError. Before anything else is started."""
    try:
        address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        # With its protocol, or asyncio does not take it for TCP and leaves Nagle's 40 ms in large answers.
        bound = socket.socket(*address[:3])
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address[4])
        bound.listen(BACKLOG)  # here already: another process may have bound it too
    except (OSError, UnicodeError) as error:
        why = getattr(error, "strerror", None) or "no such host"
        raise CannotListenError(
            f"cannot listen on {host} port {port}: {why}; choose another with --host and --port"
        ) from None
    return bound


class Server:
    """Serves an ASGI application on a bound socket."""

    def __init__(self, app: Any, bound: socket.socket) -> None:
        self._bound = bound
        self._server = uvicorn.Server(
            uvicorn.Config(
                app,
                log_config=None,
                access_log=False,
                lifespan="off",
                loop="asyncio",
                http="h11",
                ws="none",
                server_header=False,
                timeout_keep_alive=KEEP_ALIVE,
                timeout_graceful_shutdown=GRACE,
                limit_concurrency=MAX_CONNECTIONS,
            )
        )
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
