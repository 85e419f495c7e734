"""Healthy demo traffic fires nothing for 30 minutes.

`make stack` starts the services of docker-compose.yml, with the shipped rules and intervals. The test prints
how long each alert was pending.
"""

import time
from itertools import pairwise

import pytest
from harness.stack import Stack
from harness.tables import add_row
from harness.waiting import stays

from .rulebook import ALERTS, seconds

MINUTES = 30
#: Of the scrapes and evaluations in deploy/prometheus/prometheus.yml.
INTERVAL_SECONDS = 15


def longest_seconds(timestamps):
    """Return the length of the longest run of samples that follow each other."""
    begin = timestamps[0]
    longest = 0.0
    for before, timestamp in pairwise(timestamps):
        begin = begin if timestamp - before < 2 * INTERVAL_SECONDS else timestamp
        longest = max(longest, timestamp - begin)
    return longest


@pytest.mark.long
@pytest.mark.timeout(3_600)
def test_healthy_traffic_fires_nothing_for_half_an_hour(request, tmp_path, running):
    stack = running(Stack(tmp_path))
    begin = time.time()
    stays(stack.alive, 60 * MINUTES, every=5, what="make stack runs")
    window = f"{time.time() - begin:.0f}s"

    history = stack.query(f"ALERTS[{window}]")
    for series in history:
        labels = {name: value for name, value in series["metric"].items() if name != "__name__"}
        name, state = labels.pop("alertname"), labels.pop("alertstate")
        longest = longest_seconds([timestamp for timestamp, _ in series["values"]])
        labels.pop("severity")
        row = {
            "alert": name,
            "state": state,
            "longest": f"{longest:.0f} s",
            "for": f"{seconds(ALERTS[name]['for']):.0f} s",
            "labels": labels,
        }
        add_row(request.node, f"alerts in {MINUTES} minutes", row)
    firing = [series["metric"] for series in history if series["metric"]["alertstate"] == "firing"]
    assert firing == []

    # The silence means something only with traffic, rules that are evaluated, and targets that answer.
    traffic = 'sum(rate(celery_tasks_total{state="SUCCESS"}[2m]))'
    assert stack.query(f"min_over_time({traffic}[{MINUTES - 2}m:1m]) > 1")
    assert stack.query(f"min(min_over_time(up[{window}])) == 1")
    assert stack.query(f"sum(increase(prometheus_rule_evaluation_failures_total[{window}])) == 0")
    assert stack.query('sum(alertmanager_alerts_received_total{status="firing"}) == 0')
