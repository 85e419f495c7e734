"""Recordings: what is read is what was written, up to the first damage."""

from __future__ import annotations

import gzip
import math
from pathlib import Path

import msgspec
import pytest

from celery_exporter.broker.codecs import JSON, MAX_BODY
from celery_exporter.broker.message import Message
from celery_exporter.recording.format import (
    FORMAT,
    NotARecordingError,
    Record,
    RecordingReader,
    RecordingWriter,
    paced,
)

RECORDS = [
    Record(0.5, Message(b'{"type":"task-sent"}', JSON, "utf-8")),
    Record(
        1.25, Message(bytes(range(256)), "application/x-python-serialize", "binary", "application/x-gzip")
    ),
    Record(60.0, Message(b"", None, None)),
]


@pytest.fixture
def recording(tmp_path):
    path = tmp_path / "events"
    writer = RecordingWriter(path)
    for record in RECORDS:
        writer.write(record)
    writer.close()
    return path


def test_what_is_read_is_what_was_written(recording):
    reader = RecordingReader(recording)
    assert list(reader) == RECORDS
    assert (reader.damage, reader.messages) == (None, 3)


def test_it_is_its_owners_alone(recording):
    assert recording.stat().st_mode & 0o777 == 0o600


def test_a_file_that_is_there_is_not_written_over(recording):
    with pytest.raises(FileExistsError):
        RecordingWriter(recording)


def test_what_a_sender_calls_its_content_is_kept_if_it_is_text(tmp_path):
    writer = RecordingWriter(tmp_path / "odd")
    writer.write(Record(0.0, Message(b"x", {"a": 1}, 7, None)))
    writer.write(Record(0.0, Message(b"x", "\ud800", "x" * 256, "a\nb")))
    writer.close()
    assert list(RecordingReader(tmp_path / "odd")) == [Record(0.0, Message(b"x"))] * 2


def test_what_no_exporter_would_read_is_not_in_the_file(tmp_path):
    """A reader would stop there."""
    writer = RecordingWriter(tmp_path / "large")
    for body in (b"a", bytes(MAX_BODY + 1), bytes(MAX_BODY), b"b"):
        writer.write(Record(0.0, Message(body)))
    writer.close()
    assert (writer.messages, writer.too_large) == (3, 1)
    assert [len(record.message.body) for record in RecordingReader(tmp_path / "large")] == [1, MAX_BODY, 1]


def test_the_first_name_of_a_file_is_not_in_it(tmp_path):
    RecordingWriter(tmp_path / "acme-production.gz").close()
    assert b"acme" not in (tmp_path / "acme-production.gz").read_bytes()


def read(path: Path) -> tuple[list[Record], str | None]:
    """Return what can be read, and why no more."""
    reader = RecordingReader(path)
    try:
        return list(reader), reader.damage
    except NotARecordingError as error:
        return [], str(error)


def test_a_file_may_end_at_every_byte(recording, tmp_path):
    """What came before is read, and the reader says where it broke."""
    whole, cut = recording.read_bytes(), tmp_path / "cut"
    for size in range(len(whole)):
        cut.write_bytes(whole[:size])
        records, why = read(cut)
        assert records == RECORDS[: len(records)]
        assert str(cut) in why
        assert not records or f"after message {len(records)}: " in why


def test_a_file_may_be_wrong_at_every_byte(recording, tmp_path):
    whole, wrong = recording.read_bytes(), tmp_path / "wrong"
    for at in range(len(whole)):
        wrong.write_bytes(whole[:at] + bytes([whole[at] ^ 0xFF]) + whole[at + 1 :])
        records, why = read(wrong)
        assert why or records == RECORDS, at


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
    assert why.lower() in reader.damage.lower()


NONE = {
    "empty": b"",
    "text": b"what",
    "another thing": gzip.compress(b"another thing\n"),
    "cut off": gzip.compress(FORMAT)[:9],
}


@pytest.mark.parametrize("content", NONE.values(), ids=NONE)
def test_a_file_of_another_format_is_an_error(tmp_path, content):
    path = tmp_path / "other"
    path.write_bytes(content)
    with pytest.raises(NotARecordingError, match="other"):
        list(RecordingReader(path))


def test_a_missing_file_is_an_error(tmp_path):
    with pytest.raises(NotARecordingError, match="nowhere"):
        list(RecordingReader(tmp_path / "nowhere"))


@pytest.mark.parametrize(
    ("speed", "due"), [(1.0, [0.0, 0.75, 59.5]), (2.0, [0.0, 0.375, 29.75]), (None, [0.0] * 3)]
)
def test_messages_come_at_their_times_or_faster(speed, due):
    assert [at for at, _ in paced(iter(RECORDS), speed)] == due
    assert list(paced(iter([]), speed)) == []
