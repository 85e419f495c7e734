"""The `healthcheck` command for container engines: one HTTP request to the exporter."""

from __future__ import annotations

import http.client
import ssl

from celery_exporter.web.client import http_get, local_urls, one_line
from celery_exporter.web.listen_config import ListenConfig

PATH = "/-/healthy"  # needs no authentication, whatever --web.config.file requires
#: Seconds for the connection, and for the answer. The exporter needs milliseconds.
TIMEOUT_SECONDS = 2.0


def check_health(listener: ListenConfig) -> tuple[bool, str]:
    """Return whether the exporter with this listener is healthy, and a line with the reason."""
    if listener.port == 0:
        return False, "--port: got 0 (any free port); set the port on which the exporter listens"
    errors = []
    for base in local_urls(listener):
        url = f"{base}{PATH}"
        try:
            tls = _context_without_verification() if url.startswith("https:") else None
            status, _ = http_get(url, timeout_seconds=TIMEOUT_SECONDS, tls=tls, max_bytes=0)
        except (ssl.SSLError, http.client.HTTPException, ConnectionError) as error:
            errors.append(f"unhealthy: {url}: {_reason(error)}")  # the exporter may use the other scheme
        except (OSError, ValueError) as error:
            return False, f"unhealthy: {url}: {_reason(error)}"
        else:
            return status == 200, f"{'' if status == 200 else 'un'}healthy: {url} answered {status}"
    return False, errors[0]


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


def _reason(error: Exception) -> str:
    return f"no answer in {TIMEOUT_SECONDS:g} s" if isinstance(error, TimeoutError) else one_line(error)
