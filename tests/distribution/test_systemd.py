"""The unit: what systemd-analyze says of it, and that it agrees with the exporter and the how-to page."""

from __future__ import annotations

import base64
import json
import re
import socket
import subprocess

import bcrypt
import psutil
import pytest
from harness.exporter import SCRAPER, Exporter
from harness.memory_limits import MAX_MEMORY_BYTES
from harness.processes import ROOT, need
from harness.waiting import eventually
from resilience.availability_contract import MAX_SCRAPE_SECONDS

from celery_exporter.app import STOP_TIMEOUT_SECONDS
from celery_exporter.cli.common import EXIT_USAGE
from celery_exporter.config.options import OPTIONS
from celery_exporter.monitor.monitor import LAST_SAVE_SECONDS
from celery_exporter.web.server import MAX_CONNECTIONS

UNIT = ROOT / "deploy/systemd/celery-exporter.service"
PAGE = (ROOT / "docs/how-to/systemd.md").read_text()
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
    assert source in PAGE


def one(name: str) -> str:
    """Return the value of a directive that stands there once."""
    (value,) = directives()[name]
    return value


def seconds(name: str) -> int:
    return int(re.fullmatch(r"(\d+)s", one(name))[1])


def test_it_is_what_the_page_installs():
    (venv,) = re.findall(r"python3 -m venv (/\S+)", PAGE)
    assert one("ExecStart").split()[0] == f"{venv}/bin/celery-exporter"
    assert f"`{one('EnvironmentFile').removeprefix('-')}`" in PAGE
    assert one("EnvironmentFile").startswith("-"), "there need not be one"
    assert f"deploy/systemd/{UNIT.name} /etc/systemd/system/" in PAGE


def test_what_makes_it_known_to_systemd():
    assert one("Type") == "notify"
    assert one("NotifyAccess") == "main"
    assert one("DynamicUser") == "yes"
    assert "AF_UNIX" in one("RestrictAddressFamilies").split(), "the socket is one"
    assert {"AF_INET", "AF_INET6"} < set(one("RestrictAddressFamilies").split())


def test_it_is_restarted_when_it_is_stuck_or_gone_and_for_ever():
    # What /metrics may take at worst under any fault, for a loop that is busy with others.
    assert 10 * MAX_SCRAPE_SECONDS <= seconds("WatchdogSec") <= 60
    assert seconds("TimeoutStartSec") >= 15
    assert one("Restart") == "always"
    assert one("RestartPreventExitStatus") == str(EXIT_USAGE), "the code of a wrong setting"
    # systemd gives up on what it started five times in ten seconds.
    assert 5 * seconds("RestartSec") >= 10


def test_it_has_time_to_end():
    assert seconds("TimeoutStopSec") > STOP_TIMEOUT_SECONDS + LAST_SAVE_SECONDS


def test_it_can_tell_when_it_was_started():
    """By the boot time in /proc/stat."""
    assert "ProcSubset" not in directives()


def test_its_bounds_are_wider_than_its_own():
    assert int(one("LimitNOFILE")) >= 2 * MAX_CONNECTIONS, "half of them is what connections may take"
    assert memory(one("MemoryMax")) >= MAX_MEMORY_BYTES


def memory(value: str) -> int:
    """Return the bytes of, say, 512M or 512Mi."""
    count, unit = re.fullmatch(r"(\d+)([MG])i?", value).groups()
    return int(count) * {"M": 2**20, "G": 2**30}[unit]


# -- system calls ---------------------------------------------------------------------------------------


def expanded(*names: str) -> set[str]:
    """Return the system calls of these, among which are groups."""
    groups = [name for name in names if name.startswith("@")]
    found = set(names) - set(groups)
    if groups:
        lines = analyze("syscall-filter", "--no-pager", *groups).stdout.splitlines()
        found |= expanded(*(line.strip() for line in lines if re.match(r"\s+[@\w]", line)))
    return found


def allowed() -> set[str]:
    found: set[str] = set()
    for line in directives()["SystemCallFilter"]:
        if line.startswith("~"):
            found -= expanded(*line[1:].split())
        else:
            found |= expanded(*line.split())
    return found


def test_what_it_does_is_allowed(tmp_path, running, redis_broker):
    """A start with a broker, a login, a scrape, a state that is saved, and an end: under strace."""
    calls, state, web = (tmp_path / name for name in ("calls", "state", "web.yml"))
    hashed = bcrypt.hashpw(b"secret", bcrypt.gensalt(4)).decode()
    web.write_text(json.dumps({"basic_auth_users": {"prometheus": hashed}}))
    login = {"Authorization": "Basic " + base64.b64encode(b"prometheus:secret").decode()}
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        app = Exporter(
            tmp_path / "exporter",
            redis_broker.url,
            *("--state-file", str(state), "--web.config.file", str(web)),
            environment={"NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "500000"},
            wrapper=(need("strace"), "-f", "-c", "-U", "name", "-o", str(calls)),
        )
        app.deadline = 60
        running(app)
        (traced,) = psutil.Process(app.pid).children()
        eventually(lambda: app.get("/-/ready", login).status == 200, 30)
        assert app.get("/metrics", {**login, **SCRAPER}, timeout=30).status == 200
        eventually(state.exists, 30)
        threads = traced.num_threads()
        traced.terminate()
        assert app.wait(30) == 0
    assert 2 * threads <= int(one("TasksMax"))
    seen = {line.strip() for line in calls.read_text().splitlines() if re.match(r"\s*\w+\s*$", line)}
    seen -= {"syscall", "total"}
    assert seen > {"execve", "accept4", "rename", "sendto"}, "strace sees something"
    assert seen - allowed() == set()
