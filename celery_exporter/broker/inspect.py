"""Inspects workers and beats with remote control commands, as `celery inspect` does.

Each command is one broadcast for all workers.

Anybody may send a reply, so each is validated; an invalid one is ignored.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import islice
from typing import Annotated, Any

import kombu
import msgspec
from msgspec import Meta, Struct

from celery_exporter.broker.codecs import JSON, UndecodableError
from celery_exporter.broker.mailbox import REPLY_TIMEOUT_SECONDS, ControlClient
from celery_exporter.broker.message import Message, limited, object_of
from celery_exporter.core.beats import MAX_BEATS
from celery_exporter.core.routing import MAX_BINDINGS, Binding
from celery_exporter.core.task_counts import TaskCounts
from celery_exporter.core.workers import MAX_WORKERS, WorkerInfo

#: Distinct names of registered tasks. The series of any further task start at its first event, not at 0.
MAX_REGISTERED = 50_000

#: Module of a pool → name of the --pool option, where they differ.
_POOLS = {"thread": "threads"}


# Replies are as hostile as events: texts become label values, numbers have to stay numbers.
_Text = Annotated[str, Meta(min_length=1, max_length=255)]
_Count = Annotated[int, Meta(ge=0, lt=2**53)]
_Name = Annotated[str, Meta(max_length=255)]  # of an exchange, or a routing key; may be empty
_Many = Meta(max_length=10_000)


class _Pool(Struct, rename="kebab"):
    implementation: _Text | None = None
    max_concurrency: _Count | None = None
    processes: Any = None  # pids of prefork and solo; other pools and versions differ


class _Autoscaler(Struct):
    """That of celery/worker/autoscale.py; an application may have another (worker_autoscaler)."""

    max: _Count | None = None


class _Usage(Struct):
    maxrss: Annotated[float, Meta(ge=0, lt=2**53)] | None = None


class _Stats(Struct):
    pid: _Count | None = None
    pool: _Pool | None = None
    prefetch_count: _Count | None = None
    rusage: _Usage | None = None
    uptime: Annotated[float, Meta(ge=0, lt=2**33)] | None = None  # whole seconds
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


class _AnyTask(Struct, gc=False):
    """A task of which nothing is kept."""


class _Scheduled(Struct):
    request: _Task

    @property
    def uuid(self) -> str:
        return self.request.id


class _Pong(Struct):
    ok: _Text


class Configuration(Struct, frozen=True):
    """The settings of a worker that matter here. None: not set, or its default."""

    worker_send_task_events: bool | None = None
    task_send_sent_event: bool | None = None
    event_exchange: _Text | None = None


_Queues = Annotated[list[_Queue], _Many]
_Names = Annotated[list[_Text], _Many]
#: The commands that together list the tasks a worker has, in the order in which a task passes through them: a
#: task that moves between two replies is in one of them.
_HELD = (
    ("scheduled", Annotated[list[_Scheduled], _Many]),
    ("reserved", Annotated[list[_Task], _Many]),
    ("active", Annotated[list[_Task], _Many]),
)
#: Seconds by which a start that follows from an uptime may vary: the uptime is rounded to seconds, and is as
#: old as the first of the replies when the last one arrives.
MAX_UPTIME_ERROR_SECONDS = 5.0
#: How long to wait for the reply of a beat where none is known.
DISCOVERY_TIMEOUT_SECONDS = 0.25
#: How the node names of beats begin, unless `celery beat --hostname` gives another one.
BEAT_PREFIX = "celerybeat@"
#: The argument by which `registered` returns an attribute of each task.
_WITH_SEND_EVENTS = {"taskinfoitems": ["send_events"]}
#: What `registered` then adds to the name of a task with send_events = False.
_SILENT = " [send_events=False]"


class WorkerInspector:
    """Inspects workers on one connection, which must stay open.

    `control_exchange` is Celery's setting; `accept` are the serializers of --accept-content.
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
        """Return the serializers of refused replies to the newest command."""
        return frozenset(self._control.refused)

    def inspect(
        self, before: dict[str, WorkerInfo], only: Collection[str] | None = None
    ) -> dict[str, WorkerInfo]:
        """Return each worker that replied; what is missing in its replies keeps its value in `before`.

        The first command waits for any worker, or for all of `only`; the others wait for as many replies.
        Processes that share a node name reply separately.
        """
        stats = self._replies("stats", _Stats, MAX_WORKERS, only)
        names = {name for name, _ in stats}
        unknown = [name for name in before.keys() - names if before[name] == WorkerInfo()]
        if unknown and self._control.search_exchanges():
            stats = self._replies("stats", _Stats, MAX_WORKERS, only)
        if not stats:
            return {}
        at = time.time()
        replies = Counter(name for name, _ in stats)
        only = None if only is None else list(replies)
        queues = _by_name(self._replies("active_queues", _Queues, len(stats), only))
        registered = dict(self._replies("registered", _Names, len(stats), only, _WITH_SEND_EVENTS))
        workers = {}
        shared: dict[str, str] = {}  # most workers have the same tasks
        same: dict[tuple[Binding, ...], tuple[Binding, ...]] = {}  # and the same queues
        for name, reply in dict(stats).items():
            info = before.get(name, WorkerInfo())
            changes = _from_stats(reply) | {"replies": replies[name]}
            changes["started_at"] = _started_at(info.started_at, reply.uptime, at)
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
            workers[name] = msgspec.structs.replace(info, **changes)
        return workers

    def ping_beats(self, *, is_any_known: bool) -> set[str]:
        """Return the node names of the beats that replied. Workers do not reply: their names do not fit.

        Where no beat is known, most likely none will reply, so the wait for one is short.
        """
        timeout = REPLY_TIMEOUT_SECONDS if is_any_known else DISCOVERY_TIMEOUT_SECONDS
        replies = self._control.ping(f"{BEAT_PREFIX}*", MAX_BEATS, timeout)
        return {name for name, _ in _checked(replies, _Pong) if name.startswith(BEAT_PREFIX)}

    def enable_events(self, workers: Iterable[str]) -> None:
        """Switch on task events in these workers."""
        self._control.cast("enable_events", workers)

    def configurations(self) -> list[tuple[str, Configuration]]:
        """Return node name and configuration of each reply; a node name may occur twice."""
        replies = self._control.call("conf", MAX_WORKERS)
        if not replies and self._control.search_exchanges():
            replies = self._control.call("conf", MAX_WORKERS)
        return list(_checked(replies, Configuration))

    def held_tasks(self, workers: Mapping[str, int]) -> dict[str, set[str]]:
        """Return the uuids of all tasks that a worker has, for each of these workers that replied in full.

        `workers`: by node name, how many processes have to reply to each command.
        """
        held: dict[str, set[str]] = {name: set() for name in workers}
        destinations = list(Counter(workers).elements())  # one per expected reply
        replied = []
        for command, shape in _HELD:
            replies = self._replies(command, shape, len(destinations), destinations)
            replied.append(Counter(name for name, _ in replies))
            for name, tasks in replies:
                if name in held:
                    held[name].update(task.uuid for task in tasks)
        return {name: held[name] for name in _in_full(workers, replied)}

    def count_tasks(self, workers: Mapping[str, int]) -> dict[str, TaskCounts]:
        """Return how many tasks a worker has, for each of these workers that replied in full.

        `workers`: see `held_tasks`. The tasks themselves are not kept.
        """
        counts: dict[str, Counter[str]] = {name: Counter() for name in workers}
        destinations = list(Counter(workers).elements())
        replied = []
        for command, _ in _HELD:
            replies = self._control.call(command, len(destinations), destinations, None, tasks_in_reply)
            pairs = [pair for reply in replies for pair in reply.items() if pair[0] in counts]
            replied.append(Counter(name for name, _ in pairs))
            for name, count in pairs:
                counts[name][command] += count
        return {
            name: TaskCounts(**{command: counts[name][command] for command, _ in _HELD})
            for name in _in_full(workers, replied)
        }

    def _replies(
        self,
        command: str,
        shape: Any,
        limit: int,
        only: Collection[str] | None,
        arguments: dict[str, Any] | None = None,
    ) -> list[tuple[str, Any]]:
        return list(_checked(self._control.call(command, limit, only, arguments), shape))


def _in_full(workers: Mapping[str, int], replied: Sequence[Counter[str]]) -> list[str]:
    """Return the workers of which as many processes replied to each command, and as many as expected."""
    times = {name: {counts[name] for counts in replied} for name in workers}
    return [name for name in workers if len(times[name]) == 1 and min(times[name]) >= workers[name]]


def tasks_in_reply(message: Message, accept: Collection[str]) -> dict[str, int]:
    """Return the number of tasks in a reply by node name: no node, if it is another reply.

    A reply may have megabytes. In JSON, no object is made of what is in a task.
    """
    if message.content_type in (None, JSON) and JSON in accept:
        try:
            tasks_by_node = _decode_tasks(limited(message.body))
        except msgspec.ValidationError:  # such as {"w@h": {"error": …}}
            return {}
        except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
            raise UndecodableError(JSON) from error
        return {name: len(tasks) for name, tasks in tasks_by_node.items()}
    reply = object_of(message, accept)
    nodes = reply.items() if isinstance(reply, dict) else ()
    return {name: len(tasks) for name, tasks in nodes if isinstance(name, str) and isinstance(tasks, list)}


_decode_tasks = msgspec.json.Decoder(dict[str, list[_AnyTask]]).decode


def _by_name(replies: Iterable[tuple[str, list[_Queue]]]) -> dict[str, list[_Queue]]:
    by_name: dict[str, list[_Queue]] = {}
    for name, queues in replies:
        by_name.setdefault(name, []).extend(queues)
    return by_name


def _bindings(queues: Iterable[_Queue]) -> Iterator[Binding]:
    """Yield the bindings of these queues, except the one that every queue has to the default exchange."""
    for queue in queues:
        own = _Binding(queue.exchange, queue.routing_key)
        for binding in (own, *(queue.bindings or ())):
            exchange = binding.exchange or _Exchange()
            if exchange.name:
                exchange_type, routing_key = exchange.type or "direct", binding.routing_key or ""
                yield Binding(queue.name, exchange.name, exchange_type, routing_key, queue.alias or None)


def _checked(replies: Collection[Any], shape: Any) -> Iterable[tuple[str, Any]]:
    for reply in replies:
        for name, content in reply.items() if isinstance(reply, dict) else ():
            with suppress(msgspec.ValidationError, UnicodeEncodeError):  # such as {"error": …}
                msgspec.json.encode((name, content))  # refuses lone surrogates, at any depth
                yield msgspec.convert(name, _Text), msgspec.convert(content, shape)


def _from_stats(stats: _Stats) -> dict[str, Any]:
    pool = stats.pool or _Pool()
    module = (pool.implementation or "").partition(":")[0]  # celery.concurrency.prefork:TaskPool
    name = module.rpartition(".")[2]
    resident = stats.rusage and stats.rusage.maxrss
    return {
        "pool": _POOLS.get(name, name) or _unnamed_pool(stats, pool),
        "pool_size": _pool_size(pool),
        "pool_max": _pool_max(stats.autoscaler),
        "prefetch_count": stats.prefetch_count or None,  # 0 is no limit
        # ru_maxrss is in KiB on Linux, where workers run; on macOS it is in bytes (getrusage(2)).
        "max_resident_bytes": int(resident * 1024) if resident else None,
    }


def _started_at(before: float | None, uptime: float | None, now: float) -> float | None:
    """Return when a worker was started (epoch seconds); the same as before unless that differs clearly."""
    if uptime is None:
        return None
    at = now - uptime
    return at if before is None or abs(at - before) > MAX_UPTIME_ERROR_SECONDS else before


def _pool_size(pool: _Pool) -> int | None:
    """Return how many tasks a pool can execute at once.

    max-concurrency of a prefork pool is the value at its start, whatever pool_grow or --autoscale changed;
    its list of processes is current. max-concurrency of gevent and eventlet pools is current. Thread pools do
    not grow.
    """
    return len(pool.processes) if isinstance(pool.processes, list) else pool.max_concurrency


def _pool_max(autoscaler: Any) -> int | None:
    """Return the largest size that --autoscale may give a pool."""
    try:
        return msgspec.convert(autoscaler, _Autoscaler).max
    except msgspec.ValidationError:
        return None


def _unnamed_pool(stats: _Stats, pool: _Pool) -> str | None:
    """Return the pool of a worker before Celery 5.3, which does not name it: solo runs in the worker."""
    return "solo" if stats.pid is not None and pool.processes == [stats.pid] else None
