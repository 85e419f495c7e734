"""The security settings of the listener, and `--web.config.file`, which is reloaded when it changes."""

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

#: Modification time (ns), size (bytes) and inode of a file.
_Stamp = tuple[int, int, int] | None


class WebSecurity(Struct, frozen=True):
    """The settings of a configuration. `context` is None if the listener uses plain HTTP."""

    context: ssl.SSLContext | None = None
    requires_certificate: bool = False
    allowed_sans: frozenset[str] | None = None
    users: Mapping[bytes, bytes] = {}
    headers: tuple[tuple[bytes, bytes], ...] = ()


_TLS_FIELDS = ("context", "requires_certificate", "allowed_sans")
_NO_SECURITY = WebSecurity()


def no_security() -> WebSecurity:
    """Return the settings without a file: plain HTTP without authentication."""
    return _NO_SECURITY


class WebConfigReloader:
    """A `--web.config.file` and its current settings. For one thread.

    The constructor raises BadWebConfigError if the file is invalid. Later the last valid settings stay in
    use.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._stamps: dict[Path, _Stamp] = {}
        self._security = self._read()
        #: Whether the settings in use are those of the file.
        self.up_to_date = True

    def current(self) -> WebSecurity:
        """Return the settings in use; reload them first if a file has changed, which takes microseconds."""
        if any(_stamp(path) != stamp for path, stamp in self._stamps.items()):
            self._reload()
        return self._security

    def _reload(self) -> None:
        try:
            security = self._read()
        except BadWebConfigError as error:
            self.up_to_date = False
            log.warning("%s; the old configuration stays in use", error)
            return
        self.up_to_date = True
        if (security.context is None) is not (self._security.context is None):
            log.warning("--web.config.file: turning TLS on or off requires a restart of the exporter")
            old_tls = {name: getattr(self._security, name) for name in _TLS_FIELDS}
            security = structs.replace(security, **old_tls)
            self.up_to_date = False
        self._security = security
        log.info("--web.config.file: reloaded")

    def _read(self) -> WebSecurity:
        self._stamps = {}
        try:
            config = parse(self._content(self._path))
            section = config.tls_server_config
            sans = section.client_allowed_sans
            return WebSecurity(
                context=tls.server_context(section, self._referenced) if section.enabled else None,
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
        except ValueError:  # a null byte in a path, a lone surrogate in a name
            raise BadWebConfigError(
                f"--web.config.file: {self._path}: it contains an invalid character"
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
        self._stamps[path] = _stamp(path)  # before the content, so that a write in between is a change
        return path.read_bytes()


def _stamp(path: Path) -> _Stamp:
    """Return None for a missing file, and for a pipe, which can be read only once."""
    try:
        status = path.stat()
    except OSError:
        return None
    return (status.st_mtime_ns, status.st_size, status.st_ino) if stat.S_ISREG(status.st_mode) else None
