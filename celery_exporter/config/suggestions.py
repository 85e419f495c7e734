"""Known names that are most like an unknown one, for errors."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def suggestion(unknown: str, known: Iterable[str], prefix: str = "", cutoff: float = 0.6) -> str:
    """Return the known name that is most like an unknown one, as the end of an error; empty for none.

    `prefix` is that of both, which neither argument has. `cutoff` is the least similarity, from 0 to 1.
    """
    similar = difflib.get_close_matches(unknown, [*known], 1, cutoff)
    return f"; did you mean {prefix}{similar[0]}?" if similar else ""
