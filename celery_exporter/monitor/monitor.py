"""The meeting point: one Monitor per broker owns its threads, the one lock, and what they learn.

Threads: `events` reads the subscription, `queues` measures, `inspector` asks, `blocked` finds out whether
RabbitMQ blocks publishers, `watch` looks at what came of it, `state` saves it if there is a file. Each waits
for the broker only with a bound, comes back by itself, and ends soon after `stop`. Only memory is touched
under the lock; a scrape takes a copy under it, nothing else.
"""

from __future__ import annotations

import ast
import logging
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import suppress
from functools import partial
from itertools import islice
from typing import Any

import msgspec

from celery_exporter import __version__
from celery_exporter.broker.blocked import INTERVAL_SECONDS, BlockedError, BlockedWatch
from celery_exporter.broker.codecs import CONTENT_TYPES
from celery_exporter.broker.connection import BrokerError, CachedConnection, is_amqp, why_no_events
from celery_exporter.broker.consumers.factory import EventConsumer, consumer_for
from celery_exporter.broker.inspect import WorkerInspector
from celery_exporter.broker.message import Message, events_of
from celery_exporter.broker.queues.factory import queue_reader_for
from celery_exporter.broker.source import ConfigSource, is_same_broker
from celery_exporter.core.aggregates import Aggregates
from celery_exporter.core.cluster import Cluster
from celery_exporter.core.events import REASONS, REFUSED, Event, Malformed
from celery_exporter.core.queues import Absence, PollSchedule
from celery_exporter.core.reconcile import Reconciler, measurement_of
from celery_exporter.core.snapshot import ExporterState, QueueStats, Snapshot, take_snapshot
from celery_exporter.core.task_names import Pattern, shown_as
from celery_exporter.core.types import Timestamp
from celery_exporter.metrics.exposition.series_tracker import SeriesTracker
from celery_exporter.monitor.checkpoint import Own, Page, Saved, Saver
from celery_exporter.monitor.config import MonitorConfig
from celery_exporter.monitor.job import Collector
from celery_exporter.persistence import state as memory
from celery_exporter.persistence.state_file import StateFile
from celery_exporter.status.builder import build
from celery_exporter.status.checks import ASK_DOCTOR, NOBODY_ANSWERED, run_checks
from celery_exporter.status.model import Status
from celery_exporter.status.notifier import FindingNotifier
from celery_exporter.status.recent import SHORT_STEP, Growth, Recent

log = logging.getLogger(__name__)
advice_log = logging.getLogger("celery_exporter.status.checks")

#: Seconds that one read waits for events: how late an expiry, and a stop, can be.
POLL = 0.25
#: Longest step of the listening clock, seconds. A process that was frozen for longer did not listen.
LONGEST_STEP = 1.0
#: Events applied under one hold of the lock: some 5 ms, which a scrape may have to wait.
CHUNK = 1_000
#: The reason under which events are counted that the core could not take, which would be its fault.
NOT_APPLIED = "not_applied"
#: Seconds without a sign of life on the subscription after which this exporter calls itself blind.
FRESH = 12.0
#: First wait before the broker is tried again, seconds; doubled up to --retry-interval.
FIRST_RETRY = 0.2
#: Wait after a subscription that brought something and was cut, seconds.
AGAIN = 0.05
#: Seconds after which a subscription that ends was a good one, and the waits begin anew.
SETTLED = 10.0
#: Seconds between two savings of the state: how old a page may be.
SAVE_EVERY = 1.0
#: Seconds that the last saving may take after everything else has ended: Docker kills after 10.
LAST_SAVE = 7.0
#: Seconds of those for what was read to be applied.
LAST_READ = 3.0
#: Seconds without an answer and without an event of a worker after which there are none: five heartbeats.
NO_WORKER_SECONDS = 10.0
#: Seconds between two comparisons of the tasks in memory with what the broker and workers report.
RECONCILE_SECONDS = 0.5
#: Workers that are asked by name at a time: each worker receives the list of them.
MAX_ASKED = 200
#: Rounds without any answer after which workers are asked more seldom, and seconds of the longest wait. A
#: worker whose accept_content lacks the serialiser of the question logs an error with a traceback for each.
MOST_UNANSWERED, LONGEST_WAIT_TO_ASK = 3, 300.0
#: Seconds after which what a collector found counts as stale, and is missing rather than wrong.
STALE = 30.0
#: … or this many update intervals: a queue may be asked about in every other one only.
STALE_INTERVALS = 3


def back_off(first: float, longest: float, rand: Callable[[], float] = random.random) -> Iterator[float]:
    """Yield waits in seconds: doubling, capped, and spread so that many clients do not come back at once."""
    wait = first
    while True:
        yield min(wait, longest) * (0.5 + rand() / 2)
        wait = min(wait * 2, longest)


class Monitor:
    """Watches one broker. `start`, then `snapshot` and `is_ready` from any thread, then `stop`.

    `tracker` is what scrapers were shown, which outlasts a restart with the rest; `reader` is how events are
    read, unless the settings are to say it. Raise UnavailableError if another process has the state file.
    """

    def __init__(
        self,
        settings: MonitorConfig,
        tracker: SeriesTracker | None = None,
        reader: EventConsumer | None = None,
    ) -> None:
        self._settings = settings
        self._tracker = tracker or SeriesTracker(time.monotonic(), time.time())
        self.lock = self._lock = threading.Lock()
        self._stopping = threading.Event()
        self.cluster = self._cluster = _empty(settings)
        self._reconciler = self._new_reconciler()
        self._accept = {CONTENT_TYPES[name] for name in settings.broker.accept_content}
        self._source = ConfigSource(settings.broker)
        self.no_events = why_no_events(settings.broker)
        self._reader = reader or consumer_for(self._source, saves_state=settings.state_file is not None)
        self._started = time.time()
        self._open = False
        self._has_read = False  # since it was opened
        self._opened = 0
        self._mark: tuple[int, int] | None = None  # up to where a durable queue's messages were used
        self._listened = 0.0
        self._malformed: Counter[str] = Counter(dict.fromkeys((*REASONS, NOT_APPLIED), 0))
        self._event_lag: float | None = None
        self._last_event: float | None = None
        self._last_refused: float | None = None
        self._measure = CachedConnection(self._source, queue_reader_for)
        self._polls: PollSchedule[QueueStats] = PollSchedule()
        self._unacked: int | None = None
        self._measured = 0.0  # monotonic time of the newest measurement
        self._stale_seconds = max(STALE, STALE_INTERVALS * settings.update_interval)
        self._answered = False  # did any worker ever answer
        control = partial(
            WorkerInspector,
            control_exchange=settings.broker.control_exchange,
            accept=settings.broker.accept_content,
        )
        self._inspector = CachedConnection(self._source, control)
        self._refused_answers: Collection[str] = ()
        self._unanswered, self._ask_again = 0, 0.0  # rounds without an answer, monotonic time of the next
        self._blocked = BlockedWatch(self._source)
        self._asked: float | None = None  # monotonic time at which all workers were last asked, with success
        self._watch, self._recent = FindingNotifier(), Recent()
        every = settings.update_interval
        self._collectors = [
            Collector("queues", every, self._measure_queues, self._measure.close),
            Collector("workers", every, self._ask_workers, self._inspector.close, wanted=self._has_strangers),
            Collector("reconcile", RECONCILE_SECONDS, self._reconcile, lambda: None),
            Collector("status", min(every, SHORT_STEP), self._look_around, lambda: None),
            Collector("blocked", INTERVAL_SECONDS, self._blocked.look, self._blocked.close),
        ]
        unused = {"workers"} if self.no_events else set()
        unused |= set() if is_amqp(settings.broker) else {"blocked"}
        self._collectors = [each for each in self._collectors if each.name not in unused]
        self._file: StateFile | None = None
        self._saver: Saver | None = None
        if settings.state_file is not None:
            self._file = StateFile(settings.state_file)
            self._saver = Saver(self._file, self, holds_state=self._restore(self._file))
            keeper = Collector(
                "state", SAVE_EVERY, self._saver.save, self._save_last, wanted=self._reader.is_waiting
            )
            self._collectors.append(keeper)
        jobs: dict[str, Callable[[], None]] = {"events": self._listen}
        jobs |= {each.name: partial(each.repeat, self._stopping) for each in self._collectors}
        self._threads = [threading.Thread(target=job, name=name, daemon=True) for name, job in jobs.items()]

    def _new_reconciler(self) -> Reconciler:
        return Reconciler(self._cluster, drops_expired=is_amqp(self._settings.broker))

    # -- from outside --------------------------------------------------------------------------------

    def start(self) -> None:
        """Start the threads; the broker need not be there."""
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Begin to end the threads."""
        self._stopping.set()

    def join(self, deadline: float) -> None:
        """Wait for them until a monotonic time; one that waits for a dead broker ends with the process.

        The last saving of the state is waited for longer: what was counted since the one before hangs on it.
        """
        for thread in self._threads:
            last = deadline + LAST_SAVE if thread.name == "state" else deadline
            thread.join(max(0.0, last - time.monotonic()))
            if thread.name == "state" and thread.is_alive():
                log.error("the state was not saved in time: what was counted since the last saving is lost")

    def is_ready(self) -> bool:
        """Tell whether the event subscription is open and showed a sign of life of late."""
        return self._open and time.monotonic() - self._reader.proven < FRESH

    def snapshot(self, *, web_config_up_to_date: bool | None) -> Snapshot:
        """Return a copy of all that is known now, or was when the state was saved last.

        Never waits for the broker, nor for the disk.
        """
        saved = self._saver.shown() if self._saver else None
        if saved is None:
            with self._lock:
                saved = self._saver.shown_or_unsaved() if self._saver else None
                if saved is None:
                    return self._look(web_config_up_to_date)
        exporter = msgspec.structs.replace(saved.exporter, web_config_up_to_date=web_config_up_to_date)
        return msgspec.structs.replace(saved, exporter=exporter)

    def _look(self, web_config_up_to_date: bool | None) -> Snapshot:
        exporter = self._surroundings(web_config_up_to_date)
        return take_snapshot(self._cluster, exporter, prefetched=self._settings.metrics.selection.prefetched)

    def status(self) -> Status:
        """Return what goes on now, for people. Never waits for the broker."""
        snapshot = self.snapshot(web_config_up_to_date=None)
        return build(snapshot, self.growth(snapshot), self.broker_url())

    def growth(self, snapshot: Snapshot) -> Growth:
        """Return what was counted in the last minutes up to a snapshot that was taken now."""
        return self._recent.growth(snapshot, time.monotonic())

    def broker_url(self) -> str:
        """Return the URL of the broker, without secrets."""
        return self._source.masked_url()

    def _surroundings(self, web_config_up_to_date: bool | None) -> ExporterState:
        return ExporterState(
            at=time.time(),
            started=self._started,
            version=__version__,
            broker_up=self.is_ready(),
            queue_stats=self._polls.values(time.monotonic(), self._stale_seconds),
            unmeasured=self._unmeasured() if self._is_measured() else (),
            missing=self._polls.absent(Absence.MISSING),
            unacked=self._unacked if self._is_measured() else None,
            roster_known=self._is_roster_known(),
            collectors=[each.view() for each in self._collectors],
            malformed=dict(self._malformed),
            event_lag=self._event_lag,
            last_event=self._last_event,
            reconnects=max(0, self._opened - 1),
            state_errors=dict(self._file.errors) if self._file else {},
            web_config_up_to_date=web_config_up_to_date,
            listening=self._listened,
            last_refused=self._last_refused,
            blocked=self._blocked.reason,
            no_events=self.no_events,
            refused_answers=self._refused_answers,
        )

    def _is_measured(self) -> bool:
        """Tell whether the queues were measured of late; a read that hangs leaves old numbers behind."""
        return time.monotonic() - self._measured < self._stale_seconds

    def _unmeasured(self) -> set[str]:
        """Return the queues that workers consume, and of which the broker does not tell the length."""
        absent = self._polls.absent(Absence.MISSING) | self._polls.absent(Absence.UNREADABLE)
        return absent & self._cluster.queues.consumed

    def _is_roster_known(self) -> bool:
        """Tell whether workers answered, or there are none, as far as one can hear."""
        silent = self._listened > NO_WORKER_SECONDS and not self._cluster.workers
        return self._answered or (silent and self._asked is not None)

    # -- events ----------------------------------------------------------------------------------------

    def _listen(self) -> None:
        if self.no_events:
            log.error("%s; only the lengths of queues are served, of those that -Q names", self.no_events)
            return
        waits = back_off(FIRST_RETRY, self._settings.broker.retry_interval)
        said = ""
        while not self._stopping.is_set():
            start = time.monotonic()
            try:
                self._has_read = False
                self._reader.open()
                self._opened += 1
                log.info("listening to events on %s", self.broker_url())
                said = ""
                self._read()
            except BrokerError as error:
                if said != (said := str(error)):  # once, not at every attempt
                    log.warning("no event subscription on %s: %s; %s", self.broker_url(), error, ASK_DOCTOR)
            except Exception as error:
                if said != (said := repr(error)):
                    log.exception("event subscription failed, trying again")
            finally:
                self._save_used()
                self._open = False
                self._reader.close()
            if self._has_read or time.monotonic() - start > SETTLED:
                waits = back_off(FIRST_RETRY, self._settings.broker.retry_interval)
            # Redis cuts off who reads too slowly: each moment away is more that is lost.
            self._stopping.wait(AGAIN if self._has_read else next(waits))

    def _save_used(self) -> None:
        """Save what a durable queue is told of when it is left."""
        if self._saver is not None and self._mark is not None:
            with suppress(Exception):  # so it comes again; the collector says why
                self._saver.save(wait=1.0)

    def _read(self) -> None:
        last = time.monotonic()
        self._open = True
        while not self._stopping.is_set():
            payloads = self._reader.read(POLL)
            now = time.monotonic()
            if not self._blocked.reason:  # nobody can be heard meanwhile, so nobody is judged
                self._listened += min(now - last, LONGEST_STEP)
            last = now
            self._has_read = self._has_read or bool(payloads)
            self._take(payloads)

    def _take(self, payloads: list[Message]) -> None:
        found: list[Event | Malformed] = []
        for payload in payloads:  # not all of them at once: one may hold events for 100 MB
            found += events_of(payload, self._accept)
            if len(found) >= CHUNK:
                self._apply_all(found)
                found = []
        self._apply_all(found)
        with self._lock:
            self._cluster.expire(self.moment())
            self._mark = self._reader.mark
        is_kept = self._saver is not None and self._saver.shown() is not None
        if self._mark is not None and not is_kept:
            self._reader.release(self._mark)

    def _apply_all(self, found: list[Event | Malformed]) -> None:
        for start in range(0, len(found), CHUNK):
            with self._lock:
                self._apply(found[start : start + CHUNK])

    def _apply(self, found: list[Event | Malformed]) -> None:
        moment = self.moment()
        apply = self._cluster.apply
        for event in found:
            if type(event) is Event:
                try:
                    apply(event, moment)
                except Exception:  # noqa: BLE001  a fault of ours; it costs this event, not the subscription
                    self._not_applied()
            elif type(event) is Malformed:
                self._malformed[event.reason] += 1
                if event.reason == REFUSED:
                    self._last_refused = moment.wall
        newest = next((event for event in reversed(found) if type(event) is Event and event.hostname), None)
        if newest is not None:
            self._last_event, self._event_lag = moment.wall, moment.wall - newest.timestamp

    def _not_applied(self) -> None:
        self._malformed[NOT_APPLIED] += 1
        if self._malformed[NOT_APPLIED] == 1:  # the first tells all; a flood of them must not fill the disk
            log.error("cannot apply an event, please report this", exc_info=True)  # noqa: LOG014  called in one

    # -- the state file: see Saveable ----------------------------------------------------------------------

    def moment(self) -> Timestamp:
        """Return what time it is."""
        return Timestamp(self._listened, time.time())

    def own(self, *, everything: bool) -> Own:
        """Return what is saved besides the cluster."""
        return Own(
            broker=self._source.identity(),
            naming=_naming(self._settings),
            malformed=dict(self._malformed),
            reconnects=self._opened,
            file_errors=self._file.errors if self._file else {},
            tracker=self._tracker.changes(time.monotonic(), everything=everything),
            unconfirmed=self._reader.unconfirmed(self._mark or (0, 0)),
        )

    def page(self) -> Page:
        """Return a copy of what is known, and up to where events were used for it."""
        return Page(self._look(None), self._mark)

    def saved(self, page: Page) -> None:
        """Let the broker forget events that are in the file, and show what waited for it."""
        self._tracker.confirm()
        if page.mark is not None:
            self._reader.release(page.mark)

    def _restore(self, file: StateFile) -> bool:
        """Go on where an earlier process ended, and tell whether one did; raise UnavailableError."""
        saved = Saved()
        if not file.load(saved.take) or saved.own is None:
            return False
        broker = self._source.identity()
        if not is_same_broker(saved.own.broker, broker):
            there, here = (" and ".join(each.split("\n")) for each in (saved.own.broker, broker))
            file.refuse(f"it is of another broker, {there}, and not of {here}")
            return False
        naming = _naming(self._settings)
        cluster = _empty(self._settings)
        try:
            tasks_then, queues_then = _rules_of(saved.own.naming) or (None, None)
            tasks_now, queues_now = _rules_of(naming) or (None, None)
            cluster.label_sets.renamed = tasks_then != tasks_now
            cluster.label_sets.queues_renamed = queues_then != queues_now
            memory.restore(saved.memory, cluster, self.moment())
        except Exception as error:  # noqa: BLE001  whole, but no exporter wrote it
            file.refuse(f"it holds a state that cannot be used ({error!r})")
            return False
        self._take_over(saved, saved.own, cluster, renamed=saved.own.naming != naming)
        return True

    def _take_over(self, saved: Saved, own: Own, cluster: Cluster, *, renamed: bool) -> None:
        self.cluster = self._cluster = cluster
        self._reconciler = self._new_reconciler()
        self._malformed.update(own.malformed)
        self._opened = own.reconnects
        if self._file is not None:
            self._file.errors.update(own.file_errors)
        self._tracker.restore(saved.tracker, time.monotonic(), time.time(), renamed=renamed)
        self._reader.expect_again(own.unconfirmed)
        age = time.time() - (saved.memory.at.wall if saved.memory.at else 0.0)
        sets, tasks = len(cluster.label_sets), len(cluster.tasks)
        log.info("restored %d label sets and %d unfinished tasks, saved %.0f s ago", sets, tasks, age)

    def _save_last(self) -> None:
        """Save what is final, when no more events are applied: a durable queue forgets those that were."""
        end = time.monotonic() + LAST_READ
        while self._open and time.monotonic() < end:
            self._threads[0].join(POLL / 10)
        if self._open:
            log.error("events are still applied after %g s: the last ones are not in the state", LAST_READ)
        self._collectors[-1].run()

    # -- queues and workers ------------------------------------------------------------------------------

    def _measure_queues(self) -> None:
        try:
            with self._measure.use() as measure:
                unacked = measure.unacked()
                with self._lock:
                    queues, at = self._cluster.queues, self._listened
                    asked, requested, consumed = queues.names(), queues.requested, queues.consumed
                    self._polls.keep(set(asked))
                    if measure.costly:
                        asked = self._polls.pick(asked, requested | consumed, time.monotonic())
                answers = measure.read(asked, requested=requested, consumed=consumed)
        except Exception:
            with self._lock:  # what could not be read is missing, not as it was
                self._unacked, self._measured = None, time.monotonic()
                self._polls.forget_values()
            raise
        with self._lock:
            self._unacked, self._measured = unacked, time.monotonic()
            self._polls.record(answers, self._measured, self._settings.update_interval)
            self._cluster.queues.declare(answers)
            lengths = {
                name: 0 if depth is Absence.MISSING else depth.length
                for name, depth in answers.items()
                if depth is not Absence.UNREADABLE
            }
            self._reconciler.add_measurement(measurement_of(self._cluster, lengths, unacked, at))

    def _has_strangers(self) -> bool:
        """Tell whether workers started of late and have not answered: the queue of their tasks may depend on
        it.
        """
        with self._lock:
            return self._asked is not None and bool(self._cluster.registry.uninspected)

    def _ask_workers(self) -> None:
        """Ask all workers, or in between only those that started and have not answered yet."""
        begin = time.monotonic()
        with self._lock:
            workers = list(self._cluster.workers.values())
            asked = {worker.name: worker.starts for worker in workers}
            before = {worker.name: worker.current_info for worker in workers}
            unasked = list(islice(self._cluster.registry.uninspected, MAX_ASKED))
        only = unasked if unasked and (begin < self._ask_again or self._is_between_rounds(begin)) else None
        without_events = [worker.name for worker in workers if worker.up and not worker.events]
        if self._blocked.reason:
            raise BlockedError(self._blocked.reason)
        if begin < self._ask_again and only is None:
            raise BrokerError(NOBODY_ANSWERED)
        with self._inspector.use() as inspector:
            if self._settings.enable_events and without_events:
                inspector.enable_events(without_events)
            profiles = inspector.ask(before, only)
            refused = sorted(inspector.refused)
        with self._lock:
            self._refused_answers = refused
            self._cluster.record_inspection(profiles, self.moment(), asked)
            self._answered = self._answered or bool(profiles)
        if only is None:
            self._asked = begin
        elif self._answered:  # whoever did not answer may be starting
            return
        silent = not profiles and not refused and any(worker.up for worker in workers)
        self._unanswered = self._unanswered + 1 if silent else 0
        self._ask_again = time.monotonic() + _wait_to_ask(self._unanswered, self._settings.update_interval)
        if refused:
            raise BrokerError(f"workers answer in {', '.join(refused)}, which --accept-content does not list")
        if silent:
            raise BrokerError(NOBODY_ANSWERED)
        self._ask_for_tasks()

    def _ask_for_tasks(self) -> None:
        """Ask for their tasks those workers that by their events have more than their heartbeats say."""
        with self._lock:
            suspects, asked = self._reconciler.suspects(self.moment()), self._listened
        if not suspects:
            return
        with self._inspector.use() as inspector:
            held = inspector.held_tasks(suspects)
        self._run(self._reconciler.compare(held, asked, self.moment()))

    def _reconcile(self) -> None:
        before = self._cluster.reconciled.copy()
        self._run(self._reconciler.reconcile(self.moment()))
        for reason, count in (self._cluster.reconciled - before).items():
            log.debug("reconciled %d tasks without an event: %s", count, reason)  # a metric says it to people

    def _run(self, steps: Iterator[None]) -> None:
        """Run these, each under a lock of its own, so that nobody waits long."""
        more = True
        while more:
            with self._lock:
                more = next(steps, 0) is None

    def _is_between_rounds(self, now: float) -> bool:
        return self._asked is not None and now - self._asked < self._settings.update_interval

    def _look_around(self) -> None:
        with self._lock:
            snapshot, now = take_snapshot(self._cluster, self._surroundings(None)), time.monotonic()
        self._recent.look(snapshot, now)
        findings = run_checks(snapshot, self._recent.growth(snapshot, now))
        for finding in self._watch.changes(findings, now):
            if finding.severity == "ok":
                advice_log.info("over: %s", finding.message)
            else:
                about = f" (alert {finding.alert})" if finding.alert else ""
                advice_log.warning("%s: %s%s", finding.message, finding.remedy, about)


def _wait_to_ask(unanswered: int, interval: float) -> float:
    """Return the seconds until workers are asked again, after so many rounds without an answer."""
    more = unanswered - MOST_UNANSWERED
    return min(interval * 2 ** min(more, 10), LONGEST_WAIT_TO_ASK) if more > 0 else 0.0


def _empty(settings: MonitorConfig) -> Cluster:
    show = shown_as(settings.task_include, settings.task_exclude, settings.task_name_rule)
    show_queue = shown_as(settings.queue_include, settings.queue_exclude, settings.queue_name_rule)
    selection, classic = settings.metrics.selection, not settings.metrics.no_classic_histograms
    aggregates = Aggregates(
        selection.runtime_bounds if classic else (),  # +Inf is left
        selection.wait_bounds if classic else (),
        settings.limits.max_series,
        native=settings.metrics.native_histograms,
        exemplars=settings.metrics.exemplars,
        share=settings.metrics.histogram_sample_rate,
        latency=selection.latency,
    )
    labels, clients, hosts = selection.labels, selection.clients, selection.hosts
    cluster = Cluster(
        settings.limits, aggregates, labels, show, show_queue=show_queue, clients=clients, hosts=hosts
    )
    cluster.queues.request(name for name in settings.queues if show_queue(name))
    return cluster


def _naming(settings: MonitorConfig) -> str:
    """Return the settings by which series are called what they are called."""
    tasks = _texts(settings.task_include, settings.task_exclude, settings.task_name_rule)
    queues = _texts(settings.queue_include, settings.queue_exclude, settings.queue_name_rule)
    selection = settings.metrics.selection
    names = sorted(set(selection.names))
    labels = [settings.metrics.metric_prefix, dict(settings.metrics.static_label), names, selection.labels]
    shape = selection.shape
    values = [
        shape.default_queue_name,
        shape.namespace,
        shape.generic_hostname_task_sent_metric,
        shape.generic_hostname_worker_task_metric,
    ]
    return repr([*tasks, labels, values, *queues])


def _texts(
    include: Pattern | None, exclude: Pattern | None, rules: Sequence[tuple[Pattern, str]]
) -> tuple[list[str | None], list[str]]:
    patterns = (include, exclude, *(pattern for pattern, _ in rules))
    return [None if pattern is None else pattern.pattern for pattern in patterns], [text for _, text in rules]


def _rules_of(naming: str) -> tuple[Any, Any] | None:
    """Return the parts that say what tasks and what queues are called, as they are in the file already."""
    try:
        parts = ast.literal_eval(naming)
        return parts[:2], parts[4:]
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return None
