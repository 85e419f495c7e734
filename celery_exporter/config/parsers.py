"""Parsers of option values. Each takes one text (or a tuple of them) and raises ValueError."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from celery_exporter.broker.url_file import check_is_url
from celery_exporter.core.shards import Shard
from celery_exporter.core.task_names import QUEUE_NAME_RULES, Pattern

#: Each shard receives all events of the broker.
MAX_SHARDS = 1_000


def number(low: float, high: float = math.inf) -> Callable[[str], float]:
    """Return a parser for finite numbers in this range."""

    def parse(text: str) -> float:
        value = float(text)
        if not low <= value <= high or math.isinf(value):
            raise ValueError(text)
        return value

    return parse


def whole(low: int, high: int) -> Callable[[str], int]:
    """Return a parser for integers in this range."""

    def parse(text: str) -> int:
        value = int(text)
        if not low <= value <= high:
            raise ValueError(text)
        return value

    return parse


def seconds_or_off(text: str) -> float | None:
    """Parse seconds; 0 is off, which is None."""
    return number(0)(text) or None


def buckets(text: str) -> tuple[float, ...]:
    """Parse increasing bucket bounds; a final +Inf is removed, because every histogram has it."""
    bounds = [float(part) for part in text.split(",")]
    if bounds[-1] == math.inf:
        bounds.pop()
    if not bounds or not all(map(math.isfinite, bounds)) or sorted(set(bounds)) != bounds:
        raise ValueError(text)
    return tuple(bounds)


def one_of(choices: tuple[str, ...]) -> Callable[[str], str]:
    """Return a parser for one of these words, in upper or lower case."""

    def parse(text: str) -> str:
        if text.lower() not in choices:
            raise ValueError(text)
        return text.lower()

    return parse


def list_of(choices: tuple[str, ...], *, least: int = 1) -> Callable[[str], tuple[str, ...]]:
    """Return a parser for these words, separated by commas; at least `least` of them."""

    def parse(text: str) -> tuple[str, ...]:
        parse_word = one_of(choices)
        words = tuple(parse_word(part.strip()) for part in text.split(",") if part.strip())
        if len(words) < least:
            raise ValueError(text)
        return words

    return parse


def names(texts: tuple[str, ...]) -> tuple[str, ...]:
    """Parse names, separated by commas."""
    return tuple(name.strip() for text in texts for name in text.split(",") if name.strip())


def pairs(texts: tuple[str, ...]) -> dict[str, str]:
    """Parse name=value pairs."""
    pairs = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not (name.strip() and equals):
            raise ValueError(text)
        pairs[name.strip()] = value
    return pairs


def json_pairs(texts: tuple[str, ...]) -> dict[str, Any]:
    """Parse name=value pairs; a value is JSON, or a text if it is not valid JSON."""
    return {name: _json_or_text(value) for name, value in pairs(texts).items()}


def _json_or_text(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def prefix(text: str) -> str:
    """Parse a prefix of metric names, which may be empty."""
    if not re.fullmatch(r"([a-zA-Z_:][a-zA-Z0-9_:]*)?", text):
        raise ValueError(text)
    return text


def name(text: str) -> str:
    """Parse a text that is not empty."""
    if not text.strip():
        raise ValueError(text)
    text.encode()  # a UnicodeEncodeError, which is a ValueError, if it was not UTF-8
    return text


def shard(text: str) -> Shard:
    """Parse a shard such as 0/4."""
    index, count = map(int, text.split("/"))
    if not 0 <= index < count <= MAX_SHARDS:
        raise ValueError(text)
    return Shard(index, count)


def path(text: str) -> Path:
    """Parse a path; a URL is refused, because it may hold a password."""
    if "://" in text:
        raise ValueError(text)
    return Path(text)


def url(text: str) -> str:
    """Parse a URL: only its scheme is checked here."""
    check_is_url(text)
    return text


def http_url(text: str) -> str:
    """Parse an http or https URL without a login: URLs are logged, and logins are read from files."""
    parts = urlsplit(text)
    if parts.scheme not in {"http", "https"} or not parts.hostname or "@" in parts.netloc:
        raise ValueError(text)
    parts.port  # noqa: B018  raises for a port out of range
    if parts.query or parts.fragment:
        raise ValueError(text)
    return text.rstrip("/")


def trace_url(text: str) -> str:
    """Parse an http or https URL without a login that has {trace_id} in it."""
    parts = urlsplit(text)
    is_link = parts.scheme in {"http", "https"} and parts.hostname and "@" not in parts.netloc
    if not is_link or "{trace_id}" not in text:
        raise ValueError(text)
    return text


_TRUE, _FALSE = ("1", "true", "t", "yes", "y", "on"), ("0", "false", "f", "no", "n", "off", "")


def switch(text: str) -> bool:
    """Parse a word for on or off."""
    return one_of(_TRUE + _FALSE)(text.strip()) in _TRUE


def pattern(text: str) -> Pattern:
    """Parse a regular expression of RE2, as in Prometheus: it matches any name in linear time."""
    import re2  # type: ignore[import-untyped]  # noqa: PLC0415  only some options need it

    options = re2.Options()
    options.log_errors = False
    try:
        compiled: Pattern = re2.compile(text, options)
    except re2.error:
        raise ValueError(text) from None
    return compiled


def name_rules(texts: tuple[str, ...]) -> tuple[tuple[Pattern, str], ...]:
    """Parse regex=replacement rules; the last equals sign separates, because a regex may contain some."""
    return tuple(map(_name_rule, texts))


def queue_name_rules(texts: tuple[str, ...]) -> tuple[tuple[Pattern, str], ...]:
    """Parse the same; the built-in rules follow, unless one of the texts is empty."""
    rules = tuple(text for text in texts if text.strip())
    built_in = QUEUE_NAME_RULES if rules and len(rules) == len(texts) else ()
    return name_rules(rules) + built_in


def _name_rule(text: str) -> tuple[Pattern, str]:
    regex, equals, replacement = text.rpartition("=")
    if not (regex and equals and replacement):
        raise ValueError(text)
    compiled = pattern(regex)
    names = {index: name for name, index in compiled.groupindex.items()}
    groups = (f"(?P<{names[index]}>)" if index in names else "()" for index in range(1, compiled.groups + 1))
    try:
        re.sub("".join(groups), replacement, "")  # raises if the replacement names a missing group
    except (re.error, IndexError):
        raise ValueError(text) from None
    return compiled, replacement
