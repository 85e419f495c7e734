"""The current config of the broker: --broker-url-file may change while the exporter runs.

Passwords are rotated, so every new connection reads the current config first. An open connection stays open
when only the login changes, because the broker keeps it as well.
"""

from __future__ import annotations

import logging
import stat
import threading
from pathlib import Path

from kombu.utils.url import parse_url
from msgspec.structs import replace

from celery_exporter.broker.config import BrokerConfig
from celery_exporter.broker.connection import check, is_amqp, is_redis
from celery_exporter.broker.url import UnusableURLError, masked, parts
from celery_exporter.broker.url_file import url_from_file
from celery_exporter.errors import BadSettingError

log = logging.getLogger(__name__)


class ConfigSource:
    """Returns the config with the URL that the file holds now. For any number of threads."""

    def __init__(self, config: BrokerConfig) -> None:
        self._config = config
        self._lock = threading.Lock()
        self._problem = ""

    def current(self) -> BrokerConfig:
        """Return the config; the previous one if the file is missing or its URL cannot be used."""
        path = self._config.broker_url_file
        if path is None or _is_pipe(path):
            return self._config
        try:
            url = url_from_file(path)
            if url == self._config.broker_url:
                self._problem = ""
                return self._config
            return self._adopt(replace(self._config, broker_url=url), path)
        except BadSettingError as error:
            return self._keep(str(error))

    def leads_elsewhere(self, used: BrokerConfig) -> bool:
        """Return whether the URL now names another broker than that of the config in use."""
        url = self.current().broker_url
        return url != used.broker_url and _addresses(url) != _addresses(used.broker_url)

    def masked_url(self) -> str:
        """Return the URL that was read last, without secrets."""
        return masked(self._config.broker_url)

    def identity(self) -> str:
        """Return addresses and virtual hosts of the broker, without the login, one per line."""
        return identity(self.current().broker_url)

    def _adopt(self, changed: BrokerConfig, path: Path) -> BrokerConfig:
        check(changed)
        if _kind(changed) != _kind(self._config):
            raise UnusableURLError(
                f"--broker-url-file: {masked(changed.broker_url)} is another kind of broker; "
                "restart the exporter to use it"
            )
        with self._lock:
            if changed.broker_url != self._config.broker_url:
                log.info("%s has changed; new connections use %s", path, masked(changed.broker_url))
            self._config, self._problem = changed, ""
            return changed

    def _keep(self, problem: str) -> BrokerConfig:
        with self._lock:
            if problem != self._problem:  # once, not at every attempt
                self._problem = problem
                log.warning("%s; still using %s", problem, masked(self._config.broker_url))
            return self._config


def identity(url: str) -> str:
    """Return host, port, and virtual host or database of each URL that is failed over to, one per line."""
    identities = []
    for part in parts(url):
        fields = parse_url(part)
        scheme = part.partition("://")[0].partition("+")[0]
        port = fields["port"] or _PORTS.get(scheme)
        identities.append(
            f"{fields['hostname'] or 'localhost'}:{port or ''}/{fields['virtual_host'] or ''}".lower()
        )
    return "\n".join(sorted(identities))


def is_same_broker(identity_a: str, identity_b: str) -> bool:
    """Return whether two identities have a broker in common."""
    return not set(identity_a.split("\n")).isdisjoint(identity_b.split("\n"))


#: Default ports. The port for TLS leads to the same broker.
_PORTS = {
    "redis": 6379,
    "rediss": 6379,
    "sentinel": 26379,
    **dict.fromkeys(("amqp", "pyamqp"), 5672),
    "amqps": 5672,
}


def _is_pipe(path: Path) -> bool:
    """Return whether a file can be read only once.

    A second read of a pipe, such as a shell's <(command), would block.
    """
    try:
        mode = path.stat().st_mode
    except OSError:
        return False
    return stat.S_ISFIFO(mode) or stat.S_ISCHR(mode) or stat.S_ISSOCK(mode)


def _kind(config: BrokerConfig) -> str:
    """Return the kind of broker, which cannot change while the exporter runs."""
    if is_redis(config):
        return "redis"
    return "amqp" if is_amqp(config) else config.broker_url.partition("://")[0]


def _addresses(url: str) -> list[tuple[str, str]]:
    """Return scheme and address of each URL that is failed over to, without user and password."""
    split = (part.partition("://") for part in parts(url))
    return [(scheme, rest.rpartition("@")[2]) for scheme, _, rest in split]
