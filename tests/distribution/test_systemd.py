"""The systemd unit passes systemd-analyze, and agrees with the exporter and the how-to page."""

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
#: Maximum exposure level in tenths, the unit of --threshold.
MAX_EXPOSURE = 15


def directives() -> dict[str, list[str]]:
    """Return the values of each directive of the unit."""
    values: dict[str, list[str]] = {}
    for name, value in re.findall(r"^(\w+)=(.*)$", UNIT.read_text(), re.MULTILINE):
        values.setdefault(name, []).append(value)
    return values


@pytest.fixture
def installed(tmp_path):
    """Return the unit with an existing program, since systemd-analyze reports a missing one."""
    program = tmp_path / "celery-exporter"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    (command,) = directives()["ExecStart"]
    copy = tmp_path / UNIT.name
    copy.write_text(UNIT.read_text().replace(command.split()[0], str(program)))
    return copy


def analyze(*arguments):
    """Run systemd-analyze."""
    command = [need("systemd-analyze"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_verify_reports_no_errors(installed):
    result = analyze("verify", "--man=no", "--recursive-errors=no", installed)
    assert (result.stdout + result.stderr, result.returncode) == ("", 0)


def test_verify_reports_errors(installed):
    installed.write_text(
        installed.read_text().replace("ProtectHome=yes", "ProtectHome=mostly\nProtectHum=yes")
    )
    errors = analyze("verify", "--man=no", "--recursive-errors=no", installed).stderr
    assert "ProtectHum" in errors
    assert "protect home" in errors


def test_its_exposure_is_low():
    result = analyze("security", "--no-pager", "--offline=true", f"--threshold={MAX_EXPOSURE}", UNIT)
    assert result.returncode == 0, result.stdout + result.stderr
    exposure = re.search(r"Overall exposure level for \S+ (\d+\.\d+)", result.stdout)
    assert exposure
    assert float(exposure[1]) * 10 <= MAX_EXPOSURE


def test_a_high_exposure_is_reported(tmp_path):
    bare = tmp_path / UNIT.name
    bare.write_text(
        re.sub(r"^(Protect|Private|System|Restrict).*$", "", UNIT.read_text(), flags=re.MULTILINE)
    )
    assert (
        analyze("security", "--no-pager", "--offline=true", f"--threshold={MAX_EXPOSURE}", bare).returncode
        != 0
    )


def test_it_is_started_with_options_that_exist():
    flags = {f"--{option.name}" for option in OPTIONS}
    (command,) = directives()["ExecStart"]
    assert {word.partition("=")[0] for word in command.split()[1:]} <= flags


def test_the_broker_url_is_a_credential_and_the_state_has_its_directory():
    values = directives()
    (command,) = values["ExecStart"]
    name, _, source = values["LoadCredential"][0].partition(":")
    assert f"--broker-url-file=%d/{name}" in command
    assert f"--state-file=%S/{values['StateDirectory'][0]}/" in command
    assert source in PAGE


def directive(name: str) -> str:
    """Return the value of a directive that occurs once."""
    (value,) = directives()[name]
    return value


def seconds(name: str) -> int:
    """Return the value of a directive in seconds."""
    return int(re.fullmatch(r"(\d+)s", directive(name))[1])


def test_it_matches_the_how_to_page():
    (venv,) = re.findall(r"python3 -m venv (/\S+)", PAGE)
    assert directive("ExecStart").split()[0] == f"{venv}/bin/celery-exporter"
    assert f"`{directive('EnvironmentFile').removeprefix('-')}`" in PAGE
    assert directive("EnvironmentFile").startswith("-"), "the file is optional"
    assert f"deploy/systemd/{UNIT.name} /etc/systemd/system/" in PAGE


def test_it_notifies_systemd():
    assert directive("Type") == "notify"
    assert directive("NotifyAccess") == "main"
    assert directive("DynamicUser") == "yes"
    assert "AF_UNIX" in directive("RestrictAddressFamilies").split(), (
        "the notification socket is a Unix socket"
    )
    assert {"AF_INET", "AF_INET6"} < set(directive("RestrictAddressFamilies").split())


def test_it_is_always_restarted_when_it_hangs_or_exits():
    # The maximum duration of /metrics under a fault, for an event loop with other requests.
    assert 10 * MAX_SCRAPE_SECONDS <= seconds("WatchdogSec") <= 60
    assert seconds("TimeoutStartSec") >= 15
    assert directive("Restart") == "always"
    assert directive("RestartPreventExitStatus") == str(EXIT_USAGE), "the exit code of an invalid setting"
    # systemd stops restarting after five starts in ten seconds.
    assert 5 * seconds("RestartSec") >= 10


def test_it_has_time_to_stop():
    assert seconds("TimeoutStopSec") > STOP_TIMEOUT_SECONDS + LAST_SAVE_SECONDS


def test_it_can_read_its_start_time():
    """The start time needs the boot time in /proc/stat."""
    assert "ProcSubset" not in directives()


def test_its_limits_exceed_those_of_the_exporter():
    assert int(directive("LimitNOFILE")) >= 2 * MAX_CONNECTIONS, "connections may use half of them"
    assert memory(directive("MemoryMax")) >= MAX_MEMORY_BYTES


def memory(value: str) -> int:
    """Return the bytes of a size such as 512M or 512Mi."""
    count, unit = re.fullmatch(r"(\d+)([MG])i?", value).groups()
    return int(count) * {"M": 2**20, "G": 2**30}[unit]


# -- system calls ---------------------------------------------------------------------------------------


def expanded(*names: str) -> set[str]:
    """Return system calls, with groups replaced by their members."""
    groups = [name for name in names if name.startswith("@")]
    calls = set(names) - set(groups)
    if groups:
        lines = analyze("syscall-filter", "--no-pager", *groups).stdout.splitlines()
        calls |= expanded(*(line.strip() for line in lines if re.match(r"\s+[@\w]", line)))
    return calls


def allowed() -> set[str]:
    """Return the system calls that the unit allows."""
    calls: set[str] = set()
    for line in directives()["SystemCallFilter"]:
        if line.startswith("~"):
            calls -= expanded(*line[1:].split())
        else:
            calls |= expanded(*line.split())
    return calls


def test_its_system_calls_are_allowed(tmp_path, running, redis_broker):
    """A start with a broker, a login, a scrape, a save of the state, and a stop, under strace."""
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
    assert 2 * threads <= int(directive("TasksMax"))
    used = {line.strip() for line in calls.read_text().splitlines() if re.match(r"\s*\w+\s*$", line)}
    used -= {"syscall", "total"}
    assert used > {"execve", "accept4", "rename", "sendto"}, "strace records calls"
    assert used - allowed() == set()
