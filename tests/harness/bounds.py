"""What the exporter takes, by its README: for those who set limits to it."""

import re

from harness.processes import ROOT

README = (ROOT / "README.md").read_text()


def _said(pattern: str) -> int:
    (number,) = re.findall(pattern, README)
    return int(number)


FLOODED = _said(r"process\s+below\s+(\d+) MB") * 2**20
UNFINISHED = _said(r"`--max-tasks` \| `(\d+)`") * _said(r"kept in memory, at (\d+) bytes each")
#: Bytes: after a flood of names, with as many unfinished tasks as it keeps, while it copies them to its file.
MOST_MEMORY = FLOODED + int(1.6 * UNFINISHED)
