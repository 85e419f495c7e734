"""What is committed is what the code makes; it names what is exported, and all of it."""

import importlib.util
import subprocess
import sys

import pytest
import yaml
from harness.processes import ROOT, TESTS, missing

from dashboards.committed import BOARDS, FOLDER, IMPORTS, ROWS, UIDS, VARIANTS, names_in, panels, targets

CONTRACT = yaml.safe_load((TESTS / "data" / "compat" / "queries.yaml").read_text())
PROCESS = {"process_cpu_seconds_total", "process_resident_memory_bytes", "process_open_fds"}

#: A panel of the setup guide's dashboard → its twin on Overview.
TWINS = {
    "Active workers (stat)": ("Active workers", "stat"),
    "Tasks a second, 5-minute average (stat)": ("Tasks a second", "stat"),
    "Active tasks (stat)": ("Active tasks", "stat"),
    "Success rate percent, 5-minute average (stat)": ("Success rate", "stat"),
    "Task success and failure rate over time (lines)": ("Success and failure rate", "timeseries"),
    "Task execution time, p50 and p95 by task name (lines)": ("Execution time by task", "timeseries"),
    "Tasks by state PENDING, STARTED, SUCCESS, FAILURE, RETRY (stacked area)": (
        "Tasks by state",
        "timeseries",
    ),
    "Queue length by queue (lines)": ("Queue length", "timeseries"),
    "Worker status, online and offline (table)": ("Worker status", "table"),
}


@pytest.mark.skipif(sys.version_info < (3, 11), reason="the SDK needs Python 3.11; the JSON is the same")
def test_what_is_committed_is_what_the_code_makes(tmp_path):
    """After a change that is meant: make dashboards."""
    if importlib.util.find_spec("grafana_foundation_sdk") is None:
        missing("grafana-foundation-sdk")
    done = subprocess.run(
        [sys.executable, "-m", "dashboards", str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    for variant in VARIANTS:
        made = {path.name: path.read_text() for path in (tmp_path / variant).glob("*.json")}
        committed = {path.name: path.read_text() for path in (FOLDER / variant).glob("*.json")}
        assert made == committed


def test_the_uids_stay():
    assert {uid: board["uid"] for uid, board in BOARDS.items()} == {uid: uid for uid in UIDS}
    assert {uid: board["uid"] for uid, board in IMPORTS.items()} == {uid: uid for uid in UIDS}


def test_every_metric_that_is_named_exists():
    named = set().union(*(names_in(target["expr"]) for _, _, target in targets()))
    assert named - ROWS.keys() == PROCESS


def test_every_metric_is_on_some_panel():
    named = set().union(*(names_in(target["expr"]) for _, _, target in targets()))
    assert ROWS.keys() - named == set()


def test_the_nine_panels_of_the_setup_guide_have_twins_on_overview():
    guide = next(entry for entry in CONTRACT if entry["profile"] == "triton")
    assert set(guide["panels"]) == TWINS.keys()
    shown = {(panel["title"], panel["type"]) for uid, panel in panels() if uid == "celery-overview"}
    assert set(TWINS.values()) <= shown


def test_a_stacked_area_is_stacked():
    modes = {
        panel["title"]: panel["fieldConfig"]["defaults"]["custom"]["stacking"]["mode"]
        for uid, panel in panels()
        if uid == "celery-overview" and panel["type"] == "timeseries"
    }
    assert modes["Tasks by state"] == "normal"
    assert modes["Success and failure rate"] == "none"
