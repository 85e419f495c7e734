"""The settings as they are now: --broker-url-file may be rewritten while the exporter runs.

Passwords are rotated, so whoever opens a connection asks for the current settings right before it does. A
connection that is open stays open when only the login changes, for the broker does not end it either.
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
    """Gives the settings with the broker URL that the file holds now. For any number of threads."""

    def __init__(self, config: BrokerConfig) -> None:
        self._config = config
        self._lock = threading.Lock()
        self._complaint = ""

    def current(self) -> BrokerConfig:
        """Return the settings; those from before where the file is missing or holds no usable URL."""
        path = self._config.broker_url_file
        if path is None or _is_pipe(path):
            return self._config
        try:
            url = url_from_file(path)
            if url == self._config.broker_url:
                self._complaint = ""
                return self._config
            return self._adopt(replace(self._config, broker_url=url), path)
        except BadSettingError as error:
            return self._keep(str(error))

    def leads_elsewhere(self, used: BrokerConfig) -> bool:
        """Tell whether the URL names another broker now than the one that was `used`."""
        url = self.current().broker_url
        return url != used.broker_url and _places(url) != _places(used.broker_url)

    def masked_url(self) -> str:
        """Return the URL that was read last, without secrets."""
        return masked(self._config.broker_url)

    def identity(self) -> str:
        """Return which broker it is, whoever logs in: addresses and virtual hosts, one a line."""
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
                log.info("%s has changed, new connections use %s", path, masked(changed.broker_url))
            self._config, self._complaint = changed, ""
            return changed

    def _keep(self, complaint: str) -> BrokerConfig:
        with self._lock:
            if complaint != self._complaint:  # logged once, not at every attempt
                self._complaint = complaint
                log.warning("%s; still using %s", complaint, masked(self._config.broker_url))
            return self._config


def identity(url: str) -> str:
    """Return which brokers a URL leads to, one a line: host, port, and virtual host or database."""
    found = []
    for part in parts(url):
        read = parse_url(part)
        scheme = part.partition("://")[0].partition("+")[0]
        port = read["port"] or _PORTS.get(scheme)
        found.append(f"{read['hostname'] or 'localhost'}:{port or ''}/{read['virtual_host'] or ''}".lower())
    return "\n".join(sorted(found))


def is_same_broker(one: str, other: str) -> bool:
    """Tell whether two identities have a broker in common."""
    return not set(one.split("\n")).isdisjoint(other.split("\n"))


#: Where brokers listen. That of TLS is not another broker.
_PORTS = {
    "redis": 6379,
    "rediss": 6379,
    "sentinel": 26379,
    **dict.fromkeys(("amqp", "pyamqp"), 5672),
    "amqps": 5672,
}


def _is_pipe(path: Path) -> bool:
    """Tell whether it can be read only once, as a shell's <(command): a second read would wait for ever."""
    try:
        mode = path.stat().st_mode
    except OSError:
        return False
    return stat.S_ISFIFO(mode) or stat.S_ISCHR(mode) or stat.S_ISSOCK(mode)


def _kind(config: BrokerConfig) -> str:
    """Return what a connection to the broker needs: one kind is not replaced by another at run time."""
    if is_redis(config):
        return "redis"
    return "amqp" if is_amqp(config) else config.broker_url.partition("://")[0]


def _places(url: str) -> list[tuple[str, str]]:
    """Return scheme and address of each URL that is failed over to: all but user and password."""
    split = (part.partition("://") for part in parts(url))
    return [(scheme, rest.rpartition("@")[2]) for scheme, _, rest in split]
