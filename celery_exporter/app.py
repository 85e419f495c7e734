"""The composition root: build the exporter from its settings, run it, stop it."""

from __future__ import annotations

import logging
import os
import signal
import time
from collections.abc import Callable, Iterable

from starlette.applications import Starlette
from starlette.routing import Route
from starlette.types import ASGIApp

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
from celery_exporter.runtime.signals import stop_signals
from celery_exporter.runtime.systemd import STOPPING, SystemdNotifier
from celery_exporter.sinks.factory import pushers_for, reopening
from celery_exporter.sinks.http_request import HttpRequest
from celery_exporter.sinks.pusher import Pusher
from celery_exporter.web.app import build
from celery_exporter.web.auth import require_auth
from celery_exporter.web.render import MetricsPage
from celery_exporter.web.request_records import record_requests
from celery_exporter.web.server import CannotListenError, Server, bind
from celery_exporter.web.status_routes import Sources
from celery_exporter.web.task_api import Tasks
from celery_exporter.web.web_config_reloader import WebConfigReloader, WebSecurity, no_security

log = logging.getLogger("celery_exporter")

#: Seconds for the whole shutdown: init systems and users accept two.
STOP_TIMEOUT_SECONDS = 1.3
#: Seconds between two checks whether the HTTP server is alive.
ALIVE_CHECK_SECONDS = 1.0


class CannotServeError(Exception):
    """The exporter cannot start, or its HTTP server ended; the text is one line."""


def serve(settings: Settings) -> None:
    """Run the exporter until a stop signal is received. The caller blocks these signals.

    Raises CannotServeError, or BadSettingError for an invalid setting.
    """
    configure(settings.log_level, settings.log_format)
    config, listen = settings.monitor, settings.listen
    check(config.broker)
    web_config = None if listen.web_config_file is None else WebConfigReloader(listen.web_config_file)
    try:
        listener = bind(listen.host, listen.port)
    except CannotListenError as error:
        raise CannotServeError(str(error)) from None
    pushers = pushers_for(settings.sinks)
    is_saved, notifier = config.state_file is not None, SystemdNotifier(os.environ)
    tracker = SeriesTracker(time.monotonic(), time.time(), is_saved=is_saved)
    try:
        monitor = Monitor(config, tracker, pushers=pushers)
    except UnavailableError as error:
        raise CannotServeError(str(error)) from None
    except UnusablePathError as error:
        raise BadSettingError(f"--state-file: {error}") from None
    security = no_security if web_config is None else web_config.current
    app = _with_records(_app(settings, monitor, tracker, web_config), security, pushers)
    server = Server(app, listener, security, notifier)
    malloc.return_large()
    scheme = "http" if security().context is None else "https"
    server.start()
    for pusher in pushers:
        pusher.start()
    monitor.start()
    log.info("celery-exporter %s serves %s://%s:%s/metrics", __version__, scheme, *listener.getsockname()[:2])
    malloc.trim()
    stop_signal = _wait_for_signal(server.is_alive, reopening(pushers))
    notifier.send(STOPPING)
    deadline = time.monotonic() + STOP_TIMEOUT_SECONDS
    server.stop()
    monitor.stop()
    server.join(deadline)
    monitor.join(deadline)
    for pusher in pushers:
        pusher.stop()
    for pusher in pushers:
        pusher.join()
    if stop_signal is None:
        raise CannotServeError("the HTTP server ended because of the error that is logged above")
    log.info("stopped by %s", stop_signal.name)


def _with_records(
    pages: Starlette, security: Callable[[], WebSecurity], pushers: Iterable[Pusher]
) -> ASGIApp:
    """Return the application with authentication, and with records of requests for sinks that take them."""
    app = require_auth(pages, security)
    takers = [pusher for pusher in pushers if pusher.takes_requests]
    if not takers:
        return app

    def put(request: HttpRequest) -> None:
        for pusher in takers:
            pusher.put((request,))

    paths = {route.path for route in pages.routes if isinstance(route, Route)}
    return record_requests(app, paths, put)


def _app(
    settings: Settings, monitor: Monitor, tracker: SeriesTracker, web_config: WebConfigReloader | None
) -> Starlette:
    def snapshot() -> Snapshot:
        return monitor.snapshot(web_config_up_to_date=web_config.up_to_date if web_config else None)

    metrics = settings.monitor.metrics
    sources = Sources(monitor.status, monitor.charts, settings.grafana_url or "")
    exposition = Exposition(metrics.selection.rows, metrics.metric_prefix, metrics.static_label)
    return build(
        MetricsPage(snapshot, exposition, tracker),
        monitor.is_ready,
        monitor.broker_url,
        tasks=Tasks(monitor.tasks, settings.trace_url) if settings.monitor.history.is_on else None,
        explain=None if settings.no_status_page else monitor.explainer.explain,
        sources=None if settings.no_status_page else sources,
        no_events=monitor.no_events,
    )


def _wait_for_signal(
    is_alive: Callable[[], bool], on_hang_up: Callable[[], None] | None
) -> signal.Signals | None:
    """Return the stop signal that was received; None if the server is not alive any more.

    With `on_hang_up`, SIGHUP calls it, and is no stop signal.
    """
    signals = stop_signals()
    while is_alive():
        # The signals are blocked (see __main__), so no signal handler can interrupt other code.
        info = signal.sigtimedwait(signals, ALIVE_CHECK_SECONDS)
        # A process that continues after SIGSTOP may get signal 0 here (CPython 3.11).
        if info is not None and info.si_signo in signals:
            if info.si_signo == signal.SIGHUP and on_hang_up is not None:
                on_hang_up()
                continue
            return signal.Signals(info.si_signo)
    return None
