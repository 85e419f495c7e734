"""The section of a release in CHANGELOG.md, which is the text of the release on GitHub."""

from __future__ import annotations

import re
from datetime import date

#: A heading of a release: `## 0.1.0 (2026-12-24)`; until then `## 0.1.0 (unreleased)`.
_HEADING = re.compile(r"^## (?P<version>\S+) \((?P<date>[^)]+)\)$", re.MULTILINE)
#: The part of each section that says what users edit.
UPGRADE_NOTES = "### Upgrade notes"


class ChangelogError(ValueError):
    """The section of a release is missing or incomplete; the text says what to write."""


def notes(changelog: str, version: str) -> str:
    """Return the text of a release, without its heading; raise ChangelogError if there is none."""
    heading = _heading(changelog, version)
    following = _HEADING.search(changelog, heading.end())
    text = changelog[heading.end() : following.start() if following else None].strip()
    if not text:
        raise ChangelogError(f"CHANGELOG.md: the section of {version} is empty")
    return f"{text}\n"


def check_complete(changelog: str, version: str) -> None:
    """Raise ChangelogError unless the section of a release has a date, and says what users edit."""
    heading = _heading(changelog, version)
    if UPGRADE_NOTES not in notes(changelog, version).splitlines():
        raise ChangelogError(
            f"CHANGELOG.md: the section of {version} has no {UPGRADE_NOTES}. Write what users edit, or None."
        )
    try:
        date.fromisoformat(heading["date"])
    except ValueError:
        raise ChangelogError(
            f"CHANGELOG.md: the section of {version} has the date {heading['date']!r}. "
            f"Write the day of the release: ## {version} (YYYY-MM-DD)"
        ) from None


def _heading(changelog: str, version: str) -> re.Match[str]:
    for match in _HEADING.finditer(changelog):
        if match["version"] == version:
            return match
    raise ChangelogError(f"CHANGELOG.md has no section of {version}. Add: ## {version} (YYYY-MM-DD)")
