"""An exporter behind `--web.config.file`, and a client that has what it takes to get in."""

import http.client
import json
import ssl
from pathlib import Path

import trustme

from harness.exporter import Exporter
from harness.processes import free_port
from harness.waiting import ANSWER_TIMEOUT


def nobody() -> str:
    """Return the URL of a broker that is not there."""
    return f"redis://127.0.0.1:{free_port()}/0"


class Guarded(Exporter):
    """Its configuration, in `file`, is made of `sections`; files that they name are beside it."""

    def __init__(self, folder: Path, *arguments: str, **sections: object) -> None:
        self.file = folder / "web" / "web.yml"
        self.file.parent.mkdir(parents=True, exist_ok=True)
        self.authority = trustme.CA()
        self.client_authority = trustme.CA()
        self.client: ssl.SSLContext | None = None
        super().__init__(
            folder, nobody(), "--web.config.file", str(self.file), "--log-level", "debug", *arguments
        )
        self.configure(**sections)

    def configure(self, **sections: object) -> None:
        """Write the file; with `tls_server_config`, its certificates, and a client that trusts them."""
        if "tls_server_config" in sections:
            self.issue()
            sections["tls_server_config"] |= {"cert_file": "server.pem", "key_file": "server.key"}
        self.file.write_text(json.dumps(sections))  # JSON is YAML

    def issue(self) -> None:
        issued = self.authority.issue_cert("localhost", "127.0.0.1")
        issued.private_key_pem.write_to_path(self.file.parent / "server.key")
        issued.cert_chain_pems[0].write_to_path(self.file.parent / "server.pem")
        self.client_authority.cert_pem.write_to_path(self.file.parent / "clients.pem")
        self.client = self.context()

    def context(self, *identities: str, authority: trustme.CA | None = None) -> ssl.SSLContext:
        """Return what a client trusts, and shows of itself where it has identities."""
        found = ssl.create_default_context()
        self.authority.configure_trust(found)
        if identities:
            (authority or self.client_authority).issue_cert(*identities).configure_cert(found)
        return found

    def connect(
        self, timeout: float = ANSWER_TIMEOUT, client: ssl.SSLContext | None = None
    ) -> http.client.HTTPConnection:
        client = client or self.client
        if client is None:
            return super().connect(timeout)
        return http.client.HTTPSConnection("127.0.0.1", self.port, timeout=timeout, context=client)
