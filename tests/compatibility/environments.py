"""The built wheel, and virtual environments that have it."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

from harness.processes import ROOT, need

from compatibility.interpreters import Interpreter

FOLDER = ROOT / ".cache" / "compatibility"
LOCK = ROOT / "requirements.lock"
#: What tests read beside the installed package. The copy lacks the package, so no test can import that.
COPIED = ("tests", "tools", "alerts", "dashboards", "docs", "deploy", "pyproject.toml", "zensical.toml")
EXTRAS = ("demo", "top", "otlp")
#: Variables that would change the environment, or options of the exporter.
DROPPED = ("PYTHON", "VIRTUAL_ENV", "CELERY_", "CE_", "PROMETHEUS_", "METRICS_", "OTEL_")
UNAVAILABLE = re.compile(r"Failed to build `([^`]+)`|Because ([\w.-]+[<>=]=\S+) has no", re.MULTILINE)
FIRST_ERROR = re.compile(r"(?:fatal )?error: .+", re.MULTILINE)


class InstallError(Exception):
    """A package cannot be installed; the text names it, with the first error of the build."""


class Environment(NamedTuple):
    """A virtual environment, and the interpreter that made it."""

    folder: Path
    interpreter: Interpreter

    def python(self, *arguments: str | Path) -> list[str]:
        """Return the command that starts its Python."""
        return [*self.interpreter.wrapper, str(self.folder / "bin/python"), *map(str, arguments)]

    def versions(self) -> dict[str, str]:
        """Return the version of each installed package, and of Python."""
        code = (
            "import importlib.metadata as m, platform; print('python', platform.python_version());"
            "[print(d.metadata['Name'].lower().replace('_', '-'), d.version) for d in m.distributions()]"
        )
        output = subprocess.run(
            self.python("-I", "-c", code), capture_output=True, text=True, check=True
        ).stdout
        return dict(line.split() for line in output.splitlines())


def build_wheel(name: str) -> Path:
    """Build the wheel of the checkout for the environment of this name."""
    folder = FOLDER / name / "wheel"
    shutil.rmtree(folder, ignore_errors=True)
    command = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", folder]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    (wheel,) = folder.iterdir()
    return wheel


def copy_tests(name: str) -> Path:
    """Return a copy of the checkout without the package, for the environment of this name."""
    folder = FOLDER / name / "tree"
    shutil.rmtree(folder, ignore_errors=True)
    ignored = shutil.ignore_patterns("__pycache__", "node_modules", ".hypothesis")
    for name in COPIED:
        source, target = ROOT / name, folder / name
        if source.is_dir():
            shutil.copytree(source, target, ignore=ignored)
        else:
            shutil.copy(source, target)
    return folder


def create(name: str, interpreter: Interpreter, *requirements: str | Path) -> Environment:
    """Create an environment by these arguments of `uv pip install`. Raises InstallError."""
    folder = FOLDER / name / "venv"
    shutil.rmtree(folder, ignore_errors=True)
    uv = (*interpreter.wrapper, need("uv"))
    _run(*uv, "venv", "--quiet", "--seed", "--python", interpreter.path, folder)
    environment = Environment(folder, interpreter)
    _run(*uv, "pip", "install", "--quiet", "--python", folder / "bin/python", *requirements)
    return environment


def resolve(name: str, python_version: str, *options: str) -> Path:
    """Return a file of constraints: versions of all dependencies by these options of `uv pip compile`."""
    path = FOLDER / f"{name}.txt"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)  # uv would prefer the versions of an existing file
    extras = [word for extra in EXTRAS for word in ("--extra", extra)]
    target = ("--python-version", python_version, "--no-emit-index-url", "--no-annotate", "--quiet")
    _run(need("uv"), "pip", "compile", ROOT / "pyproject.toml", *extras, *target, *options, "-o", path)
    return path


def clean_environment(**more: str) -> dict[str, str]:
    """Return the variables without those that change Python or the exporter."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(DROPPED)}
    return {**kept, **more}


def _run(*command: str | Path) -> None:
    environment = clean_environment(UV_PYTHON_DOWNLOADS="never")
    result = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, cwd=ROOT)
    if result.returncode:
        raise InstallError(_reason(result.stderr))


def _reason(stderr: str) -> str:
    """Return in one line which package cannot be installed, and why."""
    package, error = UNAVAILABLE.search(stderr), FIRST_ERROR.search(stderr)
    if package is None:
        return " ".join(stderr.split())[-300:]
    detail = f": {error[0]}" if error else ""
    return f"{package[1] or package[2]} has no wheel, and cannot be compiled{detail}"
