"""Provides the source package of a pinned Celery release, and a virtual environment for its tests."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

from harness.processes import ROOT, need

HERE = Path(__file__).parent
#: Pins the release, with the hash of its source package.
SOURCE = HERE / "celery.txt"
#: Pins the packages of the environment, including Celery.
ENVIRONMENT = HERE / "requirements.txt"
CACHE = ROOT / ".cache" / "celery-integration"
#: Files that the package must contain.
REQUIRED = ("t/integration/conftest.py", "t/integration/tasks.py", "t/canvas_helpers.py", "pyproject.toml")
_PIN = re.compile(r"^celery==(?P<version>\S+) --hash=sha256:(?P<sha256>[0-9a-f]{64})$", re.MULTILINE)


def pinned(text: str) -> tuple[str, str]:
    """Return the version and the SHA-256 in a file with the format of `SOURCE`."""
    pins = _PIN.findall(text)
    if len(pins) != 1:
        raise ValueError(
            f"{SOURCE.name} must pin celery==VERSION --hash=sha256:… once, not {len(pins)} times"
        )
    version, sha256 = pins[0]
    return version, sha256


def version() -> str:
    """Return the pinned release."""
    return pinned(SOURCE.read_text())[0]


def unpacked() -> Path:
    """Return the folder of the unchanged source package, and download it if it is missing."""
    release, sha256 = pinned(SOURCE.read_text())
    archive = CACHE / f"celery-{release}.tar.gz"
    if not archive.exists():
        _download()
    verify(archive, sha256)
    folder = CACHE / f"celery-{release}"
    shutil.rmtree(folder, ignore_errors=True)  # it may contain files of an earlier run
    with tarfile.open(archive) as package:
        package.extractall(CACHE, filter="data")
    missing = [name for name in REQUIRED if not (folder / name).exists()]
    if missing:
        raise FileNotFoundError(f"{archive.name} lacks {', '.join(missing)}")
    return folder


def verify(archive: Path, sha256: str) -> None:
    """Remove the archive and raise ValueError if it has another hash than the pinned one."""
    actual = hashlib.sha256(archive.read_bytes()).hexdigest()
    if actual != sha256:
        archive.unlink()
        raise ValueError(f"{archive.name} has SHA-256 {actual}; {SOURCE.name} pins {sha256}. It was removed.")


def interpreter() -> Path:
    """Return the Python of an environment with exactly the packages that `ENVIRONMENT` pins."""
    folder = CACHE / "venv"
    python = folder / "bin" / "python"
    environment = {**os.environ, "UV_PYTHON_DOWNLOADS": "never"}
    if not python.exists():
        _run(need("uv"), "venv", "--quiet", "--python", sys.executable, str(folder), env=environment)
    pins = ("--require-hashes", str(ENVIRONMENT))
    _run(need("uv"), "pip", "sync", "--quiet", "--python", str(python), *pins, env=environment)
    return python


def _download() -> None:
    CACHE.mkdir(parents=True, exist_ok=True)
    options = (
        "--quiet",
        "--disable-pip-version-check",
        "--no-deps",
        "--no-binary",
        "celery",
        "--require-hashes",
    )
    _run(
        sys.executable, "-m", "pip", "download", *options, "--dest", str(CACHE), "--requirement", str(SOURCE)
    )


def _run(*command: str, env: dict[str, str] | None = None) -> None:
    subprocess.run(command, env=env, check=True)
