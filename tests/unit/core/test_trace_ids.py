"""Ids of traces and spans."""

from __future__ import annotations

import hashlib
import uuid

import pytest
from hypothesis import given
from hypothesis import strategies as st

from celery_exporter.core.trace_ids import attempt_span_id, task_span_id, trace_id

any_id = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=255)


@given(st.uuids())
def test_the_trace_of_a_uuid_is_the_uuid(root):
    assert trace_id(str(root)) == trace_id(root.hex) == trace_id(str(root).upper()) == root.bytes


@pytest.mark.parametrize(
    "root",
    [
        "nightly-2026-11-30",
        "0" * 32,
        str(uuid.UUID(int=0)),
        "é" * 32,
        "x" * 36,
        "12345678-1234-1234-1234-1234 67890123",
        " " * 32,
        "-" * 36,
    ],
)
def test_the_trace_of_another_id_is_its_hash(root):
    assert trace_id(root) == hashlib.blake2b(root.encode(), digest_size=16).digest()


@given(any_id)
def test_ids_have_their_lengths_and_are_valid(text):
    assert len(trace_id(text)) == 16
    assert any(trace_id(text))
    for span in (task_span_id(text), attempt_span_id(text, 0, 0), attempt_span_id(text, 0, 1.5)):
        assert len(span) == 8
        assert any(span)


@given(any_id)
def test_spans_of_one_task_differ(text):
    numbers = [(generation, number) for generation in range(3) for number in range(12)]
    spans = {task_span_id(text), *(attempt_span_id(text, *pair) for pair in numbers)}
    assert len(spans) == len(numbers) + 1


def test_ids_are_the_same_in_all_versions():
    """Two exporters may run different versions while one is updated."""
    assert trace_id("u1").hex() == "53199585bddea28e67fe7143a42baef7"
    assert task_span_id("u1").hex() == "92994d683f4e6ad5"
    assert attempt_span_id("u1", 0, 1).hex() == "cf71dc0d28dbc622"
