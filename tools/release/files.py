"""The files of a release, in dist/: wheel, source package, chart, notes and checksums."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

from packaging import metadata
from readme_renderer import markdown

from tools.release.changelog import notes
from tools.release.sources import CHART, git, homepage_of, version_of

NOTES, CHECKSUMS = "NOTES.md", "SHA256SUMS"
ENGINES = ("podman", "docker")


class ReleaseError(Exception):
    """A file of the release cannot be built or is not valid; the text says which one and why."""


def build(root: Path, dist: Path) -> list[str]:
    """Build all files of a release into an empty directory; return what was left out."""
    version = version_of(root)
    text = notes((root / "CHANGELOG.md").read_text(), version)
    shutil.rmtree(dist, ignore_errors=True)
    dist.mkdir(parents=True)
    sdist = build_package(root, dist, "sdist")
    wheel = build_package(root, dist, "wheel")
    check_rebuild(sdist, wheel)
    check_metadata(wheel, version)
    left_out = build_chart(root, dist)
    (dist / NOTES).write_text(text)
    write_checksums(dist)
    return left_out


def build_package(folder: Path, dist: Path, target: str) -> Path:
    """Build a "wheel" or an "sdist", and return its path."""
    before = {*dist.iterdir()}
    run([sys.executable, "-m", "hatchling", "build", "--target", target, "--directory", str(dist)], folder)
    (package,) = {*dist.iterdir()} - before
    return package


def check_rebuild(sdist: Path, wheel: Path) -> None:
    """Check that the source package builds the same wheel: distributions build from it."""
    with tempfile.TemporaryDirectory() as folder:
        with tarfile.open(sdist) as file:
            file.extractall(folder, filter="data")
        (unpacked,) = Path(folder).iterdir()
        again = Path(folder, "dist")
        again.mkdir()
        rebuilt = build_package(unpacked, again, "wheel")
        if rebuilt.name != wheel.name or digest(rebuilt) != digest(wheel):
            raise ReleaseError(f"{sdist.name} builds another wheel than {wheel.name}")


def check_metadata(wheel: Path, version: str) -> None:
    """Check the metadata as the package index does, with the readme."""
    with zipfile.ZipFile(wheel) as file:
        (name,) = (name for name in file.namelist() if name.endswith(".dist-info/METADATA"))
        content = file.read(name)
    try:
        fields = metadata.Metadata.from_email(content)
    except metadata.ExceptionGroup as group:
        raise ReleaseError(f"{wheel.name}: {'; '.join(map(str, group.exceptions))}") from None
    if str(fields.version) != version:
        raise ReleaseError(f"{wheel.name} has the version {fields.version}, and not {version}")
    if not fields.description or markdown.render(fields.description) is None:
        raise ReleaseError(f"{wheel.name}: the readme is missing, or the package index cannot render it")


def build_chart(root: Path, dist: Path) -> list[str]:
    """Package the chart; return why it was left out."""
    if not (root / CHART).exists():
        return [f"no chart: there is no {CHART}"]
    helm = shutil.which("helm")
    if helm is None:
        return left_out("no chart: helm is not installed")
    with tempfile.TemporaryDirectory() as folder:
        chart = Path(shutil.copytree(root / CHART, Path(folder, CHART.name)))
        add_urls(chart, homepage_of(root), f"v{version_of(root)}")
        run([helm, "package", str(chart), "--destination", str(dist)], root)
    return []


def add_urls(chart: Path, repository: str, tag: str) -> None:
    """Add the URLs of the repository to a copy of the chart, which has no other files of it."""
    with (chart / "Chart.yaml").open("a") as file:
        file.write(f"home: {repository}\nsources:\n  - {repository}\n")
    readme = chart / "README.md"
    readme.write_text(
        re.sub(
            r"(?<=\]\()(?!https?://|#)([^)\s]+)(?=\))",
            lambda link: f"{repository}/blob/{tag}/{os.path.normpath(CHART / link[1])}",
            readme.read_text(),
        )
    )


def build_image(root: Path) -> list[str]:
    """Build the image, and run it once; return why it was left out."""
    engine = next((path for path in map(shutil.which, ENGINES) if path and works(path)), None)
    if engine is None:
        return left_out(f"no image: there is no container engine ({' or '.join(ENGINES)})")
    version, image = version_of(root), f"celery-exporter:{version_of(root)}"
    revision = git(root, "rev-parse", "HEAD")
    arguments = ["--build-arg", f"VERSION={version}", "--build-arg", f"REVISION={revision}"]
    run([engine, "build", *arguments, "--tag", image, "."], root)
    output = run([engine, "run", "--rm", image, "--version"], root)
    if version not in output or revision not in output:
        raise ReleaseError(f"{image} prints another version: {output.strip()}")
    return []


def works(engine: str) -> bool:
    """Return whether a container engine can be used: docker needs its daemon."""
    return not subprocess.run([engine, "info"], capture_output=True, check=False).returncode  # noqa: S603


def left_out(why: str) -> list[str]:
    """Return why a part was left out, which is an error in CI."""
    if os.environ.get("CI"):
        raise ReleaseError(why)
    return [why]


def write_checksums(dist: Path) -> None:
    """Write the checksums of all other files: `sha256sum --check SHA256SUMS`."""
    files = sorted(path for path in dist.iterdir() if path.name not in {NOTES, CHECKSUMS})
    (dist / CHECKSUMS).write_text("".join(f"{digest(path)}  {path.name}\n" for path in files))


def digest(path: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal digits."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def run(command: list[str], folder: Path) -> str:
    """Return the output of a command; raise ReleaseError with its errors if it fails."""
    result = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)  # noqa: S603
    if result.returncode:
        raise ReleaseError(f"{' '.join(command)} failed:\n{result.stdout}{result.stderr}")
    return result.stdout
