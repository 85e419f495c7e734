"""Make targets, files, metrics and options in README and pages exist. The README stays short."""

from __future__ import annotations

import re

import pytest
from harness.processes import ROOT

from celery_exporter.cli.main import _command
from celery_exporter.config.options import OPTIONS
from celery_exporter.metrics.model import MetricOptions
from celery_exporter.metrics.registry import PROFILES, select
from documentation.test_docs import PAGES, README

TARGETS = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
NATIVE = {row.name for row in select(("native",), MetricOptions()).rows}
OTHERS = {row.name for profile in PROFILES.values() for row in profile.rows(MetricOptions())}
METRICS = {name + suffix for name in NATIVE | OTHERS for suffix in ("", "_bucket", "_sum", "_count")}
FLAGS = {f"--{option.name}" for option in OPTIONS} | {"--help", "--version"}
FLAGS |= {
    flag for command in _command.commands.values() for parameter in command.params for flag in parameter.opts
}
#: Options of other programs.
OTHER_FLAGS = {
    "celery": "--app --autoscale --broker --concurrency --destination --dump --enable-remote-control "
    "--heartbeat-interval --hostname --without-heartbeat",
    "curl": "--cacert",
    "gh": "--failed --method --notes-file --repo --verify-tag",
    "git, sha256sum": "--check --message --sign",
    "docker, podman": "--build-arg --format --install --network --no-build --platform --privileged --push "
    "--provenance --read-only --rm --sbom --scale --secret --tag --target --tmpfs",
    "dmesg, journalctl, systemctl": "--now --since",
    "kubectl": "--from-file --previous",
    "prometheus": "--enable-feature --storage.tsdb.path --web.listen-address",
    "helm": "--reuse-values --set --set-json --version",
    "pip": "--no-cache-dir --no-deps --python",
    "tests/mutants.sh": "--tests",
    "thanos": "--query.replica-label",
    "py-spy": "--pid",
    "redis-cli": "--askpass --user",
    "other exporters": "--addr --listen-address --transport-options --tz --use-ssl --verbose",
}

every_page = pytest.mark.parametrize("page", [README, *PAGES], ids=lambda page: str(page.relative_to(ROOT)))


def test_the_readme_is_short():
    assert len(README.read_text().splitlines()) <= 200


@every_page
def test_every_make_target_exists(page):
    assert set(re.findall(r"`make ([a-z]+(?:-[a-z]+)*)", page.read_text())) <= TARGETS


@every_page
def test_every_linked_file_exists(page):
    links = re.findall(r"\]\((?!https?://|#)([^)#]+)", page.read_text())
    assert [link for link in links if not (page.parent / link).exists()] == []


@every_page
def test_every_linked_heading_exists(page):
    for path, anchor in re.findall(r"\]\((?!https?://)([^)#]*)#([^)]+)\)", page.read_text()):
        target = page.parent / path if path else page
        headings = re.findall(r"^#+ (.+)$", target.read_text(), re.MULTILINE)
        anchors = {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}
        assert anchor in anchors, f"{path}#{anchor}"


@every_page
def test_every_path_in_the_repository_exists(page):
    folders = "alerts|celery_exporter|dashboards|deploy|docs|tests"
    paths = re.findall(rf"`((?:{folders})/[\w./-]*)`", page.read_text())
    generated = re.compile("deploy/secrets/")
    assert [path for path in paths if not generated.match(path) and not (ROOT / path).exists()] == []


@every_page
def test_every_metric_exists(page):
    names = re.findall(
        r"(?<![\w:/-])celery_(?:tasks?|workers?|queue|broker|exporter)_[a-z_]+[a-z]\b(?!/)", page.read_text()
    )
    assert {name for name in names if not any(metric.startswith(name) for metric in METRICS)} == set()


@every_page
def test_every_option_exists(page):
    flags = set(re.findall(r"(?<![\w-])--[a-z][a-z.-]*[a-z]", page.read_text()))
    assert flags - FLAGS - set(" ".join(OTHER_FLAGS.values()).split()) == set()
