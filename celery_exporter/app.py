"""The composition root: build the exporter from its settings, run it, stop it."""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial

from msgspec.structs import replace
from starlette.types import ASGIApp

from celery_exporter import __version__
from celery_exporter.broker.connection import check
from celery_exporter.brokers import Brokers, CannotStartError
from celery_exporter.config.schema import Settings
from celery_exporter.core.snapshot import ConfigFileView, Snapshot
from celery_exporter.errors import BadSettingError
from celery_exporter.monitor.monitor import Monitor
from celery_exporter.runtime import malloc
from celery_exporter.runtime.logging import configure
from celery_exporter.runtime.signals import stop_signals
from celery_exporter.runtime.systemd import STOPPING, SystemdNotifier
from celery_exporter.web.auth import require_auth
from celery_exporter.web.broker_pages import BrokerPages, Reload, ReloadError, broker_pages, paths
from celery_exporter.web.render import MetricsPage, PageSource
from celery_exporter.web.request_records import record_requests
from celery_exporter.web.server import CannotListenError, Server, bind
from celery_exporter.web.web_config_reloader import WebConfigReloader, WebSecurity, no_security

log = logging.getLogger("celery_exporter")

#: Seconds for the whole shutdown: init systems and users accept two.
STOP_TIMEOUT_SECONDS = 1.3
#: Seconds between two checks whether the HTTP server is alive.
ALIVE_CHECK_SECONDS = 1.0


class CannotServeError(Exception):
    """The exporter cannot start, or its HTTP server ended; the text is one line."""


def serve(load: Callable[[], Settings]) -> None:
    """Run the exporter until a stop signal is received. The caller blocks these signals.

    `load` returns the settings; at a reload it is called again. Raises CannotServeError, or BadSettingError
    for an invalid setting.
    """
    settings = load()
    configure(settings.log_level, settings.log_format)
    listen = settings.listen
    for broker in settings.brokers.values():
        check(broker.monitor.broker)
    web_config = None if listen.web_config_file is None else WebConfigReloader(listen.web_config_file)
    try:
        listener = bind(listen.host, listen.port)
    except CannotListenError as error:
        raise CannotServeError(str(error)) from None
    config_file = ConfigFile(settings, load)
    try:
        brokers = Brokers(settings, partial(_snapshot, web_config, config_file))
    except CannotStartError as error:
        raise CannotServeError(str(error)) from None
    reload = partial(config_file.reload, brokers) if settings.config_file is not None else None
    security = no_security if web_config is None else web_config.current
    notifier = SystemdNotifier(os.environ)
    app = _app(brokers, reload if settings.web_enable_lifecycle else None, security)
    server = Server(app, listener, security, notifier)
    malloc.return_large()
    scheme = "http" if security().context is None else "https"
    server.start()
    brokers.start()
    log.info("celery-exporter %s serves %s://%s:%s/metrics", __version__, scheme, *listener.getsockname()[:2])
    malloc.trim()
    stop_signal = _wait_for_signal(server.is_alive, _on_hang_up(brokers, reload))
    notifier.send(STOPPING)
    deadline = time.monotonic() + STOP_TIMEOUT_SECONDS
    server.stop()
    brokers.stop(deadline)
    server.join(deadline)
    if stop_signal is None:
        raise CannotServeError("the HTTP server ended because of the error that is logged above")
    log.info("stopped by %s", stop_signal.name)


class ConfigFile:
    """Reads --config.file again, and knows whether that worked. Thread-safe."""

    def __init__(self, settings: Settings, load: Callable[[], Settings]) -> None:
        self._settings, self._load = settings, load
        self._lock = threading.Lock()
        self.view = None if settings.config_file is None else ConfigFileView(True, time.time())

    def reload(self, brokers: Brokers) -> None:
        """Apply what changed to the brokers. Raises ReloadError, whose text is logged, too."""
        with self._lock:
            try:
                settings = self._load()
                _check_unchanged(self._settings, settings)
                brokers.replace(settings)
            except (BadSettingError, CannotStartError) as error:
                if self.view is not None:
                    self.view = replace(self.view, is_valid=False)
                log.error("not reloaded, nothing was changed: %s", error)  # noqa: TRY400  its text says all
                raise ReloadError(f"not reloaded, nothing was changed: {error}") from None
            self.view = ConfigFileView(True, time.time())


def _check_unchanged(before: Settings, now: Settings) -> None:
    """Raise BadSettingError if the file changes more than brokers."""
    keys = sorted({*before.given, *now.given})
    changed = [key for key in keys if before.given.get(key) != now.given.get(key)]
    if changed:
        raise BadSettingError(f"{now.config_file}: {', '.join(changed)}: restart the exporter to change this")


def _snapshot(web_config: WebConfigReloader | None, config_file: ConfigFile, monitor: Monitor) -> Snapshot:
    up_to_date = web_config.up_to_date if web_config else None
    return monitor.snapshot(web_config_up_to_date=up_to_date, config_file=config_file.view)


def _app(brokers: Brokers, reload: Reload | None, security: Callable[[], WebSecurity]) -> ASGIApp:
    """Return the application with authentication, and with records of requests for sinks that take them."""

    def pages() -> dict[str, BrokerPages]:
        return {name: broker.pages for name, broker in brokers.by_name.items()}

    def sources() -> list[PageSource]:
        return [broker.source for broker in brokers.by_name.values()]

    metrics = MetricsPage(sources, brokers.renderers, scope=" all")
    app = require_auth(broker_pages(pages, metrics, reload), security)
    first = next(iter(brokers.by_name.values()))
    if not any(pusher.takes_requests for pusher in first.pushers):
        return app
    return record_requests(app, paths(first.pages), brokers.put_request)


def _on_hang_up(brokers: Brokers, reload: Reload | None) -> Callable[[], None] | None:
    """Return what SIGHUP does; None if it ends the exporter, since there is nothing to read or open again."""
    has_files = any(pusher.reopen for broker in brokers.by_name.values() for pusher in broker.pushers)
    if reload is None:
        return brokers.reopen_files if has_files else None

    def reload_and_reopen() -> None:
        with suppress(ReloadError):  # it is logged
            reload()
        brokers.reopen_files()

    return reload_and_reopen


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
