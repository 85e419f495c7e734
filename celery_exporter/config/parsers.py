"""Texts that people type → values. Each takes one text (or a tuple of them) and raises ValueError."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from celery_exporter.broker.url_file import is_url
from celery_exporter.core.task_names import QUEUE_NAME_RULES, Pattern


def number(low: float, high: float = math.inf) -> Callable[[str], float]:
    """Take a number of this range; not an infinite one."""

    def parse(text: str) -> float:
        value = float(text)
        if not low <= value <= high or math.isinf(value):
            raise ValueError(text)
        return value

    return parse


def whole(low: int, high: int) -> Callable[[str], int]:
    """Take a whole number of this range."""

    def parse(text: str) -> int:
        value = int(text)
        if not low <= value <= high:
            raise ValueError(text)
        return value

    return parse


def seconds_or_off(text: str) -> float | None:
    """Take seconds; 0 is how users spell off."""
    return number(0)(text) or None


def buckets(text: str) -> tuple[float, ...]:
    """Take rising bucket bounds; +Inf at the end is understood."""
    bounds = [float(part) for part in text.split(",")]
    if bounds[-1] == math.inf:
        bounds.pop()
    if not bounds or not all(map(math.isfinite, bounds)) or sorted(set(bounds)) != bounds:
        raise ValueError(text)
    return tuple(bounds)


def one_of(choices: tuple[str, ...]) -> Callable[[str], str]:
    """Take one of these words, in any case."""

    def parse(text: str) -> str:
        if text.lower() not in choices:
            raise ValueError(text)
        return text.lower()

    return parse


def list_of(choices: tuple[str, ...], *, least: int = 1) -> Callable[[str], tuple[str, ...]]:
    """Take some of these words, separated by commas."""

    def parse(text: str) -> tuple[str, ...]:
        one = one_of(choices)
        found = tuple(one(part.strip()) for part in text.split(",") if part.strip())
        if len(found) < least:
            raise ValueError(text)
        return found

    return parse


def names(texts: tuple[str, ...]) -> tuple[str, ...]:
    """Take names, separated by commas."""
    return tuple(name.strip() for text in texts for name in text.split(",") if name.strip())


def pairs(texts: tuple[str, ...]) -> dict[str, str]:
    """Take name=value pairs."""
    pairs = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not (name.strip() and equals):
            raise ValueError(text)
        pairs[name.strip()] = value
    return pairs


def json_pairs(texts: tuple[str, ...]) -> dict[str, Any]:
    """Take name=value pairs whose values are JSON, or texts where they are none."""
    return {name: _json_or_text(value) for name, value in pairs(texts).items()}


def _json_or_text(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def prefix(text: str) -> str:
    """Take the beginning of a metric name, which may be none."""
    if not re.fullmatch(r"([a-zA-Z_:][a-zA-Z0-9_:]*)?", text):
        raise ValueError(text)
    return text


def name(text: str) -> str:
    """Take any text but an empty one."""
    if not text.strip():
        raise ValueError(text)
    text.encode()  # UnicodeEncodeError is a ValueError: what was no UTF-8 on the command line
    return text


def path(text: str) -> Path:
    """Take a path, which a URL is not."""
    if "://" in text:
        raise ValueError(text)
    return Path(text)


def url(text: str) -> str:
    """Take a URL, as far as a scheme makes one; kombu knows the rest."""
    if not is_url(text):
        raise ValueError(text)
    return text


_TRUE, _FALSE = ("1", "true", "t", "yes", "y", "on"), ("0", "false", "f", "no", "n", "off", "")


def switch(text: str) -> bool:
    """Take a word for on or off."""
    return one_of(_TRUE + _FALSE)(text.strip()) in _TRUE


def pattern(text: str) -> Pattern:
    """Take a regular expression, of RE2 as in Prometheus: no name from the wire takes it long to match."""
    import re2  # type: ignore[import-untyped]  # noqa: PLC0415  only who has such a setting needs it

    options = re2.Options()
    options.log_errors = False
    try:
        found: Pattern = re2.compile(text, options)
    except re2.error:
        raise ValueError(text) from None
    return found


def name_rules(texts: tuple[str, ...]) -> tuple[tuple[Pattern, str], ...]:
    """Take regex=replacement rules; the last equals sign separates, for a regex may have some."""
    return tuple(map(_name_rule, texts))


def queue_name_rules(texts: tuple[str, ...]) -> tuple[tuple[Pattern, str], ...]:
    """Take the same; the shipped rules follow, unless one of the texts is empty."""
    given = tuple(text for text in texts if text.strip())
    shipped = QUEUE_NAME_RULES if given and len(given) == len(texts) else ()
    return name_rules(given) + shipped


def _name_rule(text: str) -> tuple[Pattern, str]:
    regex, equals, replacement = text.rpartition("=")
    if not (regex and equals and replacement):
        raise ValueError(text)
    found = pattern(regex)
    names = {index: name for name, index in found.groupindex.items()}
    groups = (f"(?P<{names[index]}>)" if index in names else "()" for index in range(1, found.groups + 1))
    try:
        re.sub("".join(groups), replacement, "")  # which may name a group that is not there
    except (re.error, IndexError):
        raise ValueError(text) from None
    return found, replacement
