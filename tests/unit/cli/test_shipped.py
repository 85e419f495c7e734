"""`alerts` and `dashboards`."""

from __future__ import annotations

import subprocess
import sys

import pytest
import yaml
from harness.exporter import run_cli


@pytest.mark.parametrize("kind", ["alerts", "dashboards"])
def test_the_paths_of_the_written_files_are_printed(kind, tmp_path):
    done = run_cli(kind, "--out", str(tmp_path))
    written = {str(path) for path in tmp_path.rglob("*") if path.is_file()}
    assert (done.returncode, done.stderr, {*done.stdout.splitlines()}) == (0, "", written)


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").touch()
    done = run_cli("alerts", "--out", str(tmp_path / "file"))
    expected = f"celery-exporter: --out: cannot write '{tmp_path}/file': File exists\n"
    assert (done.returncode, done.stderr) == (1, expected)


def test_links_of_alerts_lead_to_the_given_addresses(tmp_path):
    urls = ("--grafana-url", "https://grafana.example.com/", "--exporter-url", "http://[::1]:9808/celery")
    assert run_cli("alerts", "--out", str(tmp_path), *urls).returncode == 0
    text = (tmp_path / "celery.rules.yml").read_text()
    assert "localhost" not in text
    rules = yaml.safe_load(text)["groups"][0]["rules"]
    notes = [rule["annotations"] for rule in rules if "alert" in rule]
    assert {note["dashboard_url"].partition("/d/")[0] for note in notes} == {"https://grafana.example.com"}
    assert {note["runbook_url"].partition("#")[0] for note in notes} == {"http://[::1]:9808/celery/runbooks"}


@pytest.mark.parametrize(
    "url",
    ["grafana:3000", "http://u:secret@grafana", 'http://a/"', "http://a/{{", "http://a/?b", "http://a b"],
)
def test_an_address_that_links_cannot_have_is_one_line(url, tmp_path):
    done = run_cli("alerts", "--out", str(tmp_path), "--grafana-url", url)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert done.stderr.startswith("celery-exporter: --grafana-url: got ")
    assert "secret" not in done.stderr
    assert not [*tmp_path.iterdir()]


def test_all_files_are_written_if_the_reader_of_the_output_ends_early(tmp_path):
    """As with `| head -1`. The closed pipe is no error of --out."""
    process = subprocess.Popen(
        [sys.executable, "-m", "celery_exporter", "dashboards", "--out", tmp_path],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    process.stdout.close()
    assert process.stderr.read() == ""
    process.stderr.close()
    process.wait()
    assert {path.parent.name for path in tmp_path.rglob("*.json")} == {"import", "provisioning"}
