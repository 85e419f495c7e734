"""The panel Exporter is red when the alert CeleryExporterBlind fires, and only then."""

from __future__ import annotations

import json
import subprocess

import pytest
import yaml
from harness.processes import ROOT, need

from dashboards.committed import panels

NOW_SECONDS = 1_000  # since the epoch, and since the start of Prometheus
INTERVAL_SECONDS = 10
RULES = yaml.safe_load((ROOT / "alerts/celery.rules.yml").read_text())
(BLIND,) = [
    rule["expr"]
    for group in RULES["groups"]
    for rule in group["rules"]
    if rule.get("alert") == "CeleryExporterBlind"
]
PANELS = {
    f"{uid}-{panel['title']}": panel["targets"][0]["expr"].replace("$job", ".+").replace("$worker", ".*")
    for uid, panel in panels()
    if "CeleryExporterBlind" in panel["description"]
}
UP, ONLINE, ACTIVE = "celery_broker_up", "celery_workers_online", "celery_exporter_active"
LAST_EVENT = "celery_exporter_last_event_timestamp_seconds"
EVENTS = "celery_worker_task_events_enabled"


def test_two_dashboards_have_the_panel():
    assert {name.rpartition("-")[2] for name in PANELS} == {"Exporter"}
    assert len(PANELS) == 2


@pytest.mark.parametrize("panel", PANELS.values(), ids=PANELS)
@pytest.mark.parametrize(
    ("series", "is_receiving"),
    [
        ({UP: 1, ONLINE: 2, LAST_EVENT: NOW_SECONDS - 1, EVENTS: 1}, True),
        ({UP: 1, ONLINE: 2, LAST_EVENT: NOW_SECONDS - 119}, True),
        ({UP: 1, ONLINE: 2, LAST_EVENT: NOW_SECONDS - 121, EVENTS: 1}, False),
        ({UP: 1, ONLINE: 0, LAST_EVENT: NOW_SECONDS - 900}, True),
        ({UP: 1, ONLINE: 0}, True),
        ({UP: 1, ONLINE: 1}, False),
        ({UP: 0, ONLINE: 2, LAST_EVENT: NOW_SECONDS - 1}, False),
        ({UP: 0, ONLINE: 0}, False),
        ({UP: 0, ACTIVE: 0}, True),
    ],
)
def test_the_panel_has_the_state_of_the_alert(tmp_path, panel, series, is_receiving):
    inputs = [
        {
            "series": f'{name}{{job="celery", instance="a"}}',
            "values": f"{value}x{NOW_SECONDS // INTERVAL_SECONDS}",
        }
        for name, value in series.items()
    ]
    # A second exporter that receives events does not hide the state of the first.
    other = {UP: 1, ONLINE: 2, LAST_EVENT: NOW_SECONDS, ACTIVE: 1}
    inputs += [
        {
            "series": f'{name}{{job="celery", instance="b"}}',
            "values": f"{value}x{NOW_SECONDS // INTERVAL_SECONDS}",
        }
        for name, value in other.items()
    ]
    expected = {panel: int(is_receiving), f"count({BLIND}) or vector(0)": int(not is_receiving)}
    file = tmp_path / "test.yml"
    file.write_text(
        json.dumps(
            {
                "rule_files": [str(ROOT / "alerts/celery.rules.yml")],
                "evaluation_interval": f"{INTERVAL_SECONDS}s",
                "tests": [
                    {
                        "interval": f"{INTERVAL_SECONDS}s",
                        "input_series": inputs,
                        "promql_expr_test": [
                            {
                                "expr": expr,
                                "eval_time": f"{NOW_SECONDS}s",
                                "exp_samples": [{"labels": "{}", "value": value}],
                            }
                            for expr, value in expected.items()
                        ],
                    }
                ],
            }
        )
    )
    result = subprocess.run(
        [need("promtool"), "test", "rules", file], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stdout + result.stderr
