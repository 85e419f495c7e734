"""Where items begin and end. The same for bytes that nobody thought of: tests/fuzz."""

from __future__ import annotations

import pytest

from celery_exporter.core import json_array as batch
from celery_exporter.core.json_array import items


@pytest.mark.parametrize(
    ("body", "found"),
    [
        (b"", [b""]),
        (b"{}", [b"{}"]),
        (b'{"a": [1, 2]}', [b'{"a": [1, 2]}']),
        (b"[]", []),
        (b" [ ] ", []),
        (b"[1]", [b"1"]),
        (b"\xef\xbb\xbf[1,2]", [b"1", b"2"]),
        (b'\r\n[ {"a": 1} ,\t[2, 3] ]\n', [b'{"a": 1}', b"[2, 3]"]),
        (b'["]", "},{", "\\"]", "\\\\"]', [b'"]"', b'"},{"', b'"\\"]"', b'"\\\\"']),
        (b'[{"a": "\\\\\\"}],["},2]', [b'{"a": "\\\\\\"}],["}', b"2"]),
        (b'[{"' + b'a":"b","' * 200 + b'":0},2]', [b'{"' + b'a":"b","' * 200 + b'":0}', b"2"]),
        (b'["' + b'\\"' * 1000 + b'",2]', [b'"' + b'\\"' * 1000 + b'"', b"2"]),
        (b"[,]", [b"", b""]),
        (b"[1,]", [b"1", b""]),
        (b"[" + b"[" * 99 + b"]" * 99 + b",2]", [b"[" * 99 + b"]" * 99, b"2"]),
        (b"[{[}],2]", [b"{[}]", b"2"]),
    ],
)
def test_items_are_told_apart_by_brackets_and_quotes(body, found):
    assert list(items(body)) == found


@pytest.mark.parametrize(
    ("body", "whole"),
    [
        (b"[", []),
        (b"[1,", [b"1"]),
        (b"[1,2", [b"1"]),
        (b'[1,"]', [b"1"]),
        (b'[1,"\\"]', [b"1"]),
        (b"[1,[2]", [b"1"]),
        (b'[1,{"a":[}', [b"1"]),
        (b"[1]2", [b"1"]),
        (b"[1],[2]", [b"1"]),
        (b"[1]]", [b"1"]),
        (b"[{}]]]", [b"{}"]),
        (b"[1}]", [b"1"]),
        (b"[{]},2]", [b"{]"]),
    ],
)
def test_what_cannot_be_told_apart_is_one_rest(body, whole):
    assert list(items(body)) == [*whole, None]


def test_only_so_many_items_are_told_apart(monkeypatch):
    monkeypatch.setattr(batch, "MAX_ITEMS", 3)
    assert list(items(b"[1,2,3]")) == [b"1", b"2", b"3"]
    assert list(items(b"[1,2,3,4,5]")) == [b"1", b"2", b"3", None]


def test_only_so_many_brackets_are_looked_at(monkeypatch):
    monkeypatch.setattr(batch, "MAX_MARKS", 6)
    assert list(items(b"[{},{},{}]")) == [b"{}", b"{}", None]
