"""Versions for `--version` and bug reports, from package metadata: no package is imported."""

from __future__ import annotations

import platform
from contextlib import suppress
from importlib import resources
from importlib.metadata import PackageNotFoundError, version

#: The dependencies whose versions help most with a bug report.
_DEPENDENCIES = ("celery", "kombu", "redis", "prometheus_client")


def version_text(own: str) -> str:
    """Return two lines: the exporter's own version, for scripts; commit, dependencies and platform."""
    commit = revision()
    parts = [*([f"commit {commit}"] if commit else []), f"Python {platform.python_version()}"]
    for name in _DEPENDENCIES:
        with suppress(PackageNotFoundError):
            parts.append(f"{name} {version(name)}")
    parts.append(platform.platform(terse=True))
    return f"celery-exporter {own}\n{', '.join(parts)}"


def revision() -> str | None:
    """Return the commit of this build, which hatch_build.py writes; None if it is unknown."""
    file = resources.files("celery_exporter") / "REVISION"
    return file.read_text().strip() if file.is_file() else None
