"""The exporter's life: Settings → build → run → stop."""

from __future__ import annotations

import logging
import os
import signal
import time
from collections.abc import Callable

from starlette.applications import Starlette

from celery_exporter import __version__
from celery_exporter.broker.connection import check
from celery_exporter.config.schema import Settings
from celery_exporter.core.snapshot import Snapshot
from celery_exporter.errors import BadSettingError
from celery_exporter.metrics.exposition.series_tracker import SeriesTracker
from celery_exporter.metrics.exposition.text import Exposition
from celery_exporter.monitor.monitor import Monitor
from celery_exporter.persistence.state_file import UnavailableError, UnusablePathError
from celery_exporter.runtime import malloc
from celery_exporter.runtime.logging import configure
from celery_exporter.runtime.signals import ending
from celery_exporter.runtime.systemd import STOPPING, Notifier
from celery_exporter.web.app import build
from celery_exporter.web.auth import require_auth
from celery_exporter.web.render import MetricsPage
from celery_exporter.web.server import CannotListenError, Server, bind
from celery_exporter.web.web_config_reloader import ProtectionFile, unprotected

log = logging.getLogger("celery_exporter")

#: Seconds that everything has to end in: an init system, and a person, wait for two.
STOP_TIMEOUT = 1.3
#: Seconds between two looks whether the HTTP server still lives.
LOOK_EVERY = 1.0


class CannotServeError(Exception):
    """It cannot start, or did not go on; the text is one line."""


def serve(settings: Settings) -> None:
    """Run the exporter until a signal ends it, which have to be blocked.

    Raise CannotServeError, or BadSettingError for a value that cannot be used.
    """
    configure(settings.log_level, settings.log_format)
    config, listen = settings.monitor, settings.listen
    check(config.broker)
    file = None if listen.web_config_file is None else ProtectionFile(listen.web_config_file)
    try:
        listener = bind(listen.host, listen.port)
    except CannotListenError as error:
        raise CannotServeError(str(error)) from None
    is_saved, notifier = config.state_file is not None, Notifier(os.environ)
    tracker = SeriesTracker(time.monotonic(), time.time(), is_saved=is_saved)
    try:
        monitor = Monitor(config, tracker)
    except UnavailableError as error:
        raise CannotServeError(str(error)) from None
    except UnusablePathError as error:
        raise BadSettingError(f"--state-file: {error}") from None
    protection = unprotected if file is None else file.current
    app = require_auth(_app(settings, monitor, tracker, file), protection)
    server = Server(app, listener, protection, notifier)
    malloc.return_large()
    scheme = "http" if protection().context is None else "https"
    server.start()
    monitor.start()
    log.info("celery-exporter %s serves %s://%s:%s/metrics", __version__, scheme, *listener.getsockname()[:2])
    malloc.trim()
    ended_by = _wait(server.is_alive)
    notifier.send(STOPPING)
    deadline = time.monotonic() + STOP_TIMEOUT
    server.stop()
    monitor.stop()
    server.join(deadline)
    monitor.join(deadline)
    if ended_by is None:
        raise CannotServeError("the HTTP server ended by itself; its error is above")
    log.info("ended by %s", ended_by.name)


def _app(
    settings: Settings, monitor: Monitor, tracker: SeriesTracker, file: ProtectionFile | None
) -> Starlette:
    def snapshot() -> Snapshot:
        return monitor.snapshot(web_config_up_to_date=file.up_to_date if file else None)

    metrics = settings.monitor.metrics
    exposition = Exposition(metrics.selection.rows, metrics.metric_prefix, metrics.static_label)
    return build(
        MetricsPage(snapshot, exposition, tracker),
        monitor.is_ready,
        monitor.broker_url,
        status=None if settings.no_status_page else monitor.status,
        no_events=monitor.no_events,
    )


def _wait(is_alive: Callable[[], bool]) -> signal.Signals | None:
    """Wait for a signal to end, while the server lives; return the one that came."""
    signals = ending()
    while is_alive():
        # Blocked (see __main__) and waited for: so no handler can come in between anything.
        found = signal.sigtimedwait(signals, LOOK_EVERY)
        # A process that was frozen and goes on is told of a signal 0 here (CPython 3.11).
        if found is not None and found.si_signo in signals:
            return signal.Signals(found.si_signo)
    return None
