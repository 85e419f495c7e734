"""A record of one HTTP request to this exporter, for sinks that want them."""

from __future__ import annotations

from msgspec import Struct


class HttpRequest(Struct, frozen=True, gc=False):
    """One request and its answer. `timestamp` is epoch seconds, `seconds` the time until the answer ended."""

    timestamp: float
    route: str  # such as GET:/metrics; GET:other for a path that does not exist
    status: int
    seconds: float
    request_id: str
