"""Digests in a state file: each record has what changed, and all together give the last list."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from celery_exporter.persistence.digests import DigestChanges, DigestRecorder, SavedDigests


def packed(*digests: int) -> bytes:
    return b"".join(digest.to_bytes(8, "big") for digest in digests)


@pytest.mark.parametrize(
    ("before", "after", "changes"),
    [
        ([], [1, 2], DigestChanges(0, packed(1, 2))),
        ([1, 2], [1, 2], DigestChanges()),
        ([1, 2], [1, 2, 3], DigestChanges(0, packed(3))),
        ([1, 2, 3], [2, 3, 4], DigestChanges(1, packed(4))),
        ([1, 2], [3, 4], DigestChanges(2, packed(3, 4))),
        ([1, 2], [], DigestChanges(2)),
        ([1, 2, 3], [1, 3], DigestChanges(3, packed(1, 3))),
        ([1, 2, 1, 3], [1, 3], DigestChanges(4, packed(1, 3))),
    ],
)
def test_a_record_has_what_changed(before, after, changes):
    recorder = DigestRecorder()
    recorder.changes(before, everything=True)
    assert recorder.changes(after, everything=False) == changes


def test_the_first_record_of_a_file_has_all_digests():
    recorder = DigestRecorder()
    recorder.changes([1, 2], everything=True)
    assert recorder.changes([1, 2], everything=True) == DigestChanges(0, packed(1, 2))


@given(st.lists(st.lists(st.sampled_from([0, 1, 256]), max_size=6)))
def test_all_records_give_the_last_list(lists):
    recorder, saved = DigestRecorder(), SavedDigests()
    for number, digests in enumerate(lists):
        saved.apply(recorder.changes(digests, everything=number == 0))
        assert saved.digests() == digests


def test_incomplete_digests_are_refused():
    saved = SavedDigests()
    saved.apply(DigestChanges(0, b"1234567"))
    with pytest.raises(ValueError, match="incomplete"):
        saved.digests()
