"""deploy/secrets.sh: what it makes, what it leaves alone, and that it tells nobody."""

from __future__ import annotations

import json
import subprocess
from urllib.parse import urlsplit

import pytest
from harness import compose
from harness.processes import ROOT

SCRIPT = ROOT / "deploy/secrets.sh"
OTHERS = {"slack_url", "pagerduty_key", "smtp_password"}


def make(folder, *arguments):
    done = subprocess.run([SCRIPT, folder, *arguments], capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr, done.returncode) == ("", "", 0)
    return {path.name: path.read_text() for path in folder.iterdir()}


@pytest.fixture
def made(tmp_path):
    return make(tmp_path / "secrets")


def passwords(made):
    return {name: text.strip() for name, text in made.items() if name.endswith("_password") and text}


def test_it_makes_every_file_that_the_stack_takes(made):
    files = {secret["file"].rpartition("/")[2] for secret in compose.load()["secrets"].values()}
    assert files <= made.keys()
    assert {name for name, text in made.items() if not text} == OTHERS


def test_passwords_are_long_and_differ_from_each_other_and_each_time(made, tmp_path):
    found = [*passwords(made).values(), *passwords(make(tmp_path / "again")).values()]
    assert len(found) == len(set(found)) == 10
    assert all(len(password) == 32 for password in found)


def test_each_program_has_it_in_its_own_form(made):
    known = passwords(made)
    urls = {name: urlsplit(made[f"{name}_url"].strip()) for name in ("redis", "rabbitmq", "postgres")}
    assert {name: url.password for name, url in urls.items()} == {
        name: known[f"{name}_password"] for name in urls
    }
    services = compose.load()["services"]
    assert {url.hostname for url in urls.values()} <= services.keys()
    assert made["redis.conf"].split() == ["requirepass", known["redis_password"]]
    assert json.loads(made["redis_exporter.json"]) == {"redis://redis:6379": known["redis_password"]}
    assert (
        f"--redis.addr={next(iter(json.loads(made['redis_exporter.json'])))}"
        in services["redis-exporter"]["command"]
    )
    assert made["rabbitmq.conf"].splitlines() == [
        f"default_user = {urls['rabbitmq'].username}",
        f"default_pass = {known['rabbitmq_password']}",
    ]
    assert made["flower_auth"].strip() == f"admin:{known['flower_password']}"


def test_it_keeps_what_is_there(tmp_path):
    folder = tmp_path / "secrets"
    before = make(folder)
    (folder / "slack_url").write_text("https://example.org/")
    (folder / "postgres_url").unlink()
    assert make(folder) == {**before, "slack_url": "https://example.org/"}


def test_the_folder_is_its_owners_and_its_files_can_be_read_in_containers(tmp_path):
    folder = tmp_path / "secrets"
    make(folder)
    assert folder.stat().st_mode & 0o777 == 0o700
    assert {path.stat().st_mode & 0o777 for path in folder.iterdir()} == {0o644}


def test_redis_can_be_elsewhere(tmp_path):
    made = make(tmp_path / "secrets", "127.0.0.1:7000")
    assert urlsplit(made["redis_url"].strip()).port == 7000
    assert list(json.loads(made["redis_exporter.json"])) == ["redis://127.0.0.1:7000"]
