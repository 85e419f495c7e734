"""The comparison itself: each diagnosis has a rule, and false answers are found."""

from __future__ import annotations

from typing import Any

import pytest
from harness.diagnoses import LAG_SECONDS, RECORD_SECONDS, RULES, Answer, contradictions
from harness.outcomes import Attempt, Entry, Outcome

from celery_exporter.core.message_location import MessageLocation
from celery_exporter.status.explain import DIAGNOSES
from celery_exporter.status.explanation import Explanation

#: When the question was asked, and answered.
ASKED, ANSWERED = 1_000.0, 1_001.0
EARLIER, LONG_AGO, LATER = ASKED - 1, ASKED - LAG_SECONDS - 1, ANSWERED + RECORD_SECONDS + 1

RAN = (("PENDING", LONG_AGO - 3), ("RECEIVED", LONG_AGO - 2), ("STARTED", LONG_AGO - 1))


def records(*states: tuple[str, float], worker: str = "w@h", retries: int = 0) -> list[Entry]:
    return [
        Entry(
            Attempt("u", retries),
            Outcome("t", "q", state, "" if state == "PENDING" else worker),
            0.0,
            stored=stored,
        )
        for state, stored in states
    ]


def answer(diagnosis: str, event: str = "", place: Any = "unknown", unknown: tuple[str, ...] = ()) -> Answer:
    """Return an answer; `event` is the state of the newest event, and a worker."""
    state, _, worker = event.partition(" ")
    by = f" by worker {worker}" if worker else ""
    evidence = [f"events: {state} at 2027-01-15 09:00:00 UTC{by}" if event else "events: none of this task"]
    location = MessageLocation(place)
    return Answer(ASKED, ANSWERED, Explanation("u", ASKED, diagnosis, "", evidence, list(unknown), location))


def test_each_diagnosis_has_a_rule():
    assert {*RULES} == {diagnosis.name for diagnosis in DIAGNOSES}


@pytest.mark.parametrize(
    ("given", "entries"),
    [
        (answer("running", "STARTED w@h"), records(*RAN)),
        (answer("running", "STARTED w@h"), records(*RAN, ("SUCCESS", EARLIER))),
        (answer("running", "STARTED w@h"), records(*RAN[:2], ("STARTED", ANSWERED + 1))),
        (answer("waiting", place="queue"), []),
        (answer("waiting", "PENDING", "queue"), records(("PENDING", EARLIER), ("RECEIVED", ANSWERED))),
        (answer("finished", "SUCCESS w@h"), records(*RAN, ("SUCCESS", EARLIER))),
        (answer("finished", "SUCCESS w@h"), records(*RAN, ("SUCCESS", EARLIER), ("PENDING", EARLIER))),
        (answer("revoked", "REVOKED w@h"), records(("PENDING", EARLIER), ("REVOKED", ANSWERED + 1))),
        (answer("reserved", "RECEIVED w@h"), records(*RAN) + records(("RECEIVED", EARLIER), retries=1)),
        (
            answer("started-and-queued", "STARTED w@h", "queue"),
            [*records(*RAN), *records(("RECEIVED", LATER))],
        ),
        (
            answer("worker-down", "STARTED w@h"),
            [*records(*RAN), *records(("RECEIVED", LATER), ("STARTED", LATER), worker="w2@h")],
        ),
        (
            answer("restarted", "STARTED w@h"),
            [*records(*RAN), *records(("RECEIVED", LATER), ("SUCCESS", LATER))],
        ),
        (answer("message-gone", "LOST"), records(*RAN[:1])),
        (answer("never-seen"), records(("PENDING", EARLIER))),
        (
            answer("running", "STARTED w@h", unknown=("what happened while the exporter did not run: x",)),
            records(*RAN, ("SUCCESS", LONG_AGO)),
        ),
    ],
)
def test_a_true_answer_has_no_contradiction(given: Answer, entries: list[Entry]):
    assert contradictions(given, entries) == []


@pytest.mark.parametrize(
    ("given", "entries", "line"),
    [
        (
            answer("running", "STARTED w@h"),
            records(*RAN, ("SUCCESS", LONG_AGO)),
            "running: it was ['SUCCESS']",
        ),
        (answer("running", "STARTED w@h"), records(*RAN[:2]), "running: it was ['RECEIVED']"),
        (answer("waiting", "PENDING"), records(*RAN), "waiting: it was ['STARTED']"),
        (
            answer("waiting", "PENDING", "queue"),
            records(("PENDING", LONG_AGO), ("RECEIVED", EARLIER)),
            "waiting: its message was seen in a queue, it was ['RECEIVED']",
        ),
        (answer("reserved", "RECEIVED other@h"), records(*RAN[:2]), "reserved: worker other@h never had it"),
        (
            answer("finished", "SUCCESS w@h"),
            records(*RAN, ("FAILURE", EARLIER)),
            "finished: the events say SUCCESS, it was ['FAILURE', 'STARTED']",
        ),
        (
            answer("finished", "SUCCESS w@h"),
            records(*RAN, ("SUCCESS", LATER)),
            "finished: it was ['STARTED']",
        ),
        (
            answer("finished", "RETRY w@h"),
            [*records(*RAN, ("FAILURE", EARLIER)), *records(("PENDING", LATER), retries=1)],
            "finished: PENDING 1 was recorded 6.00 s after the answer",
        ),
        (
            answer("message-gone", "LOST"),
            records(("PENDING", LONG_AGO), ("RECEIVED", LATER)),
            "message-gone: RECEIVED 0 w@h was recorded 6.00 s after the answer",
        ),
        (
            answer("no-message", "PENDING"),
            records(("PENDING", LONG_AGO), ("STARTED", LATER)),
            "no-message: STARTED 0 w@h was recorded",
        ),
        (
            answer("received-and-gone", "RECEIVED w@h"),
            [*records(*RAN[:2]), *records(("RECEIVED", LATER), worker="w2@h")],
            "received-and-gone: RECEIVED 0 w2@h was recorded",
        ),
        (
            answer("worker-down", "STARTED w@h"),
            records(*RAN, ("SUCCESS", LATER)),
            "worker-down: SUCCESS 0 w@h was recorded",
        ),
        (
            answer("not-reported", "LOST"),
            records(*RAN, ("SUCCESS", LONG_AGO)),
            "not-reported: it was ['SUCCESS']",
        ),
        (answer("never-seen"), records(("PENDING", LONG_AGO)), "never-seen: it was ['PENDING']"),
    ],
)
def test_a_false_answer_has_a_contradiction(given: Answer, entries: list[Entry], line: str):
    assert any(found.startswith(line) for found in contradictions(given, entries)), contradictions(
        given, entries
    )


def test_with_all_events_an_answer_does_not_lag_behind():
    given, entries = answer("running", "STARTED w@h"), records(*RAN, ("SUCCESS", EARLIER))
    assert contradictions(given, entries) == []
    assert contradictions(given, entries, 0.0)[0].startswith("running: it was ['SUCCESS']")


def test_what_has_no_event_may_never_have_been_seen():
    entries = records(("PENDING", LONG_AGO))
    assert contradictions(answer("never-seen"), entries, is_reported=lambda _: False) == []
