"""Splits a JSON array into its items by brackets and quotes alone.

Invariant: no item affects its neighbours. An item that is invalid JSON, nested too deeply for a parser, or
not UTF-8 is still one item, as long as its brackets balance and its quotes close. Only the bytes of the items
are copied, and nothing recurses.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

#: Items of one array. Batches of Celery have 24 (celery/events/dispatcher.py, buffer_limit). Each event takes
#: some 300 bytes of memory until it is applied.
MAX_ITEMS = 200_000
#: Marks (brackets, commas and quotes) of one array that are examined, 0.5 us each. Usual events have two to
#: four.
MAX_MARKS = 2_000_000

_SPACE = b" \t\r\n"
_COMMA, _QUOTE, _BACKSLASH = b',"\\'
_OPENERS = b"[{"

_OPENING = re.compile(rb"(?:\xef\xbb\xbf)?[ \t\r\n]*\[")
# Each pattern matches up to the next mark, and captures the mark. Strings without escapes are skipped. The
# quote that opens any other string is a mark, and its end is searched separately. No pattern repeats a group
# without a limit, because `re` uses memory for each repetition.
_AT_TOP = re.compile(rb'[^"\[\]{},]*([\[{]+|[\]},"])')
_INSIDE = re.compile(rb'(?:[^"\[\]{}]*"[^"\\]*"){0,50}[^"\[\]{}]*([\[{]+|[\]}]+|")')
_IN_STRING = re.compile(rb'[^"\\]*("|(?:\\.){1,100})', re.DOTALL)


def items(body: bytes) -> Iterator[bytes | None]:
    """Yield the bytes of each item of an array; a body that is not an array is one item.

    The last item is None if the rest of the body is too long, or has items without a recognisable end.
    """
    opening = _OPENING.match(body)
    if opening is None:
        yield body
        return
    start, closed = opening.end(), False
    for count, end in enumerate(_ends(body, start), 1):
        item, start, closed = body[start:end].strip(_SPACE), end + 1, body[end] != _COMMA
        if item or not closed or count > 1:  # [] has no item
            yield item
        if closed or count == MAX_ITEMS:
            break
    if not closed or body[start:].strip(_SPACE):
        yield None


def _ends(body: bytes, position: int) -> Iterator[int]:
    """Yield the position of the end of each item: a comma, or the bracket that closes the array."""
    depth, in_string = 1, False
    for _ in range(MAX_MARKS):
        mark = (_IN_STRING if in_string else _AT_TOP if depth == 1 else _INSIDE).match(body, position)
        if mark is None:
            return
        start, position = mark.span(1)
        first = body[start]
        if first == _QUOTE:
            in_string = not in_string
        elif first == _COMMA:
            yield start
        elif first in _OPENERS:
            depth += position - start
        elif first != _BACKSLASH:
            if depth <= position - start:
                yield start + depth - 1
                return
            depth -= position - start
