"""deploy/secrets.sh creates the secrets, keeps existing ones, and prints none."""

from __future__ import annotations

import json
import subprocess
from urllib.parse import urlsplit

import pytest
from harness import compose
from harness.processes import ROOT

SCRIPT = ROOT / "deploy/secrets.sh"
EXTERNAL = {"slack_url", "pagerduty_key", "smtp_password"}


def create(folder, *arguments):
    """Run the script, and return the text of each file."""
    result = subprocess.run([SCRIPT, folder, *arguments], capture_output=True, text=True, check=False)
    assert (result.stdout, result.stderr, result.returncode) == ("", "", 0)
    return {path.name: path.read_text() for path in folder.iterdir()}


@pytest.fixture
def secrets(tmp_path):
    return create(tmp_path / "secrets")


def passwords(secrets):
    """Return the generated passwords."""
    generated = ("_password", "_token")
    return {name: text.strip() for name, text in secrets.items() if name.endswith(generated) and text}


def test_it_creates_all_files_of_the_stack(secrets):
    files = {secret["file"].rpartition("/")[2] for secret in compose.load()["secrets"].values()}
    assert files <= secrets.keys()
    assert {name for name, text in secrets.items() if not text} == EXTERNAL


def test_passwords_are_long_and_unique(secrets, tmp_path):
    generated = [*passwords(secrets).values(), *passwords(create(tmp_path / "again")).values()]
    assert len(generated) == len(set(generated)) == 14
    assert all(len(password) == 32 for password in generated)


def test_every_program_has_its_password_in_its_own_format(secrets):
    generated = passwords(secrets)
    urls = {name: urlsplit(secrets[f"{name}_url"].strip()) for name in ("redis", "rabbitmq", "postgres")}
    assert {name: url.password for name, url in urls.items()} == {
        name: generated[f"{name}_password"] for name in urls
    }
    services = compose.load()["services"]
    assert {url.hostname for url in urls.values()} <= services.keys()
    assert secrets["redis.conf"].split() == ["requirepass", generated["redis_password"]]
    assert json.loads(secrets["redis_exporter.json"]) == {"redis://redis:6379": generated["redis_password"]}
    assert (
        f"--redis.addr={next(iter(json.loads(secrets['redis_exporter.json'])))}"
        in services["redis-exporter"]["command"]
    )
    assert secrets["rabbitmq.conf"].splitlines() == [
        f"default_user = {urls['rabbitmq'].username}",
        f"default_pass = {generated['rabbitmq_password']}",
    ]
    assert secrets["flower_auth"].strip() == f"admin:{generated['flower_password']}"


def test_it_keeps_existing_files(tmp_path):
    folder = tmp_path / "secrets"
    before = create(folder)
    (folder / "slack_url").write_text("https://example.org/")
    (folder / "postgres_url").unlink()
    assert create(folder) == {**before, "slack_url": "https://example.org/"}


def test_only_the_owner_can_open_the_folder_and_containers_can_read_the_files(tmp_path):
    folder = tmp_path / "secrets"
    create(folder)
    assert folder.stat().st_mode & 0o777 == 0o700
    assert {path.stat().st_mode & 0o777 for path in folder.iterdir()} == {0o644}


def test_redis_can_have_another_address(tmp_path):
    secrets = create(tmp_path / "secrets", "127.0.0.1:7000")
    assert urlsplit(secrets["redis_url"].strip()).port == 7000
    assert list(json.loads(secrets["redis_exporter.json"])) == ["redis://127.0.0.1:7000"]
