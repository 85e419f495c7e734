"""`--help`, `--version` and shell completion."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from itertools import groupby
from pathlib import Path

import pytest
from harness.exporter import run_cli

from celery_exporter import __version__
from celery_exporter.cli.commands import _DOCTOR
from celery_exporter.config.options import OPTIONS
from celery_exporter.doctor.check_order import CHECKS_BY_SUBJECT
from celery_exporter.runtime.version import version_text

GROUPS = list(dict.fromkeys(option.group for option in OPTIONS))


@pytest.fixture(scope="module", params=[80, 100])
def page(request) -> list[str]:
    done = run_cli("--help", environment={"COLUMNS": str(request.param)})
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert max(map(len, lines)) <= request.param
    return lines


def test_options_of_a_group_are_adjacent():
    assert [group for group, _ in groupby(option.group for option in OPTIONS)] == GROUPS


def test_help_has_each_option_under_the_heading_of_its_group(page):
    headings = [line.removesuffix(":") for line in page if line.endswith(":") and not line.startswith(" ")]
    assert headings == [*GROUPS, "Other", "Commands"]
    groups = {}
    for line in page:
        if not line.startswith(" "):
            heading = line.removesuffix(":")
        words = line.replace(",", "").split()
        groups |= {word: heading for word in words[:2] if line.startswith("  -") and word.startswith("--")}
    assert {name: groups[name] for name in groups if name not in ("--help", "--version")} == {
        f"--{option.name}": option.group for option in OPTIONS
    }


def test_help_ends_with_examples_whose_options_exist(page):
    examples = page[page.index("  Examples:") :]
    options = {word.rstrip(".,") for line in examples for word in line.split() if word.startswith("--")}
    assert "--broker-url" in options
    assert options <= {f"--{option.name}" for option in OPTIONS}


def help_of(command: str) -> list[str]:
    done = run_cli(command, "--help", environment={"COLUMNS": "80"})
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert max(map(len, lines)) <= 80
    return lines


@pytest.mark.parametrize("command", ["doctor", "record", "replay", "top"])
def test_help_of_a_command_has_the_same_groups_and_ends_with_examples_of_its_options(command):
    lines = help_of(command)
    options, examples = lines[: lines.index("  Examples:")], lines[lines.index("  Examples:") + 1 :]
    headings = [line.removesuffix(":") for line in options if line.endswith(":") and line[0] != " "]
    assert headings == ["Options", *(group for group in GROUPS if group in headings)]
    assert "Broker" in headings
    assert all(f"celery-exporter {command}" in line or line.lstrip().startswith("--") for line in examples)
    used = {word for line in examples for word in line.split() if word.startswith("--")}
    assert used <= {word.rstrip(",") for line in options for word in line.split()[:2]}


def test_help_of_doctor_names_each_check():
    lines = help_of("doctor")
    rows = lines[lines.index("  Checks, in this order:") + 1 : lines.index("  Examples:")]
    listed = " ".join(row[len("    Prometheus  ") :] for row in rows)
    names = [name for checks in CHECKS_BY_SUBJECT.values() for name in checks]
    assert re.findall(r"[^\s,]+", listed) == names


def test_doctor_takes_each_option_and_lists_those_that_it_uses():
    """Remedies say: run celery-exporter doctor with the same options."""
    taken = {name for param in _DOCTOR.params for name in param.opts}
    assert {f"--{option.name}" for option in OPTIONS} <= taken
    listed = {word for line in help_of("doctor") for word in line.split()[:1]}
    assert {"--event-queue", "--event-queue-durable", "--shard", "--state-file"} <= listed
    assert "--log-level" not in listed


def test_help_texts_of_commands_fit_the_list(page):
    commands = page[page.index("Commands:") : page.index("  Examples:")]
    assert not [line for line in commands if line.endswith("...")]


# -- version -------------------------------------------------------------------------------------------


def test_version_option_prints_two_lines():
    done = run_cli("--version")
    first, second = done.stdout.splitlines()
    assert (done.returncode, first) == (0, f"celery-exporter {__version__}")
    for part in ("Python 3.", "celery ", "kombu ", "redis ", "prometheus_client "):
        assert part in second
    assert done.stdout == version_text(__version__) + "\n"


# -- completion ----------------------------------------------------------------------------------------


def completed(*words: str) -> list[str]:
    """Return the completions after these words, the last of which is being typed."""
    done = run_cli(
        environment={
            "_CELERY_EXPORTER_COMPLETE": "bash_complete",
            "COMP_WORDS": " ".join(["celery-exporter", *words]),
            "COMP_CWORD": str(len(words)),
        }
    )
    return done.stdout.split()


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (
            ["--brok"],
            ["--broker-url", "--broker-url-file", "--broker-transport-option", "--broker-ssl-option"],
        ),
        (["--log-level", "d"], ["debug"]),
        (["--log-format", ""], ["logfmt", "json"]),
        (["--event-consumer", ""], ["auto", "kombu"]),
        (["--profile", "tri"], ["triton", "triss"]),
        (["--profile", "native,tri"], ["native,triton", "native,triss"]),
        (["--profile", "triton,tri"], ["triton,triss"]),
        (["--log-level", "debug,"], []),
        (["--task-labels", "queue_name,"], ["queue_name,worker"]),
        (["--host", ""], []),
        (["rec"], ["record"]),
        (["record", "--scr"], ["--scrub"]),
        (["record", "--event-consumer", "k"], ["kombu"]),
        (["profiles", "zer"], ["zerok"]),
    ],
    ids=" ".join,
)
def test_words_are_completed(words, expected):
    assert completed(*words) == [f"plain,{word}" for word in expected]


@pytest.mark.parametrize("option", [option.name for option in OPTIONS if option.metavar == "PATH"])
def test_paths_are_completed_by_the_shell(option):
    assert completed(f"--{option}", "/et") == ["file,/et"]


def test_completion_works_in_bash_as_documented():
    script = """
    eval "$(_CELERY_EXPORTER_COMPLETE=bash_source celery-exporter)"
    COMP_WORDS=(celery-exporter --broker-url-); COMP_CWORD=1
    _celery_exporter_completion celery-exporter
    printf '%s\\n' "${COMPREPLY[@]}"
    complete -p celery-exporter
    """
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "--norc", "-c", script],
        env={**os.environ, "PATH": path},
        capture_output=True,
        text=True,
        check=True,
    )
    word, registered = done.stdout.splitlines()
    assert word == "--broker-url-file"
    assert "_celery_exporter_completion celery-exporter" in registered
