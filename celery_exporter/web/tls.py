"""`tls_server_config` → `ssl.SSLContext`."""

from __future__ import annotations

import os
import ssl
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from celery_exporter.web.web_config import TLS, BadWebConfigError

_VERSIONS = {
    "TLS10": ssl.TLSVersion.TLSv1,
    "TLS11": ssl.TLSVersion.TLSv1_1,
    "TLS12": ssl.TLSVersion.TLSv1_2,
    "TLS13": ssl.TLSVersion.TLSv1_3,
}
_CURVES = {"CurveP256": "prime256v1", "CurveP384": "secp384r1", "CurveP521": "secp521r1", "X25519": "X25519"}


def context(tls: TLS, read: Callable[[str, str], bytes]) -> ssl.SSLContext:
    """Return a context for the listener; `read` returns what is in a file, given the key that names it.

    Raises BadWebConfigError.
    """
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    made.set_alpn_protocols(["http/1.1"])  # most clients offer h2 as well
    _set_versions_and_ciphers(made, tls)
    if tls.prefers_own_ciphers:
        made.options |= ssl.OP_CIPHER_SERVER_PREFERENCE
    else:
        made.options &= ~ssl.OP_CIPHER_SERVER_PREFERENCE
    for curve in tls.curve_preferences:  # one at most
        with _explained("curve_preferences"):  # before Python 3.11, X25519 is none
            made.set_ecdh_curve(_CURVES[curve])
    cert = read("cert_file", tls.cert_file) if tls.cert_file else tls.cert.encode()
    key = read("key_file", tls.key_file) if tls.key_file else tls.key.encode()
    with _explained("cert and key"), _as_file(key + b"\n" + cert) as path:
        made.load_cert_chain(path, password=_no_password)
    if tls.verifies_clients:
        _verify_clients(made, tls, read)
    return made


def _set_versions_and_ciphers(made: ssl.SSLContext, tls: TLS) -> None:
    # TLS 1.3 has ciphers of its own, all of them good; Go does not let this list choose among them either.
    older = [_openssl_name(name) for name in tls.cipher_suites if "_WITH_" in name]
    least = "TLS13" if tls.cipher_suites and not older else tls.min_version
    if _VERSIONS[least] > _VERSIONS[tls.max_version]:
        raise BadWebConfigError(
            "tls_server_config.cipher_suites: none of them is for a version up to max_version"
        )
    made.minimum_version, made.maximum_version = _VERSIONS[least], _VERSIONS[tls.max_version]
    with _explained("cipher_suites"):
        if least in ("TLS10", "TLS11"):
            # Their hashes (MD5 with SHA-1) are below the level that OpenSSL 3 sets itself.
            made.set_ciphers(":".join([*(older or ["DEFAULT"]), "@SECLEVEL=0"]))
        elif older:
            made.set_ciphers(":".join(older))


def _openssl_name(name: str) -> str:
    """Return OpenSSL's name: ECDHE-RSA-AES128-GCM-SHA256 for TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256."""
    exchange, _, cipher = name.removeprefix("TLS_").partition("_WITH_")
    cipher = cipher.replace("AES_", "AES").replace("_CBC", "").removesuffix("_POLY1305_SHA256")
    return f"{exchange}_{cipher}".replace("_", "-") + ("-POLY1305" if "POLY1305" in name else "")


def _verify_clients(made: ssl.SSLContext, tls: TLS, read: Callable[[str, str], bytes]) -> None:
    # Optional even where it is required: a liveness probe has none, and /-/healthy is open to it. A wrong
    # one fails the handshake; that there is one where it has to be is seen to with each request (guard.py).
    made.verify_mode = ssl.CERT_OPTIONAL
    if not tls.has_ca:
        made.load_default_certs(ssl.Purpose.CLIENT_AUTH)  # as the toolkit does
        return
    with _explained("client_ca_file" if tls.client_ca_file else "client_ca"):
        pem = read("client_ca_file", tls.client_ca_file) if tls.client_ca_file else tls.client_ca.encode()
        made.load_verify_locations(cadata=pem.decode("ascii", "ignore"))  # comments may have anything in them


@contextmanager
def _explained(what: str) -> Iterator[None]:
    try:
        yield
    except ssl.SSLError as error:
        why = (error.reason or "no PEM").lower().replace("_", " ")
        raise BadWebConfigError(f"tls_server_config: {what} cannot be used: {why}") from None
    except ValueError as error:
        raise BadWebConfigError(f"tls_server_config: {what} cannot be used: {error}") from None


def _no_password() -> str:
    raise ValueError("the key is encrypted, and there is nobody to ask for its password")


@contextmanager
def _as_file(content: bytes) -> Iterator[str]:
    """Give out a path under which the content can be read: OpenSSL takes no other. It is in memory only."""
    descriptor = os.memfd_create("web-config")
    try:
        os.write(descriptor, content)
        yield f"/proc/self/fd/{descriptor}"
    finally:
        with suppress(OSError):
            os.close(descriptor)
