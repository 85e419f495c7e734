"""The table of diagnoses: each row applies to the situation that it names, and no sentence has a gap."""

from __future__ import annotations

import re
import string
from itertools import product

import pytest
from harness.diagnoses import RULES
from msgspec.structs import replace

from celery_exporter.core.message_location import MessageLocation, QueueLook, UnacknowledgedLook
from celery_exporter.core.snapshot import ExporterState, WorkerView
from celery_exporter.core.task_info import OPEN_STATE_NAMES, STATE_NAMES, AttemptInfo, TaskInfo
from celery_exporter.status.explain import DIAGNOSES, NEVER_SEEN, explain
from celery_exporter.status.explanation import Facts
from unit.core.cluster_driver import ClusterDriver

NOW = 1_800_000_000.0
EXPORTER: ExporterState = replace(ClusterDriver().shown().exporter, started=NOW - 86_400, listening=86_000.0)
#: It has not listened for long enough that each worker was seen.
YOUNG = replace(EXPORTER, started=NOW - 3, listening=2.0)


def task(state: str = "PENDING", age: float = 600, **fields) -> TaskInfo:
    """Return a task that entered its state so many seconds ago."""
    attempt = {"eta": fields.pop("eta", None), "received": fields.pop("received", None)}
    worker = None if state in {"PENDING", "RETRY"} else "w@h"
    attempts = [AttemptInfo(state, 0, **attempt)]
    defaults = {"worker": worker, "attempts": attempts}
    return TaskInfo("u", "t", "q", state, NOW - age, **{**defaults, **fields})


def worker(name: str = "w@h", active: int | None = 1, pool_size: int | None = 2, **fields) -> WorkerView:
    view = WorkerView(
        name, True, active, 0, 0, 0, None, NOW, 0.0, True, "", "", "", "prefork", pool_size, None, None
    )
    return replace(view, **fields)


DOWN = worker(up=False, active=None, pool_size=None, down_for=130.0)
FULL = worker(active=2)
#: It started or connected again after it reported the task.
AGAIN = worker(online=NOW - 300)
SILENT = worker("solo@h", pool="solo", heartbeat=NOW - 10)


def queued(position: int = 3, **fields) -> MessageLocation:
    looks = [QueueLook("q", 7, examined=7), QueueLook("other", 0)]
    return MessageLocation(
        "queue", "q", position, queues=looks, unacknowledged=UnacknowledgedLook(1, 1), **fields
    )


def held(since: float | None = NOW - 600, **fields) -> MessageLocation:
    return MessageLocation("unacknowledged", since=since, queues=[QueueLook("q", 0)], **fields)


ABSENT = MessageLocation("absent", queues=[QueueLook("q", 0)], unacknowledged=UnacknowledgedLook(0))


def rabbit(length: int | None = 5, consumers: int | None = 1, **fields) -> MessageLocation:
    looks = [QueueLook("q", length, consumers, is_missing=length is None)]
    return MessageLocation("unknown", queues=looks, reason="RabbitMQ does not show it", **fields)


def facts(task: TaskInfo | None, location: MessageLocation, **fields) -> Facts:
    exporter = fields.pop("exporter", EXPORTER)
    return Facts("u", NOW, exporter, location, task, **{"queue": "q", **fields})


LATER = NOW + 3_600
UNSEEN = task("STARTED", unseen_since=NOW - 86_400)
#: Name of a diagnosis, what is known, and what the sentence says.
CASES = [
    (
        "finished-and-queued",
        facts(task("SUCCESS"), queued()),
        "ended with SUCCESS 10 minutes ago, and a message",
    ),
    (
        "started-and-queued",
        facts(task("STARTED"), queued(), worker=worker()),
        "Worker w@h started it 10 minutes",
    ),
    ("received-and-queued", facts(task("RECEIVED"), queued(), worker=worker()), "Worker w@h received it"),
    ("expired-in-queue", facts(task(), queued(expires=NOW - 1)), "It has expired, and its message waits"),
    ("no-consumer", facts(task(), queued(), consumers=()), "no worker consumes this queue"),
    ("scheduled-in-queue", facts(task(), queued(eta=LATER)), "It is scheduled for 2027-01-15 09:00:00 UTC."),
    (
        "workers-busy",
        facts(task(), queued(), consumers=[FULL, FULL]),
        "the workers of this queue are full: 4 of 4 slots busy.",
    ),
    (
        "waiting",
        facts(task(), queued(), consumers=[FULL, worker()]),
        "It waits in queue q at position 3 of 7.",
    ),
    ("waiting", facts(task(), queued()), "It waits in queue q at position 3 of 7."),
    ("waiting", facts(None, queued()), "It waits in queue q at position 3 of 7."),
    ("waiting", facts(task("RETRY"), queued()), "It waits in queue q at position 3 of 7."),
    ("waiting", facts(task("LOST", reason="message_gone"), queued()), "It waits in queue q"),
    (
        "returns",
        facts(task("STARTED", received=NOW - 601), held(), worker=DOWN),
        "Worker w@h, which started it 10 minutes ago, is down and has not acknowledged it",
    ),
    (
        "returns",
        facts(task("RECEIVED", received=NOW - 600), held(), worker=DOWN),
        "which received it 10 minutes ago",
    ),
    ("taken", facts(task("RECEIVED", received=NOW - 900), held(), worker=DOWN), "A worker took its message"),
    ("worker-lost", facts(task("STARTED"), ABSENT, worker=DOWN), "the broker has no message of it"),
    ("worker-down", facts(task("STARTED"), rabbit(), worker=DOWN), "no end of the task was reported"),
    ("worker-down-before-start", facts(task("RECEIVED"), rabbit(), worker=DOWN), "no start of the task"),
    (
        "worker-unknown",
        facts(task("STARTED"), ABSENT, exporter=YOUNG),
        "Worker w@h, which started it 10 minutes ago, is unknown to the exporter since its start 3 s ago.",
    ),
    (
        "worker-unknown",
        facts(task("RECEIVED", received=NOW - 600), held()),
        "Worker w@h, which received it 10 minutes ago, is unknown to the exporter now.",
    ),
    (
        "worker-unknown",
        facts(task("STARTED"), rabbit(), worker=DOWN, exporter=YOUNG),
        "since its start 3 s ago",
    ),
    (
        "worker-down",
        facts(task("STARTED"), rabbit(), worker=replace(DOWN, left=True), exporter=YOUNG),
        "is down, and no end",
    ),
    (
        "restarted-before-start",
        facts(task("RECEIVED", received=NOW - 600), held(), worker=AGAIN),
        "again 5 minutes ago. Its message returns to the queue: on RabbitMQ at once, on Redis after the",
    ),
    ("restarted-before-start", facts(task("RECEIVED"), rabbit(), worker=AGAIN), "connected again"),
    ("restarted-before-start", facts(task("RECEIVED", eta=LATER), held(), worker=AGAIN), "connected again"),
    ("taken", facts(task("RECEIVED"), held(NOW - 60), worker=AGAIN), "A worker took its message 60 s ago"),
    ("taken", facts(task("STARTED"), held(NOW - 60), worker=AGAIN), "A worker took its message 60 s ago"),
    ("received-and-gone", facts(task("RECEIVED", 1), ABSENT, worker=worker(online=NOW)), "no message of it"),
    (
        "restarted-and-gone",
        facts(task("STARTED"), ABSENT, worker=replace(AGAIN, active=0)),
        "unless only the connection was lost. The broker has no message of it for another worker.",
    ),
    (
        "restarted",
        facts(task("STARTED"), rabbit(), worker=replace(AGAIN, active=0)),
        "An earlier process had the task, unless only the connection was lost; with acks_late, its message",
    ),
    ("restarted", facts(task("STARTED"), rabbit(), worker=AGAIN), "and reported no end"),
    ("restarted", facts(task("STARTED"), held(), worker=AGAIN), "and reported no end"),
    ("running", facts(task("STARTED"), rabbit(), worker=replace(AGAIN, shared=True)), "runs it"),
    ("running", facts(task("STARTED"), rabbit(), worker=replace(AGAIN, online=NOW - 700)), "runs it"),
    (
        "running",
        facts(
            task("STARTED", attempts=[AttemptInfo("STARTED", 0, started=NOW - 200)]), rabbit(), worker=AGAIN
        ),
        "runs it",
    ),
    ("no-active-task", facts(task("STARTED"), ABSENT, worker=worker(active=0)), "it reports no active task"),
    ("running", facts(task("STARTED"), ABSENT, worker=worker()), "By its events, worker w@h runs it"),
    ("running", facts(task("STARTED", 1), ABSENT, worker=worker(active=0)), "the start 1 s ago"),
    ("running", facts(task("STARTED"), ABSENT, worker=worker(active=0, heartbeat=NOW - 610)), "runs it"),
    ("running", facts(task("STARTED"), held(), worker=worker()), "By its events, worker w@h runs it"),
    (
        "received-and-gone",
        facts(task("RECEIVED"), ABSENT, worker=worker()),
        "the broker has no message of it",
    ),
    (
        "scheduled-at-worker",
        facts(task("RECEIVED", eta=LATER), rabbit(), worker=FULL),
        "Worker w@h received it 10 minutes ago, and holds it until then.",
    ),
    (
        "reserved-by-full-worker",
        facts(task("RECEIVED"), held(), worker=FULL),
        "is full: 2 of 2 slots busy.",
    ),
    ("reserved", facts(task("RECEIVED"), held(), worker=worker()), "has not reported its start"),
    ("reserved", facts(task("RECEIVED", 1), ABSENT, worker=worker()), "reserved it 1 s ago"),
    ("revoked", facts(task("REVOKED"), ABSENT), "It was revoked 10 minutes ago at worker w@h."),
    ("finished", facts(task("FAILURE"), rabbit()), "It ended with FAILURE 10 minutes ago at worker w@h."),
    ("finished", facts(task("SUCCESS"), held()), "It ended with SUCCESS"),
    ("deferred", facts(None, held(), deferred=["task-received"]), "have arrived: task-received."),
    ("deferred", facts(task("RETRY"), ABSENT, deferred=["task-started"]), "have arrived: task-started."),
    ("waiting", facts(None, queued(), deferred=["task-received"]), "It waits in queue q"),
    ("scheduled-unreported", facts(None, held(eta=LATER)), "A worker holds its message until then."),
    ("taken", facts(task(), held(NOW - 60)), "A worker took its message 60 s ago, and has not reported it."),
    ("taken", facts(None, held(None)), "A worker took its message, and has not reported it."),
    (
        "message-gone",
        facts(task("LOST", reason="message_gone"), ABSENT),
        "10 minutes ago its queue was empty",
    ),
    ("expired", facts(task("LOST", reason="expired"), rabbit()), "It expired while it waited"),
    (
        "not-reported",
        facts(task("LOST", reason="not_running"), ABSENT),
        "Its worker w@h no longer had it 10 minutes ago, and",
    ),
    (
        "forgotten",
        facts(task("STARTED", reason="forgotten"), ABSENT, worker=worker()),
        "there were more tasks than --max-tasks. Its last state was STARTED, 10 minutes ago at worker w@h.",
    ),
    ("forgotten", facts(task("STARTED", reason="forgotten"), ABSENT, worker=DOWN), "stopped watching it"),
    ("forgotten", facts(task(reason="forgotten"), rabbit()), "Its last state was PENDING, 10 minutes ago."),
    ("forgotten", facts(task("RETRY", 1, reason="forgotten"), held()), "Its last state was RETRY, 1 s ago"),
    ("waiting", facts(task(reason="forgotten"), queued()), "It waits in queue q at position 3 of 7."),
    (
        "unseen",
        facts(UNSEEN, ABSENT, worker=worker()),
        "STARTED, 10 minutes ago at worker w@h. Nothing was seen of it since the exporter started 24 hours",
    ),
    ("unseen", facts(UNSEEN, ABSENT), "started 24 hours ago. The broker has no message of it."),
    ("unseen", facts(UNSEEN, held(), worker=DOWN), "started 24 hours ago. A worker holds its message."),
    (
        "unseen",
        facts(task("RETRY", 1, unseen_since=NOW - 60), rabbit()),
        "its last state was RETRY, 1 s ago.",
    ),
    ("waiting", facts(task(unseen_since=NOW - 60), queued()), "It waits in queue q at position 3 of 7."),
    ("over", facts(task("LOST", attempts=()), ABSENT), "It has counted as over for 10 minutes"),
    ("just-sent", facts(task(age=2), ABSENT), "Its newest event, PENDING, is 2 s old"),
    ("just-sent", facts(task(age=2), rabbit()), "Its newest event, PENDING, is 2 s old"),
    (
        "perhaps-unread",
        facts(task(), ABSENT, consumers=[SILENT, worker()]),
        "Worker solo@h (solo pool), which consumes its queue",
    ),
    ("no-message", facts(task(), ABSENT, consumers=[replace(SILENT, heartbeat=NOW)]), "neither in a queue"),
    ("no-message", facts(task(), ABSENT), "neither in a queue (1 queue read) nor held by a worker"),
    ("queue-missing", facts(task(), rabbit(None)), "queue q, which does not exist"),
    ("expired-unreported", facts(task(eta=LATER), rabbit(), expires=NOW - 1), "It has expired"),
    ("scheduled", facts(task(eta=LATER), rabbit(0)), "It is scheduled for 2027-01-15 09:00:00 UTC"),
    ("not-in-queue", facts(task(), rabbit(0)), "Queue q, to which it was sent, is empty"),
    ("queue-without-consumer", facts(task(), rabbit(5, 0)), "which has 5 messages and no consumer"),
    (
        "queue-with-busy-workers",
        facts(task(), rabbit(), consumers=[FULL]),
        "whose workers are full: 2 of 2 slots busy.",
    ),
    ("queue-with-messages", facts(task(), rabbit(1)), "queue q, which has 1 message."),
    (
        "unreported",
        facts(task(), MessageLocation("unknown", reason="x"), queue=None),
        "PENDING, 10 minutes ago",
    ),
    ("never-seen", facts(None, ABSENT), "The exporter has no event and no message of this task."),
    ("never-seen", facts(None, rabbit()), "The exporter has no event and no message of this task."),
]


@pytest.mark.parametrize(("name", "known", "says"), CASES)
def test_a_diagnosis_applies_to_its_situation(name, known, says):
    explanation = explain(known)
    assert explanation.diagnosis == name
    assert says in explanation.sentence
    assert explanation.evidence


def test_every_diagnosis_has_a_case():
    assert [
        diagnosis.name for diagnosis in DIAGNOSES if diagnosis.name not in {name for name, *_ in CASES}
    ] == []


def test_each_template_names_known_values_only():
    known = {"state", "ago", "seconds", "worker", "by", "had", "queue", "position", "length", "messages"}
    known |= {"queues", "eta", "taken", "busy", "worker_busy", "named", "silent", "unknown_since", "online"}
    known |= {"started", "message", "deferred"}
    for diagnosis in DIAGNOSES:
        assert {name for _, name, _, _ in string.Formatter().parse(diagnosis.sentence) if name} <= known


TASKS = [None, *(task(state, age) for state in STATE_NAMES for age in (1, 600))]
TASKS += [task("LOST", reason=reason) for reason in ("message_gone", "expired", "not_running")]
TASKS += [task(state, reason="forgotten") for state in OPEN_STATE_NAMES]
TASKS += [task(state, unseen_since=EXPORTER.started) for state in OPEN_STATE_NAMES]
TASKS += [task(state, eta=LATER) for state in ("PENDING", "RECEIVED", "RETRY")]
TASKS += [replace(task("STARTED"), attempts=()), replace(task("RECEIVED"), attempts=())]
LOCATIONS = [
    *(queued(), queued(eta=LATER), queued(expires=NOW - 1), held(), held(None), held(eta=LATER), ABSENT),
    *(rabbit(), rabbit(0), rabbit(None), rabbit(delayed=3), MessageLocation("unknown", reason="broker down")),
    MessageLocation("unknown", queues=[QueueLook("q", None)]),
]
WORKERS = [None, worker(), FULL, DOWN, worker(active=None, pool_size=None), worker(online=NOW)]
CONSUMERS = [None, (), (SILENT,), (FULL,), (worker(active=None),), (worker(events=False),)]


def test_no_sentence_has_a_gap():
    """Whatever is known: what a sentence names is there."""
    for task_, location, worker_, consumers in product(TASKS, LOCATIONS, WORKERS, CONSUMERS):
        known = facts(task_, location, worker=worker_, consumers=consumers)
        for queue in (None, "q"):
            explanation = explain(replace(known, queue=queue))
            lines = (explanation.sentence, *explanation.evidence, *explanation.unknown)
            gaps = [line for line in lines if re.search(r"  | ,| \.|^ | $|None|\(\)| 0 slots", line)]
            assert not gaps, (gaps, known)


def test_a_diagnosis_on_a_place_needs_that_place():
    """No answer says that a message is in a queue, or with a worker, if the look did not see it there."""
    for task_, location, worker_ in product(TASKS, LOCATIONS, WORKERS):
        sentence = explain(facts(task_, location, worker=worker_)).sentence
        if location.place != "queue":
            assert not re.search(r"waits in queue|at position", sentence)
        if location.place != "unacknowledged":
            assert not re.search(r"[Aa] worker (took|holds) its message|not acknowledged", sentence)
        if location.place != "absent":
            assert not re.search(r"broker has no message of it", sentence)


def test_only_a_worker_that_is_known_and_down_is_called_down():
    for task_, location, exporter in product(TASKS, LOCATIONS, (EXPORTER, YOUNG)):
        explanation = explain(facts(task_, location, exporter=exporter))
        assert not re.search(r"is down", "\n".join([explanation.sentence, *explanation.evidence]))


def test_what_is_unknown_is_listed():
    known = facts(None, replace(rabbit(), reason="no permission"), consumers=(worker(events=False),))
    known = replace(known, history_problem="the disk is full")
    unknown = explain(replace(known, exporter=replace(EXPORTER, broker_up=False))).unknown
    assert unknown[:4] == [
        "where its message is: no permission",
        "what the history file has: the disk is full",
        "what happened since the exporter lost its event subscription",
        "what workers without task events do: w@h",
    ]
    assert tuple(unknown[4:]) == NEVER_SEEN


def test_what_happened_before_the_exporter_ran_is_unknown():
    line = "what happened while the exporter did not run: it started 5 minutes ago, after the newest event"
    late = replace(EXPORTER, started=NOW - 300)
    for state in OPEN_STATE_NAMES:
        known = facts(task(state), rabbit(), worker=worker(), exporter=late)
        assert line in explain(known).unknown
        assert line not in explain(replace(known, task=task(state, 200))).unknown
        ahead = task(state, -200, unseen_since=late.started)  # by the clock of its sender
        assert line in explain(replace(known, task=ahead)).unknown
    assert line not in explain(facts(task("SUCCESS"), rabbit(), exporter=late)).unknown
    assert line not in explain(facts(None, rabbit(), exporter=late)).unknown


def test_what_happened_without_an_event_subscription_is_unknown():
    """Also of a task that counts as over without an event: the event of its end may have been lost."""
    line = (
        "what happened while the exporter had no event subscription: it was opened 5 minutes ago, after the "
        "newest event"
    )
    opened = replace(EXPORTER, subscribed=NOW - 300)
    attempt = AttemptInfo("LOST", 0, sent=NOW - 600)
    for waits in (task(), task("STARTED"), task("LOST", 10, attempts=[attempt], reason="message_gone")):
        assert line in explain(facts(waits, rabbit(), worker=worker(), exporter=opened)).unknown
    received = replace(attempt, received=NOW - 200)
    for waits in (task(age=200), task("LOST", 10, attempts=[received]), task("LOST", 10, attempts=())):
        assert line not in explain(facts(waits, rabbit(), exporter=opened)).unknown
    assert line not in explain(facts(task("SUCCESS"), rabbit(), exporter=opened)).unknown
    assert line not in explain(facts(task(), rabbit())).unknown
    started = replace(opened, started=NOW - 400)
    assert line not in explain(facts(task(), rabbit(), exporter=started)).unknown  # it did not even run


def test_a_clock_that_is_wrong_is_named_and_makes_no_event_new():
    known = facts(task("STARTED", -3_000), ABSENT, worker=worker(clock_skew=3_600.0))
    assert not known.is_recent
    assert not replace(known, worker=None).is_recent
    assert "the clock of the worker differs by +3600 s" in explain(known).unknown[0]


def test_a_clock_that_is_wrong_makes_no_event_old():
    """It received the task a second ago, and its start may be on its way."""
    known = facts(task("RECEIVED", 421), ABSENT, worker=worker(clock_skew=-420.0))
    assert explain(known).diagnosis == "reserved"
    line = "what happened while the exporter did not run: it started 60 s ago, after the newest event"
    assert line not in explain(replace(known, exporter=replace(EXPORTER, started=NOW - 60))).unknown


def test_names_from_the_wire_are_printable():
    hostile = "\x1b[31m{queue}\n"
    location = replace(queued(), queue=hostile, queues=[QueueLook(hostile, 7)])
    explanation = explain(facts(task("STARTED", worker=hostile), location, worker=None))
    lines = (explanation.sentence, *explanation.evidence, *explanation.unknown)
    assert all(line.isprintable() for line in lines)
    assert "?[31m{queue}?" in explanation.sentence


@pytest.mark.parametrize(
    ("fields", "line"),
    [
        ({"heartbeat": NOW - 88, "down_for": 29.0}, "worker w@h is down: it has sent no event for 88 s"),
        (
            {"heartbeat": NOW - 700, "down_for": 29.0},
            "worker w@h is down: it has sent no event for 10 minutes",
        ),
        ({"heartbeat": None, "down_for": 29.0}, "worker w@h is down: it has sent no event for 10 minutes"),
        ({"heartbeat": NOW - 88, "left": True}, "worker w@h is down: it went offline 88 s ago"),
        ({"heartbeat": None, "left": True}, "worker w@h is down: it went offline"),
        ({"heartbeat": NOW - 88, "clock_skew": 560.0}, "worker w@h is down: it has sent no event for 88 s"),
    ],
)
def test_the_silence_of_a_worker_counts_from_its_last_event(fields, line):
    """It is seen to be down later. Its event of the task may be newer than its last heartbeat."""
    assert line in explain(facts(task("STARTED"), ABSENT, worker=replace(DOWN, **fields))).evidence


def test_an_old_heartbeat_of_a_worker_that_is_up_is_named():
    for age, line in (
        (40, "worker w@h is up; 1 of 2 slots are busy; its last heartbeat came 40 s ago"),
        (4, "worker w@h is up; 1 of 2 slots are busy"),
    ):
        assert line in explain(facts(task("STARTED"), ABSENT, worker=worker(heartbeat=NOW - age))).evidence
    known = facts(task(), queued(), consumers=[worker("a@h", heartbeat=NOW - 50), worker("b@h")])
    assert "worker a@h: its last heartbeat came 50 s ago" in explain(known).evidence


def test_each_diagnosis_has_a_rule_that_accuracy_tests_judge_it_by():
    assert RULES.keys() == {diagnosis.name for diagnosis in DIAGNOSES}
