"""Where `top` has its numbers from: the API of a running exporter, or a broker, heard in this process."""

from __future__ import annotations

import base64
import http.client
import logging
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from urllib.parse import SplitResult, unquote, urlsplit

import msgspec
from msgspec import Struct

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
#: Seconds to connect in, and in which more of an answer has to come; bytes of one: some 50,000 tasks' names.
PATIENCE, MOST_BYTES = 5.0, 64 * 2**20
#: Seconds after which it is said what is waited for.
SLOW = 1.0
#: Seconds between two measurements of a broker that somebody looks at.
UPDATE_INTERVAL = 5.0
#: Seconds in which a broker has to be there for one look, and that its workers are listened to.
CONNECT, LISTEN = 5.0, DISCOVERY_SECONDS
#: Seconds for the monitor's threads to end.
FAREWELL = 1.3

_TAKES = "it takes a URL such as http://127.0.0.1:9808 or https://user:password@host:9808/prefix"
_ANSWERS: Mapping[int, str] = {
    401: "it wants a user and a password: CELERY_EXPORTER_URL=http://user:password@host:9808",
    403: "it takes nobody without a client certificate, which top has none of; try --broker-url",
    404: "no exporter, one that is too old, or one with --no-status-page; correct --url, or try --broker-url",
    429: "too many logins at a time; this goes on trying",
}


class NoStatusError(Exception):
    """There is no status; the text says what happened, and what to do."""


class _Versioned(Struct):
    version: int


class Source(Struct, frozen=True):
    """Where it comes from, for people; what returns the newest status, or raises NoStatusError."""

    name: str
    look: Callable[[], Status]


# -- a running exporter --------------------------------------------------------------------------------


def exporter(url: str) -> Source:
    """Return what asks a running exporter. Raises BadSettingError, which does not tell the password."""
    try:
        parts = urlsplit(url)
        port = parts.port or (443 if parts.scheme == "https" else 80)
        usable = parts.scheme in {"http", "https"} and parts.hostname and url.isascii() and url.isprintable()
    except ValueError:
        usable, parts, port = False, SplitResult("", "", "", "", ""), 0
    if not usable or " " in url:
        raise BadSettingError(f"--url: got something else; {_TAKES}")
    path = parts.path.rstrip("/").removesuffix(PATH) + PATH
    name = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{path}"
    return Source(name, lambda: _decoded(name, _body(parts, port, path, name)))


def awaited(source: Source, say: Callable[[str], None]) -> Source:
    """Return a source that says what is waited for when an answer takes its time."""

    def look() -> Status:
        slow = threading.Timer(SLOW, say, [f"waiting for {source.name}"])
        slow.start()
        try:
            return source.look()
        finally:
            slow.cancel()

    return Source(source.name, look)


def here(listener: ListenConfig) -> str:
    """Return the URL of the exporter that listens so on this machine."""
    host = reachable(listener.host)
    scheme = "http" if listener.web_config_file is None else "https"
    return f"{scheme}://{f'[{host}]' if ':' in host else host}:{listener.port}"


def _body(parts: SplitResult, port: int, path: str, name: str) -> bytes:
    make = http.client.HTTPConnection if parts.scheme == "http" else http.client.HTTPSConnection
    headers = {"Accept": "application/json", "User-Agent": f"celery-exporter-top/{__version__}"}
    if parts.username is not None:
        login = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
        headers["Authorization"] = f"Basic {base64.b64encode(login.encode()).decode()}"
    try:
        with closing(make(parts.hostname or "", port, timeout=PATIENCE)) as connection:
            connection.request("GET", path, headers=headers)
            answer = connection.getresponse()
            if answer.status != 200:
                why = _ANSWERS.get(answer.status, "it has no status to tell; correct --url, or read its log")
                raise NoStatusError(f"{name} answered {answer.status}: {why}")
            body = answer.read(MOST_BYTES + 1)
    except (OSError, http.client.HTTPException, UnicodeError) as error:
        raise NoStatusError(f"{name}: {_why(error)}") from None
    if len(body) > MOST_BYTES:
        raise NoStatusError(f"{name} answered with more than {MOST_BYTES:,} bytes; look at its /metrics")
    return body


#: What went wrong, the first that fits: what happened, and what to do.
_FAULTS: tuple[tuple[type[Exception], str], ...] = (
    (TimeoutError, f"no answer in {PATIENCE:g} s; is the exporter stopped, or something in between?"),
    (
        ConnectionRefusedError,
        "nobody listens there; start celery-exporter, correct --url, or try --broker-url",
    ),
    (
        ssl.SSLCertVerificationError,
        "its certificate is not trusted ({}); give --url the name it is for, SSL_CERT_FILE who signed it",
    ),
    (ssl.SSLError, "no TLS there ({}); if it has none, --url begins with http://"),
    (socket.gaierror, "this name has no address ({}); correct --url"),
    (http.client.HTTPException, "no HTTP there ({}); if it has TLS, --url begins with https://"),
    (ConnectionError, "it hung up ({}); if it has TLS, --url begins with https://"),
)


def _why(error: Exception) -> str:
    text = getattr(error, "verify_message", None) or getattr(error, "strerror", None) or str(error)
    short = " ".join((text or type(error).__name__).split())[:100]
    why = next((why for kind, why in _FAULTS if isinstance(error, kind)), "{}; correct --url")
    return why.format(short)


def _decoded(name: str, body: bytes) -> Status:
    try:
        version = msgspec.json.decode(body, type=_Versioned).version
        if version == VERSION:
            return msgspec.json.decode(body, type=Status)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        short = str(error)[:100]
        why = "is it another program, or an exporter of another version? correct --url, or update"
        raise NoStatusError(f"{name} answered something else than a status ({short}); {why}") from None
    raise NoStatusError(
        f"{name} answered version {version} of the status, and this one reads version {VERSION}; "
        "use the celery-exporter that runs there"
    )


# -- a broker ------------------------------------------------------------------------------------------


@contextmanager
def broker(config: MonitorConfig) -> Iterator[Source]:
    """Listen to a broker, as the exporter does; it only looks. Raises UnusableURLError."""
    check(config.broker)
    monitor = Monitor(msgspec.structs.replace(config.read_only(), update_interval=UPDATE_INTERVAL))
    said = _Said()

    def look() -> Status:
        status = monitor.status()
        if not status.broker.up and said.newest:
            raise NoStatusError(said.newest)
        return status

    monitor.start()
    try:
        yield Source(masked(config.broker.broker_url), look)
    finally:
        monitor.stop()
        monitor.join(time.monotonic() + FAREWELL)


def patient(source: Source, say: Callable[[str], None]) -> Source:
    """Return a broker's source that looks when its workers have had the time to be heard, and says so."""

    def look() -> Status:
        say(f"listening to {source.name} for {LISTEN:g} s, in which its workers are heard")
        end = time.monotonic() + CONNECT
        heard_at = None
        while heard_at is None or time.monotonic() < heard_at + LISTEN:
            try:
                up = source.look().broker.up
            except NoStatusError:
                if time.monotonic() > end:
                    raise
                up = False
            if up and heard_at is None:
                heard_at = time.monotonic()
            if not up and time.monotonic() > end:
                raise NoStatusError(f"{source.name}: no subscription in {CONNECT:g} s")
            time.sleep(0.1)
        return source.look()

    return Source(source.name, look)


class _Said(logging.Handler):
    """Keeps what the monitor logs from the screen, and the newest warning for it."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.newest = ""
        log = logging.getLogger("celery_exporter")
        log.handlers, log.propagate = [self], False
        logging.getLogger("celery_exporter.status.checks").disabled = True  # it is on the screen

    def emit(self, record: logging.LogRecord) -> None:
        self.newest = record.getMessage()
