"""What a broker URL tells before a byte is sent: what is wrong with it, and how it may be shown."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import unquote

from kombu.transport import TRANSPORT_ALIASES

from celery_exporter.errors import BadSettingError

REDIS = frozenset({"redis", "rediss", "sentinel", "redis+socket"})
AMQP = frozenset({"amqp", "amqps", "pyamqp"})
#: Options of TLS that name a file, as redis-py and py-amqp call them.
_TLS_FILES = ("ssl_ca_certs", "ssl_certfile", "ssl_keyfile", "ca_certs", "certfile", "keyfile")
#: Others of py-amqp, which does not take them from a URL.
_TLS_OPTIONS = frozenset({*_TLS_FILES, "cert_reqs", "ciphers", "server_hostname", "ssl_version"})
#: After the last @: the host, the port, and what follows.
_PLACE = re.compile(r"(?:\[[^]]*\]|[^:/?#]*)(?::(?P<port>[^/?#]*))?(?:/(?P<path>[^?#]*))?")
_HIGHEST_PORT = 65_535


class UnusableURLError(BadSettingError):
    """The broker's URL cannot be used; the text is one line without secrets: what is wrong; what to do."""


def parts(url: str) -> list[str]:
    """Return the URLs that are failed over to, one after the other."""
    return re.split(r";(?=[\w+.]+://)", url)


def scheme_of(url: str) -> str:
    """Return the scheme, which names kombu's transport."""
    return url.partition("://")[0]


def masked(url: str) -> str:
    """Return the URL without passwords and query, for logs and pages.

    A password that was not percent-encoded may hold any separator; what is in doubt is left out.
    """
    return ";".join(map(_masked_part, parts(url)))


def _masked_part(url: str) -> str:
    scheme, separator, rest = url.partition("://")
    if "?" in rest.rpartition("@")[0]:
        return f"{scheme}{separator}***"
    login, at, place = rest.partition("?")[0].rpartition("@")
    user, colon, _ = login.partition(":")
    login = f"{user}:***" if colon else at and "***"  # alone it may be a token
    return f"{scheme}{separator}{login}{at}{place}"


def check_text(url: str) -> None:
    """Raise UnusableURLError for a URL that says nothing which its transport could use."""
    for part in parts(url):
        _check_scheme(scheme_of(part))
        if scheme_of(part) in (REDIS | AMQP) - {"redis+socket"}:
            _check_place(part)


def _check_scheme(scheme: str) -> None:
    if scheme.partition("+")[0] not in TRANSPORT_ALIASES and not re.search(r"[.:]", scheme):
        known = ", ".join(sorted(TRANSPORT_ALIASES))
        raise UnusableURLError(
            f"--broker-url: unknown scheme {scheme!r}; it is redis:// or rediss:// (TLS) for Redis, amqp:// "
            f"or amqps:// (TLS) for RabbitMQ; kombu knows {known}"
        )


def _check_place(url: str) -> None:
    scheme, _, rest = url.partition("://")
    if _has_login_in_path(rest):
        raise unreadable(scheme)
    # kombu takes a bare host after a semicolon for one to fail over to (kombu.Connection.switch).
    found = _PLACE.match(rest.rpartition("@")[2].partition(";")[0])
    port, path = (found["port"] or "", unquote(found["path"] or "")) if found else ("", "")
    # What either is, is not shown: where an @ was forgotten it is a part of the password.
    if port.isdecimal() and (len(port) > len(str(_HIGHEST_PORT)) or not 0 < int(port) <= _HIGHEST_PORT):
        raise UnusableURLError(
            f"--broker-url: its port is not from 1 to {_HIGHEST_PORT}; Redis listens on 6379, RabbitMQ on "
            "5672"
        )
    if port and not port.isdecimal():
        raise unreadable(scheme)
    if scheme in REDIS and not _is_database(path):
        raise UnusableURLError(
            f"--broker-url: its database is no number; Redis has them from 0 on, as in {scheme}://HOST:6379/0"
        )


def _is_database(path: str) -> bool:
    """Tell whether kombu takes a path for a database of Redis (kombu/transport/redis.py, _connparams)."""
    try:
        return path in ("", "/") or int(path.removeprefix("/")) >= 0
    except ValueError:
        return False


def _has_login_in_path(rest: str) -> bool:
    """Tell whether a password has one of `/?#` in it, and kombu would take what follows for something else.

    A part of the password would be the host then, which logs and pages show.
    """
    place, _, more = re.sub(r"[/?#]", "\n", rest, count=1).partition("\n")
    return "@" in (more if "@" not in place else more.partition("?")[0])


def check_files(tls: Mapping[str, Any]) -> None:
    """Raise UnusableURLError if a file that an option of TLS names cannot be read."""
    for option in _TLS_FILES:
        path = tls.get(option)
        if isinstance(path, str) and not os.access(path, os.R_OK):
            why = "it may not be read" if os.path.exists(path) else "there is no such file"  # noqa: PTH110
            raise UnusableURLError(
                f"--broker-url: {option} is {path!r}: {why}; give the path of a PEM file, in the URL or by "
                f"--broker-ssl-option {option}=PATH"
            )


def unreadable(scheme: str) -> UnusableURLError:
    """Return the error for a URL that cannot be taken apart; what it is, is not shown."""
    return UnusableURLError(
        f"--broker-url: this {scheme}:// URL cannot be read; "
        "percent-encode what is special in the user name, the password and the virtual host"
    )


def not_installed(scheme: str, error: Exception) -> UnusableURLError:
    """Return the error for a transport whose driver is missing."""
    name = scheme.partition("+")[0]
    return UnusableURLError(
        f"--broker-url: the package for {scheme}:// is missing ({error}); pip install 'celery[{name}]'"
    )


def refused_query(scheme: str, error: Exception) -> UnusableURLError:
    """Return the error for what kombu takes for an option and does not know; else for what cannot be read."""
    named = re.search(r"unexpected keyword argument '(\w+)'", str(error))
    if named is None:
        return unreadable(scheme)
    option = named[1]
    return UnusableURLError(
        f"--broker-url: unknown parameter {option!r} after the question mark; give it by "
        f"--broker-{'ssl' if option in _TLS_OPTIONS else 'transport'}-option {option}=VALUE"
    )
