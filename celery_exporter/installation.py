"""What installs a missing package into the environment that runs.

A plain `pip install` may be that of another Python, and the name of an extra only helps where this package
came from an index. So a command names the environment, and the requirements of the extra.
"""

from __future__ import annotations

import re
import shlex
import shutil
import sys
from importlib import metadata, util
from pathlib import Path

DISTRIBUTION = "celery-event-exporter"


def extra_command(extra: str) -> str:
    """Return the shell command that installs what an extra of this package needs."""
    marked = (line.partition(";") for line in metadata.requires(DISTRIBUTION) or ())
    is_of_extra = re.compile(rf"\bextra == ['\"]{re.escape(extra)}['\"]").search
    return install_command(*(requirement.strip() for requirement, _, marker in marked if is_of_extra(marker)))


def install_command(*requirements: str) -> str:
    """Return the shell command that installs these packages: `… -m pip install 'celery[sqs]'`."""
    return shlex.join([*_installer(Path(sys.prefix)), *requirements])


def _installer(prefix: Path) -> list[str]:
    """Return the command for an environment, without the packages.

    pipx describes its environments in pipx_metadata.json, and `pipx upgrade` keeps what was injected. Those
    that uv creates have no pip. The container image has such an environment and no uv, but the pip of Python.
    """
    if (prefix / "pipx_metadata.json").exists():
        return ["pipx", "inject", DISTRIBUTION]
    if util.find_spec("pip") is not None:
        return [sys.executable, "-m", "pip", "install"]
    if shutil.which("uv") is None and shutil.which("pip") is not None:
        return ["pip", "--python", sys.executable, "install"]
    return ["uv", "pip", "install", "--python", sys.executable]
