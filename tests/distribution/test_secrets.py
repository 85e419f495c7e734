"""deploy/secrets.sh creates the secrets, keeps existing ones, refuses unusable ones, and prints none."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from harness import compose
from harness.processes import ROOT, missing

SCRIPT = ROOT / "deploy/secrets.sh"
EXTERNAL = {"slack_url", "pagerduty_key", "smtp_password"}
STARTED_BEFORE = "the containers were started before this script ran"
REMEDY = "Nothing was changed. Run docker compose down, remove these, and run this script again.\n"


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


def test_cdpath_does_not_lead_to_another_folder(tmp_path):
    """The shell prefers folders below $CDPATH to those of the current directory."""
    (tmp_path / "other" / "secrets").mkdir(parents=True)
    environment = {**os.environ, "CDPATH": str(tmp_path / "other")}
    result = subprocess.run(
        [SCRIPT, "secrets"], cwd=tmp_path, env=environment, capture_output=True, check=True
    )
    assert (result.stdout, [*(tmp_path / "other" / "secrets").iterdir()]) == (b"", [])
    assert (tmp_path / "secrets" / "redis_url").exists()


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


def refused(folder):
    """Run the script, which must fail without a change; return its message."""
    before = {path: path.is_file() and path.read_text() for path in folder.rglob("*")}
    result = subprocess.run([SCRIPT, folder], capture_output=True, text=True, check=False)
    assert {path: path.is_file() and path.read_text() for path in folder.rglob("*")} == before
    assert (result.stdout, result.returncode) == ("", 1)
    return result.stderr


def test_it_refuses_directories_that_a_start_without_secrets_created(tmp_path):
    """Docker creates a directory for each file that it mounts and does not find."""
    folder = tmp_path / "secrets"
    for name in ("redis_password", "redis_url"):
        (folder / name).mkdir(parents=True)
    assert refused(folder) == (
        f"secrets.sh: {folder}/redis_password is a directory: {STARTED_BEFORE}\n"
        f"secrets.sh: {folder}/redis_url is a directory: {STARTED_BEFORE}\n{REMEDY}"
    )
    for name in ("redis_password", "redis_url"):
        (folder / name).rmdir()
    assert all(path.is_file() for path in folder.iterdir() if create(folder))


def test_it_refuses_an_empty_password(tmp_path):
    """A run that failed leaves one. An empty password of Redis, for example, means no password."""
    folder = tmp_path / "secrets"
    before = create(folder)
    (folder / "redis_url.new").write_text("")  # of an interrupted run
    assert create(folder) == before
    (folder / "redis_password").write_text("")
    assert f"{folder}/redis_password is empty\n" in refused(folder)
    (folder / "redis_password").unlink()
    message = "contains a password that is not in redis_password, which is missing"
    derived = [folder / name for name in ("redis.conf", "redis_exporter.json", "redis_url")]
    assert all(f"{path} {message}\n" in refused(folder) for path in derived)
    for path in derived:
        path.unlink()
    assert create(folder).keys() == before.keys()


@pytest.fixture
def foreign_folder():
    """Return an empty folder of root that other users can open, and a command prefix for such a user."""
    if os.geteuid() != 0:
        missing("root, to become another user,")
    folder = Path(tempfile.mkdtemp(prefix="celery-exporter-secrets-"))
    folder.chmod(0o755)
    yield folder, ["setpriv", "--reuid=65532", "--regid=65532", "--clear-groups"]
    shutil.rmtree(folder)


def test_it_refuses_a_folder_that_the_engine_created(foreign_folder):
    """Docker creates it as root. The user could not write into it."""
    folder, as_user = foreign_folder
    command = [*as_user, "bash", "-s", folder]
    result = subprocess.run(command, input=SCRIPT.read_bytes(), capture_output=True, check=False)
    assert (result.returncode, result.stdout) == (1, b"")
    assert result.stderr.decode() == (f"secrets.sh: {folder} belongs to root: {STARTED_BEFORE}\n{REMEDY}")
