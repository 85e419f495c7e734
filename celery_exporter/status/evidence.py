"""What an explanation of a task follows from, and what limits it, in sentences. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime

from celery_exporter.core.message_location import QueueLook
from celery_exporter.core.snapshot import WorkerView
from celery_exporter.quoting import printable
from celery_exporter.status.explanation import RECENT_SECONDS, Facts
from celery_exporter.status.facts import DISCOVERY_SECONDS, short
from celery_exporter.status.finding import count, duration, names

#: Queues, and workers with an old heartbeat, with a sentence of their own.
MAX_LISTED_QUEUES = MAX_LISTED_WORKERS = 5


def at(timestamp: float) -> str:
    """Return an epoch second as a time in UTC."""
    try:
        moment = datetime.fromtimestamp(timestamp, UTC)
    except (ValueError, OverflowError, OSError):
        return f"epoch second {timestamp:.0f}"
    return moment.strftime("%Y-%m-%d %H:%M:%S UTC")


def ago(timestamp: float, now: float) -> str:
    """Return how long ago a time was; one that another clock puts into the future is now."""
    return f"{duration(max(0.0, now - timestamp))} ago"


def busy(workers: Sequence[WorkerView]) -> str:
    """Return how many slots of workers are busy, empty if that is unknown of any of them."""
    sizes = [worker.pool_size for worker in workers if worker.pool_size is not None]
    active = [worker.active for worker in workers if worker.active is not None]
    if not workers or len(sizes) < len(workers) or len(active) < len(workers):
        return ""
    return f"{sum(active):,} of {count(sum(sizes), 'slot')}"


def evidence(facts: Facts) -> list[str]:
    """Return what was seen, the most important first."""
    return [line for lines in _EVIDENCE for line in lines(facts)]


def limits(facts: Facts) -> list[str]:
    """Return what limits this answer, besides what its diagnosis leaves open."""
    return [line for lines in _LIMITS for line in lines(facts)]


# -- evidence ----------------------------------------------------------------------------------------------


def _events(facts: Facts) -> Iterator[str]:
    task = facts.task
    if task is None:
        yield "events: none of this task"
        return
    by = f" by worker {printable(task.worker)}" if task.worker else ""
    yield f"events: {task.state} at {at(task.since)}{by}"
    attempt = facts.attempt
    if attempt is not None and attempt.retries:
        yield f"events: this is retry {attempt.retries}"


def _message(facts: Facts) -> Iterator[str]:
    location = facts.location
    if location.place == "queue":
        yield f"broker: its message is in queue {printable(location.queue or '')}"
    elif location.place == "unacknowledged":
        since = f", since {at(location.since)}" if location.since else ""
        yield f"broker: a worker holds its message without acknowledgement{since}"


def _times(facts: Facts) -> Iterator[str]:
    if facts.eta is not None:
        yield f"its eta is {at(facts.eta)}"
    expires = facts.location.expires or facts.expires
    if expires is not None:
        yield f"it expires at {at(expires)}"


def _queues(facts: Facts) -> Iterator[str]:
    looks = sorted(facts.location.queues, key=lambda look: look is not facts.look)
    yield from map(_queue, looks[:MAX_LISTED_QUEUES])
    more = looks[MAX_LISTED_QUEUES:]
    if more:
        total = sum(look.length or 0 for look in more)
        yield f"broker: {count(len(more), 'more queue')} with {count(total, 'message')}"


def _queue(look: QueueLook) -> str:
    text = f"broker: queue {printable(look.name)} "
    if look.is_missing:
        return f"{text}does not exist"
    if look.length is None:
        return f"{text}cannot be read"
    text += f"has {count(look.length, 'message')}"
    if look.consumers is not None:
        text += f" and {count(look.consumers, 'consumer')}"
    if look.examined:
        text += f"; {look.examined:,} were read"
    return text


def _held(facts: Facts) -> Iterator[str]:
    held = facts.location.unacknowledged
    if held is not None and held.length is not None:
        yield f"broker: workers hold {count(held.length, 'message')} without acknowledgement"
    if facts.location.delayed is not None:
        yield f"broker: {count(facts.location.delayed, 'message')} in the queues of delayed delivery"


def _worker(facts: Facts) -> Iterator[str]:
    if not facts.is_with_worker or facts.task is None or facts.task.worker is None:
        return
    worker, name = facts.worker, printable(facts.task.worker)
    if worker is None:
        yield f"worker {name} has sent no event since the exporter's start, or was removed later"
    elif facts.is_worker_unknown:
        yield f"worker {name} has sent no event since the exporter's start"
    elif worker.up:
        yield f"worker {name} is up{_busy([worker])}{_old_heartbeat(worker, facts.now, '; ')}"
        if worker.online is not None and worker.online > facts.task.since:
            yield f"worker {name} started or connected again at {at(worker.online)}, after that"
    else:
        yield f"worker {name} is down: it {_silence(worker, facts)}"


def _silence(worker: WorkerView, facts: Facts) -> str:
    """Return since when a worker that is down has sent no event, as far as that is known."""
    if worker.left:
        return "went offline" + (f" {ago(worker.heartbeat, facts.now)}" if worker.heartbeat else "")
    last = max(facts.reported_at or 0.0, worker.heartbeat or 0.0)
    return f"has sent no event for {duration(max(0.0, facts.now - last))}"


def _old_heartbeat(worker: WorkerView, now: float, before: str) -> str:
    """Return the age of the last heartbeat, empty if the next one is not overdue by several."""
    if worker.heartbeat is None or now - worker.heartbeat < DISCOVERY_SECONDS:
        return ""
    return f"{before}its last heartbeat came {ago(worker.heartbeat, now)}"


def _consumers(facts: Facts) -> Iterator[str]:
    if facts.consumers is None or facts.is_with_worker or not (facts.is_waiting or facts.location.queue):
        return
    if facts.consumers:
        yield f"workers of the queue that are up: {names(facts.consumers)}{_busy(facts.consumers)}"
        ages = (
            _old_heartbeat(each, facts.now, f"worker {printable(each.name)}: ") for each in facts.consumers
        )
        yield from [line for line in ages if line][:MAX_LISTED_WORKERS]
    else:
        yield "no worker that is up consumes the queue"


def _busy(workers: Sequence[WorkerView]) -> str:
    slots = busy(workers)
    return f"; {slots} are busy" if slots else ""


def _blocked(facts: Facts) -> Iterator[str]:
    if facts.exporter.blocked:
        yield f"RabbitMQ blocks publishers: {short(facts.exporter.blocked)}"


_EVIDENCE: tuple[Callable[[Facts], Iterator[str]], ...] = (
    *(_events, _message, _times, _worker, _consumers, _queues, _held, _blocked),
)

# -- limits ------------------------------------------------------------------------------------------------


def _look(facts: Facts) -> Iterator[str]:
    if facts.location.reason:
        yield f"where its message is: {short(facts.location.reason)}"


def _history(facts: Facts) -> Iterator[str]:
    if facts.history_problem and not facts.is_open:
        yield f"what the history file has: {short(facts.history_problem)}"


def _missed(facts: Facts) -> Iterator[str]:
    if facts.is_over:
        return
    if facts.is_before_start:
        started = ago(facts.exporter.started, facts.now)
        yield f"what happened while the exporter did not run: it started {started}, after the newest event"
    elif facts.is_before_subscription:
        opened = ago(facts.exporter.subscribed or 0.0, facts.now)
        yield (
            f"what happened while the exporter had no event subscription: it was opened {opened}, after the "
            "newest event"
        )


def _subscription(facts: Facts) -> Iterator[str]:
    if facts.exporter.no_events:
        yield f"what workers do: {short(facts.exporter.no_events)}"
    elif not facts.exporter.broker_up:
        yield "what happened since the exporter lost its event subscription"
    elif facts.exporter.active is False:
        yield "what happened since another exporter receives the events: ask that one, too"


def _clock(facts: Facts) -> Iterator[str]:
    skew = facts.worker.clock_skew if facts.worker else None
    if skew is not None and abs(skew) > RECENT_SECONDS:
        yield f"how long ago things happened: the clock of the worker differs by {skew:+.0f} s"


def _worker_events(facts: Facts) -> Iterator[str]:
    silent = [worker for worker in facts.consumers or () if worker.events is False]
    if silent and facts.is_waiting:
        yield f"what workers without task events do: {names(silent)}"


def _unknown_consumers(facts: Facts) -> Iterator[str]:
    if facts.location.place == "queue" and facts.has_consumers is None:
        yield "whether a worker consumes the queue: not all workers replied to inspection"


_LIMITS = (_look, _history, _missed, _subscription, _clock, _worker_events, _unknown_consumers)
