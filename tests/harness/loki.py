"""A receiver for Loki's push API that checks a request as strictly as Loki 3.5 does, and answers alike.

Rules, limits and texts are those of Loki's documentation and source: pkg/loghttp/push and
pkg/loghttp/entry.go (the body), pkg/distributor/validator.go and pkg/validation (labels, entries, limits and
their defaults), pkg/ingester/stream.go (entries that are too far behind, repetitions).
"""

from __future__ import annotations

import gzip
import json
import re
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from typing import Self

PATH = "/loki/api/v1/push"
MAX_LINE_BYTES, MAX_METADATA_BYTES, MAX_METADATA = 256 * 1024, 64 * 1024, 128
MAX_LABELS, MAX_LABEL_BYTES = 15, 2048
MAX_AGE_SECONDS, MAX_FUTURE_SECONDS, MAX_BEHIND_SECONDS = 7 * 86_400, 600, 3_600
MAX_RETURNED_ERRORS = 10
_name = re.compile(r"[a-zA-Z_][a-zA-Z0-9_]*")


class Entry(NamedTuple):
    """An entry that was stored."""

    labels: tuple[tuple[str, str], ...]
    nanoseconds: int
    line: str
    metadata: tuple[tuple[str, str], ...]


class Answer(NamedTuple):
    """A status and a text."""

    status: int
    text: str = ""
    headers: tuple[tuple[str, str], ...] = ()


@dataclass
class Request:
    """A request as it arrived. `size` is in bytes of the uncompressed body, `at` is monotonic seconds."""

    at: float
    headers: dict[str, str]
    compressed: int
    body: bytes
    answer: Answer

    @property
    def size(self) -> int:
        return len(self.body)


@dataclass
class Loki:
    """A server on a free port, which keeps what it got. `before` may answer instead of it.

    `faults` are what a real Loki would take without an error: entries of a stream that are not in order.
    """

    tenant: str | None = None  # required in X-Scope-OrgID
    authorization: str | None = None  # required in Authorization, as a proxy in front of Loki does
    structured_metadata: bool = True
    before: Callable[[dict[str, str], bytes], Answer | None] = lambda *_: None
    entries: list[Entry] = field(default_factory=list)
    requests: list[Request] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    repeated: int = 0  # entries that were stored already
    _lock: Any = field(default_factory=threading.Lock)
    _stored: set[Entry] = field(default_factory=set)
    _newest: dict[Any, int] = field(default_factory=lambda: defaultdict(int))

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> Self:
        loki = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                answer = loki.answer(self.path, dict(self.headers), body)
                self.send_response(answer.status)
                for name, value in answer.headers:
                    self.send_header(name, value)
                content = f"{answer.text}\n".encode() if answer.text else b""
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True
        ).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def counts(self, *labels: str) -> Counter[tuple[str, ...]]:
        """Return how many entries were stored, by these labels."""
        return Counter(tuple(dict(entry.labels).get(name, "") for name in labels) for entry in self.entries)

    # -- answers

    def answer(self, path: str, headers: dict[str, str], compressed: bytes) -> Answer:
        with self._lock:
            at, body = time.monotonic(), b""
            answer = self.before(headers, compressed) or self._login(path, headers)
            if answer is None:
                try:
                    body = _decompressed(headers, compressed)
                    answer = self._push(_streams(headers, body))
                except ValueError as error:
                    answer = Answer(400, str(error))
            self.requests.append(Request(at, headers, len(compressed), body, answer))
            return answer

    def _login(self, path: str, headers: dict[str, str]) -> Answer | None:
        if path != PATH:
            return Answer(404, "404 page not found")
        if self.authorization is not None and headers.get("Authorization") != self.authorization:
            return Answer(401, "Unauthorized")
        if self.tenant is not None and headers.get("X-Scope-OrgID") != self.tenant:
            return Answer(401, "no org id")
        return None

    def _push(self, streams: list[tuple[dict[str, str], list[Entry]]]) -> Answer:
        if not streams:
            return Answer(422, "error at least one valid stream is required for ingestion")
        errors: Counter[str] = Counter()
        ignored = ""
        for labels, entries in streams:
            if (error := _label_error(labels)) is not None:
                errors[error] += 1
                continue
            valid = []
            for entry in entries:
                if (error := self._entry_error(entry)) is not None:
                    errors[error] += 1
                else:
                    valid.append(entry)
            ignored = self._store(labels, valid)  # of the last stream only
        if ignored:
            return Answer(400, ignored)
        if errors:
            several = len(errors) > 1 or errors.total() > 1
            texts = (f"{count} errors like: {text}" if several else text for text, count in errors.items())
            return Answer(400, "; ".join(texts))
        return Answer(204)

    def _entry_error(self, entry: Entry) -> str | None:
        stream, now = _selector(dict(entry.labels)), time.time()
        seconds = entry.nanoseconds / 1e9
        if seconds < now - MAX_AGE_SECONDS:
            return (
                f"entry for stream '{stream}' has timestamp too old: {_rfc3339(seconds)}, "
                f"oldest acceptable timestamp is: {_rfc3339(now - MAX_AGE_SECONDS)}"
            )
        if seconds > now + MAX_FUTURE_SECONDS:
            return f"entry for stream '{stream}' has timestamp too new: {_rfc3339(seconds)}"
        length = len(entry.line.encode())
        if length > MAX_LINE_BYTES:
            return (
                f"Max entry size '{MAX_LINE_BYTES}' bytes exceeded for stream '{stream}' "
                f"while adding an entry with length '{length}' bytes"
            )
        if entry.metadata and not self.structured_metadata:
            return (
                f"stream '{stream}' includes structured metadata, but this feature is disallowed. Please see "
                "`limits_config.allow_structured_metadata` or contact your Loki administrator to enable it."
            )
        size = sum(len(name.encode()) + len(value.encode()) for name, value in entry.metadata)
        if size > MAX_METADATA_BYTES or len(entry.metadata) > MAX_METADATA:
            return (
                f"stream '{stream}' has structured metadata too large: '{size}' bytes, limit: '65536' bytes."
            )
        return None

    def _store(self, labels: dict[str, str], entries: list[Entry]) -> str:
        """Store what is not too far behind; return the error for the rest."""
        key, failed = tuple(sorted(labels.items())), []
        if [entry.nanoseconds for entry in entries] != sorted(entry.nanoseconds for entry in entries):
            self.faults.append(f"entries of {labels} are not in the order of their time")
        for entry in entries:
            oldest = self._newest[key] - MAX_BEHIND_SECONDS * 10**9
            if entry.nanoseconds < oldest:
                failed.append((entry, oldest))
                continue
            self._newest[key] = max(self._newest[key], entry.nanoseconds)
            if entry in self._stored:
                self.repeated += 1
                continue
            self._stored.add(entry)
            self.entries.append(entry)
        if not failed:
            return ""
        times = [
            (_rfc3339(entry.nanoseconds / 1e9), _rfc3339(oldest / 1e9))
            for entry, oldest in failed[:MAX_RETURNED_ERRORS]
        ]
        reasons = "".join(
            f"entry with timestamp {at} ignored, reason: 'entry too far behind, "
            f"entry timestamp is: {at}, oldest acceptable timestamp is: {oldest}',\n"
            for at, oldest in times
        )
        total = f"total ignored: {len(failed)} out of {len(entries)} for stream: {_selector(labels)}"
        return f"{reasons}user 'fake', {total}"


def _decompressed(headers: dict[str, str], compressed: bytes) -> bytes:
    encoding = headers.get("Content-Encoding", "")
    if encoding != "gzip":
        raise ValueError(f"Content-Encoding {encoding!r} is not what a test expects")
    return gzip.decompress(compressed)


def _streams(headers: dict[str, str], body: bytes) -> list[tuple[dict[str, str], list[Entry]]]:
    """Return labels and entries; raise ValueError for another structure than the documented one."""
    if headers.get("Content-Type") != "application/json":
        raise ValueError("without application/json, the body has to be a protobuf")
    document = json.loads(body, parse_constant=_refuse)
    if document.keys() != {"streams"}:
        raise ValueError(f"keys of the body: {document.keys()}")
    return [_stream(stream) for stream in document["streams"]]


def _stream(stream: dict[str, Any]) -> tuple[dict[str, str], list[Entry]]:
    if stream.keys() != {"stream", "values"}:
        raise ValueError(f"keys of a stream: {stream.keys()}")
    labels = stream["stream"]
    if not all(isinstance(value, str) for value in labels.values()):
        raise ValueError("a label is not a text")
    entries = []
    for value in stream["values"]:
        nanoseconds, line, metadata = value
        if not (isinstance(nanoseconds, str) and re.fullmatch(r"\d+", nanoseconds)):
            raise ValueError("Value is string, but can't find closing '\"' symbol")
        if int(nanoseconds) >= 2**63:
            raise ValueError("Overflow error")
        texts = (line, *metadata.values())
        if not all(isinstance(text, str) for text in texts) or not all(map(_name.fullmatch, metadata)):
            raise ValueError("a line or structured metadata is not a text, or has a name that is changed")
        entries.append(
            Entry(tuple(sorted(labels.items())), int(nanoseconds), line, tuple(sorted(metadata.items())))
        )
    return labels, entries


def _label_error(labels: dict[str, str]) -> str | None:
    stream = _selector(labels)
    if not labels:
        return "error at least one label pair is required per stream"
    for name, value in labels.items():
        if not _name.fullmatch(name):
            return f"Error parsing labels '{stream}' with error: unexpected character"
        if not value:
            return f"an empty label is as good as none: {name}"
        if len(value.encode()) > MAX_LABEL_BYTES:
            return f"stream '{stream}' has label value too long: '{value}'"
    if len(labels) > MAX_LABELS:
        return f"entry for stream '{stream}' has {len(labels)} label names; limit {MAX_LABELS}"
    return None


def _selector(labels: dict[str, str]) -> str:
    return "{" + ", ".join(f"{name}={json.dumps(value)}" for name, value in sorted(labels.items())) + "}"


def _rfc3339(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")
