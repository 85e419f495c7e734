"""make release-check refuses what a release must not have, and builds files that can be checked."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from harness import helm
from harness.processes import ROOT, need

from distribution.test_package import committed, git
from tools.release import files, sources
from tools.release.changelog import ChangelogError, notes

CHANGELOG = """# Changelog

## 1.2.0 (2026-12-24)

### Upgrade notes

Rename `a` to `b`.

## 1.1.0 (2026-11-30)

The last one.
"""
SOURCES = {
    "celery_exporter/__init__.py": '__version__ = "1.2.0"\n',
    "CHANGELOG.md": CHANGELOG,
    "Dockerfile": "ARG VERSION=1.2.0\n",
    "README.md": "Install it with pip.\n",
    "deploy/helm/celery-exporter/Chart.yaml": "name: celery-exporter\nversion: 1.2.0\nappVersion: 1.2.0\n",
    "deploy/helm/celery-exporter/values.yaml": (
        "image: {registry: ghcr.io, repository: acme/celery-exporter}\n"
    ),
    "deploy/kubernetes/deployment.yaml": (
        "spec: {template: {spec: {containers: [image: 'ghcr.io/acme/celery-exporter:1.2.0']}}}\n"
    ),
    "docker-compose.yml": "a:\n  image: celery-exporter:1.2.0\nb:\n  image: celery-exporter-demo:1.2.0\n",
    "pyproject.toml": (
        '[project.urls]  # OWNER is a word here.\nHomepage = "https://github.com/Acme/celery-exporter"\n'
    ),
    "tests/test_it.py": '"https://github.com/OWNER/celery-exporter"\n',
}


@pytest.fixture
def repository(tmp_path) -> Path:
    """Return a small repository that can be released."""
    root = tmp_path / "repository"
    for name, text in SOURCES.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    committed(root)
    return root


def replaced(name: str, before: str, after: str) -> Callable[[Path], None]:
    """Return a function that replaces a text in a file of a repository, and commits it."""

    def replace(root: Path) -> None:
        path = root / name
        assert before in path.read_text()
        path.write_text(path.read_text().replace(before, after))
        git(root, "commit", "--quiet", "--no-gpg-sign", "--all", "--message", "fault")

    return replace


def tagged_before(root: Path) -> None:
    git(root, "tag", "v1.2.0")
    git(root, "commit", "--quiet", "--no-gpg-sign", "--allow-empty", "--message", "later")


def written(name: str) -> Callable[[Path], object]:
    return lambda root: (root / name).write_text("changed\n")


# -- sources ---------------------------------------------------------------------------------------------


def test_sources_without_a_fault_can_be_released(repository):
    assert sources.problems(repository) == []


def test_the_tag_of_the_release_is_on_its_commit(repository):
    git(repository, "tag", "v1.2.0")
    assert sources.problems(repository) == []


@pytest.mark.parametrize(
    ("fault", "problem"),
    [
        (replaced("celery_exporter/__init__.py", "1.2.0", "1.2"), "has the version '1.2'. Write MAJOR.MINOR"),
        (replaced("celery_exporter/__init__.py", "1.2.0", "1.02.0"), "has the version '1.02.0'. Write"),
        (replaced("celery_exporter/__init__.py", "__version__", "version"), "has the version ''. Write"),
        (replaced("celery_exporter/__init__.py", "1.2.0", "1.3.0"), "no section of 1.3.0. Add: ## 1.3.0 "),
        (tagged_before, r"the tag v1.2.0 is on another commit \(.{12}\). Raise the version in celery_"),
        (lambda root: git(root, "tag", "v1.3.0"), "this commit has the tag v1.3.0, and not v1.2.0. Remove"),
        (replaced("CHANGELOG.md", "2026-12-24", "unreleased"), "1.2.0 has the date 'unreleased'. Write the"),
        (replaced("CHANGELOG.md", "2026-12-24", "2026-13-24"), "1.2.0 has the date '2026-13-24'. Write the"),
        (replaced("CHANGELOG.md", "## 1.2.0 (2026-12-24)", ""), "CHANGELOG.md has no section of 1.2.0. Add"),
        (replaced("CHANGELOG.md", "### Upgrade notes", "### Other"), "has no ### Upgrade notes. Write what"),
        (replaced("Dockerfile", "1.2.0", "1.1.0"), "Dockerfile has ARG VERSION 1.1.0. Write 1.2.0, as in"),
        (
            replaced("deploy/helm/celery-exporter/Chart.yaml", "\nversion: 1.2.0", "\nversion: 1.1.0"),
            "Chart.yaml has version 1.1.0. Write 1.2.0, as in",
        ),
        (
            replaced("deploy/helm/celery-exporter/Chart.yaml", "appVersion: 1.2.0", 'appVersion: "1.1.0"'),
            "Chart.yaml has appVersion 1.1.0. Write 1.2.0, as in",
        ),
        (replaced("docker-compose.yml", "r:1.2.0", "r:1.1.0"), "has image celery-exporter 1.1.0. Write 1.2"),
        (
            replaced("docker-compose.yml", "demo:1.2.0", "demo:1.1.0"),
            "has image celery-exporter-demo 1.1.0. ",
        ),
        (
            replaced(
                "deploy/helm/celery-exporter/values.yaml", "ghcr.io, repository: acme/", "'', repository: "
            ),
            "celery-exporter has the image celery-exporter. Write ghcr.io as image.registry, and acme/cel",
        ),
        (
            replaced("deploy/kubernetes/deployment.yaml", "ghcr.io/acme/", ""),
            "has the image celery-exporter:1.2.0. Write ghcr.io/acme/celery-exporter:1.2.0",
        ),
        (
            replaced("deploy/kubernetes/deployment.yaml", "1.2.0", "1.1.0"),
            "has the image ghcr.io/acme/celery-exporter:1.1.0. Write ghcr.io/acme/celery-exporter:1.2.0",
        ),
        (
            replaced("README.md", "Install", "You need an image that your nodes can pull. Install"),
            "say where the image is: README.md:1:You need",
        ),
        (
            replaced("pyproject.toml", "/Acme/", "/OWNER/"),
            "owner of the repository .*: pyproject.toml:2:Home",
        ),
        (
            replaced("pyproject.toml", "github.com/Acme", "OWNER.github.io"),
            "owner of the repository .*: pyproject.toml:2:Home",
        ),
        (
            replaced("README.md", "Install", "security@example.org. Install"),
            "reports of vulnerabilities: README.md:1:security@",
        ),
        (
            replaced("README.md", "Install", "No release is published yet. Install"),
            "say how users get the release: README.md:1:No release",
        ),
        (written("new.txt"), r"not clean. Commit or remove: \?\? new.txt"),
        (written("README.md"), "not clean. Commit or remove:  M README.md"),
        (lambda root: shutil.rmtree(root / ".git"), "not a git repository with a commit"),
    ],
)
def test_each_fault_of_the_sources_is_refused(repository, fault, problem):
    fault(repository)
    assert [text for text in sources.problems(repository) if re.search(problem, text)] != []


def test_the_command_prints_each_problem_of_this_repository():
    """Before a release this is what a maintainer has to fill in; at a release it is nothing."""
    command = [sys.executable, "-m", "tools.release", "sources"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    problems = sources.problems(ROOT)
    assert result.returncode == bool(problems)
    assert [problem for problem in problems if problem not in result.stderr] == []


# -- notes -----------------------------------------------------------------------------------------------


def test_notes_are_the_section_of_the_version():
    assert notes(CHANGELOG, "1.2.0") == "### Upgrade notes\n\nRename `a` to `b`.\n"
    assert notes(CHANGELOG, "1.1.0") == "The last one.\n"


def test_an_empty_section_is_an_error():
    with pytest.raises(ChangelogError, match=r"the section of 1\.1\.0 is empty"):
        notes(CHANGELOG.replace("The last one.\n", ""), "1.1.0")


# -- files -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def release(tmp_path_factory) -> Path:
    """Return a copy of this repository with the files of the release in dist/."""
    root = tmp_path_factory.mktemp("release")
    for name in git(ROOT, "ls-files").splitlines():
        if not name.startswith(("tests/", "docs/")) and (ROOT / name).is_file():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, root / name)
    committed(root)
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("CI", raising=False)  # there, helm has to be installed
        files.build(root, root / "dist")
    return root


def package(release: Path, pattern: str) -> Path:
    (path,) = (release / "dist").glob(pattern)
    return path


def test_wheel_source_package_and_notes_are_built(release):
    version = sources.version_of(release)
    assert package(release, "*.whl").name == f"celery_event_exporter-{version}-py3-none-any.whl"
    assert package(release, "*.tar.gz").name == f"celery_event_exporter-{version}.tar.gz"
    assert (release / "dist" / files.NOTES).read_text() == notes(
        (release / "CHANGELOG.md").read_text(), version
    )


def test_checksums_are_those_of_all_files_to_upload(release):
    dist = release / "dist"
    result = subprocess.run(
        [need("sha256sum"), "--check", "--strict", files.CHECKSUMS],
        cwd=dist,
        capture_output=True,
        text=True,
        check=True,
    )
    names = {path.name for path in dist.iterdir()} - {files.NOTES, files.CHECKSUMS}
    assert {line.removesuffix(": OK") for line in result.stdout.splitlines()} == names


def test_a_source_package_that_builds_another_wheel_is_refused(release, tmp_path):
    wheel = tmp_path / package(release, "*.whl").name
    shutil.copy(package(release, "*.whl"), wheel)
    with zipfile.ZipFile(wheel, "a") as file:
        file.writestr("celery_exporter/more.py", "")
    with pytest.raises(files.ReleaseError, match="builds another wheel"):
        files.check_rebuild(package(release, "*.tar.gz"), wheel)


def test_the_chart_has_urls_of_the_repository(tmp_path, monkeypatch):
    """A link to another file of the repository leads nowhere from a package."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/helm").symlink_to(helm.program("helm4"))
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:{os.environ['PATH']}")
    assert files.build_chart(ROOT, tmp_path) == []
    chart = tmp_path / f"celery-exporter-{sources.version_of(ROOT)}.tgz"
    with tarfile.open(chart) as package:
        package.extractall(tmp_path / "unpacked", filter="data")
    homepage = sources.homepage_of(ROOT)
    about = yaml.safe_load((tmp_path / "unpacked/celery-exporter/Chart.yaml").read_text())
    assert (about["home"], about["sources"]) == (homepage, [homepage])
    readme = (tmp_path / "unpacked/celery-exporter/README.md").read_text()
    links = re.findall(r"\]\(([^)]+)\)", readme)
    assert f"{homepage}/blob/v{sources.version_of(ROOT)}/docs/how-to/helm.md" in links
    assert [link for link in links if not link.startswith("https://")] == []
    result = helm.run("helm4", "lint", "--strict", chart)
    assert result.returncode == 0, result.stdout


METADATA = "Metadata-Version: 2.4\nName: x\nVersion: 1.2.0\nDescription-Content-Type: text/markdown\n"


@pytest.mark.parametrize(
    ("metadata", "problem"),
    [
        (METADATA + "\n# Title\n", None),
        (METADATA, "the readme is missing"),
        (METADATA.replace("1.2.0", "1.3.0") + "\n# Title\n", "has the version 1.3.0, and not 1.2.0"),
        (METADATA + "License-Expression: none\n\n# Title\n", "license-expression"),
        (METADATA + "Unknown: x\n\n# Title\n", "unrecognized field"),
    ],
)
def test_metadata_that_an_index_does_not_accept_is_refused(tmp_path, metadata, problem):
    wheel = tmp_path / "x-1.2.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as file:
        file.writestr("x-1.2.0.dist-info/METADATA", metadata)
    if problem is None:
        files.check_metadata(wheel, "1.2.0")
        return
    with pytest.raises(files.ReleaseError, match=problem):
        files.check_metadata(wheel, "1.2.0")


@pytest.mark.parametrize("build", [lambda root: files.build_chart(root, root), files.build_image])
def test_a_part_whose_program_is_missing_is_named_and_an_error_in_ci(
    repository, monkeypatch, tmp_path, build
):
    monkeypatch.setenv("PATH", str(tmp_path))  # neither helm nor an engine
    monkeypatch.delenv("CI", raising=False)
    (why,) = build(repository)
    assert why.startswith(("no chart: helm is not installed", "no image: there is no container engine"))
    monkeypatch.setenv("CI", "true")
    with pytest.raises(files.ReleaseError, match=re.escape(why)):
        build(repository)


def test_the_error_of_a_program_is_printed(repository):
    with pytest.raises(files.ReleaseError, match=r"(?s)ls .*/nothing failed:.*No such file"):
        files.run([need("ls"), os.fspath(repository / "nothing")], repository)
