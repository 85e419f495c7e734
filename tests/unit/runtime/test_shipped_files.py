from __future__ import annotations

import pytest
from harness.processes import ROOT

from celery_exporter.runtime.shipped_files import write_shipped


def test_alerts_are_written_into_a_new_folder(tmp_path):
    folder = tmp_path / "new" / "rules"
    (path,) = write_shipped("alerts", folder)
    assert path == folder / "celery.rules.yml"
    assert path.read_bytes() == (ROOT / "alerts/celery.rules.yml").read_bytes()


def test_dashboards_are_written_in_both_forms(tmp_path):
    written = {str(path.relative_to(tmp_path)) for path in write_shipped("dashboards", tmp_path)}
    forms = {name.partition("/")[0] for name in written}
    assert forms == {"import", "provisioning"}
    assert {name for name in written if not name.endswith(".json")} == set()
    assert {name.partition("/")[2] for name in written} == {
        path.name for path in (ROOT / "dashboards/import").glob("*.json")
    }


def test_a_file_of_an_earlier_version_is_replaced(tmp_path):
    (tmp_path / "celery.rules.yml").write_text("old")
    [*write_shipped("alerts", tmp_path)]
    assert "groups:" in (tmp_path / "celery.rules.yml").read_text()


def test_a_file_that_cannot_be_written_is_an_error(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(FileExistsError):
        [*write_shipped("alerts", tmp_path / "file")]
