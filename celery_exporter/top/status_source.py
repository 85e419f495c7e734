"""Sources of a `Status` for `top`: the API of an exporter, or a broker.

The events of a broker are consumed in this process.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from msgspec import Struct
from msgspec.structs import replace

from celery_exporter.broker.connection import check
from celery_exporter.broker.url import masked
from celery_exporter.monitor.config import MonitorConfig
from celery_exporter.monitor.monitor import Monitor
from celery_exporter.status.facts import DISCOVERY_SECONDS
from celery_exporter.status.model import VERSION, Status
from celery_exporter.web.client import NoAnswerError, exporter_at

PATH = "/api/v1/status"
#: For a broker to accept the subscription, and then for a heartbeat of each worker.
CONNECT_SECONDS, LISTEN_SECONDS = 5.0, DISCOVERY_SECONDS
#: Between two measurements of queues.
UPDATE_INTERVAL_SECONDS = 5.0
#: For the threads of the monitor to end.
STOP_SECONDS = 1.3


class Source(Struct, frozen=True):
    """What can be read again and again, or once by a script that waits. Both raise NoAnswerError."""

    name: str  # its URL, without secrets
    wait: str  # what a script waits for
    read: Callable[[], Status]
    read_once: Callable[[], Status]


def exporter(url: str) -> Source:
    """Return a running exporter as a source. Raise BadSettingError."""
    server = exporter_at(url, "top", ", or use --broker-url")
    name = f"{server.url}{PATH}"

    def read() -> Status:
        status = server.get(PATH, Status)
        if status.version != VERSION:
            versions = f"its version is {status.version}, and this program reads version {VERSION}"
            raise NoAnswerError(f"{name}: {versions}; run top in the version of that exporter")
        return status

    return Source(name, f"waiting for {name}", read, read)


@contextmanager
def broker(config: MonitorConfig, warnings: Sequence[str]) -> Iterator[Source]:
    """Subscribe to a broker as the exporter does, and change nothing there. Raise UnusableURLError.

    The last of `warnings`, which grow while the exporter logs, is the error of a closed subscription.
    """
    check(config.broker)
    monitor = Monitor(replace(config.read_only(), update_interval=UPDATE_INTERVAL_SECONDS))
    name = masked(config.broker.broker_url)

    def read() -> Status:
        status = monitor.status()
        if not status.broker.up and warnings:
            raise NoAnswerError(warnings[-1])
        return status

    def read_once() -> Status:
        deadline = time.monotonic() + CONNECT_SECONDS
        while not monitor.is_ready() and time.monotonic() < deadline:
            time.sleep(0.1)
        time.sleep(LISTEN_SECONDS if monitor.is_ready() else 0)
        status = read()
        if not status.broker.up:
            raise NoAnswerError(f"{name}: no subscription in {CONNECT_SECONDS:g} s")
        return status

    monitor.start()
    try:
        wait = f"listening to {name} for {LISTEN_SECONDS:g} s, for a heartbeat of each worker"
        yield Source(name, wait, read, read_once)
    finally:
        monitor.stop()
        monitor.join(time.monotonic() + STOP_SECONDS)
