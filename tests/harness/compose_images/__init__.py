"""Images of the servers in docker-compose.yml, from Debian's programs. No registry is needed."""

import functools
from pathlib import Path

from harness import compose, podman
from harness.processes import ROOT, missing

FOLDER = Path(__file__).parent
CACHE = ROOT / ".cache"
BASE = "localhost/debian-servers"
PACKAGES = (
    "busybox",  # wget, for health checks
    "prometheus-alertmanager",
    "prometheus-node-exporter",
    "prometheus-redis-exporter",
    "prometheus-postgres-exporter",
    "postgresql-15",
)
CLUSTERS = "/etc/postgresql-common/createcluster.conf"
OPTIONS = (
    "--dpkgopt=force-confold",
    f'--essential-hook=install -D /dev/null "$1{CLUSTERS}"',
    f'--essential-hook=echo create_main_cluster = false >"$1{CLUSTERS}"',
    '--customize-hook=ln -s busybox "$1/bin/wget"',
)
#: Programs of `make newer` that images contain.
NEWER = ("prometheus-3/usr/bin/prometheus", "rabbitmq-4/usr/bin/erl")
#: Services of docker-compose.yml, and stages of the Dockerfile.
SERVICES = {
    *("prometheus", "alertmanager", "node-exporter", "redis-exporter"),
    *("postgres", "postgres-exporter", "rabbitmq"),
}


@functools.cache
def build_images() -> None:
    """Build the images of all services, also those of the exporter and the demo."""
    podman.build_images()
    services = compose.load()["services"]
    with podman.locked():
        archive = podman.make_debian_image(BASE, PACKAGES, *OPTIONS, change='CMD ["sh"]')
        recipe = f"{archive} {_sources()}"
        for name in sorted(SERVICES):
            podman.make_once(
                services[name]["image"],
                recipe,
                *("build", "--format", "docker", f"--build-context=cache={CACHE}"),
                *(f"--target={name}", f"--tag={services[name]['image']}", str(FOLDER)),
            )


def _sources() -> dict[str, object]:
    """Return what identifies the files that the images contain."""
    programs = [CACHE / program for program in NEWER]
    for program in programs:
        if not program.exists():
            missing(f"{program} (make newer)")
    texts = {path.name: path.read_text() for path in FOLDER.iterdir() if path.is_file()}
    return {**texts, **{str(path): path.stat().st_mtime for path in programs}}
