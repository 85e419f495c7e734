"""An HTTP GET with a limit on the total time and size, whatever the server does."""

from __future__ import annotations

import threading
import time
import urllib.request
from collections.abc import Mapping
from typing import Any

#: Bytes of one read.
_CHUNK_BYTES = 2**16


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """Follows no redirect, whose target would receive the password."""

    def redirect_request(self, *_: Any, **__: Any) -> None:
        return None


_with_redirects = urllib.request.build_opener()
_without_redirects = urllib.request.build_opener(_NoRedirects)


def fetch(url: str, *, timeout: float, max_bytes: int, headers: Mapping[str, str] | None = None) -> bytes:
    """Return the first `max_bytes` of the body; raise OSError, ValueError, http.client.HTTPException.

    All of it takes at most `timeout` seconds. It runs in a thread, since nothing else limits the time of the
    system's resolver, or of a server that sends a byte now and then.
    """
    end = time.monotonic() + timeout
    result: list[bytes | Exception] = []

    def run() -> None:
        try:
            result.append(_fetch(url, end, max_bytes, headers or {}))
        except Exception as error:  # noqa: BLE001  raised in the caller's thread
            result.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(timeout)
    if not result:
        raise _timeout_error(timeout)
    if isinstance(result[0], Exception):
        raise result[0]
    return result[0]


def _fetch(url: str, end: float, max_bytes: int, headers: Mapping[str, str]) -> bytes:
    request = urllib.request.Request(url, headers=dict(headers))  # noqa: S310  the user's
    has_password = any(name.lower() == "authorization" for name in headers)
    timeout = max(end - time.monotonic(), 0.1)
    body = bytearray()
    with (_without_redirects if has_password else _with_redirects).open(request, timeout=timeout) as response:
        while len(body) < max_bytes and (chunk := response.read1(min(_CHUNK_BYTES, max_bytes - len(body)))):
            body += chunk
            if time.monotonic() > end:
                raise _timeout_error(timeout)
    return bytes(body)


def _timeout_error(timeout: float) -> TimeoutError:
    return TimeoutError(f"no complete answer within {timeout:.0f} s")
