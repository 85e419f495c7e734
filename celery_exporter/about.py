"""What runs here, for `--version` and bug reports, as the installer wrote it down: nothing is imported."""

from __future__ import annotations

import json
import platform
from contextlib import suppress
from importlib.metadata import Distribution, PackageNotFoundError, distribution, version

_OURS = "celery-event-exporter"
#: Whose version explains most of what a bug report tells.
_BELOW = ("celery", "kombu", "redis", "prometheus_client")


def about(own: str) -> str:
    """Return two lines: the version, which scripts read, and what it runs on."""
    parts = [f"Python {platform.python_version()}"]
    for name in _BELOW:
        with suppress(PackageNotFoundError):
            parts.append(f"{name} {version(name)}")
    with suppress(PackageNotFoundError):
        parts += [f"commit {found}" for found in [commit(distribution(_OURS))] if found]
    return f"celery-exporter {own}\n{', '.join(parts)}"


def commit(installed: Distribution) -> str | None:
    """Return the commit that was installed; only who installs from a git URL is told (PEP 610)."""
    found = json.loads(installed.read_text("direct_url.json") or "{}")
    return found.get("vcs_info", {}).get("commit_id") or None
