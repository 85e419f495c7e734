"""The variables of OpenTelemetry → how spans are sent, and what they describe.

Specification: opentelemetry.io/docs/specs/otel/protocol/exporter, and resource/sdk there. Each setting has a
variable for traces and one for all signals; the former takes precedence. An empty variable counts as not set.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import unquote

from msgspec import Struct

from celery_exporter.config import parsers
from celery_exporter.errors import BadSettingError
from celery_exporter.sinks.config import OtlpConfig

#: The URL in the first is used as it is; the second has a base URL, to which `TRACES_PATH` is added.
TRACES_ENDPOINT, ENDPOINT = "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT"
TRACES_PATH = "/v1/traces"
#: Milliseconds for a request if no variable says it.
DEFAULT_TIMEOUT = 10_000

_header_name = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_header_value = re.compile(r"[\t\x20-\x7e]*")


class _Variable(Struct, frozen=True):
    """A variable, and how its text becomes a value. `names` are in the order of their precedence."""

    names: tuple[str, ...]
    parse: Callable[[str], Any]
    expects: str
    is_secret: bool = False

    def read(self, environ: Mapping[str, str], default: Any) -> Any:
        """Return the value of the first variable that is set; raise BadSettingError if it has none."""
        name = next(filter(environ.get, self.names), None)
        if name is None:
            return default
        text = environ[name].strip()
        try:
            return self.parse(text)
        except ValueError:
            shown = "something else" if self.is_secret else repr(text)
            raise BadSettingError(f"{name}: got {shown}; it takes {self.expects}") from None


def _of_traces(name: str) -> tuple[str, ...]:
    return f"OTEL_EXPORTER_OTLP_TRACES_{name}", f"OTEL_EXPORTER_OTLP_{name}"


def _pairs(text: str) -> dict[str, str]:
    """Parse name=value pairs: separated by commas, with percent-encoded characters, as in W3C Baggage."""
    texts = (part for part in text.split(",") if part.strip())
    pairs = {
        unquote(name.strip(), errors="strict"): unquote(value.strip(), errors="strict")
        for name, value in parsers.pairs(tuple(texts)).items()
    }
    "".join((*pairs, *pairs.values())).encode()  # a UnicodeEncodeError, which is a ValueError
    return pairs


def _headers(text: str) -> dict[str, str]:
    headers = _pairs(text)
    for name, value in headers.items():
        if not (_header_name.fullmatch(name) and _header_value.fullmatch(value)):
            raise ValueError(name)
    return headers


_PROTOCOL = _Variable(
    _of_traces("PROTOCOL"),
    parsers.one_of(("http/protobuf",)),
    "http/protobuf. Set OTEL_EXPORTER_OTLP_TRACES_PROTOCOL=http/protobuf, and an endpoint with the port of "
    "OTLP over HTTP, usually 4318",
)
_PAIRS = "name=value pairs, separated by commas, with other characters percent-encoded"
_HEADERS = _Variable(_of_traces("HEADERS"), _headers, _PAIRS, is_secret=True)
_TIMEOUT = _Variable(_of_traces("TIMEOUT"), parsers.whole(0, 10**9), "milliseconds, a whole number")
_COMPRESSION = _Variable(_of_traces("COMPRESSION"), parsers.one_of(("gzip", "none")), "gzip or none")
_CERTIFICATE = _Variable(_of_traces("CERTIFICATE"), parsers.path, "the path of a readable file")
_RESOURCE = _Variable(("OTEL_RESOURCE_ATTRIBUTES",), _pairs, _PAIRS)


def without_traces_turned_off(environ: Mapping[str, str]) -> Mapping[str, str]:
    """Return the environment; without an endpoint if another variable of OpenTelemetry turns it off."""
    exporters = {name.strip() for name in (environ.get("OTEL_TRACES_EXPORTER") or "otlp").split(",")}
    is_disabled = environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true"
    if "otlp" in exporters and not is_disabled:
        return environ
    return {name: text for name, text in environ.items() if name not in {TRACES_ENDPOINT, ENDPOINT}}


def without_opentelemetry(environ: Mapping[str, str]) -> Mapping[str, str]:
    """Return the environment without these variables, for commands that send no spans.

    All programs of a host may share them, so a value that only the exporter refuses must not stop a command.
    """
    return {name: text for name, text in environ.items() if not name.startswith("OTEL_")}


def otlp_config(
    url: str, defaults: Mapping[str, str], attributes: Mapping[str, str], environ: Mapping[str, str]
) -> OtlpConfig:
    """Return how spans are sent to the URL of a receiver of traces.

    Attributes of the resource in a variable take precedence over `defaults`, and `attributes` over them.
    Raises BadSettingError, whose text has no header.
    """
    _PROTOCOL.read(environ, None)
    return OtlpConfig(
        otlp_endpoint=url,
        headers=_HEADERS.read(environ, {}),
        timeout_seconds=(_TIMEOUT.read(environ, 0) or DEFAULT_TIMEOUT) / 1000,  # 0 is no limit
        is_compressed=_COMPRESSION.read(environ, "none") == "gzip",
        certificate=_CERTIFICATE.read(environ, None),
        resource={**defaults, **_RESOURCE.read(environ, {}), **attributes},
    )
