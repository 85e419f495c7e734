"""The unit: what systemd-analyze says of it, and that it agrees with the exporter and the README."""

from __future__ import annotations

import re
import subprocess

import pytest
from harness.processes import ROOT, need

from celery_exporter.options import OPTIONS

UNIT = ROOT / "deploy/systemd/celery-exporter.service"
#: Tenths, which is what --threshold takes: 1.5.
EXPOSURE = 15


def directives() -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for name, value in re.findall(r"^(\w+)=(.*)$", UNIT.read_text(), re.MULTILINE):
        found.setdefault(name, []).append(value)
    return found


@pytest.fixture
def installed(tmp_path):
    """Return the unit with a program that exists, or its absence would be all that is said."""
    program = tmp_path / "celery-exporter"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    (command,) = directives()["ExecStart"]
    copy = tmp_path / UNIT.name
    copy.write_text(UNIT.read_text().replace(command.split()[0], str(program)))
    return copy


def analyze(*arguments):
    command = [need("systemd-analyze"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_verify_has_nothing_to_say(installed):
    done = analyze("verify", "--man=no", "--recursive-errors=no", installed)
    assert (done.stdout + done.stderr, done.returncode) == ("", 0)


def test_verify_would_say_it(installed):
    installed.write_text(
        installed.read_text().replace("ProtectHome=yes", "ProtectHome=mostly\nProtectHum=yes")
    )
    said = analyze("verify", "--man=no", "--recursive-errors=no", installed).stderr
    assert "ProtectHum" in said
    assert "protect home" in said


def test_its_exposure_is_low():
    done = analyze("security", "--no-pager", "--offline=true", f"--threshold={EXPOSURE}", UNIT)
    assert done.returncode == 0, done.stdout + done.stderr
    exposure = re.search(r"Overall exposure level for \S+ (\d+\.\d+)", done.stdout)
    assert exposure
    assert float(exposure[1]) * 10 <= EXPOSURE


def test_its_exposure_would_be_seen(tmp_path):
    bare = tmp_path / UNIT.name
    bare.write_text(
        re.sub(r"^(Protect|Private|System|Restrict).*$", "", UNIT.read_text(), flags=re.MULTILINE)
    )
    assert (
        analyze("security", "--no-pager", "--offline=true", f"--threshold={EXPOSURE}", bare).returncode != 0
    )


def test_it_is_started_with_options_that_exist():
    flags = {f"--{option.name}" for option in OPTIONS}
    (command,) = directives()["ExecStart"]
    assert {word.partition("=")[0] for word in command.split()[1:]} <= flags


def test_the_broker_url_is_a_credential_and_the_state_has_its_folder():
    found = directives()
    (command,) = found["ExecStart"]
    name, _, source = found["LoadCredential"][0].partition(":")
    assert f"--broker-url-file=%d/{name}" in command
    assert f"--state-file=%S/{found['StateDirectory'][0]}/" in command
    assert source in (ROOT / "README.md").read_text()


def test_what_makes_it_known_to_systemd():
    found = directives()
    assert found["Type"] == ["notify"]
    assert found["DynamicUser"] == ["yes"]
    assert found["RestartPreventExitStatus"] == ["2"], "the code of a wrong setting"
    assert found["WatchdogSec"]
