"""Sources of a `Status` for `top`: the API of an exporter, or a broker.

The events of a broker are consumed in this process.
"""

from __future__ import annotations

import base64
import http.client
import re
import ssl
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from urllib.parse import SplitResult, unquote, urlsplit

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from celery_exporter import __version__
from celery_exporter.broker.connection import check
from celery_exporter.broker.url import masked
from celery_exporter.errors import BadSettingError
from celery_exporter.monitor.config import MonitorConfig
from celery_exporter.monitor.monitor import Monitor
from celery_exporter.status.facts import DISCOVERY_SECONDS
from celery_exporter.status.model import VERSION, Status
from celery_exporter.web.healthcheck import reachable
from celery_exporter.web.listen_config import ListenConfig

PATH = "/api/v1/status"
#: To connect, and to wait for the next bytes of an answer.
HTTP_TIMEOUT_SECONDS = 5.0
#: The status of some 50,000 task names.
MAX_ANSWER_BYTES = 64 * 2**20
#: Seconds after which a script prints what it waits for.
SLOW_SECONDS = 1.0
#: For a broker to accept the subscription, and then for a heartbeat of each worker.
CONNECT_SECONDS, LISTEN_SECONDS = 5.0, DISCOVERY_SECONDS
#: Between two measurements of queues.
UPDATE_INTERVAL_SECONDS = 5.0
#: For the threads of the monitor to end.
STOP_SECONDS = 1.3


class NoStatusError(Exception):
    """There is no status. The text says what happened and what to do."""


class Source(Struct, frozen=True):
    """What can be read again and again, or once by a script that waits. Both raise NoStatusError."""

    name: str  # its URL, without secrets
    read: Callable[[], Status]
    read_once: Callable[[Callable[[str], None]], Status]  # given what prints a line about a long wait


# -- a running exporter --------------------------------------------------------------------------------


def exporter_at(url: str) -> Source:
    """Return a running exporter as a source. Raise BadSettingError, without the URL in its text."""
    try:
        parts = urlsplit(url)
        valid = parts.scheme in {"http", "https"} and parts.hostname and parts.port != 0
    except ValueError:
        valid = False
    if not valid or not re.fullmatch("[!-~]+", url):
        example = "http://127.0.0.1:9808 or https://user:password@host:9808/prefix"
        raise BadSettingError(f"--url: takes a URL such as {example}")
    parts = parts._replace(path=parts.path.rstrip("/").removesuffix(PATH) + PATH)
    name = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"

    def read() -> Status:
        return _decoded(name, _body(name, parts))

    def read_once(say: Callable[[str], None]) -> Status:
        timer = threading.Timer(SLOW_SECONDS, say, [f"waiting for {name}"])
        timer.start()
        try:
            return read()
        finally:
            timer.cancel()

    return Source(name, read, read_once)


def local_url(listener: ListenConfig) -> str:
    """Return the URL of the exporter on this machine that has these settings."""
    host = reachable(listener.host)
    scheme = "http" if listener.web_config_file is None else "https"
    return f"{scheme}://{f'[{host}]' if ':' in host else host}:{listener.port}"


def _body(name: str, url: SplitResult) -> bytes:
    connect = http.client.HTTPSConnection if url.scheme == "https" else http.client.HTTPConnection
    headers = {"Accept": "application/json", "User-Agent": f"celery-exporter-top/{__version__}"}
    if url.username is not None:
        login = f"{unquote(url.username)}:{unquote(url.password or '')}"
        headers["Authorization"] = f"Basic {base64.b64encode(login.encode()).decode()}"
    try:
        with closing(connect(url.hostname or "", url.port, timeout=HTTP_TIMEOUT_SECONDS)) as connection:
            connection.request("GET", url.path, headers=headers)
            answer = connection.getresponse()
            if answer.status == 200:
                return answer.read(MAX_ANSWER_BYTES)
    except (OSError, http.client.HTTPException, UnicodeError) as error:
        raise NoStatusError(f"{name}: {_reason(error)}") from None
    remedy = _REMEDIES.get(answer.status, "this is no status; correct --url, or read the exporter's log")
    raise NoStatusError(f"{name} answered {answer.status}: {remedy}")


_REMEDIES: Mapping[int, str] = {
    401: "it requires a login: CELERY_EXPORTER_URL=http://user:password@host:9808",
    403: "it requires a client certificate, which top cannot send; use --broker-url",
    404: "it is no exporter, an old one, or one with --no-status-page; correct --url, or use --broker-url",
    429: "too many logins at a time; try again",
}
_WRONG_SCHEME = "{}; check whether --url begins with http:// or https://"
#: What went wrong (the first class that matches), and what to do.
_FAULTS: tuple[tuple[type[Exception], str], ...] = (
    (TimeoutError, f"no answer in {HTTP_TIMEOUT_SECONDS:g} s; check that the exporter runs, and firewalls"),
    (ConnectionRefusedError, "connection refused; start celery-exporter, correct --url, or use --broker-url"),
    (ssl.SSLCertVerificationError, "certificate not trusted ({}); correct --url, or set SSL_CERT_FILE"),
    (ssl.SSLError, _WRONG_SCHEME),
    (http.client.HTTPException, _WRONG_SCHEME),
    (ConnectionError, _WRONG_SCHEME),
    (Exception, "{}; correct --url"),
)


def _reason(error: Exception) -> str:
    text = getattr(error, "verify_message", None) or getattr(error, "strerror", None) or str(error)
    short = " ".join((text or type(error).__name__).split())[:100]
    return next(reason for kind, reason in _FAULTS if isinstance(error, kind)).format(short)


def _decoded(name: str, body: bytes) -> Status:
    try:
        status = msgspec.json.decode(body, type=Status)
        problem = f"its version is {status.version}, and this program reads version {VERSION}"
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        status, problem = None, str(error)[:100]
    if status is None or status.version != VERSION:
        remedy = "correct --url, or run top in the version of that exporter"
        raise NoStatusError(f"{name} did not answer with a status ({problem}); {remedy}")
    return status


# -- a broker ------------------------------------------------------------------------------------------


@contextmanager
def broker(config: MonitorConfig, warnings: Sequence[str]) -> Iterator[Source]:
    """Subscribe to a broker as the exporter does, and change nothing there. Raise UnusableURLError.

    The last of `warnings`, which grow while the exporter logs, is the error of a closed subscription.
    """
    check(config.broker)
    monitor = Monitor(replace(config.read_only(), update_interval=UPDATE_INTERVAL_SECONDS))
    name = masked(config.broker.broker_url)

    def read() -> Status:
        status = monitor.status()
        if not status.broker.up and warnings:
            raise NoStatusError(warnings[-1])
        return status

    def read_once(say: Callable[[str], None]) -> Status:
        say(f"listening to {name} for {LISTEN_SECONDS:g} s, for a heartbeat of each worker")
        deadline = time.monotonic() + CONNECT_SECONDS
        while not monitor.is_ready() and time.monotonic() < deadline:
            time.sleep(0.1)
        time.sleep(LISTEN_SECONDS if monitor.is_ready() else 0)
        status = read()
        if not status.broker.up:
            raise NoStatusError(f"{name}: no subscription in {CONNECT_SECONDS:g} s")
        return status

    monitor.start()
    try:
        yield Source(name, read, read_once)
    finally:
        monitor.stop()
        monitor.join(time.monotonic() + STOP_SECONDS)
