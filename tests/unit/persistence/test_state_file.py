"""A state file is whole or refused, and one that is refused is never written over."""

from __future__ import annotations

import logging
import os
import tracemalloc
from pathlib import Path

import pytest

from celery_exporter.persistence import state_file as statefile
from celery_exporter.persistence.state_file import (
    COMPACTION_BYTES,
    LARGE_FILE_BYTES,
    MAX_ASIDE_FILES,
    MAX_FILE_BYTES,
    VERSION,
    StateFile,
    StateFileError,
    UnavailableError,
    UnusablePathError,
)

HEAD = b"celery-exporter state %d\n" % VERSION


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state"


def written(path: Path, *records: bytes, later: tuple[bytes, ...] = ()) -> bytes:
    """Write a file, whose process then ends; return what is in it."""
    file = StateFile(path)
    file.load(lambda _: None)
    file.rewrite(records)
    for record in later:
        file.append(record)
    file.close()
    return path.read_bytes()


def loaded(path: Path) -> list[bytes]:
    found: list[bytes] = []
    file = StateFile(path)
    file.load(found.append)
    file.close()
    return found


def test_what_was_written_is_loaded_in_its_order(path):
    written(path, b"old")
    written(path, b"a", b"", b"b", later=(b"c", b"d" * 100_000))
    assert loaded(path) == [b"a", b"", b"b", b"c", b"d" * 100_000]
    assert list(path.parent.iterdir()) == [path]
    assert path.stat().st_mode & 0o777 == 0o600


def test_the_first_line_says_what_it_is(path):
    assert written(path, b"a").startswith(b"celery-exporter state 4\n")


def test_there_is_nothing_in_a_file_that_is_not_there(path):
    file = StateFile(path)
    assert not file.load(pytest.fail)
    assert file.errors == {"read": 0, "write": 0}


def test_wherever_it_was_killed_what_was_written_before_is_there(path):
    whole = written(path, b"first", later=(b"second", b"third"))
    ends = [len(HEAD) + 12 + 5, len(HEAD) + 2 * 12 + 11, len(whole)]
    for length in range(ends[0], len(whole) + 1):
        path.write_bytes(whole[:length])
        assert loaded(path) == [b"first", b"second", b"third"][: sum(length >= end for end in ends)]
        assert [*path.parent.iterdir()] == [path], "and nothing was moved aside"


def test_a_part_that_the_disk_had_not_written_when_the_power_failed_is_cut_off(path):
    whole = written(path, b"first", later=(b"second",))
    path.write_bytes(whole[:-4] + bytes(4))
    assert loaded(path) == [b"first"]
    path.write_bytes(whole + bytes(5_000))
    assert loaded(path) == [b"first", b"second"]


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"\x00" * 100, "its first line is incomplete"),
        (HEAD[:12], "its first line is incomplete"),
        (b"celery-exporter state 1 00\n", "it has version '1', this exporter reads version 4"),
        (b"celery-exporter state", "its first line is incomplete"),
        (HEAD + b"x" * 20, "damaged"),
        (HEAD + b"\x00" * 20, "ends within its first record"),
    ],
)
def test_a_file_that_cannot_be_read_is_said_counted_and_moved_aside(path, content, why, caplog):
    path.write_bytes(content)
    file = StateFile(path)
    with caplog.at_level(logging.ERROR):
        assert not file.load(lambda _: None)
    (record,) = caplog.records
    assert why in record.message
    assert f"moved to {path}.unread-1" in record.message
    assert file.errors == {"read": 1, "write": 0}
    file.rewrite([b"new"])
    file.close()
    assert loaded(path) == [b"new"]
    assert Path(f"{path}.unread-1").read_bytes() == content


@pytest.mark.parametrize("at", range(len(HEAD), len(HEAD) + 34))
def test_a_byte_that_changed_before_the_last_record_is_damage(path, at):
    content = bytearray(written(path, b"first", b"second", b"third"))
    content[at] ^= 0x40
    path.write_bytes(content)
    file = StateFile(path)
    assert not file.load(lambda _: None)
    assert file.errors["read"] == 1


@pytest.mark.parametrize("content", [b"\x00\xff" * 100, b"[Unit]\nDescription=x\n", b"celerity"])
def test_a_file_that_is_no_state_file_is_left_alone(path, content):
    path.write_bytes(content)
    file = StateFile(path)
    with pytest.raises(UnusablePathError, match="is not a state file of celery-exporter"):
        file.load(pytest.fail)
    assert path.read_bytes() == content
    assert list(path.parent.iterdir()) == [path]


def test_what_nobody_can_use_is_said_counted_and_moved_aside(path, caplog):
    written(path, b"whole", b"but wrong")

    def take_snapshot(record):
        if record == b"but wrong":
            raise ValueError("it does not fit")

    file = StateFile(path)
    assert not file.load(take_snapshot)
    assert "it holds a state that cannot be used (ValueError('it does not fit'))" in caplog.text
    assert f"The file was moved to {path}.unread-1." in caplog.text
    assert file.errors == {"read": 1, "write": 0}
    assert not path.exists()


def test_a_second_process_is_refused_while_the_first_one_has_it(path):
    """However often it is written anew meanwhile, by which another file comes to be there."""
    first = StateFile(path)
    first.load(pytest.fail)
    for _ in range(2):
        with pytest.raises(UnavailableError, match=f"{path} is in use by another exporter"):
            StateFile(path).load(pytest.fail)
        first.rewrite([b"first"])
        first.append(b"more")
    first.close()
    assert loaded(path) == [b"first", b"more"]


def test_two_that_begin_where_there_is_no_file_do_not_both_have_it(path):
    first, second = StateFile(path), StateFile(path)
    first.rewrite([b"first"])
    with pytest.raises(UnavailableError):
        second.rewrite([b"second"])
    first.append(b"more")
    first.close()
    assert loaded(path) == [b"first", b"more"]


def test_what_could_not_be_added_is_not_added_to(path):
    """A part of a record in the middle would be damage."""
    file = StateFile(path)
    file.rewrite([b"first"])
    full = os.open("/dev/full", os.O_WRONLY)
    kept, file._descriptor = file._descriptor, full
    with pytest.raises(StateFileError, match=r"cannot write .*/state: No space left on device"):
        file.append(b"second")
    os.close(full)
    file._descriptor = kept
    assert not file.is_intact
    assert file.errors == {"read": 0, "write": 1}
    file.rewrite([b"third"])
    assert file.is_intact
    file.close()
    assert loaded(path) == [b"third"]


def test_it_is_long_when_it_is_twice_as_long_as_it_was_or_much_was_added(path):
    file = StateFile(path)
    file.rewrite([b"first"])
    file.append(bytes(COMPACTION_BYTES // 2))
    assert not file.needs_compaction
    file.append(bytes(COMPACTION_BYTES // 2))
    assert file.needs_compaction
    file.rewrite([bytes(3 * COMPACTION_BYTES)])
    file.append(bytes(2 * COMPACTION_BYTES))
    assert not file.needs_compaction
    file.close()


def test_of_a_large_foreign_file_no_more_than_its_beginning_is_read(path):
    with path.open("wb") as file:
        file.write(b"somebody's")
        file.truncate(MAX_FILE_BYTES + 1)
    tracemalloc.start()
    try:
        with pytest.raises(UnusablePathError):
            loaded(path)
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()


def test_of_a_large_file_it_is_said_that_it_takes_a_while(path, caplog):
    written(path, bytes(LARGE_FILE_BYTES))
    with caplog.at_level(logging.INFO):
        loaded(path)
    assert f"reading 20 MB from {path}" in caplog.text


def test_what_a_process_left_that_was_killed_while_it_wrote_is_replaced(path):
    beside = path.with_name("state.new")
    for left in (b"", HEAD[:10], HEAD + b"\x00"):
        beside.write_bytes(left)
        written(path, b"a")
        assert not beside.exists()


@pytest.mark.parametrize("make", [os.mkfifo, Path.mkdir, lambda beside: beside.write_bytes(b"precious")])
def test_what_somebody_else_put_where_the_new_one_is_written_stays(path, make):
    beside = path.with_name("state.new")
    make(beside)
    with pytest.raises(StateFileError, match=r"cannot write .*/state.new: "):
        StateFile(path).rewrite([b"a"])
    assert beside.exists()
    assert path.read_bytes() == b""


def test_what_was_moved_aside_before_stays_there(path):
    for number in range(1, MAX_ASIDE_FILES + 3):
        path.write_bytes(HEAD + b"x" * number)
        loaded(path)
        os.utime(path.with_name(f"state.unread-{(number - 1) % MAX_ASIDE_FILES + 1}"), (number, number))
    kept = [
        path.with_name(f"state.unread-{number}").stat().st_size for number in range(1, MAX_ASIDE_FILES + 1)
    ]
    # The oldest of them made room for the newest.
    assert kept == [
        len(HEAD) + MAX_ASIDE_FILES + 1,
        len(HEAD) + MAX_ASIDE_FILES + 2,
        *range(len(HEAD) + 3, len(HEAD) + 10),
    ]


def test_what_is_no_regular_file_is_left_alone(path):
    path.mkdir()
    with pytest.raises(UnusablePathError, match="is not a regular file"):
        StateFile(path).load(pytest.fail)
    assert path.is_dir()


def refuse(*_: object) -> None:
    raise PermissionError(13, "Permission denied")


def test_a_file_that_cannot_be_moved_is_not_written_over(path, monkeypatch):
    path.write_bytes(HEAD + b"damaged")
    # Root may write into any folder, so the folder's mode would not stop the test.
    monkeypatch.setattr(Path, "rename", refuse)
    file = StateFile(path)
    file.load(pytest.fail)
    with pytest.raises(StateFileError, match="could be neither read nor moved"):
        file.rewrite([b"a"])
    assert path.read_bytes() == HEAD + b"damaged"


def test_a_folder_that_is_not_there_is_an_error_of_one_line(tmp_path):
    file = StateFile(tmp_path / "nowhere" / "state")
    with pytest.raises(UnusablePathError, match=r"directory .*/nowhere does not exist$"):
        file.load(pytest.fail)
    with pytest.raises(StateFileError, match=r"cannot write .*/nowhere/state: No such file or directory"):
        file.rewrite([b"a"])
    assert file.errors == {"read": 0, "write": 1}


@pytest.mark.parametrize("move", [Path.unlink, lambda path: path.rename(path.with_name("elsewhere"))])
def test_a_file_that_is_removed_or_moved_is_not_written_to_but_anew(path, move, caplog):
    file = StateFile(path)
    file.rewrite([b"a"])
    assert file.is_intact
    move(path)
    assert not file.is_intact
    file.rewrite([b"a", b"b"])
    assert file.is_intact
    assert f"{path}: it was removed or moved, and was rewritten" in caplog.text
    with pytest.raises(UnavailableError):
        loaded(path)
    file.close()
    assert loaded(path) == [b"a", b"b"]


def test_a_file_that_is_cut_or_written_to_by_others_is_written_anew(path):
    file = StateFile(path)
    file.rewrite([b"a"])
    for change in (
        lambda: path.write_bytes(b""),
        lambda: os.truncate(path, 5),
        lambda: path.write_bytes(HEAD * 9),
    ):
        assert file.is_intact
        change()
        assert not file.is_intact
        file.rewrite([b"a", b"b"])
    file.close()
    assert loaded(path) == [b"a", b"b"]


def test_a_folder_that_could_not_be_synced_is_tried_again(path, monkeypatch):
    file = StateFile(path)
    file.rewrite([b"a"])
    with monkeypatch.context() as patch:
        patch.setattr(statefile, "_sync_directory", refuse)
        with pytest.raises(StateFileError):
            file.rewrite([b"b"])
    assert not file.is_intact
    file.rewrite([b"c"])
    assert file.is_intact
    file.close()
    assert loaded(path) == [b"c"]
    assert list(path.parent.iterdir()) == [path]


def test_an_older_state_that_is_put_back_is_moved_aside(path):
    file = StateFile(path)
    file.rewrite([b"a"])
    path.rename(path.with_name("backup"))
    assert not file.is_intact
    file.rewrite([b"b"])
    path.with_name("backup").replace(path)
    assert not file.is_intact
    file.rewrite([b"c"])
    file.close()
    assert loaded(path) == [b"c"]
    assert loaded(path.with_name("state.unread-1")) == [b"a"]


def test_a_path_that_cannot_be_looked_at_is_no_place_of_ours(path, monkeypatch):
    file = StateFile(path)
    file.rewrite([b"a"])
    monkeypatch.setattr(Path, "stat", refuse)
    assert not file.is_intact
    assert file.move_aside("it is behind")


def test_a_file_that_was_moved_aside_is_no_file_that_somebody_moved(path, caplog):
    file = StateFile(path)
    file.rewrite([b"a"])
    assert file.move_aside("it is behind")
    file.rewrite([b"b"])
    assert "was removed" not in caplog.text
    file.close()
    assert loaded(path) == [b"b"]


def test_what_another_process_put_in_its_place_stays(path):
    file, other = StateFile(path), StateFile(path)
    file.rewrite([b"a"])
    path.unlink()
    other.rewrite([b"other"])
    assert not file.is_intact
    with pytest.raises(UnavailableError):
        file.rewrite([b"a"])
    assert file.move_aside("it is behind")
    assert path.exists()
    other.close()
    path.write_bytes(b"somebody's")
    for _ in range(2):
        with pytest.raises(StateFileError, match=r"not a state file replaced it\. Move that file away"):
            file.rewrite([b"a"])
    assert path.read_bytes() == b"somebody's"


def test_a_rewriting_that_breaks_off_leaves_the_file_of_before(path):
    file = StateFile(path)
    file.rewrite([b"a"])
    path.with_name("state.new").mkdir()  # where the new one is to be written first
    with pytest.raises(StateFileError):
        file.rewrite([b"b"])
    file.close()
    assert loaded(path) == [b"a"]


def test_a_link_stays_a_link(tmp_path):
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "state")
    written(link, b"a")
    assert link.is_symlink()
    assert loaded(tmp_path / "state") == [b"a"]
