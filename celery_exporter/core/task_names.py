"""What tasks and queues are called on metrics: rules over the names that applications gave them."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Protocol

#: Names whose outcome is remembered: an application has some hundreds, and a lookup costs less than a match.
REMEMBERED = 10_000


class Match(Protocol):
    """What matched, as in `re`."""

    def expand(self, template: str, /) -> str:
        """Return the template with the groups that it names."""


class Pattern(Protocol):
    """A regular expression, as in `re` (whose own one hostile text can keep busy for ever)."""

    @property
    def pattern(self) -> str:
        """The text that it was made from."""

    @property
    def groups(self) -> int:
        """How many groups it has."""

    @property
    def groupindex(self) -> Mapping[str, int]:
        """The numbers of the groups that have names."""

    def fullmatch(self, text: str, /) -> Match | None:
        """Return what matched, if all of the text does."""


#: Bytes of a label's value: RabbitMQ takes no longer name of a queue, and no task has one.
LONGEST = 255


def clipped(text: str) -> str:
    """Return a text of `LONGEST` bytes at most in UTF-8; a longer one ends with an ellipsis."""
    if len(text) <= LONGEST and text.isascii():
        return text
    encoded = text.encode("utf-8", "replace")
    if len(encoded) <= LONGEST:
        return text
    return encoded[: LONGEST - 3].decode("utf-8", "ignore") + "…"


#: A name of a task or queue → what it is shown as; "" for one that is not shown.
ShownAs = Callable[[str], str]

_UUID = "[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}|[0-9a-f]{32}"
#: Queues whose names are made at run time. An asterisk takes the place of what differs, for hardly a queue
#: has one in its own name. In turn: the direct queue of each worker (worker_direct), its mailbox
#: (kombu.pidbox), the levels of native delayed delivery, uuids (kombu.common.Broadcast names its queues
#: bcast.<uuid>), and numbers of eight digits or more (dates, timestamps, builds).
#: Patterns of `re`, of which none backtracks far: the default does without google-re2 and its memory.
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
    """Return the function that applies these; patterns are matched against the whole name as it was given.

    `rules` are pairs of a pattern and a replacement as for `re.sub`; the first that matches is applied.
    """
    if not (include or exclude or rules):
        return str

    @lru_cache(REMEMBERED)
    def show(name: str) -> str:
        if (include and not include.fullmatch(name)) or (exclude and exclude.fullmatch(name)):
            return ""
        matches = ((pattern.fullmatch(name), replacement) for pattern, replacement in rules)
        return next((match.expand(replacement) for match, replacement in matches if match), "") or name

    return show
