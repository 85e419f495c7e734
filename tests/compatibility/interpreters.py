"""Finds the interpreter of a Python version: on PATH, in pyenv, or from Debian's testing suite."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from harness.processes import ROOT

#: Headers to compile google-re2, if it has no wheel for this Python.
DEBIAN_PACKAGES = ("libre2-dev", "pybind11-dev")
#: Places the packages over /usr for one process and its children: the interpreter needs their libc, and the
#: servers that tests start are in the /usr below.
OVERLAY_USR = ("sh", "-c", 'mount -t overlay overlay -o "lowerdir=$0:/usr" /usr && exec "$@"')
PRINT_VERSION = "import sys; print('%d.%d' % sys.version_info[:2])"


class NotFoundError(Exception):
    """This machine has no such interpreter, and cannot get one; the text says why."""


class Interpreter(NamedTuple):
    """An interpreter, and the command that its processes need before them."""

    version: str
    path: str
    origin: str
    wrapper: tuple[str, ...] = ()


def find(version: str) -> Interpreter:
    """Return the interpreter of a version such as "3.13". Raises NotFoundError."""
    for origin, paths in (("PATH", _on_path(version)), ("pyenv", _in_pyenv(version))):
        for path in paths:
            interpreter = Interpreter(version, str(path), origin)
            if _runs(interpreter):
                return interpreter
    return _from_debian(version)


def _on_path(version: str) -> Iterator[Path]:
    for folder in os.environ.get("PATH", "").split(os.pathsep):
        program = shutil.which(f"python{version}", path=folder)
        if program:
            yield Path(program)


def _in_pyenv(version: str) -> list[Path]:
    if not shutil.which("pyenv"):
        return []
    root = subprocess.run(["pyenv", "root"], capture_output=True, text=True, check=False).stdout.strip()
    return sorted(Path(root).glob(f"versions/{version}.*/bin/python{version}"), reverse=True)


def _from_debian(version: str) -> Interpreter:
    name = f"python-{version}"
    packages = (f"python{version}-dev", *DEBIAN_PACKAGES)
    result = subprocess.run(
        [ROOT / "tests/install-newer.sh", name, *packages], capture_output=True, text=True, check=False
    )
    usr = ROOT / ".cache" / name / "usr"
    if result.returncode or not usr.exists():
        lines = (result.stderr or "no output").strip().splitlines()
        raise NotFoundError(f"neither on PATH nor in pyenv; Debian testing: {lines[-1]}")
    wrapper = ("unshare", "--mount", *OVERLAY_USR, str(usr))
    interpreter = Interpreter(version, f"/usr/bin/python{version}", "Debian testing", wrapper)
    if not _runs(interpreter):
        raise NotFoundError(f"neither on PATH nor in pyenv; that of {usr.relative_to(ROOT)} does not start")
    return interpreter


def _runs(interpreter: Interpreter) -> bool:
    """Return whether it starts and has this version; pyenv's program of a version may not start."""
    command = [*interpreter.wrapper, interpreter.path, "-c", PRINT_VERSION]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    return (result.returncode, result.stdout.strip()) == (0, interpreter.version)
