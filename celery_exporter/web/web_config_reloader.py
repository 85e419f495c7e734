"""What stands between the listener and strangers, and the file that says so, read again when it changes."""

from __future__ import annotations

import logging
import ssl
import stat
from collections.abc import Mapping
from pathlib import Path

from msgspec import Struct, structs

from celery_exporter.web import tls
from celery_exporter.web.web_config import BadWebConfigError, headers, parse

log = logging.getLogger(__name__)

#: What a file was like when it was read: when it was written, how long it was, which one it was.
_Stamp = tuple[int, int, int] | None


class WebSecurity(Struct, frozen=True):
    """What a configuration comes to. `context` is None where the listener speaks plain HTTP."""

    context: ssl.SSLContext | None = None
    requires_certificate: bool = False
    allowed_sans: frozenset[str] | None = None
    users: Mapping[bytes, bytes] = {}
    headers: tuple[tuple[bytes, bytes], ...] = ()


_TLS_FIELDS = ("context", "requires_certificate", "allowed_sans")
#: What a listener without a file has: nothing.
_OPEN = WebSecurity()


def unprotected() -> WebSecurity:
    """Return what is in force where there is no file."""
    return _OPEN


class ProtectionFile:
    """A `--web.config.file`. For one thread.

    Raises BadWebConfigError when it cannot be used as it is made; later the last good one stays in force.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._stamps: dict[Path, _Stamp] = {}
        self._protection = self._read()
        #: Whether what is in force is what the file says.
        self.up_to_date = True

    def current(self) -> WebSecurity:
        """Return what is in force, after a look (of microseconds) whether one of the files has changed."""
        if any(_stamp(path) != old for path, old in self._stamps.items()):
            self._read_again()
        return self._protection

    def _read_again(self) -> None:
        try:
            found = self._read()
        except BadWebConfigError as error:
            self.up_to_date = False
            log.warning("%s; the old configuration stays in force", error)
            return
        self.up_to_date = True
        if (found.context is None) is not (self._protection.context is None):
            log.warning("--web.config.file: TLS is switched on and off by a restart only")
            kept = {name: getattr(self._protection, name) for name in _TLS_FIELDS}
            found = structs.replace(found, **kept)
            self.up_to_date = False
        self._protection = found
        log.info("--web.config.file: read again")

    def _read(self) -> WebSecurity:
        self._stamps = {}
        try:
            config = parse(self._content(self._path))
            section = config.tls_server_config
            sans = section.client_allowed_sans
            return WebSecurity(
                context=tls.context(section, self._referenced) if section.enabled else None,
                requires_certificate=section.enabled and section.requires_certificate,
                allowed_sans=None if sans is None else frozenset(sans),
                users={name.encode(): hashed.encode() for name, hashed in config.basic_auth_users.items()},
                headers=tuple((name.encode(), value.encode()) for name, value in headers(config).items()),
            )
        except OSError as error:
            raise BadWebConfigError(
                f"--web.config.file: cannot read {self._path}: {error.strerror}"
            ) from None
        except BadWebConfigError as error:
            raise BadWebConfigError(f"--web.config.file: {self._path}: {error}") from None
        except ValueError:  # a zero byte in a path, half of a character in a name
            raise BadWebConfigError(
                f"--web.config.file: {self._path}: there is a character in it that cannot be used"
            ) from None

    def _referenced(self, key: str, name: str) -> bytes:
        path = self._path.parent / name
        try:
            return self._content(path)
        except OSError as error:
            raise BadWebConfigError(
                f"tls_server_config.{key}: cannot read {path}: {error.strerror}"
            ) from None

    def _content(self, path: Path) -> bytes:
        self._stamps[path] = _stamp(path)  # before: who writes it meanwhile changes it
        return path.read_bytes()


def _stamp(path: Path) -> _Stamp:
    """Return None for what is not there, and for a pipe, which can be read once only."""
    try:
        found = path.stat()
    except OSError:
        return None
    return (found.st_mtime_ns, found.st_size, found.st_ino) if stat.S_ISREG(found.st_mode) else None
