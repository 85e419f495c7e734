"""The file of --broker-url-file: one broker URL, and nothing else."""

from __future__ import annotations

import os
import re
from pathlib import Path

from celery_exporter.errors import BadSettingError, SecretValueError

#: Characters read of the file. A URL is shorter; a device file has no end.
MAX_URL_LENGTH = 2**16


def check_is_url(text: str) -> None:
    """Raise SecretValueError if a text has no scheme. Whether kombu can use the URL is checked later."""
    if not text.strip():
        raise SecretValueError("an empty text")
    if "://" not in text:
        raise SecretValueError("a text without a scheme (there is no ://)")
    if not re.match(r"[\w+.:]+://", text):
        raise SecretValueError("a text without a valid scheme before ://")


def url_from_file(path: Path, option: str = "--broker-url-file") -> str:
    """Return the broker URL in the file of an option.

    Raises BadSettingError, whose text has none of the content.
    """
    try:
        with path.open() as file:
            url = file.read(MAX_URL_LENGTH).strip()
    except PermissionError as error:  # of a mounted file: containers run as another user
        user = f"as user {os.geteuid()}"
        raise BadSettingError(f"{option}: cannot read {str(path)!r} {user}: {error.strerror}") from None
    except OSError as error:
        raise BadSettingError(f"{option}: cannot read {str(path)!r}: {error.strerror}") from None
    except ValueError:  # not UTF-8, or a NUL in the path
        raise BadSettingError(f"{option}: {str(path)!r} holds no URL: it is not UTF-8") from None
    try:
        check_is_url(url)
    except SecretValueError as error:
        raise BadSettingError(
            f"{option}: {str(path)!r} holds no URL, but {error}; it takes one URL and nothing else"
        ) from None
    return url
