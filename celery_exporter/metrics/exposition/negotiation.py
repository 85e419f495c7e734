"""Content negotiation: the Accept and Accept-Encoding headers of a request."""

from __future__ import annotations

import re

from msgspec import Struct

from celery_exporter.metrics.exposition.protobuf import PROTOBUF
from celery_exporter.metrics.exposition.text import OPENMETRICS, TEXT

_PROTOBUF = "application/vnd.google.protobuf"
_DELIMITED = ("io.prometheus.client.metricfamily", "delimited")
_CONTENT_TYPES = {
    **dict.fromkeys(("text/plain", "text/*", "*/*"), TEXT),
    "application/openmetrics-text": OPENMETRICS,
    _PROTOBUF: PROTOBUF,
}
_ZERO_QUALITY = re.compile(r"q\s*=\s*0(\.0*)?")


class _MediaRange(Struct, frozen=True):
    """One part of an Accept header."""

    content_type: str  # empty if it is not supported
    quality: float


def negotiate(accept: str | None) -> str:
    """Return the content type for an Accept header; `TEXT` if it names no supported one.

    The highest quality value wins. Among equal ones protobuf comes first, then OpenMetrics: they carry more
    information. OpenMetrics is always version 1.0.0, whichever version is requested.
    """
    ranges = [_media_range(part) for part in (accept or "").split(",")]
    order = (TEXT, OPENMETRICS, PROTOBUF)
    supported = [item for item in ranges if item.quality > 0 and item.content_type in order]
    best = max(supported, key=lambda item: (item.quality, order.index(item.content_type)), default=None)
    return best.content_type if best else TEXT


def _media_range(part: str) -> _MediaRange:
    media_type, *pairs = (piece.strip().lower() for piece in part.split(";"))
    parameters = dict(pair.partition("=")[::2] for pair in pairs)
    try:
        quality = float(parameters.get("q", "1"))
    except ValueError:
        quality = 0.0
    if media_type == _PROTOBUF and (parameters.get("proto"), parameters.get("encoding")) != _DELIMITED:
        media_type = ""
    return _MediaRange(_CONTENT_TYPES.get(media_type, ""), quality)


def accepts_gzip(header: str) -> bool:
    """Return whether an Accept-Encoding header allows gzip (RFC 9110, section 12.5.3)."""
    for part in header.lower().split(","):
        coding, *parameters = (piece.strip() for piece in part.split(";"))
        if coding in ("gzip", "*"):
            return not any(_ZERO_QUALITY.fullmatch(parameter) for parameter in parameters)
    return False
