"""Shards: several exporters receive all events of a cluster, and each keeps a part of its tasks (--shard).

A task belongs to one shard by its uuid, as the series of a worker or a beat do by its name. Those of queues
and of the broker belong to the first shard. Invariant: below the limits of series, the sums over all shards
are those of one exporter. Every shard knows all workers and queues, since what is known of a task follows
from them.
"""

from __future__ import annotations

from msgspec import Struct
from msgspec.structs import replace

from celery_exporter.core.cluster import Cluster
from celery_exporter.core.events import Event, Malformed, hash_of, key_of
from celery_exporter.core.snapshot import Snapshot
from celery_exporter.core.types import Timestamp


class Shard(Struct, frozen=True):
    """One of `count` shards, from 0."""

    index: int
    count: int

    def __str__(self) -> str:
        """Return it as the option has it."""
        return f"{self.index}/{self.count}"

    def has(self, key: str) -> bool:
        """Return whether a uuid or a node name belongs to this shard."""
        return shard_of(key, self.count) == self.index

    def counts(self, event: Malformed) -> bool:
        """Return whether a malformed event counts in this shard; one without a key does in the first."""
        return event.key_hash % self.count == self.index


def shard_of(key: str, count: int) -> int:
    """Return the index of the shard, of so many, that a uuid or a node name belongs to."""
    return hash_of(key) % count


class ShardOfCluster:
    """Applies the events of all tasks to a cluster that keeps those of one shard."""

    def __init__(self, cluster: Cluster, shard: Shard) -> None:
        self._cluster = cluster
        self._shard = shard

    def apply(self, event: Event, now: Timestamp) -> None:
        """Apply an event of this shard, and what another one says about its worker and its queue."""
        if self._shard.has(key_of(event.type, event.uuid, event.hostname)):
            self._cluster.apply(event, now)
        else:
            self._cluster.apply_to_workers(event, now)


def part_of(snapshot: Snapshot, shard: Shard) -> Snapshot:
    """Return what metrics show of a snapshot that a shard has taken."""
    part = replace(
        snapshot,
        workers=[worker for worker in snapshot.workers if shard.has(worker.name)],
        beats=[beat for beat in snapshot.beats if shard.has(beat.name)],
    )
    if shard.index == 0:
        return part
    exporter = replace(part.exporter, unacked=None, blocked=None)
    return replace(part, exporter=exporter, queues=[], unconsumed={}, requested=(), queue_names=0)
