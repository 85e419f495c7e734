"""The cluster of one broker with the lock that guards it, shared by the threads of a monitor."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

from celery_exporter.broker.connection import is_amqp
from celery_exporter.core.aggregates import Aggregates
from celery_exporter.core.cluster import Cluster
from celery_exporter.core.reconcile import Reconciler
from celery_exporter.core.records import RecordBuilder
from celery_exporter.core.shards import ShardOfCluster
from celery_exporter.core.task_info import TaskInfo
from celery_exporter.core.task_names import shown_as
from celery_exporter.core.types import Timestamp
from celery_exporter.monitor.config import MonitorConfig

#: Changed tasks that are described under one hold of the lock: 2 ms.
CHUNK_TASKS = 200
#: Longest step of the listening clock in seconds. A process that was frozen for longer did not listen.
MAX_STEP_SECONDS = 1.0


class ClusterState:
    """A cluster, its lock and its listening clock. Take the lock for everything but `now`.

    `reading` is held while the messages of one read are applied, which takes the lock several times. Take it
    before the lock for what must have all events of a message or none.
    """

    def __init__(self, cluster: Cluster, config: MonitorConfig) -> None:
        self.lock = threading.Lock()
        self.reading = threading.Lock()
        self.cluster = cluster
        self.reconciler = Reconciler(cluster, drops_expired=is_amqp(config.broker))
        self.listening = 0.0  # seconds; written by the event subscription alone
        #: Applies one event.
        self.apply = cluster.apply if config.shard is None else ShardOfCluster(cluster, config.shard).apply
        #: Returns whether a malformed event counts here, and not in another shard.
        self.counts = (lambda _: True) if config.shard is None else config.shard.counts

    def now(self) -> Timestamp:
        """Return the time on both clocks."""
        return Timestamp(self.listening, time.time())

    def advance(self, seconds: float) -> None:
        """Advance the listening clock, by `MAX_STEP_SECONDS` at most."""
        self.listening += min(seconds, MAX_STEP_SECONDS)

    def take_changed(self, limit: int) -> tuple[list[TaskInfo], int]:
        """Return up to so many tasks that changed since they were taken, and how many were left out."""
        infos: list[TaskInfo] = []
        surplus = 0
        for start in range(0, limit, CHUNK_TASKS):
            with self.lock:
                some, more = self.cluster.take_changed(min(CHUNK_TASKS, limit - start))
            infos += some
            surplus += more
            if not some:
                break
        return infos, surplus

    def run(self, steps: Iterator[None]) -> None:
        """Run these steps, and take the lock for each alone, so that others wait for one at most."""
        more = True
        while more:
            with self.lock:
                more = next(steps, 0) is None


def new_cluster(config: MonitorConfig) -> Cluster:
    """Return a cluster without tasks and workers, which counts and names as the config says."""
    metrics, selection = config.metrics, config.metrics.selection
    is_classic = not metrics.no_classic_histograms
    aggregates = Aggregates(
        selection.runtime_bounds if is_classic else (),  # +Inf remains
        selection.wait_bounds if is_classic else (),
        config.limits.max_series,
        native_histograms=metrics.native_histograms,
        exemplars=metrics.exemplars,
        histogram_sample_rate=metrics.histogram_sample_rate,
        latency=selection.latency,
    )
    records = None
    if config.keeps_details:
        records = RecordBuilder(aggregates, metrics.histogram_sample_rate, arguments=config.record_arguments)
    show_queue = shown_as(config.queue_include, config.queue_exclude, config.queue_name_rule)
    cluster = Cluster(
        config.limits,
        aggregates,
        selection.labels,
        shown_as(config.task_include, config.task_exclude, config.task_name_rule),
        show_queue=show_queue,
        clients=selection.clients,
        hosts=selection.hosts,
        records=records,
        kept_tasks=config.history.history_memory if config.history.is_on else 0,
        expected=config.expected,
    )
    if config.shard is not None and config.broker.event_queue is not None:
        cluster.registry.is_whole = config.shard.has
    if config.traces:
        aggregates.root_of = cluster.root_of
    cluster.queues.request(name for name in config.queues if show_queue(name))
    return cluster
