"""What workers answer when they are asked (control inspect), by broadcast, for all of them at once.

Answers come from the wire, so each is checked; one that is wrong is as good as none.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import islice
from typing import Annotated, Any

import kombu
import msgspec
from msgspec import Meta, Struct

from celery_exporter.broker.mailbox import ControlClient
from celery_exporter.core.routing import MAX_BINDINGS, Binding
from celery_exporter.core.workers import MAX_WORKERS, WorkerInfo

#: Different names of tasks that workers may know; those beyond start at their first event, not at 0.
MAX_REGISTERED = 50_000

#: Pools whose module is called otherwise than the worker's --pool option.
_POOLS = {"thread": "threads"}


# Answers are as hostile as events: texts become label values, numbers have to stay numbers.
_Text = Annotated[str, Meta(min_length=1, max_length=255)]
_Count = Annotated[int, Meta(ge=0, lt=2**53)]
_Name = Annotated[str, Meta(max_length=255)]  # of an exchange, or a routing key: may be empty
_Many = Meta(max_length=10_000)


class _Pool(Struct, rename="kebab"):
    implementation: _Text | None = None
    max_concurrency: _Count | None = None
    processes: Any = None  # prefork and solo: their pids; or what another version or pool puts there


class _Autoscaler(Struct):
    """Of celery/worker/autoscale.py; an application's own (worker_autoscaler) may answer what it likes."""

    max: _Count | None = None


class _Usage(Struct):
    maxrss: Annotated[float, Meta(ge=0, lt=2**53)] | None = None


class _Stats(Struct):
    pid: _Count | None = None
    pool: _Pool | None = None
    prefetch_count: _Count | None = None
    rusage: _Usage | None = None
    autoscaler: Any = None


class _Exchange(Struct):
    name: _Name | None = None
    type: _Name | None = None


class _Binding(Struct):
    exchange: _Exchange | None = None
    routing_key: _Name | None = None


class _Queue(Struct):
    name: _Text
    auto_delete: bool | None = None
    alias: _Name | None = None
    exchange: _Exchange | None = None
    routing_key: _Name | None = None
    bindings: Annotated[list[_Binding], _Many] | None = None


class _Task(Struct):
    id: _Text

    @property
    def uuid(self) -> str:
        return self.id


class _Scheduled(Struct):
    request: _Task

    @property
    def uuid(self) -> str:
        return self.request.id


class Configuration(Struct, frozen=True):
    """What of a worker's configuration matters here. None: not set, or its default."""

    worker_send_task_events: bool | None = None
    task_send_sent_event: bool | None = None
    event_exchange: _Text | None = None


_Queues = Annotated[list[_Queue], _Many]
_Names = Annotated[list[_Text], _Many]
#: The commands that together list what a worker has: it will run at an eta, it will run, and it runs. In the
#: order in which a task goes through them, so that one that goes on between two answers is in either of them.
_HELD = (
    ("scheduled", Annotated[list[_Scheduled], _Many]),
    ("reserved", Annotated[list[_Task], _Many]),
    ("active", Annotated[list[_Task], _Many]),
)
#: What `registered` is asked to tell of each task.
_WITH_SEND_EVENTS = {"taskinfoitems": ["send_events"]}
#: What `registered` adds to the name of a task with send_events = False, asked for that attribute.
_SILENT = " [send_events=False]"


class WorkerInspector:
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

    def ask(
        self, before: dict[str, WorkerInfo], only: Collection[str] | None = None
    ) -> dict[str, WorkerInfo]:
        """Return the profile of each worker that answered; what it did not say is kept from `before`.

        The first question waits for whoever may answer, or for all of `only` if those are given; the others
        wait only for as many answers. Processes that share a name answer each.
        """
        stats = self._answers("stats", _Stats, MAX_WORKERS, only)
        names = {name for name, _ in stats}
        unknown = [name for name in before.keys() - names if before[name] == WorkerInfo()]
        if unknown and self._control.search_exchanges():
            stats = self._answers("stats", _Stats, MAX_WORKERS, only)
        if not stats:
            return {}
        answers = Counter(name for name, _ in stats)
        only = None if only is None else list(answers)
        queues = _by_name(self._answers("active_queues", _Queues, len(stats), only))
        registered = dict(self._answers("registered", _Names, len(stats), only, _WITH_SEND_EVENTS))
        found = {}
        shared: dict[str, str] = {}  # most workers know the same tasks
        same: dict[tuple[Binding, ...], tuple[Binding, ...]] = {}  # and consume the same queues
        for name, answer in dict(stats).items():
            changes = _from_stats(answer) | {"answers": answers[name]}
            if name in queues:
                changes["queues"] = tuple(dict.fromkeys(queue.name for queue in queues[name]))
                changes["auto_delete"] = tuple(queue.name for queue in queues[name] if queue.auto_delete)
                bindings = tuple(islice(_bindings(queues[name]), MAX_BINDINGS))
                changes["bindings"] = same.setdefault(bindings, bindings)
            if name in registered:  # "tasks.add [send_events=True]"
                silent = (task for task in registered[name] if task.endswith(_SILENT))
                changes["silent_tasks"] = tuple(task.removesuffix(_SILENT) for task in silent)
                tasks = (task.partition(" [")[0] for task in registered[name])
                changes["registered"] = tuple(
                    shared.setdefault(task, task)
                    for task in tasks
                    if task in shared or len(shared) < MAX_REGISTERED
                )
            found[name] = msgspec.structs.replace(before.get(name, WorkerInfo()), **changes)
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

    def held_tasks(self, workers: Mapping[str, int]) -> dict[str, set[str]]:
        """Return the uuids of all tasks that each of these workers has, of those that answered in full.

        `workers`: by name, how many processes have to answer each question.
        """
        held: dict[str, set[str]] = {name: set() for name in workers}
        once_for_each = list(Counter(workers).elements())  # as many answers are waited for
        counts = []
        for command, shape in _HELD:
            answers = self._answers(command, shape, len(once_for_each), once_for_each)
            counts.append(Counter(name for name, _ in answers))
            for name, tasks in answers:
                if name in held:
                    held[name].update(task.uuid for task in tasks)
        answered = {name: {count[name] for count in counts} for name in workers}
        full = (name for name, times in answered.items() if len(times) == 1 and min(times) >= workers[name])
        return {name: held[name] for name in full}

    def _answers(
        self,
        command: str,
        shape: Any,
        limit: int,
        only: Collection[str] | None,
        arguments: dict[str, Any] | None = None,
    ) -> list[tuple[str, Any]]:
        return list(_checked(self._control.call(command, limit, only, arguments), shape))


def _by_name(answers: Iterable[tuple[str, list[_Queue]]]) -> dict[str, list[_Queue]]:
    found: dict[str, list[_Queue]] = {}
    for name, queues in answers:
        found.setdefault(name, []).extend(queues)
    return found


def _bindings(queues: Iterable[_Queue]) -> Iterator[Binding]:
    """Yield the ways into these queues; by the default exchange there is always one, which is left out."""
    for queue in queues:
        own = _Binding(queue.exchange, queue.routing_key)
        for each in (own, *(queue.bindings or ())):
            exchange = each.exchange or _Exchange()
            if exchange.name:
                kind, key = exchange.type or "direct", each.routing_key or ""
                yield Binding(queue.name, exchange.name, kind, key, queue.alias or None)


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
        "pool_size": _pool_size(pool),
        "pool_max": _pool_max(stats.autoscaler),
        "prefetch_count": stats.prefetch_count or None,  # 0 is no limit
        # ru_maxrss is in KiB on Linux, where workers run; on macOS it is in bytes (getrusage(2)).
        "max_resident_bytes": int(resident * 1024) if resident else None,
    }


def _pool_size(pool: _Pool) -> int | None:
    """Return how many tasks a pool can execute at once now.

    A prefork pool answers max-concurrency as it was at its start, whatever pool_grow or --autoscale did
    since, and the processes that there are. Of gevent and eventlet pools max-concurrency is what it is now.
    Threads pools, which answer how many threads they have needed so far, do not grow.
    """
    return len(pool.processes) if isinstance(pool.processes, list) else pool.max_concurrency


def _pool_max(autoscaler: Any) -> int | None:
    """Return to how many processes --autoscale may take a pool."""
    try:
        return msgspec.convert(autoscaler, _Autoscaler).max
    except msgspec.ValidationError:
        return None


def _unnamed(stats: _Stats, pool: _Pool) -> str | None:
    """Return the pool of a worker before Celery 5.3, which does not name it: solo is the worker itself."""
    return "solo" if stats.pid is not None and pool.processes == [stats.pid] else None
