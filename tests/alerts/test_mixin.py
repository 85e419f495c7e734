"""The mixin has the structure of monitoring-mixins.dev, and works where jsonnet-bundler copies it to."""

import json
import shutil
import subprocess

import pytest
import yaml
from dashboards.committed import BOARDS, IMPORTS, UIDS
from harness.processes import ROOT, need

from .rulebook import RULES

FIELDS = {"_config", "grafanaDashboardFolder", "grafanaDashboards", "prometheusAlerts", "prometheusRules"}
#: What a vendored copy needs.
FILES = ("mixin.libsonnet", "jsonnetfile.json", "alerts", "dashboards/provisioning")
PACKAGE = json.loads((ROOT / "jsonnetfile.json").read_text())


@pytest.fixture(scope="module")
def evaluate(tmp_path_factory):
    """Return a function that evaluates a program, which uses a vendored copy as `celery`."""
    vendor = tmp_path_factory.mktemp("vendor")
    for name in FILES:
        target = vendor / "celery-exporter" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, target)

    def run(program):
        text = f"local celery = import 'celery-exporter/mixin.libsonnet'; {program}"
        command = [need("jsonnet"), "--jpath", vendor, "-e", text]
        result = subprocess.run(command, capture_output=True, text=True, check=False, cwd=vendor)
        assert result.returncode == 0, result.stderr
        return json.loads(result.stdout)

    return run


def test_it_has_the_fields_of_a_mixin(evaluate):
    """All are hidden, so that a mixin can be added to another."""
    assert set(evaluate("std.objectFieldsAll(celery)")) == FIELDS
    assert evaluate("std.objectFields(celery)") == []


def test_its_rules_are_the_shipped_ones(evaluate):
    groups = evaluate("celery.prometheusAlerts.groups + celery.prometheusRules.groups")
    shipped = yaml.safe_load(RULES.read_text())["groups"]
    strip = [
        [{key: str(value).strip() for key, value in rule.items()} for rule in group["rules"]]
        for group in (*groups, *shipped)
    ]
    assert strip[: len(groups)] == strip[len(groups) :]
    assert [group["name"] for group in groups] == [group["name"] for group in shipped]


def test_rules_without_alerts_have_groups_of_their_own(evaluate):
    rules = evaluate("std.flatMap(function(group) group.rules, celery.prometheusRules.groups)")
    assert all("record" in rule for rule in rules)


def test_its_dashboards_are_all_of_them(evaluate):
    assert evaluate("celery.grafanaDashboards") == {f"{uid}.json": board for uid, board in BOARDS.items()}


def test_a_user_can_configure_it_and_add_it_to_another(evaluate):
    rules = evaluate("""
        local other = {
          _config+:: { mine: 1 },
          prometheusAlerts+:: { groups+: [{ name: 'other', rules: [] }] },
          prometheusRules+:: { groups+: [{ name: 'records', rules: [] }] },
          grafanaDashboards+:: { 'other.json': {} },
        };
        local mixed = other + celery + { _config+:: { queueDepth: 5000, grafanaUrl: 'https://grafana' } };
        mixed.prometheusAlerts {
          records: mixed.prometheusRules.groups,
          boards: std.length(mixed.grafanaDashboards),
        }
    """)
    assert rules["groups"][0]["name"] == "other"
    assert [group["name"] for group in rules["records"]] == ["records"]
    assert rules["boards"] == len(UIDS) + 1
    alerts = {rule["alert"]: rule for group in rules["groups"] for rule in group["rules"] if "alert" in rule}
    assert "> 5000" in alerts["CeleryHighQueueDepth"]["expr"]
    assert all(
        rule["annotations"]["dashboard_url"].startswith("https://grafana/") for rule in alerts.values()
    )


def test_alerts_follow_the_guidelines_of_mixins(evaluate):
    """mixtool lint, a program in Go, checks the same."""
    groups = evaluate("celery.prometheusAlerts.groups")
    names = [group["name"] for group in groups]
    assert len(set(names)) == len(names)
    for rule in (rule for group in groups for rule in group["rules"] if "alert" in rule):
        assert rule["alert"].startswith("Celery")
        assert rule["labels"]["severity"] in {"critical", "warning", "info"}
        assert rule["annotations"].keys() >= {"summary", "description", "runbook_url"}


def test_jsonnet_bundler_can_vendor_it():
    """It depends on no other package. legacyImports also creates a folder with the name of the repository."""
    assert PACKAGE == {"version": 1, "dependencies": [], "legacyImports": True}


def test_jsonnet_is_formatted():
    command = [need("jsonnetfmt"), "--test", ROOT / "mixin.libsonnet"]
    assert subprocess.run(command, check=False).returncode == 0


@pytest.mark.parametrize("uid", UIDS)
def test_an_import_has_what_grafana_com_asks_for(uid):
    """A title, a description, tags, and inputs for the data sources; Grafana assigns the id."""
    board = IMPORTS[uid]
    assert board["title"]
    assert board["description"].endswith(".")
    assert board["tags"] == ["celery"]
    assert board["id"] is None
    assert board["__inputs"]
    assert {item["type"] for item in board["__inputs"]} == {"datasource"}
    assert all(item["description"] and item["pluginName"] for item in board["__inputs"])
