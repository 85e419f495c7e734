"""Where the items of a JSON array begin and end, found by its brackets and quotes alone.

Invariant: no item can spoil its neighbours. One that is no JSON, that is nested too deeply to be parsed, or
that holds bytes which are no text, is still one item, as long as its brackets balance and its quotes close.
Nothing is built but the item's own bytes, and nothing recurses.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

#: Items told apart in one array. Batches of Celery have 24 (celery/events/dispatcher.py, buffer_limit); each
#: event costs some 300 bytes until it is applied.
MAX_ITEMS = 200_000
#: Marks looked at in one array, at some 0.5 us each; real events have two to four.
MAX_MARKS = 2_000_000

_SPACE = b" \t\r\n"
_COMMA, _QUOTE, _BACKSLASH = b',"\\'
_OPENERS = b"[{"

_OPENING = re.compile(rb"(?:\xef\xbb\xbf)?[ \t\r\n]*\[")
# What comes before the next mark, and the mark. Texts without escapes are passed over; the quote that opens
# another one is a mark, and its end is looked for. No pattern repeats a group without a limit, for `re` uses
# memory at each round.
_AT_TOP = re.compile(rb'[^"\[\]{},]*([\[{]+|[\]},"])')
_INSIDE = re.compile(rb'(?:[^"\[\]{}]*"[^"\\]*"){0,50}[^"\[\]{}]*([\[{]+|[\]}]+|")')
_IN_TEXT = re.compile(rb'[^"\\]*("|(?:\\.){1,100})', re.DOTALL)


def items(body: bytes) -> Iterator[bytes | None]:
    """Yield the text of each item of an array; a body that is none is one item.

    The last one is None for a rest in which items cannot be told apart, or which is too long.
    """
    opening = _OPENING.match(body)
    if opening is None:
        yield body
        return
    start, closed = opening.end(), False
    for count, end in enumerate(_ends(body, start), 1):
        item, start, closed = body[start:end].strip(_SPACE), end + 1, body[end] != _COMMA
        if item or not closed or count > 1:  # [] has none
            yield item
        if closed or count == MAX_ITEMS:
            break
    if not closed or body[start:].strip(_SPACE):
        yield None


def _ends(body: bytes, position: int) -> Iterator[int]:
    """Yield where each item ends: at a comma, and the last one at the bracket that closes the array."""
    depth, in_text = 1, False
    for _ in range(MAX_MARKS):
        mark = (_IN_TEXT if in_text else _AT_TOP if depth == 1 else _INSIDE).match(body, position)
        if mark is None:
            return
        start, position = mark.span(1)
        first = body[start]
        if first == _QUOTE:
            in_text = not in_text
        elif first == _COMMA:
            yield start
        elif first in _OPENERS:
            depth += position - start
        elif first != _BACKSLASH:
            if depth <= position - start:
                yield start + depth - 1
                return
            depth -= position - start
