"""What has to be true of the sources before a release. Each check returns what is wrong, and what to do."""

from __future__ import annotations

import os
import re
import subprocess
import tomllib
from collections.abc import Callable, Sequence
from pathlib import Path

import yaml

from tools.release.changelog import ChangelogError, check_complete

INIT, DOCKERFILE = Path("celery_exporter/__init__.py"), Path("Dockerfile")
COMPOSE = Path("docker-compose.yml")
CHART = Path("deploy/helm/celery-exporter")
CHART_VALUES, DEPLOYMENT = CHART / "values.yaml", Path("deploy/kubernetes/deployment.yaml")
#: Extended regular expression → what to write instead.
PLACEHOLDERS = {
    r"(^|[^[:alnum:]_])OWNER[./]": "write the owner of the repository on GitHub",
    r"security@example\.org": "write the address that receives reports of vulnerabilities",
    r"[Nn]o release is published yet|none published yet": "say how users get the release",
    r"an image that your nodes can pull|[Bb]uild it from the Dockerfile of the project": (
        "say where the image is"
    ),
}
#: Files that name the placeholders, or use them as examples.
NOT_SEARCHED = ("tests", "tools/release", "docs/contributing/release.md", "CHANGELOG.md")
_VERSION = re.compile(r'^__version__ = "(.*)"$', re.MULTILINE)
_SEMVER = re.compile(r"(0|[1-9]\d*)\.(0|[1-9]\d*)\.(0|[1-9]\d*)")


def version_of(root: Path) -> str:
    """Return the version of the package."""
    match = _VERSION.search((root / INIT).read_text())
    return match[1] if match else ""


def homepage_of(root: Path) -> str:
    """Return the URL of the repository on GitHub."""
    homepage: str = tomllib.loads((root / "pyproject.toml").read_text())["project"]["urls"]["Homepage"]
    return homepage


def problems(root: Path) -> list[str]:
    """Return what is wrong with the sources, one text for each problem."""
    return [problem for check in CHECKS for problem in check(root)]


def check_version(root: Path) -> list[str]:
    """Check that the version is a SemVer."""
    version = version_of(root)
    if _SEMVER.fullmatch(version):
        return []
    return [f"{INIT} has the version {version!r}. Write MAJOR.MINOR.PATCH"]


def check_tag(root: Path) -> list[str]:
    """Check that the version has no tag yet, or has one on this commit, which is then the release."""
    tag = f"v{version_of(root)}"
    others = {*git(root, "tag", "--points-at", "HEAD", "--list", "v*").splitlines()} - {tag}
    if others:
        return [f"this commit has the tag {', '.join(sorted(others))}, and not {tag}. Remove the tag"]
    commit = git(root, "rev-parse", "--quiet", "--verify", f"refs/tags/{tag}^{{commit}}")
    if not commit or commit == git(root, "rev-parse", "HEAD"):
        return []
    return [f"the tag {tag} is on another commit ({commit[:12]}). Raise the version in {INIT}"]


def check_changelog(root: Path) -> list[str]:
    """Check that the changelog has a section of this version, with a date."""
    changelog, version = (root / "CHANGELOG.md").read_text(), version_of(root)
    try:
        check_complete(changelog, version)
    except ChangelogError as error:
        return [str(error)]
    return []


def check_versions(root: Path) -> list[str]:
    """Check that the chart and the images have the version of the package."""
    version = version_of(root)
    places = [
        (CHART / "Chart.yaml", "version", r"^version: *[\"']?(.+?)[\"']?$"),
        (CHART / "Chart.yaml", "appVersion", r"^appVersion: *[\"']?(.+?)[\"']?$"),
        (DOCKERFILE, "ARG VERSION", r"^ARG VERSION=(.+)$"),
        (COMPOSE, "image celery-exporter", r"^ *image: celery-exporter:(.+)$"),
        (COMPOSE, "image celery-exporter-demo", r"^ *image: celery-exporter-demo:(.+)$"),
    ]
    result = []
    for path, name, pattern in places:
        if not (root / path).exists():
            continue
        match = re.search(pattern, (root / path).read_text(), re.MULTILINE)
        if match is None or match[1] != version:
            result.append(f"{path} has {name} {match and match[1]}. Write {version}, as in {INIT}")
    return result


def check_image(root: Path) -> list[str]:
    """Check that the chart and the manifests name the image that release.yml pushes."""
    repository = homepage_of(root).removeprefix("https://github.com/")
    if "OWNER" not in repository:
        repository = repository.lower()  # as names of images are
    image = f"ghcr.io/{repository}"
    values = yaml.safe_load((root / CHART_VALUES).read_text())["image"]
    pod = yaml.safe_load((root / DEPLOYMENT).read_text())["spec"]["template"]["spec"]
    in_chart = "/".join(filter(None, (values["registry"], values["repository"])))
    in_manifests = pod["containers"][0]["image"]
    result = []
    if in_chart != image:
        result.append(
            f"{CHART} has the image {in_chart}. "
            f"Write ghcr.io as image.registry, and {repository} as image.repository, in values.schema.json"
        )
    if in_manifests != f"{image}:{version_of(root)}":
        result.append(f"{DEPLOYMENT} has the image {in_manifests}. Write {image}:{version_of(root)}")
    return result


def check_placeholders(root: Path) -> list[str]:
    """Check that no tracked file has a placeholder."""
    outside = [f":(exclude){path}" for path in NOT_SEARCHED]
    result = []
    for pattern, remedy in PLACEHOLDERS.items():
        found = git(root, "grep", "--line-number", "-I", "-E", pattern, "--", ".", *outside)
        result += [f"{remedy}: {line}" for line in found.splitlines()]
    return result


def check_work_tree(root: Path) -> list[str]:
    """Check that all changes are committed."""
    if not git(root, "rev-parse", "HEAD"):
        return [f"{root} is not a git repository with a commit. Release from a clone"]
    changed = git(root, "status", "--porcelain").splitlines()
    return [f"the work tree is not clean. Commit or remove: {', '.join(changed)}"] if changed else []


CHECKS: Sequence[Callable[[Path], list[str]]] = (
    check_version,
    check_tag,
    check_changelog,
    check_versions,
    check_image,
    check_placeholders,
    check_work_tree,
)


def git(root: Path, *arguments: str) -> str:
    """Return the output of a git command, empty if it fails; the GIT_* variables of a hook do not apply."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    command = ["git", "-C", str(root), *arguments]
    result = subprocess.run(  # noqa: S603  git
        command, env=environment, capture_output=True, text=True, check=False
    )
    return result.stdout.rstrip("\n") if result.returncode == 0 else ""
