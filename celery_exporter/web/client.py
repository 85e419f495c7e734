"""A client of a running exporter, for the commands that read its JSON API or its health."""

from __future__ import annotations

import base64
import http.client
import ipaddress
import re
import ssl
from collections.abc import Mapping
from contextlib import closing, suppress
from pathlib import Path
from typing import TypeVar
from urllib.parse import unquote, urlencode, urlsplit

import msgspec
from msgspec import Struct

from celery_exporter import __version__
from celery_exporter.errors import BadSettingError
from celery_exporter.quoting import printable
from celery_exporter.web.listen_config import ListenConfig
from celery_exporter.web.web_config import BadWebConfigError, parse

API = "/api/v1/"
#: Seconds to connect, and to wait for the next bytes of an answer.
TIMEOUT_SECONDS = 5.0
#: The status of some 50,000 task names.
MAX_ANSWER_BYTES = 64 * 2**20

_T = TypeVar("_T")


class NoAnswerError(Exception):
    """There is no usable answer. The text says what happened and what to do.

    `body` is that of an answer whose status is not 200, which may say more.
    """

    def __init__(self, text: str, body: bytes = b"") -> None:
        super().__init__(text)
        self.body = body


class Exporter(Struct, frozen=True):
    """A running exporter, as a command sees it: its URL without the login, and the headers of a request.

    `alternative` ends the remedies in error texts, such as ", or use --broker-url".
    """

    command: str
    url: str
    headers: Mapping[str, str]
    alternative: str = ""

    def get(self, path: str, answer_type: type[_T], query: Mapping[str, str] | None = None) -> _T:
        """Return the answer for a path of the API, decoded as this type. Raise NoAnswerError."""
        url = self.url + path
        try:
            status, body = http_get(
                f"{url}?{urlencode(query or {})}", timeout_seconds=TIMEOUT_SECONDS, headers=self.headers
            )
        except (OSError, http.client.HTTPException, UnicodeError) as error:
            fault = next(text for kind, text in _FAULTS if isinstance(error, kind))
            raise NoAnswerError(f"{url}: {self._completed(fault, one_line(error))}") from None
        if status != 200:
            remedy = self._completed(_REMEDIES.get(status, _REMEDY))
            raise NoAnswerError(f"{url} answered {status}: {remedy}", body)
        try:
            return msgspec.json.decode(body, type=answer_type)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise NoAnswerError(f"{url}: {self._completed(_UNREADABLE, one_line(error))}") from None

    def _completed(self, text: str, error: str = "") -> str:
        return text.format(error=error, command=self.command, alternative=self.alternative)


#: What to do about each status of an answer.
_REMEDIES: Mapping[int, str] = {
    401: "it requires a login: CELERY_EXPORTER_URL=http://user:password@host:9808",
    403: "it requires a client certificate, which {command} cannot send; use curl --cert{alternative}",
    404: "no exporter, an old one, or one with --no-status-page or --no-history; correct --url{alternative}",
    429: "too many logins at a time; try again",
}
_REMEDY = "this is no answer of the API; correct --url, or read the exporter's log"
_UNREADABLE = "unexpected answer ({error}); correct --url, or run {command} in the version of that exporter"
_WRONG_SCHEME = "{error}; check whether --url begins with http:// or https://"
#: What went wrong (the first class that matches), and what to do.
_FAULTS: tuple[tuple[type[Exception], str], ...] = (
    (TimeoutError, f"no answer in {TIMEOUT_SECONDS:g} s; check that the exporter runs, and firewalls"),
    (ConnectionRefusedError, "connection refused; start celery-exporter, or correct --url{alternative}"),
    (ssl.SSLCertVerificationError, "certificate not trusted ({error}); correct --url, or set SSL_CERT_FILE"),
    (ssl.SSLError, _WRONG_SCHEME),
    (http.client.HTTPException, _WRONG_SCHEME),
    (ConnectionError, _WRONG_SCHEME),
    (Exception, "{error}; correct --url"),
)


def exporter_at(url: str, command: str, alternative: str = "") -> Exporter:
    """Return the exporter at --url for a command. Raise BadSettingError, without the URL in its text."""
    try:
        parts = urlsplit(url)
        valid = parts.scheme in {"http", "https"} and parts.hostname and parts.port != 0
    except ValueError:
        valid = False
    if not valid or not re.fullmatch("[!-~]+", url):
        example = "http://127.0.0.1:9808 or https://user:password@host:9808/prefix"
        raise BadSettingError(f"--url: takes a URL such as {example}")
    headers = {"Accept": "application/json", "User-Agent": f"celery-exporter-{command}/{__version__}"}
    if parts.username is not None:
        login = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
        headers["Authorization"] = f"Basic {base64.b64encode(login.encode()).decode()}"
    prefix = parts.path.partition(API)[0].rstrip("/")
    shown = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{prefix}"
    return Exporter(command, shown, headers, alternative)


def http_get(
    url: str,
    *,
    timeout_seconds: float,
    headers: Mapping[str, str] | None = None,
    tls: ssl.SSLContext | None = None,
    max_bytes: int = MAX_ANSWER_BYTES,
) -> tuple[int, bytes]:
    """Return the status and the body of an answer. Follow no redirect, use no proxy.

    Raise OSError, http.client.HTTPException or UnicodeError.
    """
    parts = urlsplit(url)
    host, port = parts.hostname or "", parts.port
    connection = (
        http.client.HTTPSConnection(host, port, timeout=timeout_seconds, context=tls)
        if parts.scheme == "https"
        else http.client.HTTPConnection(host, port, timeout=timeout_seconds)
    )
    with closing(connection):
        connection.request("GET", f"{parts.path}?{parts.query}".rstrip("?"), headers=dict(headers or {}))
        answer = connection.getresponse()
        return answer.status, answer.read(max_bytes)


def one_line(error: Exception) -> str:
    """Return the text of an error as one short printable line: it may come from any server."""
    text = getattr(error, "verify_message", None) or getattr(error, "strerror", None) or str(error)
    return printable(" ".join((text or type(error).__name__).split())[:100])


# -- the exporter on this machine ----------------------------------------------------------------------


def local_urls(listener: ListenConfig) -> list[str]:
    """Return the URLs that the exporter with this listener may have here, the more likely one first.

    With a --web.config.file both schemes are possible. The exporter keeps its last valid configuration when
    the file becomes invalid, and a health check must not restart it for that.
    """
    host = _reachable(listener.host)
    address = f"{f'[{host}]' if ':' in host else host}:{listener.port}"
    return [f"{scheme}://{address}" for scheme in _schemes(listener.web_config_file)]


def _schemes(path: Path | None) -> tuple[str, ...]:
    if path is None:
        return ("http",)
    return ("https", "http") if _is_tls_likely(path) else ("http", "https")


def _is_tls_likely(path: Path) -> bool:
    with suppress(OSError, BadWebConfigError):
        return parse(path.read_bytes()).tls_server_config.enabled
    return True


def _reachable(host: str) -> str:
    """Return the address at which a server that listens on `host` is reachable from the same machine."""
    with suppress(ValueError):
        address = ipaddress.ip_address(host)
        if address.is_unspecified:
            return "127.0.0.1" if address.version == 4 else "::1"
    return host
