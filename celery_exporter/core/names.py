"""What tasks are called on metrics: the user's rules over the names that applications gave them."""

from __future__ import annotations

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


#: A task name → what it is shown as; "" for a task that is not shown.
ShownAs = Callable[[str], str]


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
