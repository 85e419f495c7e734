"""A state file is whole or refused, and one that is refused is never written over."""

from __future__ import annotations

import hashlib
import logging
import os
import tracemalloc
from pathlib import Path

import pytest
from msgspec import Struct

from celery_exporter.statefile import MAX_SIZE, MUCH, VERSION, StateFile, StateFileError


class Held(Struct):
    """Stands for a state."""

    number: int


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state"


def test_what_was_saved_is_loaded(path):
    StateFile(path, Held).save(Held(7))
    StateFile(path, Held).save(Held(8))
    file = StateFile(path, Held)
    assert file.load() == Held(8)
    assert file.errors == {"read": 0, "write": 0}
    assert list(path.parent.iterdir()) == [path]
    assert path.stat().st_mode & 0o777 == 0o600


def test_the_first_line_says_what_it_is(path):
    StateFile(path, Held).save(Held(7))
    assert path.read_bytes().startswith(b"celery-exporter state 1 ")


def test_what_takes_a_while_to_read_is_said(path, caplog):
    caplog.set_level(logging.INFO)
    file = StateFile(path, bytes)
    file.save(b"")
    assert file.load() == b""
    assert caplog.messages == []
    file.save(bytes(MUCH))
    assert file.load() == bytes(MUCH)
    assert caplog.messages == [f"reading 20 MB from {path}"]


def test_no_file_is_no_error(path):
    file = StateFile(path, Held)
    assert file.load() is None
    assert file.errors["read"] == 0


def sealed(body: bytes, version: int = VERSION) -> bytes:
    return b"celery-exporter state %d %s\n" % (version, hashlib.sha256(body).hexdigest().encode()) + body


GOOD = sealed(b"\x81\xa6number\x07")


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "no state file of celery-exporter"),
        (b"\x00\xff" * 100, "no state file of celery-exporter"),
        (b"celery-exporter state", "no state file of celery-exporter"),
        (b"[Unit]\nDescription=x\n", "no state file of celery-exporter"),
        (GOOD[:-1], "damaged"),
        (GOOD + b"x", "damaged"),
        (GOOD.replace(b"number", b"nummer"), "damaged"),
        (sealed(b"\x81\xa6number\x07", VERSION + 1), "version"),
        (sealed(b"\x81\xa6number\xa1x"), "does not hold a state"),
        (sealed(b"\xc1"), "does not hold a state"),
    ],
)
def test_a_file_that_cannot_be_read_is_said_counted_and_moved_aside(path, content, why, caplog):
    path.write_bytes(content)
    file = StateFile(path, Held)
    with caplog.at_level(logging.ERROR):
        assert file.load() is None
    (record,) = caplog.records
    assert why in record.message
    assert f"moved to {path}.unread-1" in record.message
    assert file.errors == {"read": 1, "write": 0}
    file.save(Held(1))
    assert StateFile(path, Held).load() == Held(1)
    assert Path(f"{path}.unread-1").read_bytes() == content


def test_what_nobody_can_use_is_said_counted_and_moved_aside(path, caplog):
    StateFile(path, Held).save(Held(7))
    file = StateFile(path, Held)
    file.load()
    file.refuse("it is of no use")
    assert f"it is of no use; sums begin at 0. It was moved to {path}.unread-1." in caplog.text
    assert file.errors == {"read": 1, "write": 0}
    assert not path.exists()


def test_of_a_large_foreign_file_no_more_than_its_beginning_is_read(path):
    with path.open("wb") as file:
        file.truncate(MAX_SIZE)
    tracemalloc.start()
    try:
        assert StateFile(path, Held).load() is None
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()


def test_what_a_process_left_that_was_killed_while_it_wrote_is_replaced(path):
    beside = path.with_name("state.new")
    for left in (b"", GOOD[:10], GOOD[:-1]):
        beside.write_bytes(left)
        StateFile(path, Held).save(Held(1))
        assert not beside.exists()


@pytest.mark.parametrize("make", [os.mkfifo, Path.mkdir, lambda beside: beside.write_bytes(b"precious")])
def test_what_somebody_else_put_where_the_new_one_is_written_stays(path, make):
    beside = path.with_name("state.new")
    make(beside)
    with pytest.raises(StateFileError, match=r"cannot write .*/state.new: "):
        StateFile(path, Held).save(Held(1))
    assert beside.exists()
    assert not path.exists()


def test_what_was_moved_aside_before_stays_there(path):
    for content in (b"first", b"second"):
        path.write_bytes(content)
        StateFile(path, Held).load()
    assert [Path(f"{path}.unread-{n}").read_bytes() for n in (1, 2)] == [b"first", b"second"]


def test_what_is_no_regular_file_is_left_alone(path):
    path.mkdir()
    file = StateFile(path, Held)
    assert file.load() is None
    with pytest.raises(StateFileError, match="no regular file"):
        file.save(Held(1))
    assert file.errors == {"read": 1, "write": 1}
    assert path.is_dir()


def refuse(*_: object) -> None:
    raise PermissionError(13, "Permission denied")


def test_a_file_that_cannot_be_moved_is_not_written_over(tmp_path, monkeypatch):
    path = tmp_path / "state"
    path.write_bytes(b"foreign")
    # Root may write into any folder, so the folder's mode would not stop the test.
    monkeypatch.setattr(Path, "rename", refuse)
    file = StateFile(path, Held)
    file.load()
    with pytest.raises(StateFileError, match="could not be read, nor moved"):
        file.save(Held(1))
    assert path.read_bytes() == b"foreign"


def test_a_folder_that_is_not_there_is_an_error_of_one_line(tmp_path):
    file = StateFile(tmp_path / "nowhere" / "state", Held)
    assert file.load() is None
    with pytest.raises(StateFileError, match=r"cannot write .*/nowhere/state: No such file or directory"):
        file.save(Held(1))
    assert file.errors == {"read": 0, "write": 1}


def test_what_cannot_be_encoded_is_an_error_of_one_line(path):
    file = StateFile(path, Held)
    with pytest.raises(StateFileError, match="cannot be written, please report it"):
        file.save(Held(2**70))
    assert file.errors == {"read": 0, "write": 1}


def test_a_save_that_breaks_off_leaves_the_file_of_before(path):
    file = StateFile(path, Held)
    file.save(Held(1))
    path.with_name("state.new").mkdir()  # where the new one is to be written first
    with pytest.raises(StateFileError):
        file.save(Held(2))
    assert StateFile(path, Held).load() == Held(1)


def test_a_link_stays_a_link(tmp_path):
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "state")
    StateFile(link, Held).save(Held(3))
    assert link.is_symlink()
    assert StateFile(tmp_path / "state", Held).load() == Held(3)
