"""An HTTP server that receives the payloads of sinks, and answers as the test chooses."""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING

from harness.processes import free_port

if TYPE_CHECKING:
    from typing import Self


@dataclass(frozen=True)
class Answer:
    """What the receiver answers, after a pause of `seconds`.

    With `is_cut` the connection ends after half of the body. With `is_frozen` there never is an answer.
    """

    status: int = 204
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    is_cut: bool = False
    is_frozen: bool = False
    seconds: float = 0.0


@dataclass(frozen=True)
class Received:
    """A request, and the answer that it got. Header names are in lower case; `at` is monotonic seconds."""

    at: float
    path: str
    headers: dict[str, str]
    body: bytes
    answer: Answer


class Receiver:
    """Receives requests at `url` while it is started. `start` and `stop` keep the port."""

    def __init__(self, answer: Answer | None = None, tls: ssl.SSLContext | None = None) -> None:
        self.port = free_port()
        self.tls = tls
        self.requests: list[Received] = []
        self.answer = answer or Answer()
        self._stopped = threading.Event()
        self._connections: set[socket.socket] = set()
        self._server: ThreadingHTTPServer | None = None

    @property
    def url(self) -> str:
        scheme = "http" if self.tls is None else "https"
        return f"{scheme}://localhost:{self.port}"

    @property
    def is_running(self) -> bool:
        return self._server is not None

    def start(self) -> Self:
        self._stopped.clear()
        self._server = _Server(("127.0.0.1", self.port), _handler(self))
        run = self._server.serve_forever
        threading.Thread(target=run, kwargs={"poll_interval": 0.01}, name="receiver", daemon=True).start()
        return self

    def stop(self) -> None:
        """Close all connections, and refuse new ones."""
        self._stopped.set()
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None
        for connection in list(self._connections):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def receive(self, request: Received, handler: BaseHTTPRequestHandler) -> None:
        """Record a request, and answer it; for the handler."""
        answer = request.answer
        self.requests.append(request)
        if answer.is_frozen:
            self._stopped.wait()
            handler.close_connection = True
            return
        self._stopped.wait(answer.seconds)
        handler.send_response(answer.status)
        for name, value in answer.headers.items():
            handler.send_header(name, value)
        if answer.status != 204 or answer.is_cut:
            handler.send_header("Content-Length", str(max(len(answer.body), 2 * answer.is_cut)))
        handler.end_headers()
        handler.wfile.write(answer.body[: len(answer.body) // 2] if answer.is_cut else answer.body)
        handler.close_connection = answer.is_cut or handler.close_connection


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *_: object) -> None:
        """Log nothing: clients and tests close connections."""


def _handler(receiver: Receiver) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def setup(self) -> None:
            if receiver.tls is not None:  # in the thread of the connection: the client may refuse
                self.request = receiver.tls.wrap_socket(self.request, server_side=True)
            receiver._connections.add(self.request)
            super().setup()

        def finish(self) -> None:
            with contextlib.suppress(OSError):
                super().finish()
            receiver._connections.discard(self.request)
            with contextlib.suppress(OSError):
                self.request.close()

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            headers = {name.lower(): value for name, value in self.headers.items()}
            receiver.receive(Received(time.monotonic(), self.path, headers, body, receiver.answer), self)

        def log_message(self, *_: object) -> None:
            """Log nothing."""

    return Handler
