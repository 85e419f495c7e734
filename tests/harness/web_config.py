"""An exporter with `--web.config.file`, and clients with certificates for it."""

import http.client
import json
import ssl
from pathlib import Path

import trustme

from harness.exporter import Exporter
from harness.processes import free_port
from harness.waiting import ANSWER_TIMEOUT


def unreachable_url() -> str:
    """Return the URL of a port on which no broker listens."""
    return f"redis://127.0.0.1:{free_port()}/0"


class WebConfigExporter(Exporter):
    """`file` contains `sections`; the certificates that they name are in the same folder."""

    def __init__(self, folder: Path, *arguments: str, **sections: object) -> None:
        self.file = folder / "web" / "web.yml"
        self.file.parent.mkdir(parents=True, exist_ok=True)
        self.authority = trustme.CA()
        self.client_authority = trustme.CA()
        self.client: ssl.SSLContext | None = None
        super().__init__(
            folder, unreachable_url(), "--web.config.file", str(self.file), "--log-level", "debug", *arguments
        )
        self.configure(**sections)

    def configure(self, **sections: object) -> None:
        """Write the file. With `tls_server_config`, issue certificates, and let `client` trust them."""
        if "tls_server_config" in sections:
            self.issue()
            sections["tls_server_config"] |= {"cert_file": "server.pem", "key_file": "server.key"}
        self.file.write_text(json.dumps(sections))  # JSON is YAML

    def issue(self) -> None:
        """Issue a new server certificate, and create a client that trusts it."""
        certificate = self.authority.issue_cert("localhost", "127.0.0.1")
        certificate.private_key_pem.write_to_path(self.file.parent / "server.key")
        certificate.cert_chain_pems[0].write_to_path(self.file.parent / "server.pem")
        self.client_authority.cert_pem.write_to_path(self.file.parent / "clients.pem")
        self.client = self.context()

    def context(self, *identities: str, authority: trustme.CA | None = None) -> ssl.SSLContext:
        """Return the TLS context of a client, with a client certificate for `identities`, if any."""
        context = ssl.create_default_context()
        self.authority.configure_trust(context)
        if identities:
            (authority or self.client_authority).issue_cert(*identities).configure_cert(context)
        return context

    def connect(
        self, timeout: float = ANSWER_TIMEOUT, client: ssl.SSLContext | None = None
    ) -> http.client.HTTPConnection:
        client = client or self.client
        if client is None:
            return super().connect(timeout)
        return http.client.HTTPSConnection("127.0.0.1", self.port, timeout=timeout, context=client)
