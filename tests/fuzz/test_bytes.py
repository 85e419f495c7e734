"""Functions that accept bytes accept any bytes. Their invariants are in `targets`."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from . import budget
from .targets import CORPUS, TARGETS, seeds

#: Examples in the default time; slow targets have fewer.
EXAMPLES = {"page": 60, "terminal": 60, "log": 60, "command": 60, "body": 250, "message": 250}
TOKENS = [
    b'{"type":"task-sent","timestamp":1,"hostname":"h","uuid":"u"}',
    *(f'"{word}"'.encode() for word in ("type", "timestamp", "hostname", "uuid", "task-failed", "exception")),
    *(b"[", b"]", b"{", b"}", b",", b":", b'"', b"\\", b"\\u", b"null", b"NaN", b"1e309", b"9" * 30, b"\xff"),
]


@st.composite
def mutated(draw: st.DrawFn, name: str) -> bytes:
    """Return a seed with parts removed, doubled or replaced."""
    text = draw(st.sampled_from(seeds(name)) if seeds(name) else st.just(b""))
    for _ in range(draw(st.integers(0, 4))):
        start = draw(st.integers(0, len(text)))
        end = draw(st.integers(start, min(len(text), start + 40)))
        middle = draw(st.sampled_from([b"", text[start:end] * 2, *TOKENS]) | st.binary(max_size=4))
        text = text[:start] + middle + text[end:]
    return text


@pytest.mark.parametrize("name", TARGETS)
def test_any_bytes(name):
    @budget.examples(EXAMPLES.get(name, 400))
    @given(mutated(name) | st.binary(max_size=100))
    def run(data: bytes) -> None:
        budget.count()
        TARGETS[name](data)

    run()


@pytest.mark.parametrize("name", TARGETS)
def test_seeds(name):
    for data in seeds(name):
        budget.count()
        TARGETS[name](data)


def test_the_corpus_has_existing_targets_only():
    assert {path.name for path in CORPUS.iterdir()} <= TARGETS.keys()
    assert all(path.stat().st_size < 10_000 for path in CORPUS.glob("*/*")), "small files only"
