"""Label values of tasks and queues: include, exclude and rename rules for their names."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Protocol

#: Names whose label values are cached. An application has some hundreds; a lookup is faster than a match.
MAX_CACHED_NAMES = 10_000


class Match(Protocol):
    """A match, as in `re`."""

    def expand(self, template: str, /) -> str:
        """Return the template with its group references replaced."""


class Pattern(Protocol):
    """A regular expression, as in `re`. Implementations may be safe against catastrophic backtracking."""

    @property
    def pattern(self) -> str:
        """The source text."""

    @property
    def groups(self) -> int:
        """The number of groups."""

    @property
    def groupindex(self) -> Mapping[str, int]:
        """The numbers of the named groups."""

    def fullmatch(self, text: str, /) -> Match | None:
        """Return the match of the whole text, None if it does not match."""


#: Maximum length of a label value in bytes, as of a queue name in RabbitMQ.
MAX_VALUE_BYTES = 255


def clipped(text: str) -> str:
    """Return the text, cut to `MAX_VALUE_BYTES` bytes of UTF-8; a cut one ends with an ellipsis."""
    if len(text) <= MAX_VALUE_BYTES and text.isascii():
        return text
    encoded = text.encode("utf-8", "replace")
    if len(encoded) <= MAX_VALUE_BYTES:
        return text
    return encoded[: MAX_VALUE_BYTES - 3].decode("utf-8", "ignore") + "…"


#: Returns the label value for the name of a task or queue; "" if it is excluded.
ShownAs = Callable[[str], str]

_UUID = "[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}|[0-9a-f]{32}"
#: Default rules for queue names that are generated at run time. An asterisk replaces the variable part, since
#: almost no queue name contains one. The rules are, in this order: the direct queue of each worker
#: (worker_direct), its mailbox (kombu.pidbox), the levels of native delayed delivery, uuids
#: (kombu.common.Broadcast names its queues bcast.<uuid>), and numbers with eight or more digits (dates,
#: timestamps, builds). The patterns are of `re`, to save the memory of google-re2; none backtracks far.
QUEUE_NAME_RULES: tuple[tuple[Pattern, str], ...] = tuple(
    (re.compile(regex, re.DOTALL), replacement)
    for regex, replacement in (
        (r".+\.dq2", "*.dq2"),
        (r".+\.celery\.pidbox", "*.celery.pidbox"),
        ("celery_delayed_[0-9]+", "celery_delayed_*"),
        (f"(.*?)(?:{_UUID}).*", r"\1*"),
        ("(.*?)[0-9]{8}.*", r"\1*"),
    )
)


def shown_as(
    include: Pattern | None, exclude: Pattern | None, rules: Sequence[tuple[Pattern, str]]
) -> ShownAs:
    """Return a function that applies the patterns and rules to a name; patterns match the whole name.

    `rules` are pairs of a pattern and a replacement as for `re.sub`. The first rule that matches applies.
    """
    if not (include or exclude or rules):
        return str

    @lru_cache(MAX_CACHED_NAMES)
    def show(name: str) -> str:
        if (include and not include.fullmatch(name)) or (exclude and exclude.fullmatch(name)):
            return ""
        matches = ((pattern.fullmatch(name), replacement) for pattern, replacement in rules)
        return next((match.expand(replacement) for match, replacement in matches if match), "") or name

    return show
