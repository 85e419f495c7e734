"""Expressions of panels on series that are absent, evaluated by promtool."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
import yaml
from harness.processes import need

from dashboards.committed import label, targets

from .test_data import expand

LABELS = 'job="celery",task_name="a",queue_name="q"'
UP = 'celery_broker_up{job="celery"}'
NONE_PENDING = f'celery_tasks_in_flight{{state="PENDING",{LABELS}}}'
RECEIVED = f'celery_task_oldest_timestamp_seconds{{state="RECEIVED",{LABELS}}}'
OLDEST_WAITING = [
    pytest.param(target["expr"], id=label(uid, panel, target))
    for uid, panel, target in targets()
    if panel["title"] == "Oldest waiting"
]


def evaluate(folder: Path, expr: str, series: dict[str, float], expected: list[float]) -> str:
    """Return how promtool disagrees with the values expected of an expression after two minutes."""
    inputs = [{"series": name, "values": f"{value}x2"} for name, value in series.items()]
    samples = [{"labels": "{}", "value": value} for value in expected]
    case = {"expr": expr, "eval_time": "2m", "exp_samples": samples}
    file = folder / "test.yml"
    tests = [{"interval": "1m", "input_series": inputs, "promql_expr_test": [case]}]
    file.write_text(yaml.safe_dump({"tests": tests}))
    command = [need("promtool"), "test", "rules", str(file)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    return "" if result.returncode == 0 else result.stdout + result.stderr


@pytest.mark.parametrize(
    ("series", "expected"),
    [
        ({UP: 1, NONE_PENDING: 0}, [0]),
        ({UP: 1}, []),
        ({UP: 1, RECEIVED: 60}, [60]),
        ({UP: 1, NONE_PENDING: 0, RECEIVED: 60}, [60]),
        ({UP: 0, NONE_PENDING: 0}, []),
    ],
    ids=["nothing waits", "no task-sent", "no task-sent, received", "received", "broker down"],
)
@pytest.mark.parametrize("query", OLDEST_WAITING)
def test_without_task_sent_events_no_panel_says_that_nothing_waits(tmp_path, query, series, expected):
    assert evaluate(tmp_path, expand(query, "all"), series, expected) == ""
