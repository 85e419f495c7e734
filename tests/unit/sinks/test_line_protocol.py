"""Texts and numbers of the line protocol: every server reads what was meant, whatever a text holds."""

from __future__ import annotations

import math
import re

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from influxdb_client import Point as LibraryPoint

from celery_exporter.sinks.line_protocol import MAX_TEXT_LENGTH, key, string, value

from .line_reader import read_line

any_text = st.text('ab,= \\"\n\r\t#\0é') | st.text()
#: Without what we write differently: backslashes in unclear places, line breaks in strings, empty texts.
clear_text = any_text.filter(lambda text: text and not re.search(r"\\[\\,= \n\r\t]|\\\Z", text))


@pytest.mark.parametrize(
    ("text", "escaped"),
    [
        ("tasks.add", "tasks.add"),
        ("a b,c=d", r"a\ b\,c\=d"),
        ('"quoted"', '"quoted"'),
        ("two\nlines\r\tand a tab", r"two\nlines\r\tand\ a\ tab"),
        ("C:\\data", "C:\\data"),
        ("C:\\", "C:/"),
        ("a\\,b", r"a/\,b"),
        ("a\\\\b", r"a/\b"),
        ("\\\n", r"/\n"),
        ("é🚀", "é🚀"),
        ("", ""),
        ("x" * 9_999, "x" * MAX_TEXT_LENGTH),
    ],
)
def test_keys_and_tags_are_escaped(text, escaped):
    assert key(text) == escaped


@pytest.mark.parametrize(
    ("text", "quoted"),
    [
        ("", '""'),
        ('say "x"', r'"say \"x\""'),
        ("C:\\", r'"C:\\"'),
        ("two\nlines", r'"two\\nlines"'),
        ("a, b=c", '"a, b=c"'),
        ("x" * 9_999, f'"{"x" * MAX_TEXT_LENGTH}"'),
    ],
)
def test_strings_are_quoted(text, quoted):
    assert string(text) == quoted


@pytest.mark.parametrize(
    ("measured", "text"),
    [
        (1, "1.0"),
        (-2.5, "-2.5"),
        (1e-7, "1e-07"),
        (True, "true"),
        (False, "false"),
        ("x", '"x"'),
        (2**53, "9007199254740992.0"),
        (10**400, None),
        (math.nan, None),
        (math.inf, None),
        (-math.inf, None),
        (None, None),
        ([1], None),
    ],
)
def test_numbers_are_floats_and_unknown_values_are_left_out(measured, text):
    assert value(measured) == text


def shown(text: str) -> str:
    """Return how a text reads in the database, as a tag."""
    text = re.sub(r"\\(?=[\\,= \n\r\t]|\Z)", "/", text[:MAX_TEXT_LENGTH])
    return text.replace("\n", "\\n").replace("\r", "\\r").replace("\t", "\\t")


@pytest.mark.parametrize("pairs", [False, True], ids=["InfluxDB 1", "InfluxDB 3"])
@given(any_text.filter(bool), any_text.filter(bool), any_text.filter(bool), any_text)
def test_any_text_is_read_as_it_was_meant(pairs, tag, tag_text, field, text):
    line = f"m,{key(tag)}={key(tag_text)} {key(field)}={string(text)},other=1.0 17"
    assert "\n" not in line
    point = read_line(line, pairs=pairs)
    assert point.tags == {shown(tag): shown(tag_text)}
    expected = text[:MAX_TEXT_LENGTH].replace("\n", "\\n").replace("\r", "\\r")
    assert point.fields == {shown(field): expected, "other": 1.0}
    assert (point.measurement, point.nanoseconds) == ("m", 17)


@given(
    st.dictionaries(clear_text, clear_text, max_size=3),
    st.dictionaries(
        clear_text,
        st.floats(allow_nan=False, allow_infinity=False)
        | st.integers(-(2**53), 2**53)
        | st.booleans()
        | any_text.filter(lambda text: "\n" not in text and "\r" not in text),
        min_size=1,
        max_size=3,
    ),
)
def test_the_encoder_of_influxdb_client_means_the_same(tags, fields):
    theirs = LibraryPoint("m").time(17)
    for name, text in tags.items():
        theirs.tag(name, text)
    for name, measured in fields.items():
        theirs.field(name, measured)
    our_tags = "".join(f",{key(name)}={key(text)}" for name, text in tags.items())
    our_fields = ",".join(f"{key(name)}={value(measured)}" for name, measured in fields.items())
    ours = f"m{our_tags} {our_fields} 17"
    assume(all(len(set(map(shown, names))) == len(names) for names in (tags, fields)))
    assert read_line(theirs.to_line_protocol()) == read_line(ours)
