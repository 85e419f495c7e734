"""No panel is empty: each query, as Grafana sends it, has data from a real run of the demo.

Each query runs with "All" in every variable, and with one job, queue, task and worker. The results must have
the labels that legends and columns name.
"""

import json
import math
import re

import pytest
from harness.demo import JOB, scraped_demo
from harness.objectives import EXAMPLE, rules_of
from harness.waiting import eventually

from dashboards.committed import BOARDS, METRIC_UIDS, label, panels, targets, variables

WINDOWS = {"__rate_interval": "15s", "__range": "1m"}  # Prometheus scrapes each second here
CHOICES = {
    "all": {
        name: variable.get("allValue") for name, variable in variables(BOARDS["celery-overview"]).items()
    },
    "one": {"job": JOB, "queue": "emails", "task": "mail.send", "worker": "emails@demo"},
}
#: A task of the demo that measures something.
MEASURING_TASK = "report.build"
FALLBACK = r" or (?=0 \* |max by )"
DEADLINE_SECONDS = 45.0  # for rare events, on two busy cores


@pytest.fixture(scope="module")
def prometheus(redis_server, tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo")
    rules = folder / "rules.yml"
    rules.write_text(json.dumps(rules_of(EXAMPLE)))
    with scraped_demo(folder, redis_server.clean(), rules=rules) as server:
        yield server


def expand(query: str, choice: str) -> str:
    """Return a query with the values of a choice in place of the variables."""
    values = {**CHOICES[choice], **WINDOWS}
    if choice == "one" and "celery_task_measurement" in query:
        values["task"] = MEASURING_TASK
    return re.sub(r"\$(\w+)", lambda match: values[match[1]], query)


def numeric_samples(prometheus, query: str) -> list[dict[str, str]]:
    """Return the labels of each sample except NaN."""
    samples = prometheus.query(query)
    return [sample["metric"] for sample in samples if not math.isnan(float(sample["value"][1]))]


@pytest.mark.parametrize("choice", CHOICES)
@pytest.mark.parametrize(
    ("panel", "target"), [pytest.param(p, t, id=label(uid, p, t)) for uid, p, t in targets()]
)
def test_a_panel_has_data(prometheus, panel, target, choice):
    query = expand(target["expr"], choice)
    samples = eventually(lambda: numeric_samples(prometheus, query), DEADLINE_SECONDS, every=0.5, what=query)
    for name in re.findall(r"\{\{(\w+)\}\}", target.get("legendFormat", "")):
        assert all(name in labels for labels in samples), f"no {name} in {samples}"
    if panel["type"] == "table":
        columns = named_fields(panel)
        labels = set().union(*samples)
        assert labels <= columns, f"columns without a name: {labels - columns}"


WITH_FALLBACK = sorted({target["expr"] for _, _, target in targets() if re.search(FALLBACK, target["expr"])})


@pytest.mark.parametrize("query", WITH_FALLBACK)
def test_a_query_with_a_fallback_has_data_without_it(prometheus, query):
    """A fallback of 0 must not hide a query that never has data."""
    first = expand(re.split(FALLBACK, query)[0], "all")
    eventually(lambda: numeric_samples(prometheus, first), DEADLINE_SECONDS, every=0.5, what=first)


@pytest.mark.parametrize(
    "panel",
    [pytest.param(p, id=label(uid, p)) for uid, p in panels() if p["type"] == "table" and uid in METRIC_UIDS],
)
def test_a_column_of_a_table_has_a_source(prometheus, panel):
    values = {f"Value #{target['refId']}" for target in panel["targets"]}
    query = expand(panel["targets"][0]["expr"], "all")
    samples = eventually(lambda: numeric_samples(prometheus, query), DEADLINE_SECONDS)
    assert named_fields(panel) == values | set().union(*samples)
    columns = set(panel["transformations"][-1]["options"]["renameByName"].values())
    assert {override["matcher"]["options"] for override in panel["fieldConfig"]["overrides"]} <= columns


def named_fields(panel) -> set[str]:
    """Return the fields that have a name in a table."""
    (organize,) = [
        transformation for transformation in panel["transformations"] if transformation["id"] == "organize"
    ]
    return set(organize["options"]["renameByName"])


@pytest.mark.parametrize("variable", ["job", "queue", "task", "worker"])
def test_a_variable_has_values(prometheus, variable):
    query = variables(BOARDS["celery-overview"])[variable]["query"]["query"]
    metric, name = re.fullmatch(r"label_values\((.*), (\w+)\)", query).groups()
    expr = f"count by ({name}) ({expand(metric, 'all')})"
    eventually(
        lambda: (
            CHOICES["one"][variable] in {labels.get(name) for labels in numeric_samples(prometheus, expr)}
        ),
        DEADLINE_SECONDS,
        what=expr,
    )
