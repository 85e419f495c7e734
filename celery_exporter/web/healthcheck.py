"""What `celery-exporter healthcheck` asks for a container engine: does the exporter still answer?"""

from __future__ import annotations

import http.client
import ipaddress
import ssl
from contextlib import closing, suppress
from pathlib import Path

from celery_exporter.quoting import printable
from celery_exporter.web.listen_config import ListenConfig
from celery_exporter.web.web_config import BadWebConfigError, parse

PATH = "/-/healthy"  # open to everybody, whatever --web.config.file says
#: Seconds to connect in, and to answer in; the exporter needs milliseconds.
PATIENCE = 2.0


def ask(listener: ListenConfig) -> tuple[bool, str]:
    """Return whether the exporter that listens there is well, and a line that says why."""
    if listener.port == 0:
        return False, "--port: got 0, any free one, which only its exporter knows; it takes the port to ask"
    host = reachable(listener.host)
    complaints = []
    for scheme in _schemes(listener.web_config_file):
        url = f"{scheme}://{f'[{host}]' if ':' in host else host}:{listener.port}{PATH}"
        try:
            status = _status(scheme, host, listener.port)
        except (ssl.SSLError, http.client.HTTPException, ConnectionError) as error:
            complaints.append(f"unhealthy: {url}: {_why(error)}")  # perhaps it speaks the other scheme
        except (OSError, UnicodeError) as error:
            return False, f"unhealthy: {url}: {_why(error)}"
        else:
            return status == 200, f"{'' if status == 200 else 'un'}healthy: {url} answered {status}"
    return False, complaints[0]


def _status(scheme: str, host: str, port: int) -> int:
    connection = (
        http.client.HTTPConnection(host, port, timeout=PATIENCE)
        if scheme == "http"
        else http.client.HTTPSConnection(host, port, timeout=PATIENCE, context=_trusting())
    )
    with closing(connection):
        connection.request("GET", PATH)
        return connection.getresponse().status


def _schemes(path: Path | None) -> tuple[str, ...]:
    """Return the schemes that the exporter may speak, the likeliest first.

    With a --web.config.file there are two: the exporter holds on to what the file said before somebody
    spoilt it, and a check that fails for that would end an exporter that is well.
    """
    if path is None:
        return ("http",)
    return ("https", "http") if _says_tls(path) else ("http", "https")


def _says_tls(path: Path) -> bool:
    with suppress(OSError, BadWebConfigError):
        return parse(path.read_bytes()).tls_server_config.enabled
    return True


def _trusting() -> ssl.SSLContext:
    """Return a context for any certificate and version: nothing is told, and nothing but "ok" is learned.

    The certificate is for the name that Prometheus uses, which is not the one that is used here.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.minimum_version = ssl.TLSVersion.MINIMUM_SUPPORTED
    context.set_ciphers("ALL:@SECLEVEL=0")
    return context


def reachable(host: str) -> str:
    """Return the address at which one that listens on `host` is found from the same machine."""
    with suppress(ValueError):
        address = ipaddress.ip_address(host)
        if address.is_unspecified:
            return "127.0.0.1" if address.version == 4 else "::1"
    return host


def _why(error: Exception) -> str:
    if isinstance(error, TimeoutError):
        return f"no answer in {PATIENCE:g} s"
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return printable(" ".join(text.split())[:100])  # whatever a stranger has answered
