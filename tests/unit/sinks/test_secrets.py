"""Secrets are read from files with bounds, and errors name the file only."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from celery_exporter.sinks.base import TemporaryError
from celery_exporter.sinks.secrets import MAX_SECRET_BYTES, read_secret, read_token


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "secret"


@pytest.mark.parametrize(
    ("content", "secret"),
    [
        (b"s3cret\n", "s3cret"),
        (b"  a b \r\n", "a b"),
        ("pässwörd".encode(), "pässwörd"),
        (b"x" * 2**16, "x" * 2**16),
    ],
    ids=["newline", "white space", "UTF-8", "longest"],
)
def test_a_secret_is_the_text_without_white_space_around_it(path, content, secret):
    path.write_bytes(content)
    assert read_secret(path) == secret


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty; it takes one password or token"),
        (b" \n", "is empty; it takes one password or token"),
        (b"s3cret\xff", "is not UTF-8; it takes one password or token"),
        (b"s" * (MAX_SECRET_BYTES + 1), "has more than 65536 bytes; it takes one password or token"),
    ],
    ids=["empty", "white space", "not UTF-8", "long"],
)
def test_an_unusable_file_is_an_error_without_its_content(path, content, message):
    path.write_bytes(content)
    with pytest.raises(TemporaryError) as error:
        read_secret(path)
    assert str(error.value) == f"{path} {message}"


def test_a_file_that_cannot_be_read_is_an_error(path, tmp_path):
    with pytest.raises(TemporaryError, match=rf"^cannot read {path}: No such file or directory$"):
        read_secret(path)
    with pytest.raises(TemporaryError, match=rf"^cannot read {tmp_path}: Is a directory$"):
        read_secret(tmp_path)
    with pytest.raises(TemporaryError, match="embedded null"):
        read_secret(Path("a\0b"))


def test_a_device_without_an_end_and_a_fifo_without_a_writer_do_not_block(path):
    with pytest.raises(TemporaryError, match="has more than"):
        read_secret(Path("/dev/zero"))
    os.mkfifo(path)
    with pytest.raises(TemporaryError, match="is empty"):
        read_secret(path)


@pytest.mark.parametrize("content", [b"two\nlines", "tökén".encode(), b"a\x00b"])
def test_a_token_that_no_header_can_have_is_an_error(path, content):
    path.write_bytes(content)
    with pytest.raises(TemporaryError) as error:
        read_token(path)
    assert str(error.value) == f"{path} has characters that no HTTP header can have; it takes one token"
