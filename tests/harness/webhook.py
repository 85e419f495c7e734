"""An HTTP server in the process of the test, which stores the notifications of an Alertmanager."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from typing import Self


class Webhook:
    """Receives notifications at `url`. `alerts` has their alerts in the order of arrival.

    `bodies` has all request bodies: those for Slack and PagerDuty have other formats, without `alerts`.
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
                """Log nothing."""

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
        """Return the labels of all received alerts of this name, without the name."""
        return [
            {label: value for label, value in alert["labels"].items() if label != "alertname"}
            for alert in list(self.alerts)
            if alert["labels"]["alertname"] == name and alert["status"] == status
        ]
