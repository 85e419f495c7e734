"""Checks a broker URL before a byte is sent, and hides its secrets."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import unquote

from kombu.transport import TRANSPORT_ALIASES

from celery_exporter.errors import BadSettingError
from celery_exporter.installation import install_command

REDIS = frozenset({"redis", "rediss", "sentinel", "redis+socket"})
AMQP = frozenset({"amqp", "amqps", "pyamqp"})
#: TLS options of redis-py and py-amqp that name a file.
_TLS_FILES = ("ssl_ca_certs", "ssl_certfile", "ssl_keyfile", "ca_certs", "certfile", "keyfile")
#: TLS options of py-amqp that it does not read from a URL.
_TLS_OPTIONS = frozenset({*_TLS_FILES, "cert_reqs", "ciphers", "server_hostname", "ssl_version"})
#: After the last @: host, port and path.
_ADDRESS = re.compile(r"(?:\[[^]]*\]|[^:/?#]*)(?::(?P<port>[^/?#]*))?(?:/(?P<path>[^?#]*))?")
_MAX_PORT = 65_535
#: Scheme → its package, if kombu has no extra of the same name.
_PACKAGES = {"sqla": "kombu[sqlalchemy]", "kafka": "kombu[confluentkafka]", "etcd": "python-etcd"}


class UnusableURLError(BadSettingError):
    """The broker's URL cannot be used. The text is one line without secrets: the problem; what to do."""


def parts(url: str) -> list[str]:
    """Return the URLs that are failed over to, in their order."""
    return re.split(r";(?=[\w+.]+://)", url)


def scheme_of(url: str) -> str:
    """Return the scheme, which names kombu's transport."""
    return url.partition("://")[0]


def masked(url: str) -> str:
    """Return the URL without passwords and query, for logs and pages.

    A password that is not percent-encoded may contain any separator, so doubtful parts are hidden as well.
    """
    return ";".join(map(_masked_part, parts(url)))


def _masked_part(url: str) -> str:
    scheme, separator, rest = url.partition("://")
    if "?" in rest.rpartition("@")[0]:
        return f"{scheme}{separator}***"
    login, at, address = rest.partition("?")[0].rpartition("@")
    user, colon, _ = login.partition(":")
    login = f"{user}:***" if colon else at and "***"  # a user name alone may be a token
    return f"{scheme}{separator}{login}{at}{address}"


def check_text(url: str) -> None:
    """Raise UnusableURLError for an unknown scheme, or an address that its transport cannot use."""
    for part in parts(url):
        _check_scheme(scheme_of(part))
        if scheme_of(part) in (REDIS | AMQP) - {"redis+socket"}:
            _check_address(part)


def _check_scheme(scheme: str) -> None:
    if scheme.partition("+")[0] not in TRANSPORT_ALIASES and not re.search(r"[.:]", scheme):
        supported = ", ".join(sorted(TRANSPORT_ALIASES))
        raise UnusableURLError(
            f"--broker-url: unknown scheme {scheme!r}; use redis:// or rediss:// (TLS) for Redis, amqp:// "
            f"or amqps:// (TLS) for RabbitMQ; kombu supports {supported}"
        )


def _check_address(url: str) -> None:
    scheme, _, rest = url.partition("://")
    if _has_login_in_path(rest):
        raise unreadable(scheme)
    # A bare host after a semicolon is one that kombu fails over to (kombu.Connection.switch).
    match = _ADDRESS.match(rest.rpartition("@")[2].partition(";")[0])
    port, path = (match["port"] or "", unquote(match["path"] or "")) if match else ("", "")
    # Neither value is shown: if the @ is missing it is a part of the password.
    if port.isdecimal() and (len(port) > len(str(_MAX_PORT)) or not 0 < int(port) <= _MAX_PORT):
        raise UnusableURLError(
            f"--broker-url: the port is not between 1 and {_MAX_PORT}; the default is 6379 for Redis, "
            "5672 for RabbitMQ"
        )
    if port and not port.isdecimal():
        raise unreadable(scheme)
    if scheme in REDIS and not _is_database(path):
        raise UnusableURLError(
            f"--broker-url: the database is not a number; Redis counts them from 0, as in {scheme}://HOST:6379/0"
        )


def _is_database(path: str) -> bool:
    """Return whether kombu accepts a path as a database of Redis.

    See kombu/transport/redis.py, _connparams.
    """
    try:
        return path in ("", "/") or int(path.removeprefix("/")) >= 0
    except ValueError:
        return False


def _has_login_in_path(rest: str) -> bool:
    """Return whether a password contains one of `/?#`.

    kombu would read a part of such a password as the host.

    Logs and pages show the host.
    """
    address, _, path = re.sub(r"[/?#]", "\n", rest, count=1).partition("\n")
    return "@" in (path if "@" not in address else path.partition("?")[0])


def check_files(tls: Mapping[str, Any]) -> None:
    """Raise UnusableURLError if a file that a TLS option names cannot be read."""
    for option in _TLS_FILES:
        path = tls.get(option)
        if isinstance(path, str) and not os.access(path, os.R_OK):
            reason = "permission denied" if os.path.exists(path) else "no such file"  # noqa: PTH110
            raise UnusableURLError(
                f"--broker-url: {option} is {path!r}: {reason}; give the path of a PEM file, in the URL or "
                f"with --broker-ssl-option {option}=PATH"
            )


def unreadable(scheme: str) -> UnusableURLError:
    """Return the error for a URL that cannot be parsed; its text has no part of the URL but the scheme."""
    return UnusableURLError(
        f"--broker-url: this {scheme}:// URL cannot be read; "
        "percent-encode special characters in the user name, the password and the virtual host"
    )


def not_installed(scheme: str, error: Exception) -> UnusableURLError:
    """Return the error for a transport whose driver is missing."""
    name = scheme.partition("+")[0]
    package = _PACKAGES.get(name, f"kombu[{name.lower()}]")
    return UnusableURLError(
        f"--broker-url: the package for {scheme}:// is missing ({error}); run: {install_command(package)}"
    )


def refused_query(scheme: str, error: Exception) -> UnusableURLError:
    """Return the error for an unknown parameter, or for a URL that cannot be parsed."""
    match = re.search(r"unexpected keyword argument '(\w+)'", str(error))
    if match is None:
        return unreadable(scheme)
    option = match[1]
    return UnusableURLError(
        f"--broker-url: unknown parameter {option!r} after the question mark; use "
        f"--broker-{'ssl' if option in _TLS_OPTIONS else 'transport'}-option {option}=VALUE"
    )
