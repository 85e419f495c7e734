"""HTTP for sinks: one connection, which is kept open, with timeouts, TLS and proxies.

Redirects are not followed: a redirect of a write is a wrong URL. TLS certificates are verified against those
of the system, or against the file in SSL_CERT_FILE. Proxies are those of HTTP_PROXY, HTTPS_PROXY, NO_PROXY.
"""

from __future__ import annotations

import re
import ssl
from collections.abc import Callable, Mapping
from pathlib import Path
from urllib.parse import unquote, urlsplit
from urllib.request import getproxies, proxy_bypass

import urllib3
from msgspec import Struct
from urllib3.exceptions import HTTPError, InvalidHeader
from urllib3.util.retry import Retry

from celery_exporter.errors import BadSettingError
from celery_exporter.quoting import printable
from celery_exporter.sinks.base import TOO_LARGE, PermanentError, TemporaryError

#: 4xx that another attempt may not get: the login, the database or a limit on the receiver may change.
TEMPORARY_STATUSES = frozenset({401, 403, 404, 407, 408, 421, 425, 429})
#: How urllib3 names its objects in messages.
_OBJECT = re.compile(r"^<?[\w.]*Connection\w*(\(.*?\)| object at \w+>): ")
#: Seconds for establishing a connection.
CONNECT_TIMEOUT_SECONDS = 5.0
#: Bytes of an answer that are read, and characters of it that are shown.
MAX_ANSWER_BYTES, MAX_SHOWN = 65_536, 200


class Response(Struct, frozen=True):
    """What a receiver answered; `retry_after` is in seconds, `text` is the body as one line."""

    status: int
    text: str
    retry_after: float | None
    body: bytes = b""


class HttpClient:
    """Posts bodies to one URL. `headers` returns the headers of each request: logins may be rotated."""

    def __init__(
        self, url: str, headers: Callable[[], Mapping[str, str]], ca_file: Path | None = None
    ) -> None:
        self._url = url
        self._headers = headers
        self._pool = _pool_for(url, ca_file)

    def post(self, body: bytes, timeout: float) -> Response:
        """Post a body, and return any answer. Raises TemporaryError if there is none in time."""
        limits = urllib3.Timeout(connect=min(CONNECT_TIMEOUT_SECONDS, timeout), total=timeout)
        try:
            answer = self._pool.request(
                "POST",
                self._url,
                body=body,
                headers=dict(self._headers()),
                timeout=limits,
                retries=False,
                redirect=False,
                preload_content=False,
            )
            data = answer.read(MAX_ANSWER_BYTES)
            if len(data) < MAX_ANSWER_BYTES:
                answer.release_conn()
            else:  # no receiver has so much to say
                answer.close()
        except (HTTPError, ssl.SSLError, OSError) as error:
            raise TemporaryError(f"no answer from {self._url}: {printable(_reason(error))}") from None
        text = printable(data.decode("utf-8", "replace").strip())
        return Response(answer.status, text, _retry_after(answer.headers.get("Retry-After")), data)

    def close(self) -> None:
        """Close the connection."""
        self._pool.clear()


def check(response: Response, url: str) -> None:
    """Raise TemporaryError or PermanentError unless the receiver took the body."""
    if 200 <= response.status < 300:
        return
    shown = f": {response.text[:MAX_SHOWN]}" if response.text else ""
    text = f"{url} answers with status {response.status}{shown}"
    is_redirect = response.status < 400  # of a wrong URL, which an operator will correct
    if is_redirect or response.status in TEMPORARY_STATUSES or response.status >= 500:
        raise TemporaryError(text, response.retry_after)
    if response.status == 413:
        raise PermanentError(text, TOO_LARGE)
    raise PermanentError(text)


def _pool_for(url: str, ca_file: Path | None) -> urllib3.PoolManager:
    parts = urlsplit(url)
    context = ssl.create_default_context(cafile=ca_file) if parts.scheme == "https" else None
    proxy = None if proxy_bypass(parts.hostname or "") else getproxies().get(parts.scheme)
    if proxy:
        proxy = proxy if "://" in proxy else f"http://{proxy}"
        if urlsplit(proxy).scheme not in {"http", "https"}:
            raise BadSettingError(f"{parts.scheme}_proxy: the URL of a proxy begins with http:// or https://")
        login = urllib3.util.parse_url(proxy).auth
        headers = urllib3.make_headers(proxy_basic_auth=unquote(login)) if login else None
        return urllib3.ProxyManager(proxy, num_pools=1, maxsize=1, ssl_context=context, proxy_headers=headers)
    return urllib3.PoolManager(num_pools=1, maxsize=1, ssl_context=context)


def _reason(error: Exception) -> str:
    """Return why there is no answer, without the objects that urllib3 puts into its messages."""
    return _OBJECT.sub("", str(error))


def _retry_after(value: str | None) -> float | None:
    """Return the seconds of a Retry-After header, which may have a date; None if it cannot be read."""
    if value is None:
        return None
    try:
        return Retry().parse_retry_after(value)
    except (InvalidHeader, ValueError, OverflowError):
        return None
