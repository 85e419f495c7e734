"""The monitor of one broker: builds the parts, starts and stops their threads, and takes snapshots.

    events      EventSubscription   reads the event subscription and applies its events
    queues      QueuePoller         reads queue lengths
    workers     WorkerPoller        inspects workers
    reconcile   Reconciler          ends tasks that no event will end
    status      StatusHistory       keeps recent counts and charts, and logs new findings
    blocked     BlockedWatch        finds out whether RabbitMQ blocks publishers
    state       CheckpointWriter    writes the state file, if there is one

Each thread waits for the broker with a bound, recovers from errors by itself, and ends soon after `stop`. One
lock (`ClusterState.lock`) guards what they share. Only memory is touched under it; a scrape takes a copy.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial

from msgspec.structs import replace

from celery_exporter import __version__
from celery_exporter.broker.blocked import INTERVAL_SECONDS, BlockedWatch
from celery_exporter.broker.connection import is_amqp, why_no_events
from celery_exporter.broker.consumers.base import EventConsumer
from celery_exporter.broker.consumers.factory import consumer_for
from celery_exporter.broker.source import ConfigSource
from celery_exporter.core.events import Event, EventWithAncestry, EventWithArguments
from celery_exporter.core.records import MeasuredRecord, Record
from celery_exporter.core.snapshot import ConfigFileView, ExporterState, Snapshot, take_snapshot
from celery_exporter.history.config import HistoryConfig
from celery_exporter.history.writer import HistoryWriter
from celery_exporter.metrics.exposition.series_tracker import SeriesTracker
from celery_exporter.monitor.checkpoint import CheckpointWriter, Restored, restore, shard_text
from celery_exporter.monitor.cluster_state import ClusterState, new_cluster
from celery_exporter.monitor.config import MonitorConfig
from celery_exporter.monitor.event_subscription import READ_SECONDS, EventSubscription
from celery_exporter.monitor.explainer import Explainer
from celery_exporter.monitor.job import PeriodicJob
from celery_exporter.monitor.naming import naming_of
from celery_exporter.monitor.pollers import QueuePoller, WorkerPoller
from celery_exporter.monitor.status_history import StatusHistory
from celery_exporter.monitor.task_finder import TaskFinder
from celery_exporter.persistence.state_file import StateFile
from celery_exporter.runtime.threads import new_thread
from celery_exporter.sinks.pusher import Pusher
from celery_exporter.status.builder import build
from celery_exporter.status.charts import ChartQuery, Charts
from celery_exporter.status.model import Status
from celery_exporter.status.recent import SHORT_STEP_SECONDS, Growth
from celery_exporter.status.rings import SAMPLE_SECONDS

log = logging.getLogger(__name__)

#: Seconds between two writes of the state file: how old a page may be.
SAVE_INTERVAL_SECONDS = 1.0
#: Seconds that the last write may take after everything else has ended: Docker kills after 10.
LAST_SAVE_SECONDS = 7.0
#: Seconds of those in which messages that were read are applied.
LAST_READ_SECONDS = 3.0
#: Seconds that a subscription that ends waits until the state file is written.
UNSUBSCRIBE_SAVE_SECONDS = 1.0
#: Seconds between two comparisons of open tasks with what the broker and workers report.
RECONCILE_INTERVAL_SECONDS = 0.5
#: Seconds for the last write of the history file.
LAST_WRITE_SECONDS = 1.0


class Monitor:
    """Monitors one broker. Call `start`, then `snapshot` and `is_ready` from any thread, then `stop`.

    `tracker` holds the series that scrapers were shown. `consumer` replaces the one that the config names.
    `pushers` get the records of tasks; the caller starts and stops them.
    Raises UnavailableError if another process has the state file.
    """

    def __init__(
        self,
        config: MonitorConfig,
        tracker: SeriesTracker | None = None,
        consumer: EventConsumer | None = None,
        pushers: Sequence[Pusher] = (),
    ) -> None:
        self.no_events = why_no_events(config.broker)
        self._config = config
        self._started = time.time()
        self._stopping = threading.Event()
        self._source = ConfigSource(config.broker)
        self._pushers = pushers
        self._tracker = tracker or SeriesTracker(time.monotonic(), time.time())
        self._file = None if config.state_file is None else StateFile(config.state_file)
        restored = self._file and restore(self._file, config, self._source.identity())
        self.state = ClusterState(restored.cluster if restored else new_cluster(config), config)
        self.state.cluster.restrict_records({state for pusher in pushers for state in pusher.states})
        self.history = _history_writer(config.history, self.state)
        self.tasks = TaskFinder(
            self.state,
            self.history.store if self.history is not None else None,
            started=self._started,
            arguments=config.record_arguments,
        )
        consumer = consumer or consumer_for(self._source, saves_state=self._file is not None)
        self._blocked = BlockedWatch(self._source, consumer.standby_queue)
        self.subscription = EventSubscription(
            config.broker,
            consumer,
            self.state,
            self.broker_url,
            lambda: bool(self._blocked.reason),
            schema=_schema(config),
            on_records=self._push if config.records else None,
        )
        self._queues = QueuePoller(config, self._source, self.state)
        self.workers = WorkerPoller(config, self._source, self.state, lambda: self._blocked.reason)
        self.explainer = Explainer(self._source, self.state, self.tasks.find, self._exporter_state)
        self._status = StatusHistory(min(config.update_interval, SHORT_STEP_SECONDS))
        if restored:
            self._continue(restored)
        self._jobs = self._new_jobs()
        self.checkpoint: CheckpointWriter | None = None
        if self._file is not None:
            self.checkpoint = self._new_checkpoint(self._file, holds_state=restored is not None)
        runs: dict[str, Callable[[], None]] = {"events": self._run_subscription}
        runs |= {job.name: partial(job.repeat, self._stopping) for job in self._jobs}
        self._threads = [new_thread(name, run) for name, run in runs.items()]

    def _continue(self, restored: Restored) -> None:
        """Continue the counts of an earlier process."""
        record = restored.exporter
        self.subscription.restore(
            record.malformed, record.subscriptions, restored.unconfirmed, record.duplicates
        )
        if self._file is not None:
            self._file.errors.update(record.file_errors)
        self._tracker.restore(
            restored.tracker, time.monotonic(), time.time(), names_changed=restored.is_renamed
        )

    def _new_jobs(self) -> list[PeriodicJob]:
        interval = self._config.update_interval
        jobs = [PeriodicJob("queues", interval, self._queues.poll, self._queues.close)]
        if not self.no_events:
            workers = self.workers
            jobs.append(PeriodicJob("workers", interval, workers.poll, workers.close, is_due=workers.is_due))
        jobs.append(PeriodicJob("reconcile", RECONCILE_INTERVAL_SECONDS, self._reconcile))
        jobs.append(PeriodicJob("status", min(interval, SAMPLE_SECONDS), self._update_status))
        if is_amqp(self._config.broker):
            jobs.append(PeriodicJob("blocked", INTERVAL_SECONDS, self._blocked.check, self._blocked.close))
        return jobs

    def _new_checkpoint(self, file: StateFile, *, holds_state: bool) -> CheckpointWriter:
        checkpoint = CheckpointWriter(
            file,
            self.state,
            self.subscription,
            self._tracker,
            take_snapshot=self._take_snapshot,
            broker=self._source.identity,
            naming=naming_of(self._config),
            shard=shard_text(self._config),
            holds_state=holds_state,
        )
        is_due = self.subscription.is_waiting
        job = PeriodicJob("state", SAVE_INTERVAL_SECONDS, checkpoint.save, self._save_last, is_due=is_due)
        self._jobs.append(job)
        return checkpoint

    # -- threads -----------------------------------------------------------------------------------------

    def start(self) -> None:
        """Start the threads; the broker need not be there."""
        for thread in self._threads:
            thread.start()
        if self.history is not None:
            self.history.start()

    def discard(self) -> None:
        """Give the state file back, instead of a start."""
        if self._file is not None:
            self._file.close()

    def stop(self) -> None:
        """Ask the threads to end."""
        self._stopping.set()

    def join(self, deadline: float) -> None:
        """Wait for the threads until a monotonic time; one that waits for a dead broker may outlast it.

        The last write of the state file has `LAST_SAVE_SECONDS` more: without it, what was counted since the
        write before is lost.
        """
        for thread in self._threads:
            end = deadline + LAST_SAVE_SECONDS if thread.name == "state" else deadline
            thread.join(max(0.0, end - time.monotonic()))
            if thread.name == "state" and thread.is_alive():
                log.error("the state was not saved in time: what was counted since the last saving is lost")
            elif thread.name == "state" and self._file is not None:
                self._file.close()  # a reload may open it again in this process
        if self.history is not None:
            self.history.stop()
            self.history.join(max(deadline, time.monotonic()) + LAST_WRITE_SECONDS)

    def _run_subscription(self) -> None:
        if self.no_events:
            log.error("%s; only the lengths of queues are served, of those that -Q names", self.no_events)
            return
        checkpoint = self.checkpoint
        save = partial(checkpoint.save, UNSUBSCRIBE_SAVE_SECONDS) if checkpoint else None
        self.subscription.run(self._stopping, save, self._holds_messages_back)

    def _holds_messages_back(self) -> bool:
        """Return whether a durable queue keeps its messages until the state file has what they changed."""
        return self.checkpoint is not None and self.checkpoint.snapshot() is not None

    def _push(self, records: list[Record | MeasuredRecord]) -> None:
        for pusher in self._pushers:
            pusher.put(records)

    def _reconcile(self) -> None:
        if self.subscription.active() is False:  # another replica receives how these tasks end
            return
        before = self.state.cluster.reconciled.copy()
        self.state.run(self.state.reconciler.reconcile(self.state.now()))
        for reason, count in (self.state.cluster.reconciled - before).items():
            log.debug("ended or requeued %d tasks without an event: %s", count, reason)

    def _update_status(self) -> None:
        with self.state.lock:
            snapshot, now = take_snapshot(self.state.cluster, self._exporter_state()), time.monotonic()
        self._status.update(snapshot, now)

    def _save_last(self) -> None:
        """Save the final state, when no more events are applied."""
        end = time.monotonic() + LAST_READ_SECONDS
        while self.subscription.is_open and time.monotonic() < end:
            self._threads[0].join(READ_SECONDS / 10)
        if self.subscription.is_open:
            log.error("events are still applied after %g s: the last ones are not saved", LAST_READ_SECONDS)
        self._jobs[-1].run()

    # -- views: they never wait for the broker or the disk -------------------------------------------------

    def is_ready(self) -> bool:
        """Return whether the event subscription is open and showed a sign of life recently."""
        return self.subscription.is_ready()

    def is_standby(self) -> bool:
        """Return whether another exporter receives the events of the durable queue."""
        return self.is_ready() and self.subscription.active() is False

    def broker_url(self) -> str:
        """Return the URL of the broker, without secrets."""
        return self._source.masked_url()

    def snapshot(
        self, *, web_config_up_to_date: bool | None = None, config_file: ConfigFileView | None = None
    ) -> Snapshot:
        """Return a copy of all that is known now; with a state file, as of its last write.

        The arguments are what only the process knows.
        """
        saved = self.checkpoint.snapshot() if self.checkpoint else None
        if saved is None:
            with self.state.lock:
                saved = self.checkpoint.snapshot_or_unsaved() if self.checkpoint else None
                saved = saved or self._take_snapshot()
        exporter = replace(
            saved.exporter, web_config_up_to_date=web_config_up_to_date, config_file=config_file
        )
        return replace(saved, exporter=exporter)

    def status(self) -> Status:
        """Return the current status, for people."""
        snapshot = self.snapshot()
        return build(snapshot, self.growth(snapshot), self.broker_url())

    def charts(self, query: ChartQuery) -> Charts:
        """Return the charts of a valid query up to now."""
        return self._status.charts(query, time.monotonic(), time.time())

    def growth(self, snapshot: Snapshot) -> Growth:
        """Return what was counted in the last minutes up to a snapshot that was taken now."""
        return self._status.growth(snapshot, time.monotonic())

    def _take_snapshot(self) -> Snapshot:
        prefetched = self._config.metrics.selection.prefetched
        return take_snapshot(self.state.cluster, self._exporter_state(), prefetched=prefetched)

    def _exporter_state(self) -> ExporterState:
        subscription, queues = self.subscription, self._queues
        outage, durable_queue = subscription.outage(), self._config.broker.durable_queue
        return ExporterState(
            at=time.time(),
            started=self._started,
            version=__version__,
            broker_up=outage is None,
            queue_stats=queues.queue_stats(),
            unmeasured=queues.unmeasured(),
            missing=queues.missing(),
            unacked=queues.unacked(),
            workers_known=self.workers.has_result(),
            jobs=[job.view() for job in self._jobs],
            malformed=dict(subscription.malformed),
            event_lag=subscription.event_lag,
            last_event=subscription.last_event,
            reconnects=max(0, subscription.opened - 1),
            state_errors=dict(self._file.errors) if self._file else {},
            listening=self.state.listening,
            last_refused=subscription.last_refused,
            blocked=self._blocked.reason,
            no_events=self.no_events,
            sinks=[pusher.view() for pusher in self._pushers],
            refused_replies=self.workers.refused_serializers,
            history=self.history.view() if self.history is not None else None,
            outage=None if self.no_events else outage,
            active=subscription.active(),
            task_counts=self.workers.task_counts(),
            duplicates=subscription.duplicates(),
            event_queue=durable_queue or "",
            subscribed=subscription.opened_at if durable_queue is None else None,
            shards=1 if self._config.shard is None else self._config.shard.count,
            shard=str(self._config.shard or ""),
        )


def _history_writer(config: HistoryConfig, state: ClusterState) -> HistoryWriter | None:
    """Return what writes the history file, None without one."""
    if config.history_file is None:
        return None
    state.cluster.note_changes()
    return HistoryWriter(
        config.history_file,
        state.take_changed,
        retention=config.history_retention,
        max_tasks=config.history_max_tasks,
    )


def _schema(config: MonitorConfig) -> type[Event]:
    """Return the type of events: with what records need, if a sink wants them."""
    if not config.keeps_details:
        return Event
    return EventWithArguments if config.record_arguments else EventWithAncestry
