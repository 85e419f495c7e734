"""Whoever is on call: an HTTP server in the test's own process that keeps what an Alertmanager sends it."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from typing_extensions import Self


class Webhook:
    """`with Webhook() as pager`: its `url` takes alerts, `alerts` is what came, in the order it came.

    `bodies` is all of it: what is sent to Slack or PagerDuty has a form of its own, without `alerts`.
    """

    def __init__(self) -> None:
        self.alerts: list[dict[str, Any]] = []
        self.bodies: list[dict[str, Any]] = []
        alerts, bodies = self.alerts, self.bodies

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                bodies.append(body)
                alerts.extend(body.get("alerts", []))
                self.send_response(200)
                self.end_headers()

            def log_message(self, *_: object) -> None:
                """Say nothing: the alerts are kept."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, name="webhook", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}/"

    def labels(self, name: str, status: str = "firing") -> list[dict[str, str]]:
        """Return the labels of all alerts of this name that came, without the name."""
        return [
            {label: value for label, value in alert["labels"].items() if label != "alertname"}
            for alert in list(self.alerts)
            if alert["labels"]["alertname"] == name and alert["status"] == status
        ]
