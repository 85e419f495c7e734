"""What tasks are called on metrics: the user's rules over the names that applications gave them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from re import Pattern

#: Names whose outcome is remembered: an application has some hundreds, and a lookup costs less than a match.
REMEMBERED = 10_000

#: A task name → what it is shown as; "" for a task that is not shown.
ShownAs = Callable[[str], str]


def shown_as(
    include: Pattern[str] | None, exclude: Pattern[str] | None, rules: Sequence[tuple[Pattern[str], str]]
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
