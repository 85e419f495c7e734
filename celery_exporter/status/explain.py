"""The table of diagnoses: why a task is where it is. The first row that applies is the answer. Pure.

A sentence says no more than its condition. What it leaves open is in the row, too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from msgspec import Struct

from celery_exporter.core.reconcile import EXPIRED, MESSAGE_GONE, NOT_RUNNING
from celery_exporter.core.task_info import LOST
from celery_exporter.quoting import printable
from celery_exporter.status.evidence import ago, at, busy, evidence, limits
from celery_exporter.status.explanation import RECEIVED, REVOKED, STARTED, UNSEEN, Explanation, Facts
from celery_exporter.status.finding import count, duration, names

#: Why a task may be unknown, for people.
NEVER_SEEN = (
    "it has not been sent, or its id is another one",
    "it was sent before the exporter listened, or while it did not",
    "its events are off: workers need -E, and clients task_send_sent_event",
    "--task-include, --task-exclude or --histogram-sample-rate leave it out",
    "it ended so long ago that it was removed: --history-memory, --history-retention, --history-max-tasks",
)
#: What the diagnoses leave open.
SENT_AGAIN = "whether the broker delivered it again, or a client sent this id again"
TIMEOUT = (
    "when that is: the visibility timeout of the workers is 1 hour, unless their transport options change it"
)
WHO_HOLDS = "which worker holds the message: Redis does not say"
IS_ALIVE = "whether that worker is alive: of a dead one, the message returns after the visibility timeout"
IS_UP = "whether the worker runs, and only its events do not arrive"
IS_KNOWN = (
    "whether the worker runs: its next event may be on its way, or it was removed "
    "(--purge-offline-worker-metrics)"
)
ACKNOWLEDGED = (
    "whether the message was acknowledged at the start, as by default; with acks_late another worker gets it"
)
STILL_RUNS = "whether only the connection was lost, and the worker still runs the task"
DELIVERED_AGAIN = (
    "whether another worker has it: RabbitMQ delivers it again at once, Redis after the visibility timeout"
)
NO_END = "whether the task was ignored, its event was lost, or its pool process died"
IS_IT_THERE = "whether its message is one of these"
NO_EVENTS = "whether a worker that sends no task events took it"
UNREAD = "whether a busy worker with the solo pool took the message and has not read it"
PURGED = "whether the queue was purged"
ELSEWHERE = "whether it was sent to a queue that was not looked at"


class Diagnosis(Struct, frozen=True):
    """A row: when it applies, what it says, and what it leaves open."""

    name: str
    applies: Callable[[Facts], bool]
    sentence: str  # a template of `str.format`; see `_values`
    unknown: tuple[str, ...] = ()


Condition = Callable[[Facts], bool]


def _always(_: Facts) -> bool:
    return True


def _in_queue(condition: Condition = _always) -> Condition:
    return lambda facts: facts.location.place == "queue" and condition(facts)


def _held(condition: Condition = _always) -> Condition:
    return lambda facts: facts.location.place == "unacknowledged" and condition(facts)


def _absent(condition: Condition = _always) -> Condition:
    return lambda facts: facts.location.place == "absent" and condition(facts)


def _in_state(state: str, condition: Condition = _always) -> Condition:
    return lambda facts: facts.state == state and condition(facts)


def _lost(reason: str) -> Condition:
    return _in_state(LOST, lambda facts: facts.task is not None and facts.task.reason == reason)


def _sent(condition: Condition = _always) -> Condition:
    """Return the condition for a task that no worker has, by its events."""
    return lambda facts: facts.task is not None and facts.is_waiting and condition(facts)


def _sent_to_messages(condition: Condition = _always) -> Condition:
    return _sent(lambda facts: facts.look is not None and bool(facts.look.length) and condition(facts))


_QUEUE = "queue {queue} at position {position} of {length}"
_HAD = "Worker {worker}, which {had} it {ago}, is down"
_RETURNS = "on RabbitMQ at once, on Redis after the visibility timeout"
_RESTARTED = (
    "Worker {worker} started it {ago} and reported no end, and the worker started or connected again "
    "{online}. An earlier process had the task, unless only the connection was lost"
)
_TAKEN = (
    "taken",
    "A worker took its message{taken}, and has not reported it.",
    (WHO_HOLDS, IS_ALIVE, NO_EVENTS),
)

DIAGNOSES = (
    # Its message is in a queue.
    Diagnosis(
        "finished-and-queued",
        _in_queue(lambda facts: facts.is_over),
        f"It ended with {{state}} {{ago}}, and a message with its id waits in {_QUEUE}.",
        (SENT_AGAIN,),
    ),
    Diagnosis(
        "started-and-queued",
        _in_queue(_in_state(STARTED)),
        f"Worker {{worker}} started it {{ago}}, and a message with its id waits in {_QUEUE}.",
        (SENT_AGAIN, "whether the worker still runs it"),
    ),
    Diagnosis(
        "received-and-queued",
        _in_queue(_in_state(RECEIVED)),
        f"Worker {{worker}} received it {{ago}}, and a message with its id waits in {_QUEUE}.",
        (SENT_AGAIN, "whether the worker still has it, and runs it as well"),
    ),
    Diagnosis(
        "expired-in-queue",
        _in_queue(lambda facts: facts.is_expired),
        f"It has expired, and its message waits in {_QUEUE}. The worker that takes it revokes it.",
    ),
    Diagnosis(
        "no-consumer",
        _in_queue(lambda facts: facts.has_consumers is False),
        f"It waits in {_QUEUE}, and no worker consumes this queue.",
    ),
    Diagnosis(
        "scheduled-in-queue",
        _in_queue(lambda facts: facts.is_scheduled),
        f"It is scheduled for {{eta}}. Until a worker takes it, it waits in {_QUEUE}.",
    ),
    Diagnosis(
        "workers-busy",
        _in_queue(lambda facts: facts.are_consumers_full),
        f"It waits in {_QUEUE}, and the workers of this queue are full: {{busy}} busy.",
    ),
    Diagnosis("waiting", _in_queue(), f"It waits in {_QUEUE}."),
    # It was open when the exporter removed it: its events are not the newest.
    Diagnosis(
        "forgotten",
        lambda facts: facts.is_forgotten,
        "The exporter stopped watching it: it had no event for --task-ttl, or there were more tasks than "
        "--max-tasks. Its last state was {state}, {ago}{by}.",
        ("what happened since then",),
    ),
    Diagnosis(
        "unseen",
        lambda facts: facts.is_unseen,
        "It was open when the exporter stopped: its last state was {state}, {ago}{by}. Nothing was seen of "
        "it since the exporter started {started}.{message}",
        ("whether it is over",),
    ),
    # A worker has it, by its events.
    Diagnosis(
        "returns",
        _held(lambda facts: facts.is_worker_down and facts.is_held_by_worker),
        f"{_HAD} and has not acknowledged it: another worker gets it after the visibility timeout.",
        (TIMEOUT, IS_UP),
    ),
    Diagnosis(_TAKEN[0], _held(lambda facts: facts.is_worker_down), *_TAKEN[1:]),
    Diagnosis(
        "worker-lost",
        _absent(lambda facts: facts.is_worker_down),
        f"{_HAD}, and the broker has no message of it for another worker.",
        ("whether it ended, and the event was lost", UNREAD, IS_UP),
    ),
    Diagnosis(
        "worker-down",
        lambda facts: facts.is_worker_down and facts.state == STARTED,
        f"{_HAD}, and no end of the task was reported.",
        (ACKNOWLEDGED, IS_UP),
    ),
    Diagnosis(
        "worker-down-before-start",
        lambda facts: facts.is_worker_down,
        f"{_HAD}, and no start of the task was reported.",
        (DELIVERED_AGAIN, IS_UP),
    ),
    Diagnosis(
        "worker-unknown",
        lambda facts: facts.is_worker_unknown,
        "Worker {worker}, which {had} it {ago}, is unknown to the exporter{unknown_since}.",
        (IS_KNOWN, "whether the task ended"),
    ),
    Diagnosis(_TAKEN[0], _held(lambda facts: facts.is_taken_again), *_TAKEN[1:]),
    Diagnosis(
        "restarted-and-gone",
        _absent(_in_state(STARTED, lambda facts: facts.is_worker_restarted)),
        f"{_RESTARTED}. The broker has no message of it for another worker.",
        ("whether it ended, and the event was lost", STILL_RUNS),
    ),
    Diagnosis(
        "restarted",
        _in_state(STARTED, lambda facts: facts.is_worker_restarted),
        f"{_RESTARTED}; with acks_late, its message returns to the queue: {_RETURNS}.",
        (ACKNOWLEDGED, STILL_RUNS),
    ),
    Diagnosis(
        "restarted-before-start",
        _in_state(RECEIVED, lambda facts: facts.is_worker_restarted and facts.location.place != "absent"),
        "Worker {worker} received it {ago}, and started or connected again {online}. Its message returns to "
        f"the queue: {_RETURNS}.",
        (TIMEOUT, "whether another worker has it", "whether it started, and the event was lost"),
    ),
    Diagnosis(
        "no-active-task",
        _in_state(STARTED, lambda facts: not facts.is_recent and facts.is_worker_idle),
        "Worker {worker} started it {ago} and reported no end, and now it reports no active task.",
        (NO_END,),
    ),
    Diagnosis(
        "running",
        _in_state(STARTED),
        "By its events, worker {worker} runs it: it reported the start {ago}, and no end.",
        ("how far the task is: Celery does not report progress",),
    ),
    Diagnosis(
        "received-and-gone",
        _absent(_in_state(RECEIVED, lambda facts: not facts.is_recent or facts.is_worker_restarted)),
        "Worker {worker} received it {ago} and reported no start, and the broker has no message of it.",
        ("whether a worker started it, and the event is on its way or was lost", PURGED),
    ),
    Diagnosis(
        "scheduled-at-worker",
        _in_state(RECEIVED, lambda facts: facts.is_scheduled),
        "It is scheduled for {eta}. Worker {worker} received it {ago}, and holds it until then.",
    ),
    Diagnosis(
        "reserved-by-full-worker",
        _in_state(RECEIVED, lambda facts: facts.is_worker_full),
        "Worker {worker} reserved it {ago} and is full: {worker_busy} busy.",
        ("when a slot becomes free",),
    ),
    Diagnosis(
        "reserved",
        _in_state(RECEIVED),
        "Worker {worker} reserved it {ago} and has not reported its start.",
        ("why: rate limits and the state of the pool are not in events",),
    ),
    # It is over, by its events.
    Diagnosis(
        "revoked",
        _in_state(REVOKED),
        "It was revoked {ago}{by}.",
        ("whether a command revoked it, or it had expired",),
    ),
    Diagnosis("finished", lambda facts: facts.is_over, "It ended with {state} {ago}{by}."),
    # Its events are not used before its task-sent has arrived, or is overdue.
    Diagnosis(
        "deferred",
        lambda facts: bool(facts.deferred),
        "Events of it have arrived: {deferred}. The exporter uses them after a task-sent event, for which it "
        "waits --reorder-window.",
        ("what these events say: ask again in some seconds",),
    ),
    # A worker has its message, and has not reported it.
    Diagnosis(
        "scheduled-unreported",
        _held(lambda facts: facts.is_scheduled),
        "It is scheduled for {eta}. A worker holds its message until then.",
        (WHO_HOLDS, IS_ALIVE),
    ),
    Diagnosis(_TAKEN[0], _held(), *_TAKEN[1:]),
    # It counts as over, without an event.
    Diagnosis(
        "message-gone",
        _lost(MESSAGE_GONE),
        "Its message is gone: {ago} its queue was empty, and by its events no worker that was up had it.",
        (PURGED, "whether the message expired", NO_EVENTS),
    ),
    Diagnosis(
        "expired",
        _lost(EXPIRED),
        "It expired while it waited, and no worker reported it then. RabbitMQ drops expired messages.",
    ),
    Diagnosis(
        "not-reported",
        _lost(NOT_RUNNING),
        "Its worker{named} no longer had it {ago}, and reported no end of it.",
        (NO_END,),
    ),
    Diagnosis(
        "over",
        _in_state(LOST),
        "It has counted as over for {seconds}: it expired, its message was gone, or its worker had lost it.",
        ("which of these: --no-history keeps no reasons",),
    ),
    # It was sent, and its message was not seen.
    Diagnosis(
        "just-sent",
        _sent(lambda facts: facts.is_recent),
        "Its newest event, {state}, is {seconds} old: too new to tell where it is.",
        ("whether other events are on their way",),
    ),
    Diagnosis(
        "perhaps-unread",
        _absent(lambda facts: facts.task is not None and bool(facts.silent)),
        "The broker has no message of it. Worker {silent} (solo pool), which consumes its queue, is busy: it "
        "may have taken the message, and reads it after its current task.",
        (PURGED, NO_EVENTS, ELSEWHERE),
    ),
    Diagnosis(
        "no-message",
        _absent(lambda facts: facts.task is not None),
        "The broker has no message of it, neither in a queue ({queues} read) nor held by a worker.",
        (PURGED, NO_EVENTS, UNREAD, ELSEWHERE),
    ),
    Diagnosis(
        "queue-missing",
        _sent(lambda facts: facts.look is not None and facts.look.is_missing),
        "It was sent to queue {queue}, which does not exist on the broker now.",
        ("whether a worker took it before",),
    ),
    Diagnosis(
        "expired-unreported",
        _sent(lambda facts: facts.is_expired),
        "It has expired, and no worker has reported it since {state}.",
        ("whether its message is still on the broker",),
    ),
    Diagnosis(
        "scheduled",
        _sent(lambda facts: facts.is_scheduled),
        "It is scheduled for {eta}, and no worker has reported it since {state}.",
        ("whether its message waits in its queue, in delayed delivery, or at a worker",),
    ),
    Diagnosis(
        "not-in-queue",
        _sent(lambda facts: facts.look is not None and facts.look.length == 0),
        "Queue {queue}, to which it was sent, is empty, and no worker has reported it since {state}.",
        (PURGED, NO_EVENTS, UNREAD),
    ),
    Diagnosis(
        "queue-without-consumer",
        _sent_to_messages(lambda facts: facts.has_consumers is False),
        "It was sent to queue {queue}, which has {messages} and no consumer.",
        (IS_IT_THERE,),
    ),
    Diagnosis(
        "queue-with-busy-workers",
        _sent_to_messages(lambda facts: facts.are_consumers_full),
        "It was sent to queue {queue}, which has {messages}, and whose workers are full: {busy} busy.",
        (IS_IT_THERE,),
    ),
    Diagnosis(
        "queue-with-messages",
        _sent_to_messages(),
        "It was sent to queue {queue}, which has {messages}.",
        (IS_IT_THERE,),
    ),
    Diagnosis(
        "unreported",
        lambda facts: facts.task is not None,
        "Its newest event is {state}, {ago}; no worker has reported it since.",
        ("whether its message waits in a queue",),
    ),
    Diagnosis(UNSEEN, _always, "The exporter has no event and no message of this task.", NEVER_SEEN),
)


def explain(facts: Facts) -> Explanation:
    """Return why a task is where it is: the first of `DIAGNOSES` that applies."""
    diagnosis = next(diagnosis for diagnosis in DIAGNOSES if diagnosis.applies(facts))
    return Explanation(
        facts.uuid,
        facts.now,
        diagnosis.name,
        diagnosis.sentence.format(**_values(facts)),
        evidence(facts),
        [*limits(facts), *diagnosis.unknown],
        facts.location,
    )


def _values(facts: Facts) -> Mapping[str, str]:
    """Return what the sentences name, as far as it is known; a condition makes sure of what its row names."""
    task, location, look = facts.task, facts.location, facts.look
    since = task.since if task else facts.now
    return {
        "state": task.state if task else "",
        "ago": ago(since, facts.now),
        "seconds": duration(max(0.0, facts.now - since)),
        "worker": printable(task.worker or "") if task else "",
        "named": f" {printable(task.worker)}" if task and task.worker else "",
        "by": f" at worker {printable(task.worker)}" if task and task.worker else "",
        "had": "started" if facts.state == STARTED else "received",
        "online": ago(facts.worker.online, facts.now) if facts.worker and facts.worker.online else "",
        "unknown_since": _unknown_since(facts),
        "started": ago(facts.exporter.started, facts.now),
        "message": _MESSAGES.get(location.place, ""),
        "queue": printable(location.queue or facts.queue or ""),
        "position": f"{location.position or 0:,}",
        "length": f"{look.length or 0:,}" if look else "",
        "messages": count(look.length or 0, "message") if look else "",
        "queues": count(len(location.queues), "queue"),
        "eta": at(facts.eta) if facts.eta else "",
        "taken": f" {ago(location.since, facts.now)}" if location.since else "",
        "silent": names(facts.silent),
        "deferred": ", ".join(facts.deferred),
        "busy": busy(facts.consumers or ()),
        "worker_busy": busy([facts.worker] if facts.worker else ()),
    }


#: What a look at the broker showed of a task, by `MessageLocation.place`.
_MESSAGES = {
    "absent": " The broker has no message of it.",
    "unacknowledged": " A worker holds its message.",
}


def _unknown_since(facts: Facts) -> str:
    """Return since when the worker is unknown; it was known if the task has an event since then."""
    if not facts.is_before_start:
        return " now"
    return f" since its start {ago(facts.exporter.started, facts.now)}"
