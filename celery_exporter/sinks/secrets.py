"""Passwords and tokens in files, which are read again for each request, so that they can be replaced."""

from __future__ import annotations

import base64
import os
from pathlib import Path

from celery_exporter.sinks.base import TemporaryError

#: Bytes of a file that are read. A token is shorter; a device file has no end.
MAX_SECRET_BYTES = 2**16


def read_secret(path: Path) -> str:
    """Return the text of a file, without white space around it.

    Raises TemporaryError, whose text has the path and none of the content.
    """
    try:
        content = _read(path)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        raise TemporaryError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}") from None
    if len(content) > MAX_SECRET_BYTES:
        raise TemporaryError(f"{path} has more than {MAX_SECRET_BYTES} bytes; it takes one password or token")
    try:
        text = content.decode().strip()
    except UnicodeDecodeError:
        raise TemporaryError(f"{path} is not UTF-8; it takes one password or token") from None
    if not text:
        raise TemporaryError(f"{path} is empty; it takes one password or token")
    return text


def read_token(path: Path) -> str:
    """Return the text of a file that can be in an HTTP header; raise TemporaryError like `read_secret`."""
    token = read_secret(path)
    if not (token.isascii() and token.isprintable()):
        raise TemporaryError(f"{path} has characters that no HTTP header can have; it takes one token")
    return token


def basic_login(user: str, password_file: Path) -> str:
    """Return the value of the header Authorization (RFC 7617, in UTF-8); raise TemporaryError as above."""
    login = f"{user}:{read_secret(password_file)}"
    return f"Basic {base64.b64encode(login.encode()).decode()}"


def _read(path: Path) -> bytes:
    """Return the content, and one byte more than the limit if there is more. A FIFO is not waited for."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        content = b""
        while len(content) <= MAX_SECRET_BYTES and (
            data := os.read(descriptor, MAX_SECRET_BYTES + 1 - len(content))
        ):
            content += data
        return content
    finally:
        os.close(descriptor)
