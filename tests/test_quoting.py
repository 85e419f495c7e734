"""What is printed to be pasted is one word of bash, whatever is in it, and moves no terminal's cursor."""

from __future__ import annotations

import subprocess

import pytest
from fuzz.batches import AWKWARD
from hypothesis import example, given, settings
from hypothesis import strategies as st

from celery_exporter.quoting import shell_word

texts = st.text(st.sampled_from(AWKWARD) | st.characters(exclude_categories=["Cs"]), max_size=30)


@settings(max_examples=50, deadline=None)
@given(st.lists(texts, min_size=1, max_size=20))
@example(
    ["", "-", "'", "\\", "$(touch x)", "`x`", "$IFS", ";", "a b", "!!", "~", "*", "\x1b]0;x\x07", "\x7f1"]
)
@example(["a\nb", "\n", "\x01'\"\\", "é\u202e", "\x85", "\0", "\ud7ff\x9b[2J", "$'\\x41'\x02"])
def test_bash_reads_each_text_as_one_word(found):
    words = " ".join(map(shell_word, found))
    assert words.isprintable()
    done = subprocess.run(["bash", "-c", f"printf '%s\\0' {words}"], capture_output=True, check=True)
    assert done.stdout.decode().split("\0")[:-1] == [text.replace("\0", "?") for text in found]


@pytest.mark.parametrize("text", ["celery", "worker@host", "10.0.0.1", "/", "a-b_c.d:e"])
def test_what_needs_no_quotes_has_none(text):
    assert shell_word(text) == text
