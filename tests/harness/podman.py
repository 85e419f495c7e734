"""Podman with its own storage in .cache, and the images that the tests build and run with it.

No registry is needed. Debian packages make a root file system, which gets the names of the base images.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import hashlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

from harness import compose
from harness.exporter import Exporter
from harness.processes import ROOT, Process, free_port, missing, need
from harness.time_spans import TimeSpan

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Self

DOCKERFILE = ROOT / "Dockerfile"
#: The storage of podman contains its own path, so a copy of .cache cannot use it.
CHECKOUT = hashlib.sha256(bytes(ROOT)).hexdigest()[:8]
FOLDER = ROOT / ".cache" / f"podman-{CHECKOUT}"
RUN_FOLDER = Path("/run", f"celery-exporter-tests-{CHECKOUT}")
#: The commit that the images name.
REVISION = "0123456789abcdef0123456789abcdef01234567"
DEBIAN = "localhost/debian"
DISTROLESS = "gcr.io/distroless/python3-debian12"
#: Names of images that this module builds, by variant of the last stage.
IMAGES = {"slim": "localhost/celery-exporter:slim", "distroless": "localhost/celery-exporter:distroless"}
#: The packages that images of Python have, Python itself, and the server of the compose file.
PACKAGES = (
    *("ca-certificates", "netbase", "tzdata"),
    *("python3", "python3-pip", "python3-venv"),
    "redis-server",
)
CUSTOMIZE = (
    'rm "$1"/usr/lib/python3*/EXTERNALLY-MANAGED',
    'for name in python3.11 python3 python; do ln -s /usr/bin/python3.11 "$1/usr/local/bin/$name"; done',
)
#: The files of a distroless image: Python and libraries, without a shell and a package manager.
DISTROLESS_FILE = """
FROM localhost/debian AS debian
RUN mkdir /files && cp -a --parents /lib /lib64 /usr/lib64 /usr/lib/*-linux-gnu /usr/lib/python3.11 \\
    /usr/bin/python3 /usr/bin/python3.11 /usr/share/zoneinfo /etc/passwd \\
    /etc/ssl/certs/ca-certificates.crt /files
FROM scratch
COPY --from=debian /files /
ENTRYPOINT ["/usr/bin/python3.11"]
"""


def podman(*arguments: str | Path, check: bool = True, **more: Any) -> subprocess.CompletedProcess[str]:
    """Run podman, and return its result."""
    result = subprocess.run(
        [need("podman"), *arguments],
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
        **more,
    )
    assert result.returncode == 0 or not check, f"podman {arguments}\n{result.stdout}{result.stderr}"
    return result


def inspect(name: str, kind: str = "container") -> dict[str, Any]:
    """Return the description of a container or an image."""
    description: dict[str, Any] = json.loads(podman("inspect", "--type", kind, name).stdout)[0]
    return description


def health(name: str) -> str:
    """Run the health check of a container, which podman does only with systemd; return its state."""
    podman("healthcheck", "run", name, check=False)
    status: str = inspect(name)["State"]["Health"]["Status"]
    return status


@functools.cache
def environment() -> dict[str, str]:
    """Return the environment of podman, with a configuration that is independent of the machine's."""
    if os.geteuid() != 0:
        missing("root, for containers,")
    FOLDER.mkdir(parents=True, exist_ok=True)
    files = {
        "containers.conf": f"""
            [containers]
            default_ulimits = ["nofile=1024:1024", "nproc=4096:4096"]
            [network]
            network_config_dir = "{FOLDER}/networks"
            [engine]
            runtime = "runc"
            events_logger = "file"
            lock_type = "file"
            tmp_dir = "{RUN_FOLDER}/tmp"
            """,
        "storage.conf": f"""
            [storage]
            driver = "overlay"
            graphroot = "{FOLDER}/storage"
            runroot = "{RUN_FOLDER}/storage"
            [storage.options.overlay]
            skip_mount_home = "true"
            """,
    }
    for name, text in files.items():
        _write(FOLDER / name, text)
    return {
        **os.environ,
        "CONTAINERS_CONF": f"{FOLDER}/containers.conf",
        "CONTAINERS_STORAGE_CONF": f"{FOLDER}/storage.conf",
        "DISABLE_HC_SYSTEMD": "true",
    }


def _write(path: Path, text: str) -> None:
    """Write a file that other processes may read at the same time."""
    unfinished = path.with_name(f"{path.name}.{os.getpid()}")
    unfinished.write_text(text)
    unfinished.replace(path)


# -- images ------------------------------------------------------------------------------------------------


@functools.cache
def build_images() -> None:
    """Build all images, unless podman has their layers; one process at a time."""
    with locked():
        _make_base_images()
        services = compose.load()["services"]
        podman("tag", DEBIAN, _python(), services["redis"]["image"])
        build("--target", "demo", "-t", f"localhost/{services['worker']['image']}")
        build("-t", IMAGES["slim"], "-t", f"localhost/{services['exporter']['image']}")
        build("-t", IMAGES["distroless"], "--build-arg", f"BASE={DISTROLESS}")
        podman("image", "prune", "--force", "--filter=until=24h")  # not those of a build that runs


@contextlib.contextmanager
def locked() -> Iterator[None]:
    """Let one process at a time build images."""
    environment()
    with (FOLDER / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def build(*arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    """Build the Dockerfile. The package index and the certificates are those of this machine."""
    pip, uv = FOLDER / "pip.conf", FOLDER / "uv.toml"
    index = _package_index()
    _write(pip, "[global]\n" + (f"index-url = {index}\n" if index else ""))
    _write(uv, "system-certs = true\n" + (f'index-url = "{index}"\n' if index else ""))
    volumes = {pip: "/etc/pip.conf", uv: "/etc/uv/uv.toml", Path("/etc/ssl/certs"): "/etc/ssl/certs"}
    return podman(
        *("build", "--network", "host", "--format", "docker", "--build-arg", f"REVISION={REVISION}"),
        *(f"--volume={source}:{target}:ro" for source, target in volumes.items()),
        *arguments,
        ROOT,
        check=check,
    )


def _package_index() -> str:
    """Return the address of the package index that pip uses on this machine, or an empty string."""
    command = [sys.executable, "-m", "pip", "config", "list"]
    settings = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    addresses = re.findall(r"^\S+\.index-url='(.*)'$", settings, re.MULTILINE)
    return addresses[-1] if addresses else ""


def _make_base_images() -> None:
    """Make the images `DEBIAN` and `DISTROLESS`."""
    options = [f"--customize-hook={script}" for script in CUSTOMIZE]
    archive = make_debian_image(DEBIAN, PACKAGES, *options, change='CMD ["python3"]')
    recipe = f"{archive} {DISTROLESS_FILE}"
    make_once(DISTROLESS, recipe, "build", "-t", DISTROLESS, "-", input=DISTROLESS_FILE)


def make_debian_image(name: str, packages: tuple[str, ...], *options: str, change: str) -> Path:
    """Make an image of Debian packages, and return its archive.

    `options` are those of mmdebstrap, and `change` is an instruction of a Dockerfile.
    """
    archive = _debian_archive(packages, *options)
    make_once(name, f"{archive} {change}", "import", "--change", change, str(archive), name)
    return archive


def make_once(name: str, recipe: str, *command: str, **more: Any) -> None:
    """Make an image with a command of podman, unless it was made by the same recipe."""
    finished = f"localhost/made:{hashlib.sha256(f'{name} {recipe}'.encode()).hexdigest()[:12]}"
    if podman("image", "exists", finished, check=False).returncode == 0:
        podman("tag", finished, name)
    else:
        podman(*command, **more)
        podman("tag", name, finished)


def _debian_archive(packages: tuple[str, ...], *options: str) -> Path:
    """Return the root file system of Debian; make it unless it was made by the same command."""
    command = [
        *(need("mmdebstrap"), "--quiet", "--variant=essential", f"--include={','.join(packages)}"),
        *("--dpkgopt=force-unsafe-io", "--dpkgopt=path-exclude=/usr/share/doc/*"),
        *options,
        "bookworm",
    ]
    digest = hashlib.sha256(repr(command).encode()).hexdigest()[:12]
    archive = FOLDER.with_name(f"debian-{digest}.tar")
    if not archive.exists():
        unfinished = FOLDER / "debian.tar"
        result = subprocess.run([*command, unfinished], capture_output=True, text=True, check=False)
        assert result.returncode == 0, result.stderr
        unfinished.rename(archive)
    return archive


def _python() -> str:
    """Return the name of the base image in the Dockerfile."""
    arguments = dict(re.findall(r"^ARG (\w+)=(.*)$", DOCKERFILE.read_text(), re.MULTILINE))
    return arguments["BASE"].replace("${PYTHON}", arguments["PYTHON"])


class Service(Process):
    """The API of Docker by podman, for docker-compose."""

    name = "podman"

    @property
    def socket(self) -> Path:
        return self.folder / "podman.sock"

    def command(self) -> list[str]:
        return [need("podman"), "system", "service", "--time=0", f"unix://{self.socket}"]

    def environment(self) -> dict[str, str]:
        return environment()

    def ready(self) -> bool:
        return self.socket.exists()


# -- containers --------------------------------------------------------------------------------------------


class Container(Exporter):
    """An exporter that runs in a container as the documentation recommends, in the network of the machine."""

    deadline = 60.0

    def __init__(self, folder: Path, image: str, *options: str, **variables: str) -> None:
        super().__init__(folder, None, port=None, update_interval=None)
        self.image = image
        self.options = options
        self.port = free_port()
        self.container = f"exporter-{self.port}"
        self.variables = {
            "CELERY_EXPORTER_HOST": "127.0.0.1",
            "CELERY_EXPORTER_PORT": str(self.port),
            "CELERY_EXPORTER_UPDATE_INTERVAL": "1",
            **variables,
        }

    def command(self) -> list[str]:
        return [
            *(need("podman"), "run", "--rm", f"--name={self.container}", "--network=host", "--timeout=900"),
            *("--read-only", "--cap-drop=ALL", "--security-opt=no-new-privileges"),
            *(f"--env={name}={value}" for name, value in self.variables.items()),
            *self.options,
            self.image,
        ]

    def environment(self) -> dict[str, str]:
        return environment()

    def wait_ready(self) -> Self:
        """Wait until it answers. `main` is then the exporter's process; `process` is that of podman."""
        super().wait_ready()
        self.main = psutil.Process(inspect(self.container)["State"]["Pid"])
        return self

    def wait(self, deadline: float = 10.0) -> int:
        """Wait until it ends; `ending` is then the time of the exporter, without that of podman."""
        ending = TimeSpan.until(
            lambda: not self.main.is_running(),
            self.main.pid,
            deadline=deadline,
            every=0.02,
            what="end of exporter",
        )
        code = super().wait(deadline)
        self.ending = ending
        return code

    def kill(self) -> None:
        podman("rm", "--force", "--time=0", "--ignore", self.container)
        super().kill()
