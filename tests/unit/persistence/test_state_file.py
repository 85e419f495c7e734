"""A state file is complete or rejected, and a rejected one is never overwritten."""

from __future__ import annotations

import logging
import os
import tracemalloc
from pathlib import Path

import pytest

from celery_exporter.persistence import state_file
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
    """Write and close a file; return its content."""
    file = StateFile(path)
    file.load(lambda _: None)
    file.rewrite(records)
    for record in later:
        file.append(record)
    file.close()
    return path.read_bytes()


def loaded(path: Path) -> list[bytes]:
    records: list[bytes] = []
    file = StateFile(path)
    file.load(records.append)
    file.close()
    return records


def test_records_are_loaded_in_order(path):
    written(path, b"old")
    written(path, b"a", b"", b"b", later=(b"c", b"d" * 100_000))
    assert loaded(path) == [b"a", b"", b"b", b"c", b"d" * 100_000]
    assert list(path.parent.iterdir()) == [path]
    assert path.stat().st_mode & 0o777 == 0o600


def test_the_first_line_has_the_format_and_its_version(path):
    assert written(path, b"a").startswith(b"celery-exporter state 5\n")


def test_a_missing_file_has_no_records(path):
    file = StateFile(path)
    assert not file.load(pytest.fail)
    assert file.errors == {"read": 0, "write": 0}


def test_complete_records_survive_a_kill_at_any_byte(path):
    content = written(path, b"first", later=(b"second", b"third"))
    ends = [len(HEAD) + 12 + 5, len(HEAD) + 2 * 12 + 11, len(content)]
    for length in range(ends[0], len(content) + 1):
        path.write_bytes(content[:length])
        assert loaded(path) == [b"first", b"second", b"third"][: sum(length >= end for end in ends)]
        assert [*path.parent.iterdir()] == [path], "no file was moved aside"


def test_a_part_that_was_not_written_before_a_power_failure_is_cut_off(path):
    content = written(path, b"first", later=(b"second",))
    path.write_bytes(content[:-4] + bytes(4))
    assert loaded(path) == [b"first"]
    path.write_bytes(content + bytes(5_000))
    assert loaded(path) == [b"first", b"second"]


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"\x00" * 100, "its first line is incomplete"),
        (HEAD[:12], "its first line is incomplete"),
        (b"celery-exporter state 1 00\n", "it has version '1', this exporter reads version 5"),
        (b"celery-exporter state", "its first line is incomplete"),
        (HEAD + b"x" * 20, "damaged"),
        (HEAD + b"\x00" * 20, "ends within its first record"),
    ],
)
def test_an_unreadable_file_is_logged_counted_and_moved_aside(path, content, why, caplog):
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
def test_a_changed_byte_before_the_last_record_is_damage(path, at):
    content = bytearray(written(path, b"first", b"second", b"third"))
    content[at] ^= 0x40
    path.write_bytes(content)
    file = StateFile(path)
    assert not file.load(lambda _: None)
    assert file.errors["read"] == 1


@pytest.mark.parametrize("content", [b"\x00\xff" * 100, b"[Unit]\nDescription=x\n", b"celerity"])
def test_a_file_that_is_not_a_state_file_stays_unchanged(path, content):
    path.write_bytes(content)
    file = StateFile(path)
    with pytest.raises(UnusablePathError, match="is not a state file of celery-exporter"):
        file.load(pytest.fail)
    assert path.read_bytes() == content
    assert list(path.parent.iterdir()) == [path]


def test_an_unusable_state_is_logged_counted_and_moved_aside(path, caplog):
    written(path, b"valid", b"wrong")

    def take(record):
        if record == b"wrong":
            raise ValueError("it does not fit")

    file = StateFile(path)
    assert not file.load(take)
    assert "it holds a state that cannot be used (ValueError('it does not fit'))" in caplog.text
    assert f"The file was moved to {path}.unread-1." in caplog.text
    assert file.errors == {"read": 1, "write": 0}
    assert not path.exists()


def test_a_second_process_is_rejected_while_the_first_has_the_lock(path):
    """A rewrite, which puts another file at the path, does not change that."""
    first = StateFile(path)
    first.load(pytest.fail)
    for _ in range(2):
        with pytest.raises(UnavailableError, match=f"{path} is in use by another exporter"):
            StateFile(path).load(pytest.fail)
        first.rewrite([b"first"])
        first.append(b"more")
    first.close()
    assert loaded(path) == [b"first", b"more"]


def test_two_processes_that_start_without_a_file_do_not_share_it(path):
    first, second = StateFile(path), StateFile(path)
    first.rewrite([b"first"])
    with pytest.raises(UnavailableError):
        second.rewrite([b"second"])
    first.append(b"more")
    first.close()
    assert loaded(path) == [b"first", b"more"]


def test_no_record_is_appended_after_a_failed_one(path):
    """An incomplete record in the middle would be damage."""
    file = StateFile(path)
    file.rewrite([b"first"])
    full = os.open("/dev/full", os.O_WRONLY)
    descriptor, file._descriptor = file._descriptor, full
    with pytest.raises(StateFileError, match=r"cannot write .*/state: No space left on device"):
        file.append(b"second")
    os.close(full)
    file._descriptor = descriptor
    assert not file.is_intact
    assert file.errors == {"read": 0, "write": 1}
    file.rewrite([b"third"])
    assert file.is_intact
    file.close()
    assert loaded(path) == [b"third"]


def test_a_file_needs_compaction_when_it_doubled_or_grew_a_lot(path):
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


def test_only_the_start_of_a_large_foreign_file_is_read(path):
    with path.open("wb") as file:
        file.write(b"foreign")
        file.truncate(MAX_FILE_BYTES + 1)
    tracemalloc.start()
    try:
        with pytest.raises(UnusablePathError):
            loaded(path)
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()


def test_reading_a_large_file_is_logged(path, caplog):
    written(path, bytes(LARGE_FILE_BYTES))
    with caplog.at_level(logging.INFO):
        loaded(path)
    assert f"reading 20 MB from {path}" in caplog.text


def test_the_new_file_of_a_killed_process_is_replaced(path):
    beside = path.with_name("state.new")
    for leftover in (b"", HEAD[:10], HEAD + b"\x00"):
        beside.write_bytes(leftover)
        written(path, b"a")
        assert not beside.exists()


@pytest.mark.parametrize("make", [os.mkfifo, Path.mkdir, lambda beside: beside.write_bytes(b"foreign")])
def test_a_foreign_file_at_the_path_of_the_new_file_stays(path, make):
    beside = path.with_name("state.new")
    make(beside)
    with pytest.raises(StateFileError, match=r"cannot write .*/state.new: "):
        StateFile(path).rewrite([b"a"])
    assert beside.exists()
    assert path.read_bytes() == b""


def test_files_that_were_moved_aside_are_kept_up_to_a_limit(path):
    for number in range(1, MAX_ASIDE_FILES + 3):
        path.write_bytes(HEAD + b"x" * number)
        loaded(path)
        os.utime(path.with_name(f"state.unread-{(number - 1) % MAX_ASIDE_FILES + 1}"), (number, number))
    sizes = [
        path.with_name(f"state.unread-{number}").stat().st_size for number in range(1, MAX_ASIDE_FILES + 1)
    ]
    # The newest replaced the oldest.
    assert sizes == [
        len(HEAD) + MAX_ASIDE_FILES + 1,
        len(HEAD) + MAX_ASIDE_FILES + 2,
        *range(len(HEAD) + 3, len(HEAD) + 10),
    ]


def test_a_path_that_is_not_a_regular_file_stays_unchanged(path):
    path.mkdir()
    with pytest.raises(UnusablePathError, match="is not a regular file"):
        StateFile(path).load(pytest.fail)
    assert path.is_dir()


def deny(*_: object) -> None:
    raise PermissionError(13, "Permission denied")


def test_a_file_that_cannot_be_moved_is_not_overwritten(path, monkeypatch):
    path.write_bytes(HEAD + b"damaged")
    # Root may write into any directory, so the mode of the directory would not cause an error.
    monkeypatch.setattr(Path, "rename", deny)
    file = StateFile(path)
    file.load(pytest.fail)
    with pytest.raises(StateFileError, match="could be neither read nor moved"):
        file.rewrite([b"a"])
    assert path.read_bytes() == HEAD + b"damaged"


def test_a_missing_directory_is_an_error_of_one_line(tmp_path):
    file = StateFile(tmp_path / "nowhere" / "state")
    with pytest.raises(UnusablePathError, match=r"directory .*/nowhere does not exist$"):
        file.load(pytest.fail)
    with pytest.raises(StateFileError, match=r"cannot write .*/nowhere/state: No such file or directory"):
        file.rewrite([b"a"])
    assert file.errors == {"read": 0, "write": 1}


@pytest.mark.parametrize("move", [Path.unlink, lambda path: path.rename(path.with_name("elsewhere"))])
def test_a_file_that_was_removed_or_moved_is_rewritten(path, move, caplog):
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


def test_a_file_that_others_changed_is_rewritten(path):
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


def test_a_failed_sync_of_the_directory_is_repeated(path, monkeypatch):
    file = StateFile(path)
    file.rewrite([b"a"])
    with monkeypatch.context() as patch:
        patch.setattr(state_file, "_sync_directory", deny)
        with pytest.raises(StateFileError):
            file.rewrite([b"b"])
    assert not file.is_intact
    file.rewrite([b"c"])
    assert file.is_intact
    file.close()
    assert loaded(path) == [b"c"]
    assert list(path.parent.iterdir()) == [path]


def test_an_older_state_file_that_was_copied_back_is_moved_aside(path):
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


def test_a_path_that_cannot_be_examined_counts_as_another_file(path, monkeypatch):
    file = StateFile(path)
    file.rewrite([b"a"])
    monkeypatch.setattr(Path, "stat", deny)
    assert not file.is_intact
    assert file.move_aside("it is behind")


def test_moving_a_file_aside_is_not_logged_as_a_removal(path, caplog):
    file = StateFile(path)
    file.rewrite([b"a"])
    assert file.move_aside("it is behind")
    file.rewrite([b"b"])
    assert "was removed" not in caplog.text
    file.close()
    assert loaded(path) == [b"b"]


def test_a_file_that_another_process_put_in_its_place_stays(path):
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
    path.write_bytes(b"foreign")
    for _ in range(2):
        with pytest.raises(StateFileError, match=r"not a state file replaced it\. Move that file away"):
            file.rewrite([b"a"])
    assert path.read_bytes() == b"foreign"


def test_a_failed_rewrite_leaves_the_previous_file(path):
    file = StateFile(path)
    file.rewrite([b"a"])
    path.with_name("state.new").mkdir()  # the path of the new file
    with pytest.raises(StateFileError):
        file.rewrite([b"b"])
    file.close()
    assert loaded(path) == [b"a"]


def test_a_symbolic_link_stays_one(tmp_path):
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "state")
    written(link, b"a")
    assert link.is_symlink()
    assert loaded(tmp_path / "state") == [b"a"]
