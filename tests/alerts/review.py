"""alerts/review.yml: what is claimed about each alert, and which alert mutes which one."""

from __future__ import annotations

from typing import Any

import yaml

from .rulebook import FOLDER

FILE = FOLDER / "review.yml"
_content = yaml.safe_load(FILE.read_text())
#: Claims by alert.
REVIEWS: dict[str, dict[str, Any]] = _content["alerts"]
#: Further conditions by cause.
CAUSES: dict[str, dict[str, Any]] = _content["causes"]
#: What fires, by fault.
EXPECTED: dict[str, dict[str, Any]] = {}
for _row in _content["faults"]:
    _names = {name: _row.get(name, []) for name in ("page", "other", "muted")}
    EXPECTED[_row["fault"]] = _names | {"fires": [*_names["page"], *_names["other"], *_names["muted"]]}
