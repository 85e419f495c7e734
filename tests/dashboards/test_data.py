"""No panel is empty: each query, as Grafana would send it, has data from a real run of the demo.

Once with everything chosen, once with one job, queue, task and worker. What legends and columns name has to
be there too.
"""

import math
import re

import pytest
from harness.demo import JOB, scraped_demo
from harness.waiting import eventually

from dashboards.committed import BOARDS, label, panels, targets, variables

WINDOWS = {"__rate_interval": "15s", "__range": "1m"}  # Prometheus scrapes each second here
CHOICES = {
    "all": {
        name: variable.get("allValue") for name, variable in variables(BOARDS["celery-overview"]).items()
    },
    "one": {"job": JOB, "queue": "emails", "task": "mail.send", "worker": "emails@demo"},
}
FALLBACK = r" or (?=0 \* |max by )"
LONG = 45.0  # seconds for what happens now and then, on two busy cores


@pytest.fixture(scope="module")
def prometheus(redis_server, tmp_path_factory):
    with scraped_demo(tmp_path_factory.mktemp("demo"), redis_server.clean()) as server:
        yield server


def filled_in(query: str, choice: str) -> str:
    values = {**CHOICES[choice], **WINDOWS}
    return re.sub(r"\$(\w+)", lambda found: values[found[1]], query)


def numbers(prometheus, query: str) -> list[dict[str, str]]:
    """Return the labels of each sample that is a number."""
    return [one["metric"] for one in prometheus.query(query) if not math.isnan(float(one["value"][1]))]


@pytest.mark.parametrize("choice", CHOICES)
@pytest.mark.parametrize(
    ("panel", "target"), [pytest.param(p, t, id=label(uid, p, t)) for uid, p, t in targets()]
)
def test_a_panel_has_data(prometheus, panel, target, choice):
    query = filled_in(target["expr"], choice)
    found = eventually(lambda: numbers(prometheus, query), LONG, every=0.5, what=query)
    for name in re.findall(r"\{\{(\w+)\}\}", target.get("legendFormat", "")):
        assert all(name in labels for labels in found), f"no {name} in {found}"
    if panel["type"] == "table":
        columns = organised(panel)
        labels = set().union(*found)
        assert labels <= columns, f"columns without a name: {labels - columns}"


STANDING_IN = sorted({target["expr"] for _, _, target in targets() if re.search(FALLBACK, target["expr"])})


@pytest.mark.parametrize("query", STANDING_IN)
def test_what_has_a_fallback_has_data_without_it(prometheus, query):
    """It stands in where 0 is the truth; it must not hide that the rest never says anything."""
    first = filled_in(re.split(FALLBACK, query)[0], "all")
    eventually(lambda: numbers(prometheus, first), LONG, every=0.5, what=first)


@pytest.mark.parametrize(
    "panel", [pytest.param(p, id=label(uid, p)) for uid, p in panels() if p["type"] == "table"]
)
def test_a_column_of_a_table_has_a_source(prometheus, panel):
    values = {f"Value #{target['refId']}" for target in panel["targets"]}
    found = eventually(lambda: numbers(prometheus, filled_in(panel["targets"][0]["expr"], "all")), LONG)
    assert organised(panel) == values | set().union(*found)
    shown = set(panel["transformations"][-1]["options"]["renameByName"].values())
    assert {override["matcher"]["options"] for override in panel["fieldConfig"]["overrides"]} <= shown


def organised(panel) -> set[str]:
    """Return the fields to which a table's columns give names."""
    (organize,) = [one for one in panel["transformations"] if one["id"] == "organize"]
    return set(organize["options"]["renameByName"])


@pytest.mark.parametrize("variable", ["job", "queue", "task", "worker"])
def test_a_variable_offers_something(prometheus, variable):
    query = variables(BOARDS["celery-overview"])[variable]["query"]["query"]
    metric, name = re.fullmatch(r"label_values\((.*), (\w+)\)", query).groups()
    expr = f"count by ({name}) ({filled_in(metric, 'all')})"
    eventually(
        lambda: CHOICES["one"][variable] in {labels.get(name) for labels in numbers(prometheus, expr)},
        LONG,
        what=expr,
    )
