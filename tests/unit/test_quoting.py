"""Texts from external sources, escaped for terminals, JSON documents and shell commands."""

from __future__ import annotations

import json
import subprocess

import pytest
from fuzz.batches import AWKWARD
from hypothesis import example, given, settings
from hypothesis import strategies as st

from celery_exporter.quoting import (
    encodable,
    printable,
    printable_json,
    shell_word,
    shorten,
    terminal_cells,
    visible,
)

texts = st.text(st.sampled_from(AWKWARD) | st.characters(exclude_categories=["Cs"]), max_size=30)


@settings(max_examples=50, deadline=None)
@given(st.lists(texts, min_size=1, max_size=20))
@example(
    ["", "-", "'", "\\", "$(touch x)", "`x`", "$IFS", ";", "a b", "!!", "~", "*", "\x1b]0;x\x07", "\x7f1"]
)
@example(["a\nb", "\n", "\x01'\"\\", "é\u202e", "\x85", "\0", "\ud7ff\x9b[2J", "$'\\x41'\x02"])
def test_bash_reads_each_text_as_one_word(values):
    words = " ".join(map(shell_word, values))
    assert words.isprintable()
    done = subprocess.run(["bash", "-c", f"printf '%s\\0' {words}"], capture_output=True, check=True)
    assert done.stdout.decode().split("\0")[:-1] == [text.replace("\0", "?") for text in values]


@pytest.mark.parametrize("text", ["celery", "worker@host", "10.0.0.1", "/", "a-b_c.d:e"])
def test_word_without_special_characters_has_no_quotes(text):
    assert shell_word(text) == text


anything = st.text(st.sampled_from(AWKWARD) | st.characters(), max_size=30)


@given(anything)
@example("\x1b]0;x\x07\x9b2J\u202e\u2028\r\n\0\ud800\U000e0001")
def test_line_has_only_printable_characters(text):
    assert printable(text).isprintable()
    assert len(printable(text)) == len(text)


@given(anything)
@example("\x1b]0;x\x07\x9b2J\u202e\u2028\r\n\0\U000e0001\U0001f600")
def test_json_document_is_printable_and_has_the_same_value(text):
    document = printable_json(json.dumps([text], ensure_ascii=False, indent=1))
    assert all(line.isprintable() for line in document.split("\n"))
    assert json.loads(document) == [text]


def test_a_long_text_is_cut_in_its_middle():
    assert shorten("shop.report.build_the_report", 12) == "shop.r…eport"
    assert shorten("shop.report", 12) == "shop.report"
    assert shorten("漢字漢字漢字", 8) == "漢字…字"


@given(st.text(), st.integers(1, 30))
def test_a_visible_text_is_printable_and_a_short_one_fits(text, cells):
    assert visible(text).isprintable()
    assert terminal_cells(shorten(visible(text), cells)) <= cells


def test_a_visible_text_has_no_combining_characters():
    assert visible("e\u0301") == "é"
    assert visible("x\u0301\u0302") == "x\N{REPLACEMENT CHARACTER}\N{REPLACEMENT CHARACTER}"


def test_what_an_encoding_lacks_becomes_a_question_mark():
    assert encodable("a–é", None) == encodable("a–é", "ascii") == "a??"  # noqa: RUF001
    assert encodable("é", "latin-1") == encodable("é", "utf-8") == "é"
