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


def server_context(tls: TLS, read: Callable[[str, str], bytes]) -> ssl.SSLContext:
    """Return a TLS context for the listener. Raises BadWebConfigError.

    `read` returns the content of a file, given the key that names it and its path.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.set_alpn_protocols(["http/1.1"])  # most clients offer h2 as well
    _set_versions_and_ciphers(context, tls)
    if tls.prefers_own_ciphers:
        context.options |= ssl.OP_CIPHER_SERVER_PREFERENCE
    else:
        context.options &= ~ssl.OP_CIPHER_SERVER_PREFERENCE
    for curve in tls.curve_preferences:  # at most one
        with _explained("curve_preferences"):  # Python before 3.11 does not know X25519
            context.set_ecdh_curve(_CURVES[curve])
    cert = read("cert_file", tls.cert_file) if tls.cert_file else tls.cert.encode()
    key = read("key_file", tls.key_file) if tls.key_file else tls.key.encode()
    with _explained("cert and key"), _as_file(key + b"\n" + cert) as path:
        context.load_cert_chain(path, password=_no_password)
    if tls.verifies_clients:
        _verify_clients(context, tls, read)
    return context


def _set_versions_and_ciphers(context: ssl.SSLContext, tls: TLS) -> None:
    # TLS 1.3 has its own ciphers, all of them secure. As in Go, this list does not select among them.
    older = [_openssl_name(name) for name in tls.cipher_suites if "_WITH_" in name]
    minimum = "TLS13" if tls.cipher_suites and not older else tls.min_version
    if _VERSIONS[minimum] > _VERSIONS[tls.max_version]:
        raise BadWebConfigError(
            "tls_server_config.cipher_suites: all of them need a version above max_version"
        )
    context.minimum_version, context.maximum_version = _VERSIONS[minimum], _VERSIONS[tls.max_version]
    with _explained("cipher_suites"):
        if minimum in ("TLS10", "TLS11"):
            # Their hashes (MD5 with SHA-1) are below the default security level of OpenSSL 3.
            context.set_ciphers(":".join([*(older or ["DEFAULT"]), "@SECLEVEL=0"]))
        elif older:
            context.set_ciphers(":".join(older))


def _openssl_name(name: str) -> str:
    """Return OpenSSL's name of a cipher.

    For TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256 that is ECDHE-RSA-AES128-GCM-SHA256.
    """
    exchange, _, cipher = name.removeprefix("TLS_").partition("_WITH_")
    cipher = cipher.replace("AES_", "AES").replace("_CBC", "").removesuffix("_POLY1305_SHA256")
    return f"{exchange}_{cipher}".replace("_", "-") + ("-POLY1305" if "POLY1305" in name else "")


def _verify_clients(context: ssl.SSLContext, tls: TLS, read: Callable[[str, str], bytes]) -> None:
    # Optional for TLS, even if it is required: a liveness probe has no certificate, and /-/healthy needs
    # none. An invalid certificate fails the handshake. A missing one is detected at each request (auth.py).
    context.verify_mode = ssl.CERT_OPTIONAL
    if not tls.has_ca:
        context.load_default_certs(ssl.Purpose.CLIENT_AUTH)  # as the exporter-toolkit does
        return
    with _explained("client_ca_file" if tls.client_ca_file else "client_ca"):
        pem = read("client_ca_file", tls.client_ca_file) if tls.client_ca_file else tls.client_ca.encode()
        context.load_verify_locations(cadata=pem.decode("ascii", "ignore"))  # comments may contain any text


@contextmanager
def _explained(field: str) -> Iterator[None]:
    """Turn errors of OpenSSL into BadWebConfigError."""
    try:
        yield
    except ssl.SSLError as error:
        reason = (error.reason or "no PEM").lower().replace("_", " ")
        raise BadWebConfigError(f"tls_server_config: invalid {field}: {reason}") from None
    except ValueError as error:
        raise BadWebConfigError(f"tls_server_config: invalid {field}: {error}") from None


def _no_password() -> str:
    raise ValueError("the key is encrypted; it must be without a password")


@contextmanager
def _as_file(content: bytes) -> Iterator[str]:
    """Yield a path of a file in memory with this content: OpenSSL reads certificates only from files."""
    descriptor = os.memfd_create("web-config")
    try:
        os.write(descriptor, content)
        yield f"/proc/self/fd/{descriptor}"
    finally:
        with suppress(OSError):
            os.close(descriptor)
