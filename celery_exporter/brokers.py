"""The brokers of one process: a monitor, sinks and pages for each.

Each is started and stopped on its own. So a reload of the configuration changes what the file changed, and
no other broker notices.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextvars import copy_context

from celery_exporter.broker.connection import check
from celery_exporter.config.schema import BROKER_LABEL, BrokerSettings, Settings
from celery_exporter.core.shards import part_of
from celery_exporter.core.snapshot import Snapshot
from celery_exporter.errors import BadSettingError
from celery_exporter.metrics.exposition.series_tracker import SeriesTracker
from celery_exporter.metrics.exposition.text import Exposition
from celery_exporter.monitor.monitor import Monitor
from celery_exporter.persistence.state_file import UnavailableError, UnusablePathError
from celery_exporter.runtime.threads import BROKER
from celery_exporter.sinks.factory import pushers_for
from celery_exporter.sinks.http_request import HttpRequest
from celery_exporter.sinks.pusher import Pusher
from celery_exporter.web.app import build
from celery_exporter.web.broker_pages import BrokerPages
from celery_exporter.web.render import MetricsPage, PageSource, Renderers
from celery_exporter.web.status_routes import Sources
from celery_exporter.web.task_api import Tasks

log = logging.getLogger(__name__)

#: Seconds for the end of a broker that is removed or changed, besides the last write of its files.
STOP_SECONDS = 1.3

#: Returns the snapshot of a monitor, with what only the process knows.
TakeSnapshot = Callable[[Monitor], Snapshot]


class CannotStartError(Exception):
    """A broker's files are not available; the text is one line."""


class RunningBroker:
    """One broker. Call `start` and then `end`, or `discard`. `names` returns the names of all brokers.

    Raises BadSettingError for settings that cannot be used, and CannotStartError.
    """

    def __init__(
        self,
        name: str,
        settings: Settings,
        take_snapshot: TakeSnapshot,
        renderers: Renderers,
        names: Callable[[], Sequence[str]],
    ) -> None:
        own = settings.brokers[name]
        self.settings = own
        self.pushers = pushers_for(own.sinks)
        tracker = SeriesTracker(time.monotonic(), time.time(), is_saved=own.monitor.state_file is not None)
        self.monitor = _monitor(own, tracker, self.pushers)
        metrics, monitor = settings.metrics, self.monitor
        rows, prefix, static = metrics.selection.rows, metrics.metric_prefix, metrics.static_label

        def snapshot() -> Snapshot:
            whole, shard = take_snapshot(monitor), own.monitor.shard
            return whole if shard is None else part_of(whole, shard)

        plain = PageSource(snapshot, Exposition(rows, prefix, static), tracker)
        #: Its part of the page of all brokers.
        self.source = plain
        if name:
            self.source = PageSource(
                snapshot, Exposition(rows, prefix, static, {BROKER_LABEL: name}), tracker
            )
        sources = Sources(monitor.status, monitor.charts, settings.grafana_url or "", name, names)
        finder = Tasks(monitor.tasks, settings.trace_url, monitor.is_standby)
        app = build(
            MetricsPage(lambda: [plain], renderers),
            monitor.is_ready,
            monitor.broker_url,
            tasks=finder if own.monitor.history.is_on else None,
            explain=None if settings.no_status_page else monitor.explainer.explain,
            sources=None if settings.no_status_page else sources,
            no_events=monitor.no_events,
        )
        self.pages = BrokerPages(app, monitor.is_ready, monitor.broker_url)

    def start(self) -> None:
        """Start the threads; the broker need not be there."""
        for pusher in self.pushers:
            pusher.start()
        self.monitor.start()

    def discard(self) -> None:
        """Give the state file back without a start."""
        self.monitor.discard()


def _monitor(settings: BrokerSettings, tracker: SeriesTracker, pushers: Sequence[Pusher]) -> Monitor:
    try:
        return Monitor(settings.monitor, tracker, pushers=pushers)
    except UnavailableError as error:
        raise CannotStartError(str(error)) from None
    except UnusablePathError as error:
        raise BadSettingError(f"--state-file: {error}") from None


class Brokers:
    """All brokers by name. Call `start`, then `replace` at each reload, then `stop`; one call at a time.

    Raises what `RunningBroker` raises.
    """

    def __init__(self, settings: Settings, take_snapshot: TakeSnapshot) -> None:
        self._settings = settings
        self._take_snapshot = take_snapshot
        self.renderers = Renderers()
        #: Replaced as a whole, so that requests can read it at any time.
        self.by_name: Mapping[str, RunningBroker] = {}
        self.by_name = self._new(settings, settings.brokers)

    def start(self) -> None:
        """Start all."""
        for broker in self.by_name.values():
            broker.start()

    def replace(self, settings: Settings) -> None:
        """Remove, add and restart the brokers whose settings changed.

        Raises what `RunningBroker` raises; then all run with their old settings.
        """
        before = self.by_name
        changed = [name for name in before if _given(settings, name) != before[name].settings.given]
        added = [name for name in settings.brokers if name not in before or name in changed]
        for name in added:
            check(settings.brokers[name].monitor.broker)
        # Their pages answer meanwhile.
        end([before[name] for name in changed], time.monotonic() + STOP_SECONDS)
        kept = {name: broker for name, broker in before.items() if name not in changed}
        try:
            self._set(settings, {**kept, **self._new(settings, added)}, added)
        except (BadSettingError, CannotStartError):
            self.by_name = kept
            self._set(self._settings, {**kept, **self._new(self._settings, changed)}, changed)
            raise
        log.info("brokers: %s; restarted or new: %s", ", ".join(settings.brokers), ", ".join(added) or "none")

    def stop(self, deadline: float) -> None:
        """Stop all until a monotonic time; see `Monitor.join`."""
        end(self.by_name.values(), deadline)

    def put_request(self, request: HttpRequest) -> None:
        """Pass a request to this exporter to the sinks of the first broker that take requests."""
        first = next(iter(self.by_name.values()))
        for pusher in first.pushers:
            if pusher.takes_requests:
                pusher.put((request,))

    def reopen_files(self) -> None:
        """Open the files of sinks again."""
        for broker in self.by_name.values():
            for pusher in broker.pushers:
                if pusher.reopen is not None:
                    pusher.reopen()

    def _set(self, settings: Settings, brokers: Mapping[str, RunningBroker], started: Iterable[str]) -> None:
        """Use these brokers, in the order of the settings, and start some of them."""
        for name in started:
            brokers[name].start()
        self.by_name = {name: brokers[name] for name in settings.brokers}
        self._settings = settings

    def _new(self, settings: Settings, names: Iterable[str]) -> dict[str, RunningBroker]:
        new: dict[str, RunningBroker] = {}
        try:
            for name in names:
                new[name] = self._new_one(settings, name)
        except (BadSettingError, CannotStartError):
            for broker in new.values():
                broker.discard()
            raise
        return new

    def _new_one(self, settings: Settings, name: str) -> RunningBroker:
        context = copy_context()
        context.run(BROKER.set, name)
        return context.run(
            RunningBroker, name, settings, self._take_snapshot, self.renderers, lambda: [*self.by_name]
        )


def _given(settings: Settings, name: str) -> Mapping[str, object] | None:
    """Return what is given for a broker, None if there is no such broker."""
    return settings.brokers[name].given if name in settings.brokers else None


def end(brokers: Collection[RunningBroker], deadline: float) -> None:
    """Stop brokers and wait for them until a monotonic time; see `Monitor.join` and `Pusher.join`.

    All do each step at the same time, so that many take no longer than one.
    """
    pushers = [pusher for broker in brokers for pusher in broker.pushers]
    for broker in brokers:
        broker.monitor.stop()
    for broker in brokers:
        broker.monitor.join(deadline)
    for pusher in pushers:
        pusher.stop()
    for pusher in pushers:
        pusher.join()
