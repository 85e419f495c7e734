"""A plugin of pytest: the tests import the installed package, and not that of a checkout."""

from __future__ import annotations

import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

PRINT_LOCATION = "import celery_exporter; print(celery_exporter.__file__)"


def pytest_sessionstart() -> None:
    """Fail unless this process and its children import it from site-packages."""
    folder = Path(sysconfig.get_path("purelib"))
    # -c puts the working directory on the path, as the tests' child processes do with -m.
    child = subprocess.run(
        [sys.executable, "-c", PRINT_LOCATION], capture_output=True, text=True, check=True
    ).stdout.strip()
    import celery_exporter  # noqa: PLC0415  only after the tests' folder is on the path

    for path in (str(celery_exporter.__file__), child):
        if not Path(path).is_relative_to(folder):
            pytest.exit(f"the tests would run on {path}, which is not in {folder}", returncode=2)
