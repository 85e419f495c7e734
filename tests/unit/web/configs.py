"""Valid `--web.config.file` texts, and the files that they name."""

from __future__ import annotations

from pathlib import Path

import bcrypt
import trustme

from celery_exporter.web.web_config_reloader import WebConfigReloader

#: Hashes of the passwords "right" and "other", at the lowest cost, so that tests are fast. The salts are
#: constant because the hashes are in the names of tests.
HASH = bcrypt.hashpw(b"right", b"$2b$04$" + b"a" * 21 + b"u").decode()
OTHER_HASH = bcrypt.hashpw(b"other", b"$2b$04$" + b"b" * 21 + b"u").decode()
TLS = "cert_file: server.pem, key_file: server.key"
VERIFY = f"{TLS}, client_auth_type: RequireAndVerifyClientCert, client_ca_file: ca.pem"

GOOD = {
    "no keys": "{}",
    "only a comment": "# nothing yet",
    "empty sections": "tls_server_config:\nhttp_server_config: {}\nbasic_auth_users: ~",
    "users": f"basic_auth_users: {{alice: {HASH}, bob: '{OTHER_HASH}'}}",
    "user names that look like other types": f"basic_auth_users: {{123: {HASH}, yes: {HASH}, 1.5: {HASH}}}",
    "a hash of htpasswd": f"basic_auth_users: {{a: {HASH.replace('$2b$', '$2y$')}}}",
    "an old hash": f"basic_auth_users: {{a: {HASH.replace('$2b$', '$2a$')}}}",
    "TLS": f"tls_server_config: {{{TLS}}}",
    "a TLS version without a certificate": "tls_server_config: {min_version: TLS13}",
    "versions": f"tls_server_config: {{{TLS}, min_version: TLS10, max_version: TLS12}}",
    "client certificates": f"tls_server_config: {{{VERIFY}}}",
    "client certificates of system CAs": "tls_server_config: {"
    f"{TLS}, client_auth_type: RequireAndVerifyClientCert}}",
    "any client certificate of the CA": "tls_server_config: {"
    + VERIFY.replace("RequireAndVerify", "RequireAny")
    + "}",
    "an optional client certificate": "tls_server_config: {"
    + VERIFY.replace("RequireAndVerifyClientCert", "VerifyClientCertIfGiven")
    + "}",
    "no client certificate": f"tls_server_config: {{{TLS}, client_auth_type: NoClientCert}}",
    "ciphers": f"tls_server_config: {{{TLS}, cipher_suites: [TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256]}}",
    "ciphers of TLS 1.3": f"tls_server_config: {{{TLS}, cipher_suites: [TLS_AES_128_GCM_SHA256]}}",
    "a curve": f"tls_server_config: {{{TLS}, curve_preferences: [CurveP384]}}",
    "cipher order of the client": f"tls_server_config: {{{TLS}, prefer_server_cipher_suites: no}}",
    "HTTP/2": "http_server_config: {http2: true}",
    "no HTTP/2": "http_server_config: {http2: off}",
    "headers": "http_server_config: {headers: {X-Frame-Options: deny, X-Content-Type-Options: nosniff, "
    "X-XSS-Protection: 0, Strict-Transport-Security: max-age=1, Content-Security-Policy: sandbox; x 'y'}}",
}


def issue(authority: trustme.CA, folder: Path) -> None:
    """Write a new server certificate and its key into the folder."""
    issued = authority.issue_cert("localhost", "127.0.0.1")
    issued.cert_chain_pems[0].write_to_path(folder / "server.pem")
    issued.private_key_pem.write_to_path(folder / "server.key")


def reloader(folder: Path, text: str) -> WebConfigReloader:
    """Return the reloader of a file with this text."""
    path = folder / "web.yml"
    path.write_text(text)
    return WebConfigReloader(path)
