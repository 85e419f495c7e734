"""Ask a web server within a bounded time, whatever it does."""

from __future__ import annotations

import threading
import time
import urllib.request
from collections.abc import Mapping
from typing import Any

#: Bytes that are read at once.
_CHUNK = 2**16


class _Here(urllib.request.HTTPRedirectHandler):
    """Follows nobody elsewhere, who would be given the login."""

    def redirect_request(self, *_: Any, **__: Any) -> None:
        return None


_anywhere, _here = urllib.request.build_opener(), urllib.request.build_opener(_Here)


def fetch(url: str, *, timeout: float, most: int, headers: Mapping[str, str] | None = None) -> bytes:
    """Return the first `most` bytes of the body; raise OSError, ValueError, http.client.HTTPException.

    All of it takes `timeout` seconds at most: in a thread, as nothing else bounds the system's resolver, nor
    a server that sends a byte now and then.
    """
    end = time.monotonic() + timeout
    answer: list[bytes | Exception] = []

    def ask() -> None:
        try:
            answer.append(_fetch(url, end, most, headers or {}))
        except Exception as error:  # noqa: BLE001  raised where it was asked for
            answer.append(error)

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(timeout)
    if not answer:
        raise _late(timeout)
    if isinstance(answer[0], Exception):
        raise answer[0]
    return answer[0]


def _fetch(url: str, end: float, most: int, headers: Mapping[str, str]) -> bytes:
    request = urllib.request.Request(url, headers=dict(headers))  # noqa: S310  the user's
    opener = _here if any(name.lower() == "authorization" for name in headers) else _anywhere
    timeout = max(end - time.monotonic(), 0.1)
    body = bytearray()
    with opener.open(request, timeout=timeout) as answer:
        while len(body) < most and (chunk := answer.read1(min(_CHUNK, most - len(body)))):
            body += chunk
            if time.monotonic() > end:
                raise _late(timeout)
    return bytes(body)


def _late(timeout: float) -> TimeoutError:
    return TimeoutError(f"no whole answer in {timeout:.0f} s")
