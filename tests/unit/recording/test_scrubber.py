"""A scrubbed message says nothing about the application, and counts as before."""

from __future__ import annotations

import itertools
import json

import pytest

from celery_exporter.broker.codecs import JSON
from celery_exporter.broker.message import Message
from celery_exporter.core.events import MAX_LOOSE_BYTES
from celery_exporter.core.task_exceptions import RETRIES_EXCEEDED
from celery_exporter.recording.scrubber import Scrubber

ID = "6f0c9a52-9a4c-4d7b-8f43-0d5ab1a6a1c7"


def test_what_is_scrubbed_says_nothing_of_the_application():
    event = {
        "type": "task-failed",
        "uuid": ID,
        "timestamp": 1.75e9,
        "hostname": "payments@db-7.secret.example",
        "name": "shop.charge",
        "queue": "gold-customers",
        "args": "['4111 1111 1111 1111']",
        "kwargs": "{'who': 'alice'}",
        "result": "alice owes",
        "exception": "CardError('alice declined')",
        "traceback": "File secret.py",
        "retries": 1,
    }
    scrubber = Scrubber({JSON})
    bodies = [
        scrubber.scrub(Message(json.dumps(fields).encode(), JSON)).body for fields in (event, [event, event])
    ]
    first, second, third = itertools.chain.from_iterable(map(json.loads, bodies))
    assert first == second == third
    assert first == {
        "type": "task-failed",
        "uuid": ID,
        "timestamp": 1.75e9,
        "hostname": "node-1@host-1",
        "name": "task-1",
        "queue": "queue-1",
        "exception": "CardError()",
        "retries": 1,
    }


TRACEBACK = """Traceback (most recent call last):
  File "secret.py", line 1, in secret
    raise WorkerLostError("secret")
billiard.exceptions.WorkerLostError: secret
"""


@pytest.mark.parametrize(
    ("exception", "traceback", "shown"),
    [
        ("ExceptionWithTraceback()", TRACEBACK, "WorkerLostError()"),
        ("NotRegistered('shop.secret')", None, "NotRegistered('task-1')"),
        ("KeyError('secret')", None, "KeyError()"),
    ],
)
def test_of_an_exception_its_class_stays(exception, traceback, shown):
    event = {"type": "task-failed", "uuid": "u1", "timestamp": 1.0, "hostname": "w@h", "exception": exception}
    body = json.dumps(event | ({"traceback": traceback} if traceback else {})).encode()
    (scrubbed,) = json.loads(Scrubber({JSON}).scrub(Message(body, JSON)).body)
    assert scrubbed["exception"] == shown
    assert "secret" not in json.dumps(scrubbed)


def test_of_a_traceback_only_exceeded_retries_stay():
    frame = '  File "/secret/celery/app/task.py", line 9, in retry\n    raise_with_context(exc)\n'
    event = {"type": "task-failed", "timestamp": 1.5, "hostname": "w@h", "uuid": "u"}
    for text, left in ((frame, RETRIES_EXCEEDED), ("secret", None)):
        body = json.dumps(event | {"exception": "E()", "traceback": text}).encode()
        scrubbed = Scrubber({JSON}).scrub(Message(body, JSON, "utf-8"))
        (shown,) = json.loads(scrubbed.body)
        assert shown.get("traceback") == left


def test_ids_and_types_that_an_application_chose_are_replaced_each_by_the_same_one():
    head = {"timestamp": 1.75e9, "hostname": "w@h"}
    paid = {
        "type": "invoice-paid",
        "eta": "invoice",
        "sw_sys": "invoice",
        "sw_ident": "invoice",
        "sw_ver": "invoice",
    }
    events = [
        {**head, "type": "task-started", "uuid": "invoice-alice"},
        {**head, **paid},
        {**head, "type": "task-succeeded", "uuid": "invoice-alice", "runtime": 1.0},
        {**head, "type": "task-started", "uuid": "invoice-bob"},
    ]
    payload = Message(json.dumps(events).encode(), JSON)
    first, other = (json.loads(Scrubber({JSON}).scrub(payload).body) for _ in range(2))
    started, own, ended, another = first
    assert "invoice" not in json.dumps(first)
    assert own == {"type": "type-1", "timestamp": 1.75e9, "hostname": "node-1@host-1"}
    assert started["uuid"] == ended["uuid"] != another["uuid"]
    assert started["uuid"] != other[0]["uuid"], "another recording has others"


@pytest.mark.parametrize(
    ("id_", "stays"),
    [
        (ID, True),
        ("4afe3c5e-c6b1-11f0-8de9-0242ac120002", False),  # uuid1: when, and on which machine
        ("e6a3b385-477f-5a5b-9b7b-1f3c0bbd1c3a", False),  # uuid5: of a name
        ("00000000-0000-0000-0000-411111111111", False),
        (ID.upper(), False),
    ],
)
def test_an_id_that_may_say_something_is_replaced(id_, stays):
    event = {"type": "task-started", "timestamp": 1.75e9, "hostname": "w@h", "uuid": id_}
    (scrubbed,) = json.loads(Scrubber({JSON}).scrub(Message(json.dumps(event).encode(), JSON)).body)
    assert (scrubbed["uuid"] == id_) is stays


@pytest.mark.parametrize(
    ("eta", "stays"),
    [("2026-11-22T10:00:00+00:00", True), ("2026-11-22T10:00:00.123456", True), ("alice", False)],
)
def test_an_eta_stays_that_is_a_time(eta, stays):
    head = {"type": "task-received", "timestamp": 1.75e9, "hostname": "w@h", "uuid": ID, "eta": eta}
    (scrubbed,) = json.loads(Scrubber({JSON}).scrub(Message(json.dumps(head).encode(), JSON)).body)
    assert scrubbed.get("eta") == (eta if stays else None)


def test_what_a_worker_runs_on_stays():
    about = {"sw_ident": "py-celery", "sw_ver": "5.6.0", "sw_sys": "Linux"}
    beat = {"type": "worker-heartbeat", "timestamp": 1.75e9, "hostname": "w@h", **about}
    (scrubbed,) = json.loads(Scrubber({JSON}).scrub(Message(json.dumps(beat).encode(), JSON)).body)
    assert scrubbed.items() >= about.items()


@pytest.mark.parametrize("field", ["sw_ident", "sw_ver", "sw_sys"])
def test_what_an_application_says_of_its_software_is_left_out(field):
    beat = {"type": "worker-heartbeat", "timestamp": 1.75e9, "hostname": "w@h", field: "secret 1.0"}
    (scrubbed,) = json.loads(Scrubber({JSON}).scrub(Message(json.dumps(beat).encode(), JSON)).body)
    assert field not in scrubbed


def test_of_measurements_only_the_count_and_the_sign_stay():
    head = {"timestamp": 1.75e9, "hostname": "w@h", "uuid": ID, "tags": {"customer": "alice"}}
    fields = {"turnover": 5e6, "profit": -3, "paid": True, "iban": "DE02"}
    messages = [
        {**head, "type": kind, "fields": fields} for kind in ("task-measured", "task-started", "order")
    ]
    measured, *others = json.loads(Scrubber({JSON}).scrub(Message(json.dumps(messages).encode(), JSON)).body)
    assert measured == {
        "type": "task-measured",
        "timestamp": 1.75e9,
        "hostname": "node-1@host-1",
        "uuid": ID,
        "fields": {"field-1": 1.0, "field-2": -1.0},
    }
    assert all({"tags", "fields"}.isdisjoint(other) for other in others)


def test_what_cannot_be_read_is_not_in_a_scrubbed_recording():
    scrubber = Scrubber({JSON})
    assert scrubber.scrub(Message(b"secret", JSON)) is None
    assert scrubber.scrub(Message(b"secret" * MAX_LOOSE_BYTES, JSON)) is None
    assert scrubber.scrub(Message(b"secret", "application/x-python-serialize")) is None


@pytest.mark.parametrize(
    ("route", "scrubbed"),
    [
        (("gold", "", "gold"), ("queue-1", "", "queue-1")),
        ((None, "shop", "pay.gold"), (None, "queue-1", "queue-2")),
        ((None, "celery_delayed_27", "0." * 28 + "gold"), (None, "celery_delayed_27", "0." * 28 + "queue-1")),
        ((None, "shop_celery_delayed_3", "gold"), (None, "celery_delayed_3", "queue-1")),
    ],
)
def test_what_is_scrubbed_says_where_a_message_went_by_the_names_of_queues(route, scrubbed):
    queue, exchange, key = route
    event = {"type": "task-sent", "uuid": ID, "timestamp": 1.75e9, "hostname": "c@h", "name": "pay"}
    body = json.dumps(event | {"queue": queue, "exchange": exchange, "routing_key": key, "expires": "gold"})
    (shown,) = json.loads(Scrubber({JSON}).scrub(Message(body.encode(), JSON)).body)
    assert (shown.get("queue"), shown["exchange"], shown["routing_key"]) == scrubbed
    assert "expires" not in shown, "it is no time"
