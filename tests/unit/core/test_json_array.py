"""Splitting JSON arrays into items. tests/fuzz does the same with random bytes."""

from __future__ import annotations

import pytest

from celery_exporter.core import json_array
from celery_exporter.core.json_array import items


@pytest.mark.parametrize(
    ("body", "expected"),
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
def test_items_are_split_by_brackets_and_quotes(body, expected):
    assert list(items(body)) == expected


@pytest.mark.parametrize(
    ("body", "complete"),
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
def test_a_rest_that_cannot_be_split_is_one_item(body, complete):
    assert list(items(body)) == [*complete, None]


def test_items_are_bounded(monkeypatch):
    monkeypatch.setattr(json_array, "MAX_ITEMS", 3)
    assert list(items(b"[1,2,3]")) == [b"1", b"2", b"3"]
    assert list(items(b"[1,2,3,4,5]")) == [b"1", b"2", b"3", None]


def test_marks_are_bounded(monkeypatch):
    monkeypatch.setattr(json_array, "MAX_MARKS", 6)
    assert list(items(b"[{},{},{}]")) == [b"{}", b"{}", None]
