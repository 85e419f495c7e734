"""The `healthcheck` command for container engines: one HTTP request to the exporter."""

from __future__ import annotations

import http.client
import ipaddress
import ssl
from contextlib import closing, suppress
from pathlib import Path

from celery_exporter.quoting import printable
from celery_exporter.web.listen_config import ListenConfig
from celery_exporter.web.web_config import BadWebConfigError, parse

PATH = "/-/healthy"  # needs no authentication, whatever --web.config.file requires
#: Seconds for the connection, and for the answer. The exporter needs milliseconds.
TIMEOUT_SECONDS = 2.0


def check_health(listener: ListenConfig) -> tuple[bool, str]:
    """Return whether the exporter with this listener is healthy, and a line with the reason."""
    if listener.port == 0:
        return False, "--port: got 0 (any free port); set the port on which the exporter listens"
    host = reachable(listener.host)
    errors = []
    for scheme in _schemes(listener.web_config_file):
        url = f"{scheme}://{f'[{host}]' if ':' in host else host}:{listener.port}{PATH}"
        try:
            status = _status(scheme, host, listener.port)
        except (ssl.SSLError, http.client.HTTPException, ConnectionError) as error:
            errors.append(f"unhealthy: {url}: {_reason(error)}")  # the exporter may use the other scheme
        except (OSError, UnicodeError) as error:
            return False, f"unhealthy: {url}: {_reason(error)}"
        else:
            return status == 200, f"{'' if status == 200 else 'un'}healthy: {url} answered {status}"
    return False, errors[0]


def _status(scheme: str, host: str, port: int) -> int:
    connection = (
        http.client.HTTPConnection(host, port, timeout=TIMEOUT_SECONDS)
        if scheme == "http"
        else http.client.HTTPSConnection(
            host, port, timeout=TIMEOUT_SECONDS, context=_context_without_verification()
        )
    )
    with closing(connection):
        connection.request("GET", PATH)
        return connection.getresponse().status


def _schemes(path: Path | None) -> tuple[str, ...]:
    """Return the schemes that the exporter may use, the more likely one first.

    With a --web.config.file both are possible. The exporter keeps its last valid configuration when the file
    becomes invalid, and a health check must not restart it for that.
    """
    if path is None:
        return ("http",)
    return ("https", "http") if _is_tls_likely(path) else ("http", "https")


def _is_tls_likely(path: Path) -> bool:
    with suppress(OSError, BadWebConfigError):
        return parse(path.read_bytes()).tls_server_config.enabled
    return True


def _context_without_verification() -> ssl.SSLContext:
    """Return a context that accepts any certificate and TLS version.

    The certificate is for the name that Prometheus uses, which differs from the address used here. The
    request contains no secret, and of the answer only the status is used.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.minimum_version = ssl.TLSVersion.MINIMUM_SUPPORTED
    context.set_ciphers("ALL:@SECLEVEL=0")
    return context


def reachable(host: str) -> str:
    """Return the address at which a server that listens on `host` is reachable from the same machine."""
    with suppress(ValueError):
        address = ipaddress.ip_address(host)
        if address.is_unspecified:
            return "127.0.0.1" if address.version == 4 else "::1"
    return host


def _reason(error: Exception) -> str:
    if isinstance(error, TimeoutError):
        return f"no answer in {TIMEOUT_SECONDS:g} s"
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return printable(" ".join(text.split())[:100])  # the text may come from any server
