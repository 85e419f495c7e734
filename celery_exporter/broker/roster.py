"""What workers answer when they are asked (control inspect), by broadcast, for all of them at once.

Answers come from the wire, so each is checked; one that is wrong is as good as none.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from contextlib import suppress
from typing import Annotated, Any

import kombu
import msgspec
from msgspec import Meta, Struct

from celery_exporter.broker.mailbox import ControlClient
from celery_exporter.core.workers import MAX_WORKERS, Profile

#: Different names of tasks that workers may know; those beyond start at their first event, not at 0.
MAX_REGISTERED = 50_000

#: Pools whose module is called otherwise than the worker's --pool option.
_POOLS = {"thread": "threads"}


# Answers are as hostile as events: texts become label values, numbers have to stay numbers.
_Text = Annotated[str, Meta(min_length=1, max_length=255)]
_Count = Annotated[int, Meta(ge=0, lt=2**53)]
_Many = Meta(max_length=10_000)


class _Pool(Struct, rename="kebab"):
    implementation: _Text | None = None
    max_concurrency: _Count | None = None
    processes: Any = None  # pids, or what another version or pool puts there


class _Usage(Struct):
    maxrss: Annotated[float, Meta(ge=0, lt=2**53)] | None = None


class _Stats(Struct):
    pid: _Count | None = None
    pool: _Pool | None = None
    prefetch_count: _Count | None = None
    rusage: _Usage | None = None


class _Queue(Struct):
    name: _Text


class Configuration(Struct, frozen=True):
    """What of a worker's configuration matters here. None: not set, or its default."""

    worker_send_task_events: bool | None = None
    task_send_sent_event: bool | None = None
    event_exchange: _Text | None = None


_Queues = Annotated[list[_Queue], _Many]
_Names = Annotated[list[_Text], _Many]


class Roster:
    """Asks the workers on one connection, which must stay open.

    `control_exchange` is that of Celery; `accept` are the serialisers of --accept-content.
    """

    def __init__(
        self,
        connection: kombu.Connection,
        control_exchange: str = "celery",
        accept: Sequence[str] = ("json",),
    ) -> None:
        self._control = ControlClient(connection, control_exchange, accept)

    @property
    def refused(self) -> Collection[str]:
        """Return the serialisers of answers to the newest question that are not accepted."""
        return frozenset(self._control.refused)

    def ask(self, before: dict[str, Profile]) -> dict[str, Profile]:
        """Return the profile of each worker that answered; what it did not say is kept from `before`.

        The first question waits for whoever may answer, the others only for as many as did.
        """
        stats = self._answers("stats", _Stats, MAX_WORKERS)
        silent = [name for name in before.keys() - stats.keys() if before[name] == Profile()]
        if silent and self._control.search_exchanges():
            stats = self._answers("stats", _Stats, MAX_WORKERS)
        if not stats:
            return {}
        queues = self._answers("active_queues", _Queues, len(stats))
        registered = self._answers("registered", _Names, len(stats))
        found = {}
        shared: dict[str, str] = {}  # most workers know the same tasks
        for name in stats:
            changes = _from_stats(stats[name])
            if name in queues:
                changes["queues"] = tuple(queue.name for queue in queues[name])
            if name in registered:  # "tasks.add [rate_limit=10/s]"
                tasks = (task.partition(" [")[0] for task in registered[name])
                changes["registered"] = tuple(
                    shared.setdefault(task, task)
                    for task in tasks
                    if task in shared or len(shared) < MAX_REGISTERED
                )
            found[name] = msgspec.structs.replace(before.get(name, Profile()), **changes)
        return found

    def enable_events(self, workers: Iterable[str]) -> None:
        """Ask these workers to send task events."""
        self._control.cast("enable_events", workers)

    def configurations(self) -> list[tuple[str, Configuration]]:
        """Return each answer, by node name: workers that share a name answer each."""
        replies = self._control.call("conf", MAX_WORKERS)
        if not replies and self._control.search_exchanges():
            replies = self._control.call("conf", MAX_WORKERS)
        return list(_checked(replies, Configuration))

    def _answers(self, command: str, shape: Any, limit: int) -> dict[str, Any]:
        return dict(_checked(self._control.call(command, limit), shape))


def _checked(replies: Collection[Any], shape: Any) -> Iterable[tuple[str, Any]]:
    for reply in replies:
        for name, answer in reply.items() if isinstance(reply, dict) else ():
            with suppress(msgspec.ValidationError, UnicodeEncodeError):  # for one, {"error": …}
                msgspec.json.encode((name, answer))  # refuses lone surrogates, at any depth
                yield msgspec.convert(name, _Text), msgspec.convert(answer, shape)


def _from_stats(stats: _Stats) -> dict[str, Any]:
    pool = stats.pool or _Pool()
    module = (pool.implementation or "").partition(":")[0]  # celery.concurrency.prefork:TaskPool
    name = module.rpartition(".")[2]
    resident = stats.rusage and stats.rusage.maxrss
    return {
        "pool": _POOLS.get(name, name) or _unnamed(stats, pool),
        "pool_size": pool.max_concurrency,
        "prefetch_count": stats.prefetch_count or None,  # 0 is no limit
        # ru_maxrss is in KiB on Linux, where workers run; on macOS it is in bytes (getrusage(2)).
        "max_resident_bytes": int(resident * 1024) if resident else None,
    }


def _unnamed(stats: _Stats, pool: _Pool) -> str | None:
    """Return the pool of a worker before Celery 5.3, which does not name it: solo is the worker itself."""
    return "solo" if stats.pid is not None and pool.processes == [stats.pid] else None
