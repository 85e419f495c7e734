"""Reads the line protocol in tests, as the two generations of InfluxDB do.

They differ in backslashes outside of strings. To InfluxDB 1 (models/points.go) a character is escaped if a
backslash precedes it, and other backslashes stay. InfluxDB 3 (core/influxdb_line_protocol) reads a backslash
and the next character as a pair; two backslashes are one.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

_SPECIAL = frozenset(",= ")


@dataclass(frozen=True)
class Point:
    """One line. Strings, floats and booleans are values of fields; integers become floats."""

    measurement: str
    tags: dict[str, str]
    fields: dict[str, str | float | bool]
    nanoseconds: int

    @property
    def identity(self) -> tuple[str, frozenset[tuple[str, str]], int]:
        return self.measurement, frozenset(self.tags.items()), self.nanoseconds


def read(body: bytes, *, pairs: bool = False) -> list[Point]:
    """Return the points of a payload, whose last line ends as well; with `pairs` as InfluxDB 3 does."""
    text = body.decode()
    assert not text or text.endswith("\n")
    return [read_line(line, pairs=pairs) for line in text.split("\n")[:-1]]


def read_line(line: str, *, pairs: bool = False) -> Point:
    reader = _Reader(line, pairs=pairs)
    measurement = reader.word(", ")
    tags: dict[str, str] = {}
    while reader.next() == ",":
        key = reader.word("=")
        assert reader.next() == "="
        tags[key] = reader.word(", ")
    fields: dict[str, str | float | bool] = {}
    while True:
        key = reader.word("=")
        assert reader.next() == "="
        assert key not in fields, f"field {key!r} is there twice"
        fields[key] = reader.value()
        if (separator := reader.next()) != ",":
            assert separator == " "
            break
    return Point(measurement, tags, fields, int(line[reader.at :]))


class _Reader:
    def __init__(self, line: str, *, pairs: bool) -> None:
        self.line = line
        self.at = 0
        self.pairs = pairs

    def next(self) -> str:
        self.at += 1
        return self.line[self.at - 1]

    def word(self, ends: str) -> str:
        """Return an unescaped word up to one of these characters; it is not empty."""
        word = ""
        while self.line[self.at] not in ends:
            character = self.next()
            assert character not in " \t", f"white space in {self.line!r}"
            if character == "\\":
                character = self._escaped()
            word += character
        assert word, f"empty word in {self.line!r}"
        assert not (self.pairs and word.endswith("\\")), f"backslash at the end of {word!r}"
        return word

    def _escaped(self) -> str:
        following = self.line[self.at]
        if following in _SPECIAL or (self.pairs and following == "\\"):
            return self.next()
        return "\\" + (self.next() if self.pairs else "")

    def value(self) -> str | float | bool:
        if self.line[self.at] == '"':
            match = re.compile(r'"((?:\\.|[^"\\])*)"', re.DOTALL).match(self.line, self.at)
            assert match
            self.at = match.end()
            return re.sub(r'\\(["\\])', r"\1", match[1])
        match = re.compile(r"[^, ]+").match(self.line, self.at)
        assert match
        self.at = match.end()
        if match[0] in {"true", "false"}:
            return match[0] == "true"
        assert re.fullmatch(r"-?\d+(\.\d+)?(e[+-]?\d+)?i?", match[0]), match[0]
        return float(match[0].removesuffix("i"))
