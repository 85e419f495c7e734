"""InfluxDB 1, 2 and 3, and servers that accept its line protocol.

Documentation of the three write paths, and of their answers to partial writes:
https://docs.influxdata.com/influxdb/v1/tools/api/#write-http-endpoint
https://docs.influxdata.com/influxdb/v2/write-data/troubleshoot/
https://docs.influxdata.com/influxdb3/core/write-data/http-api/v3-write-lp/
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any
from urllib.parse import urlencode

from msgspec import Struct

from celery_exporter.errors import BadSettingError
from celery_exporter.sinks.base import TOO_LARGE, Payload, PermanentError
from celery_exporter.sinks.config import InfluxConfig, SinksConfig
from celery_exporter.sinks.http import HttpClient, check
from celery_exporter.sinks.points import NAMES, STATES, FieldsEncoder, LunaEncoder, is_wanted
from celery_exporter.sinks.secrets import basic_login, read_token

#: InfluxDB 3 takes 10 MB at most by default, InfluxDB 1 takes 25 MB.
MAX_BODY_BYTES = 8 * 2**20
#: Rejected lines that InfluxDB 3 lists at most.
MAX_LISTED_LINES = 100


class Version(Struct, frozen=True):
    """One of the three write paths, the options that it needs, and those that it may have besides."""

    path: str
    precision: str
    #: Parameters of the URL → fields of `InfluxConfig`.
    parameters: Mapping[str, str]
    optional: tuple[str, ...]


VERSIONS = {
    1: Version("/write", "ns", {"db": "influx_database"}, ("influx_user", "influx_password_file")),
    2: Version(
        "/api/v2/write", "ns", {"org": "influx_org", "bucket": "influx_bucket"}, ("influx_token_file",)
    ),
    3: Version("/api/v3/write_lp", "nanosecond", {"db": "influx_database"}, ("influx_token_file",)),
}
_ENCODERS = {"fields": FieldsEncoder, "luna": LunaEncoder}

# v1 and OSS v2 count points in `dropped=2`; a point that cannot be parsed is listed instead. Cloud v2 says
# `1 out of 6 points rejected`, and v3 lists the lines.
_dropped = re.compile(r"\bdropped=(\d+)")
_out_of = re.compile(r"partial write error \(\d+ accepted\): (\d+) out of \d+ points rejected")
_listed_line = re.compile(r'"line_number"\s*:\s*(\d+)')


class InfluxSink:
    """See `Sink`."""

    name = "influxdb"
    max_body_bytes = MAX_BODY_BYTES
    states = STATES
    takes_requests = True
    min_interval = 0.0

    def __init__(self, config: SinksConfig) -> None:
        """Raises BadSettingError if options are missing, or belong to another version."""
        influx = config.influx
        version = _checked_version(influx)
        _check_static_labels(config.static_label)
        parameters = {name: getattr(influx, field) for name, field in version.parameters.items()}
        query = urlencode({**parameters, "precision": version.precision})
        self.address = f"{influx.influx_url}{version.path}?{query}"
        self._config = influx
        self._client = HttpClient(self.address, self._headers)
        self._encoder = _ENCODERS[influx.influx_layout](
            config.service_name, config.static_label, distinct_names=influx.influx_version == 3
        )

    def select(self, records: Iterable[Any]) -> list[Any]:
        """See `Sink`: receipts, starts and ends of tasks, measurements, and HTTP requests."""
        return [*filter(is_wanted, records)]

    def encode(self, records: Sequence[Any]) -> Payload:
        """See `Sink`."""
        return self._encoder.encode(records)

    def send(self, body: bytes, timeout: float) -> None:
        """See `Sink`. Of a partial write, the rejected points are counted."""
        response = self._client.post(body, timeout)
        try:
            check(response, self.address)
        except PermanentError as error:
            if error.outcome == TOO_LARGE:
                raise
            raise PermanentError(str(error), count=rejected_points(response.text)) from None

    def probe(self, timeout: float) -> None:
        """See `Sink`. A payload of no points is taken by version 1, and is a bad request to others.

        All check the login, and whether the database or the bucket exists, before that.
        """
        response = self._client.post(b"", timeout)
        if response.status != 400:
            check(response, self.address)

    def close(self) -> None:
        """See `Sink`."""
        self._client.close()

    def _headers(self) -> Mapping[str, str]:
        """Return the headers of a request. Raises TemporaryError if a file cannot be read."""
        headers = {"Content-Type": "text/plain; charset=utf-8"}
        influx = self._config
        if influx.influx_user is not None and influx.influx_password_file is not None:
            headers["Authorization"] = basic_login(influx.influx_user, influx.influx_password_file)
        elif influx.influx_token_file is not None:
            scheme = "Token" if influx.influx_version == 2 else "Bearer"
            headers["Authorization"] = f"{scheme} {read_token(influx.influx_token_file)}"
        return headers


def rejected_points(answer: str) -> int | None:
    """Return how many points a server rejected of a payload; None for all of them, or an unknown number.

    `answer` is the text of an answer with a status of 400 to 499.
    """
    if "partial write" not in answer:
        return None
    if match := _out_of.search(answer):
        return int(match[1])
    lines = set(_listed_line.findall(answer))
    if lines:
        is_complete = len(lines) < MAX_LISTED_LINES and answer.endswith("}")  # `post` cuts long answers
        return len(lines) if is_complete else None
    dropped = _dropped.findall(answer)  # the last one: the texts before it may come from a task
    return (int(dropped[-1]) or answer.count("unable to parse") or None) if dropped else None


def _checked_version(config: InfluxConfig) -> Version:
    """Return the version to write to. Raises BadSettingError."""
    version = VERSIONS[config.influx_version]
    needed = tuple(version.parameters.values())
    takes = " and ".join(map(_option, needed))
    given = [field for field in _fields_of(*VERSIONS.values()) if getattr(config, field) is not None]
    if config.influx_url is None:
        raise BadSettingError(f"{_option(given[0])}: has no effect without --influx-url; give both or none")
    for field in given:
        if field not in _fields_of(version):
            raise BadSettingError(
                f"{_option(field)}: --influx-version {config.influx_version} does not use it; give {takes}, "
                f"or choose {_versions_with(field)}"
            )
    for field in needed:
        if getattr(config, field) is None:
            raise BadSettingError(
                f"{_option(field)} is missing; --influx-version {config.influx_version} needs {takes}"
            )
    if (config.influx_user is None) != (config.influx_password_file is None):
        missing = "influx_user" if config.influx_user is None else "influx_password_file"
        raise BadSettingError(
            f"{_option(missing)} is missing; give both --influx-user and --influx-password-file, or none"
        )
    if ":" in (config.influx_user or ""):
        raise BadSettingError(f"--influx-user: got {config.influx_user!r}; it takes a name without a colon")
    return version


def _check_static_labels(labels: Mapping[str, str]) -> None:
    """Raise BadSettingError for a label that cannot become a tag."""
    for name, value in labels.items():
        if name in NAMES or name.startswith("_"):
            raise BadSettingError(
                f"--static-label: got {f'{name}={value}'!r}; with --influx-url it takes a name that begins "
                "with a letter and that points do not have"
            )


def _fields_of(*versions: Version) -> list[str]:
    return [field for version in versions for field in (*version.parameters.values(), *version.optional)]


def _versions_with(field: str) -> str:
    numbers = [str(number) for number, version in VERSIONS.items() if field in _fields_of(version)]
    return f"--influx-version {' or '.join(numbers)}"


def _option(field: str) -> str:
    return "--" + field.replace("_", "-")
