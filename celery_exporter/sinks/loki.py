"""--loki-url: the transitions of tasks as log lines, pushed to Loki.

The format is that of POST /loki/api/v1/push as JSON (Loki HTTP API, "Ingest logs"): an entry is nanoseconds
as a text, a line, and structured metadata; entries are grouped by labels into streams. Labels are few,
because each set of them is a stream. Of what labels and metadata have, the line repeats only what a person
needs to read it: each byte is encoded twice, sent and stored. Loki stores an entry once that comes again with
the same time, line and metadata, so another attempt after an answer that was lost is harmless.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from operator import attrgetter
from typing import Any

import msgspec
from msgspec import Struct, structs

from celery_exporter.core.records import ATTEMPT_ENDS, NO_ARGUMENTS, Record
from celery_exporter.core.types import State
from celery_exporter.errors import BadSettingError
from celery_exporter.sinks.base import REJECTED, Payload, PermanentError
from celery_exporter.sinks.compression import gzipped
from celery_exporter.sinks.config import LokiConfig
from celery_exporter.sinks.http import MAX_SHOWN, HttpClient, Response, check
from celery_exporter.sinks.secrets import basic_login, read_token

PUSH_PATH = "/loki/api/v1/push"
#: Bytes of a body before compression, and seconds in which so many are sent: a quarter of what Loki takes by
#: default (limits_config.ingestion_rate_mb), so that others can send, too.
MAX_BODY_BYTES, MIN_INTERVAL_SECONDS = 2**20, 1.0
#: Labels that this sink sets.
LABELS = ("service", "state", "queue")
#: Epoch seconds from which on nanoseconds exceed 64 bits. Loki would refuse the whole body.
MAX_TIMESTAMP = 2**63 / 1e9
#: Names of tenants that Loki accepts (dskit, tenant.ValidTenantID).
_tenant = re.compile(r"[a-zA-Z0-9!_.*'()-]{1,150}")
#: The status for a tenant that is blocked: the entries are dropped (limits_config.block_ingestion_until).
BLOCKED_STATUS = 260

#: The status for a body without streams.
NO_STREAMS_STATUS = 422

_encode = msgspec.json.Encoder().encode
_STATE_NAMES = {state: state.name for state in State}
_timestamp = attrgetter("timestamp")


class Line(Struct, omit_defaults=True, gc=False):
    """Fields of `log_line.LogLine`: those that are no labels or metadata, and what the line is about."""

    state: str
    task_name: str
    uuid: str
    client: str | None = None
    parent_id: str | None = None
    generation: int = 0
    queue_wait_seconds: float | None = None
    prefetch_wait_seconds: float | None = None
    runtime_seconds: float | None = None
    sent: float | None = None
    eta: float | None = None
    received: float | None = None
    started: float | None = None
    args: str | None = None
    kwargs: str | None = None
    result: str | None = None


class _Metadata(Struct, omit_defaults=True, gc=False):
    uuid: str
    task: str
    root: str | None = None
    worker: str | None = None
    retries: str | None = None
    exception: str | None = None


class _Entry(Struct, array_like=True, gc=False):
    time: str  # nanoseconds since 1970
    line: str
    metadata: _Metadata


class _Stream(Struct):
    stream: Mapping[str, str]  # labels
    values: list[_Entry]


class _Push(Struct):
    streams: list[_Stream]


class LokiSink:
    """See `Sink`. Raises BadSettingError for settings that contradict."""

    name = "loki"
    max_body_bytes = MAX_BODY_BYTES
    states = tuple(State)
    min_interval = MIN_INTERVAL_SECONDS

    def __init__(
        self, url: str, config: LokiConfig, service: str, static_labels: Mapping[str, str] | None = None
    ) -> None:
        self.address = url
        self._labels = {**(static_labels or {}), "service": service}
        _check_labels(static_labels or {})
        if url.endswith(PUSH_PATH):
            raise BadSettingError(f"--loki-url: got {url!r}; it takes the URL without {PUSH_PATH}")
        self._push_url = url + PUSH_PATH
        self._client = HttpClient(self._push_url, _headers(config))

    def select(self, records: Iterable[Any]) -> list[Any]:
        """See `Sink`: transitions."""
        return [record for record in records if type(record) is Record]

    def encode(self, records: Sequence[Record]) -> Payload:
        """See `Sink`. The body is not compressed yet: Loki's limits are of the uncompressed size."""
        usable = [record for record in records if record.timestamp < MAX_TIMESTAMP]
        usable.sort(key=_timestamp)
        streams: dict[tuple[State, str | None], list[_Entry]] = {}
        for record in usable:
            attempt, key = record.attempt, (record.state, record.queue)
            entry = _Entry(
                f"{int(record.timestamp * 1e6 + 0.5)}000",  # a float has no more digits
                _encode(_line(record)).decode(),
                _Metadata(
                    record.uuid,
                    record.name,
                    record.root,
                    record.worker,
                    None if attempt is None else str(attempt),
                    record.exception,
                ),
            )
            if key in streams:
                streams[key].append(entry)
            else:
                streams[key] = [entry]
        body = _encode(_Push([_Stream(self._labels_of(*key), entries) for key, entries in streams.items()]))
        unusable = len(records) - len(usable)
        return Payload(body, {REJECTED: unusable} if unusable else {})

    def send(self, body: bytes, timeout: float) -> None:
        """See `Sink`."""
        response = self._client.post(gzipped(body), timeout)
        try:
            check(response, self._push_url)
        except PermanentError as error:
            raise PermanentError(str(error), error.outcome, _rejected(response)) from None
        if response.status == BLOCKED_STATUS:
            raise PermanentError(f"{self._push_url} drops all entries: {response.text[:MAX_SHOWN]}")

    def probe(self, timeout: float) -> None:
        """See `Sink`: push no stream, which Loki 3 refuses with status 422 after it has checked the login."""
        response = self._client.post(gzipped(_encode(_Push([]))), timeout)
        if response.status != NO_STREAMS_STATUS:
            check(response, self._push_url)

    def close(self) -> None:
        """See `Sink`."""
        self._client.close()

    def _labels_of(self, state: State, queue: str | None) -> dict[str, str]:
        labels = {**self._labels, "state": _STATE_NAMES[state]}
        return labels if queue is None else {**labels, "queue": queue}


def _line(record: Record) -> Line:
    line = Line(
        _STATE_NAMES[record.state],
        record.name,
        record.uuid,
        record.client,
        record.parent,
        record.generation,
        record.queue_wait,
        record.prefetch_wait,
        record.runtime,
    )
    if record.state in ATTEMPT_ENDS:
        line.sent, line.eta = record.sent, record.eta
        line.received, line.started = record.received, record.started
    if record.arguments is not NO_ARGUMENTS:
        line.args, line.kwargs, line.result = structs.astuple(record.arguments)
    return line


def loki_sink(config: LokiConfig, service: str, static_labels: Mapping[str, str]) -> LokiSink | None:
    """Return the sink, None without --loki-url. Raises BadSettingError for settings that contradict."""
    _check_login(config)
    if config.loki_url is None:
        return None
    return LokiSink(config.loki_url, config, service, static_labels)


# -- settings ------------------------------------------------------------------------------------------


def _check_login(config: LokiConfig) -> None:
    given = [
        f"--{name.replace('_', '-')}"
        for name in config.__struct_fields__
        if name != "loki_url" and getattr(config, name) is not None
    ]
    if config.loki_url is None and given:
        raise BadSettingError(f"{given[0]}: has no effect without --loki-url; give both or none")
    if config.loki_token_file is not None and (config.loki_user or config.loki_password_file):
        raise BadSettingError(
            "--loki-token-file: got a user or password, too; give a token, or a user with a password file"
        )
    if (config.loki_user is None) != (config.loki_password_file is None):
        raise BadSettingError("--loki-user and --loki-password-file: got one of them; give both or none")
    if config.loki_user is not None and ":" in config.loki_user:
        raise BadSettingError(f"--loki-user: got {config.loki_user!r}; it takes a name without a colon")
    if config.loki_tenant is not None and not _tenant.fullmatch(config.loki_tenant):
        raise BadSettingError(
            f"--loki-tenant: got {config.loki_tenant!r}; it takes up to 150 letters, digits and !-_.*'()"
        )


def _check_labels(static_labels: Mapping[str, str]) -> None:
    for name in LABELS:
        if name in static_labels:
            pair = f"{name}={static_labels[name]}"
            raise BadSettingError(f"--static-label: got {pair!r}; with --loki-url, Loki has a label {name}")


def _headers(config: LokiConfig) -> Callable[[], dict[str, str]]:
    """Return a function that returns the headers of a request, with the login as the files have it then."""
    fixed = {"Content-Type": "application/json", "Content-Encoding": "gzip"}
    if config.loki_tenant is not None:
        fixed["X-Scope-OrgID"] = config.loki_tenant
    user, password_file, token_file = config.loki_user, config.loki_password_file, config.loki_token_file

    def headers() -> dict[str, str]:
        if token_file is not None:
            return {**fixed, "Authorization": f"Bearer {read_token(token_file)}"}
        if user is not None and password_file is not None:
            return {**fixed, "Authorization": basic_login(user, password_file)}
        return fixed

    return headers


# -- answers -------------------------------------------------------------------------------------------

# An ingester writes this for entries that are too far behind the newest one of their stream, and stores the
# others (pkg/ingester/stream.go). It reports the last stream of the request only.
_ignored = re.compile(r"\btotal ignored: (\d{1,9}) out of \d+ for stream: ")
# A distributor groups equal errors, and stores the other entries (pkg/validation/validate.go,
# GroupedErrors in pkg/util/errors). Those of whole streams do not say how many entries these have.
_ERROR_SEPARATOR = "; "
_entry_error = re.compile(
    r"(?:(\d{1,9}) errors like: )?"
    r"(?:entry for stream '.*' has timestamp too (?:old|new): .*"
    r"|Max entry size '\d+' bytes exceeded for stream .*"
    r"|stream '.*' (?:includes structured metadata, but|has structured metadata too large"
    r"|has too many structured metadata) .*)"
)


def _rejected(response: Response) -> int | None:
    """Return how many entries Loki did not store, None if all or unknown."""
    if response.status != 400:
        return None
    ignored = _ignored.search(response.text)
    if ignored:
        return int(ignored[1])
    errors = [_entry_error.fullmatch(part) for part in response.text.split(_ERROR_SEPARATOR)]
    return sum(int(error[1] or 1) for error in errors if error) if all(errors) else None
