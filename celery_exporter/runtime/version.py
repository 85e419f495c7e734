"""What runs here, for `--version` and bug reports, as the installer wrote it down: nothing is imported."""

from __future__ import annotations

import platform
from contextlib import suppress
from importlib import resources
from importlib.metadata import PackageNotFoundError, version

#: Whose version explains most of what a bug report tells.
_BELOW = ("celery", "kombu", "redis", "prometheus_client")


def about(own: str) -> str:
    """Return two lines: the version, which scripts read, and what it is made of and runs on."""
    made = revision()
    parts = [*([f"commit {made}"] if made else []), f"Python {platform.python_version()}"]
    for name in _BELOW:
        with suppress(PackageNotFoundError):
            parts.append(f"{name} {version(name)}")
    parts.append(platform.platform(terse=True))
    return f"celery-exporter {own}\n{', '.join(parts)}"


def revision() -> str | None:
    """Return the commit that this was built from, which hatch_build.py wrote down; None if nobody knew it."""
    file = resources.files("celery_exporter") / "REVISION"
    return file.read_text().strip() if file.is_file() else None
