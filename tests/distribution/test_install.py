"""A wheel can be installed by pip, uv and pipx into an empty environment, and has all it needs there."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
import yaml
from harness.processes import ROOT, need

#: Nothing of this environment: neither its packages nor its variables.
CLEAN = {
    name: value
    for name, value in os.environ.items()
    if not name.startswith(("PYTHON", "VIRTUAL_ENV", "CELERY_EXPORTER", "CE_"))
}


def run(*command: str | Path, check: bool = True, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a command to its end, with its output as text."""
    result = subprocess.run(
        command, env=CLEAN | environment, capture_output=True, text=True, check=False, cwd="/"
    )
    assert not check or result.returncode == 0, result.stderr
    return result


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", folder]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    (wheel,) = folder.iterdir()
    return wheel


def with_pip(wheel: Path, folder: Path) -> tuple[Path, dict[str, str]]:
    run(sys.executable, "-m", "venv", folder)
    run(folder / "bin/pip", "install", "-q", "--disable-pip-version-check", wheel)
    return folder / "bin", {}


def with_uv(wheel: Path, folder: Path) -> tuple[Path, dict[str, str]]:
    places = {"UV_TOOL_DIR": str(folder / "tools"), "UV_TOOL_BIN_DIR": str(folder / "bin")}
    run(need("uv"), "tool", "install", "-q", "--python", sys.executable, wheel, **places)
    return folder / "bin", places


def with_pipx(wheel: Path, folder: Path) -> tuple[Path, dict[str, str]]:
    places = {"PIPX_HOME": str(folder / "home"), "PIPX_BIN_DIR": str(folder / "bin")}
    run(need("pipx"), "install", "--python", sys.executable, wheel, **places)
    return folder / "bin", places


@pytest.fixture(scope="module", params=[with_pip, with_uv, with_pipx], ids=lambda way: way.__name__)
def installed(request, wheel, tmp_path_factory) -> tuple[Path, dict[str, str]]:
    """Return the folder with the command, and the variables of the program that installed it."""
    return request.param(wheel, tmp_path_factory.mktemp("installed") / "environment")


def test_the_command_runs(installed):
    folder, _ = installed
    assert run(folder / "celery-exporter", "--version").stdout.startswith("celery-exporter ")


def test_it_writes_the_alerts_and_the_dashboards(installed, tmp_path):
    folder, _ = installed
    for kind in ("alerts", "dashboards"):
        result = run(folder / "celery-exporter", kind, "--out", tmp_path / kind)
        written = {Path(line) for line in result.stdout.splitlines()}
        assert written == {path for path in (tmp_path / kind).rglob("*") if path.is_file()}
    rules = tmp_path / "alerts/celery.rules.yml"
    assert rules.read_bytes() == (ROOT / "alerts/celery.rules.yml").read_bytes()
    assert yaml.safe_load(rules.read_text())["groups"]
    for name in ("import", "provisioning"):
        shipped = {path.name: path.read_bytes() for path in (ROOT / "dashboards" / name).glob("*.json")}
        folder = tmp_path / "dashboards" / name
        assert shipped
        assert {path.name: path.read_bytes() for path in folder.iterdir()} == shipped


def test_the_command_in_an_error_installs_the_missing_extra(installed, tmp_path):
    folder, environment = installed
    config = tmp_path / "exporter.yml"
    config.write_text("broker_url: redis://127.0.0.1:1/0\notlp_endpoint: http://127.0.0.1:1\n")
    check = (folder / "celery-exporter", "check-config", config)
    result = run(*check, check=False)
    command = re.search("is not installed; run: (.+)", result.stderr)
    assert (result.returncode, bool(command)) == (2, True), result.stderr
    tools = Path(need("pipx")).parent  # where pipx and uv are
    run("sh", "-c", command[1], PATH=f"{tools}:{os.environ['PATH']}", **environment)
    assert ": valid, 1 broker" in run(*check).stdout


def test_the_lowest_version_of_the_build_backend_builds_the_wheel(tmp_path):
    """Distributions build with what they have. The license is one of the newest fields."""
    (requirement,) = tomllib.loads((ROOT / "pyproject.toml").read_text())["build-system"]["requires"]
    python = tmp_path / "environment/bin/python"
    run(need("uv"), "venv", "-q", "--python", sys.executable, tmp_path / "environment")
    run(need("uv"), "pip", "install", "-q", "--python", python, requirement.replace(">=", "=="))
    command = [python, "-m", "hatchling", "build", "--target", "wheel", "--directory", tmp_path / "wheel"]
    subprocess.run(command, cwd=ROOT, env=CLEAN, check=True, capture_output=True)
    (wheel,) = (tmp_path / "wheel").iterdir()
    with zipfile.ZipFile(wheel) as file:
        (name,) = (name for name in file.namelist() if name.endswith(".dist-info/METADATA"))
        assert b"\nLicense-Expression: MIT\n" in file.read(name)
