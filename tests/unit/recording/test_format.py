"""Recordings: what is read is what was written, as far as the file goes; what is scrubbed says nothing."""

from __future__ import annotations

import gzip
import itertools
import json
import math
from pathlib import Path

import msgspec
import pytest

from celery_exporter.broker.codecs import JSON, MAX_BODY
from celery_exporter.broker.message import Message
from celery_exporter.core.events import MAX_LOOSE
from celery_exporter.recording.format import (
    FORMAT,
    NotATapeError,
    Record,
    RecordingReader,
    Scrubber,
    Writer,
    paced,
)

RECORDS = [
    Record(0.5, Message(b'{"type":"task-sent"}', JSON, "utf-8")),
    Record(
        1.25, Message(bytes(range(256)), "application/x-python-serialize", "binary", "application/x-gzip")
    ),
    Record(60.0, Message(b"", None, None)),
]


ID = "6f0c9a52-9a4c-4d7b-8f43-0d5ab1a6a1c7"


@pytest.fixture
def tape(tmp_path):
    path = tmp_path / "events"
    writer = Writer(path)
    for record in RECORDS:
        writer.write(record)
    writer.close()
    return path


def test_what_is_read_is_what_was_written(tape):
    reader = RecordingReader(tape)
    assert list(reader) == RECORDS
    assert (reader.broken, reader.messages) == (None, 3)


def test_it_is_its_owners_alone(tape):
    assert tape.stat().st_mode & 0o777 == 0o600


def test_a_file_that_is_there_is_not_written_over(tape):
    with pytest.raises(FileExistsError):
        Writer(tape)


def test_what_a_sender_calls_its_content_is_kept_if_it_is_text(tmp_path):
    writer = Writer(tmp_path / "odd")
    writer.write(Record(0.0, Message(b"x", {"a": 1}, 7, None)))
    writer.write(Record(0.0, Message(b"x", "\ud800", "x" * 256, "a\nb")))
    writer.close()
    assert list(RecordingReader(tmp_path / "odd")) == [Record(0.0, Message(b"x"))] * 2


def test_what_no_exporter_would_read_is_not_in_the_file(tmp_path):
    """It would be the end of it for who reads it."""
    writer = Writer(tmp_path / "large")
    for body in (b"a", bytes(MAX_BODY + 1), bytes(MAX_BODY), b"b"):
        writer.write(Record(0.0, Message(body)))
    writer.close()
    assert (writer.messages, writer.too_large) == (3, 1)
    assert [len(each.payload.body) for each in RecordingReader(tmp_path / "large")] == [1, MAX_BODY, 1]


def test_the_first_name_of_a_file_is_not_in_it(tmp_path):
    Writer(tmp_path / "acme-production.gz").close()
    assert b"acme" not in (tmp_path / "acme-production.gz").read_bytes()


def read(path: Path) -> tuple[list[Record], str | None]:
    """Return what can be read, and why no more."""
    reader = RecordingReader(path)
    try:
        return list(reader), reader.broken
    except NotATapeError as error:
        return [], str(error)


def test_a_file_may_end_at_every_byte(tape, tmp_path):
    """What came before is read, and the reader says where it broke."""
    whole, cut = tape.read_bytes(), tmp_path / "cut"
    for size in range(len(whole)):
        cut.write_bytes(whole[:size])
        found, why = read(cut)
        assert found == RECORDS[: len(found)]
        assert str(cut) in why
        assert not found or f"after message {len(found)}: " in why


def test_a_file_may_be_wrong_at_every_byte(tape, tmp_path):
    whole, wrong = tape.read_bytes(), tmp_path / "wrong"
    for at in range(len(whole)):
        wrong.write_bytes(whole[:at] + bytes([whole[at] ^ 0xFF]) + whole[at + 1 :])
        found, why = read(wrong)
        assert why or found == RECORDS, at


def framed(record: list) -> bytes:
    data = msgspec.msgpack.encode(record)
    return len(data).to_bytes(4, "big") + data


@pytest.mark.parametrize(
    ("inside", "why"),
    [
        (b"\xff\xff\xff\xff", "a record of 4294967295 bytes"),
        (b"\0\0", "it ends within a record"),
        (b"\0\0\0\x04abc", "it ends within a record"),
        (b"\0\0\0\x01\xc1", "invalid"),
        (b"\0\0\0\x01\x90", "Expected `array` of"),
        (framed([math.inf, None, None, None, b""]), "Expected `float` <"),
        (framed([math.nan, None, None, None, b""]), "Expected `float` >="),
    ],
    ids=["too long", "no length", "too short", "no msgpack", "too few", "never", "no time"],
)
def test_a_record_that_cannot_be_is_where_it_ends(tmp_path, inside, why):
    path = tmp_path / "odd"
    path.write_bytes(gzip.compress(FORMAT + inside))
    reader = RecordingReader(path)
    assert list(reader) == []
    assert why.lower() in reader.broken.lower()


NONE = {
    "empty": b"",
    "text": b"what",
    "another thing": gzip.compress(b"another thing\n"),
    "cut off": gzip.compress(FORMAT)[:9],
}


@pytest.mark.parametrize("content", NONE.values(), ids=NONE)
def test_what_is_no_recording_is_said_to_be_none(tmp_path, content):
    path = tmp_path / "other"
    path.write_bytes(content)
    with pytest.raises(NotATapeError, match="other"):
        list(RecordingReader(path))


def test_a_file_that_is_not_there_is_said_so(tmp_path):
    with pytest.raises(NotATapeError, match="nowhere"):
        list(RecordingReader(tmp_path / "nowhere"))


@pytest.mark.parametrize(
    ("speed", "due"), [(1.0, [0.0, 0.75, 59.5]), (2.0, [0.0, 0.375, 29.75]), (None, [0.0] * 3)]
)
def test_messages_come_at_their_times_or_faster(speed, due):
    assert [at for at, _ in paced(iter(RECORDS), speed)] == due
    assert list(paced(iter([]), speed)) == []


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
        scrubber.scrub(Message(json.dumps(each).encode(), JSON)).body for each in (event, [event, event])
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


def test_what_cannot_be_read_is_not_in_a_scrubbed_recording():
    scrubber = Scrubber({JSON})
    assert scrubber.scrub(Message(b"secret", JSON)) is None
    assert scrubber.scrub(Message(b"secret" * MAX_LOOSE, JSON)) is None
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
