"""alerts/review.yml is complete and true, and the Alertmanager has its inhibit rules."""

import re
import subprocess

import yaml
from harness.servers import Prometheus

from celery_exporter.status.thresholds import TABLE

from .review import CAUSES, REVIEWS
from .rulebook import ALERTS, OBJECTIVE_ALERTS, RULES, seconds

#: The time of the cause in the series of the file.
CAUSE_SECONDS = 20 * 60
INTERVAL_SECONDS = 15
#: After the time of the review, so that a later time is measured, too.
MARGIN_SECONDS = 5 * 60


def test_every_alert_has_a_row():
    assert list(REVIEWS) == [*(row.alert for row in TABLE), *OBJECTIVE_ALERTS]


# -- detection times -----------------------------------------------------------------------------------


def case(name):
    """Return a test of promtool: when the alert fires for the first time."""
    review = REVIEWS[name]
    fires = CAUSE_SECONDS + seconds(review["detected"])
    end = f"{fires + MARGIN_SECONDS:.0f}s"
    first = f'min_over_time(timestamp(ALERTS{{alertname="{name}",alertstate="firing"}})[{end}:{INTERVAL_SECONDS}s])'
    return {
        "name": name,
        "interval": f"{INTERVAL_SECONDS}s",
        "input_series": [{"series": series, "values": values} for series, values in review["series"].items()],
        "promql_expr_test": [
            {"expr": f"min({first})", "eval_time": end, "exp_samples": [{"labels": "{}", "value": fires}]}
        ],
    }


def write_tests(folder):
    """Write the tests of each group of rules, which then evaluate only this group; return the files."""
    for group in yaml.safe_load(RULES.read_text())["groups"]:
        rules = folder / f"{group['name']}.yml"
        rules.write_text(yaml.safe_dump({"groups": [group]}))
        tests = {
            "rule_files": [str(rules)],
            "evaluation_interval": f"{INTERVAL_SECONDS}s",
            "tests": [case(rule["alert"]) for rule in group["rules"] if "alert" in rule],
        }
        file = folder / f"{group['name']}.test.yml"
        file.write_text(yaml.safe_dump(tests))
        yield file


def test_alerts_fire_after_the_time_in_the_review(tmp_path):
    command = [Prometheus.promtool(), "test", "rules", *write_tests(tmp_path)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert measured(result.stderr) == {}, "seconds that promtool measured"
    assert result.returncode == 0, result.stderr


def measured(output):
    """Return the seconds that promtool measured for alerts whose row has another time."""
    rows = re.findall(r'alertname=\\?"(\w+).*?got:\s*(\S.*?)$', output, re.DOTALL | re.MULTILINE)
    return {name: float(got.split()[-1]) - CAUSE_SECONDS if got != "nil" else None for name, got in rows}
