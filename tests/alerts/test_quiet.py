"""Healthy demo traffic fires nothing for 30 minutes, in `make stack` and in docker-compose's containers.

Both have the shipped rules and intervals. The tests print how long each alert was pending, and the traffic.
"""

import time
from itertools import pairwise

import pytest
import yaml
from harness import podman
from harness.compose_stack import LEFT_OUT, ComposeStack
from harness.stack import Stack
from harness.tables import add_row
from harness.waiting import stays

from .rulebook import ALERTS, RULES, seconds

MINUTES = 30
#: Of the scrapes and evaluations in deploy/prometheus/prometheus.yml.
INTERVAL_SECONDS = 15
GROUPS = [group["name"] for group in yaml.safe_load(RULES.read_text())["groups"]]


def longest_seconds(timestamps):
    """Return the length of the longest run of samples that follow each other."""
    begin = timestamps[0]
    longest = 0.0
    for before, timestamp in pairwise(timestamps):
        begin = begin if timestamp - before < 2 * INTERVAL_SECONDS else timestamp
        longest = max(longest, timestamp - begin)
    return longest


def add_alert(item, stack, series):
    """Add a row for the time in which an alert was pending or firing."""
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
    add_row(item, f"alerts in {MINUTES} minutes of {stack.name}", row)


def check_quiet(item, stack, healthy, jobs, every):
    """Let the stack run for `MINUTES`, and assert that nothing fires while tasks of these jobs succeed."""
    begin = time.time()
    stays(healthy, 60 * MINUTES, every=every, what=f"{stack.name} runs")
    window = f"{time.time() - begin:.0f}s"

    history = stack.query(f"ALERTS[{window}]")
    for series in history:
        add_alert(item, stack, series)
    check_meaning(item, stack, window, jobs)
    assert [series["metric"] for series in history if series["metric"]["alertstate"] == "firing"] == []
    assert stack.query('sum(alertmanager_alerts_received_total{status="firing"}) == 0')


def check_meaning(item, stack, window, jobs):
    """Assert that the silence means something: there is traffic, rules are evaluated, and targets answer."""
    rate = 'sum by (job) (rate(celery_tasks_total{state="SUCCESS"}[2m]))'
    lowest = stack.query(f"min_over_time({rate}[{MINUTES - 2}m:1m])")
    rates = {series["metric"]["job"]: float(series["value"][1]) for series in lowest}
    for job, value in rates.items():
        row = {"services": stack.name, "job": job, "successes each second": f"{value:.1f}"}
        add_row(item, "lowest traffic of 2 minutes", row)
    assert rates.keys() == jobs
    assert min(rates.values()) > 1

    running = f'up{{job!~"{"|".join(LEFT_OUT)}"}}'
    assert stack.query(f"min(min_over_time({running}[{window}])) == 1")
    assert stack.query(f"sum(increase(prometheus_rule_evaluation_failures_total[{window}])) == 0")
    iterations = stack.query(f"increase(prometheus_rule_group_iterations_total[{window}]) > {MINUTES}")
    evaluated = [series["metric"]["rule_group"].rpartition(";")[2] for series in iterations]
    assert sorted(evaluated) == sorted(GROUPS)


@pytest.mark.long
@pytest.mark.timeout(3_600)
def test_make_stack_fires_nothing_for_half_an_hour(request, tmp_path, running):
    stack = running(Stack(tmp_path))
    check_quiet(request.node, stack, stack.alive, {"celery"}, every=5)


@pytest.mark.long
@pytest.mark.timeout(3_600)
def test_docker_compose_fires_nothing_for_half_an_hour(request, tmp_path, running):
    service = running(podman.Service(tmp_path / "podman"))
    stack = running(ComposeStack(tmp_path / "stack", service.socket))
    # Every minute, because a health check takes more CPU time under podman.
    check_quiet(request.node, stack, stack.all_healthy, {"celery", "celery-rabbitmq"}, every=60)
