"""What the panels of the exporter say when it hears nothing: the same as the alert CeleryExporterBlind."""

from __future__ import annotations

import json
import subprocess

import pytest
import yaml
from harness.processes import ROOT, need

from dashboards.committed import panels

NOW = 1_000  # seconds since the epoch, and since Prometheus began
EVERY = 10
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
    if "blind" in panel["description"]
}
UP, ONLINE, LAST = "celery_broker_up", "celery_workers_online", "celery_exporter_last_event_timestamp_seconds"
EVENTS = "celery_worker_task_events_enabled"


def test_there_are_panels():
    assert {name.rpartition("-")[2] for name in PANELS} == {"Exporter"}
    assert len(PANELS) == 2


@pytest.mark.parametrize("panel", PANELS.values(), ids=PANELS)
@pytest.mark.parametrize(
    ("series", "hears"),
    [
        ({UP: 1, ONLINE: 2, LAST: NOW - 1, EVENTS: 1}, True),
        ({UP: 1, ONLINE: 2, LAST: NOW - 119}, True),
        ({UP: 1, ONLINE: 2, LAST: NOW - 121, EVENTS: 1}, False),
        ({UP: 1, ONLINE: 0, LAST: NOW - 900}, True),
        ({UP: 1, ONLINE: 0}, True),
        ({UP: 1, ONLINE: 1}, False),
        ({UP: 0, ONLINE: 2, LAST: NOW - 1}, False),
        ({UP: 0, ONLINE: 0}, False),
    ],
)
def test_a_panel_is_blind_when_the_alert_is(tmp_path, panel, series, hears):
    inputs = [
        {"series": f'{name}{{job="celery", instance="a"}}', "values": f"{value}x{NOW // EVERY}"}
        for name, value in series.items()
    ]
    # A second one that hears does not hide that the first does not.
    other = {UP: 1, ONLINE: 2, LAST: NOW}
    inputs += [
        {"series": f'{name}{{job="celery", instance="b"}}', "values": f"{value}x{NOW // EVERY}"}
        for name, value in other.items()
    ]
    wanted = {panel: int(hears), f"count({BLIND}) or vector(0)": int(not hears)}
    file = tmp_path / "test.yml"
    file.write_text(
        json.dumps(
            {
                "tests": [
                    {
                        "interval": f"{EVERY}s",
                        "input_series": inputs,
                        "promql_expr_test": [
                            {
                                "expr": expr,
                                "eval_time": f"{NOW}s",
                                "exp_samples": [{"labels": "{}", "value": value}],
                            }
                            for expr, value in wanted.items()
                        ],
                    }
                ]
            }
        )
    )
    done = subprocess.run(
        [need("promtool"), "test", "rules", file], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
