"""The contract with people who have queries on their walls: a real Prometheus answers every one of them.

The demo runs once, on real workers. Exporters listen to it with each profile alone, and with each set of
profiles to which no other can be added; those that are asked queries have a Prometheus each, so that they run
as they are.
"""

import math
import re
from itertools import combinations
from types import SimpleNamespace

import pytest
import yaml
from harness.demo import JOB, running_demo
from harness.exporter import Exporter
from harness.processes import ROOT, TESTS, side_by_side
from harness.servers import PROMETHEUSES
from harness.waiting import eventually

from celery_exporter.metrics.model import MetricOptions
from celery_exporter.metrics.registry import ProfilesClashError, select

COPY = TESTS / "data" / "compat" / "queries.yaml"
SHARED = ROOT.parent / "shared" / "contracts" / "queries.yaml"
CONTRACT = {entry["profile"]: entry for entry in yaml.safe_load(COPY.read_text())}
NATIVE = CONTRACT["native"]
HELD = {"queries", "queries_with_worker_label", "curl", "families"}
HELD_ELSEWHERE = {"alerts", "panels"}  # in tests/alerts/test_rules.py and tests/dashboards/test_generated.py

#: Prometheus 3 stores le="30" as le="30.0"; this has it stored as it was (docs/reference/metrics.md).
SHORT_BOUNDS = [{"source_labels": ["le"], "regex": r"(\d+)\.0", "target_label": "le"}]

LONG = 30.0  # seconds for what the demo does now and then, on two busy cores


def fit(profiles):
    """Tell whether they can be on together."""
    try:
        select(profiles, MetricOptions())
    except ProfilesClashError:
        return False
    return True


def together():
    """Return the sets of profiles that can be on together and to which no other can be added."""
    sizes = range(2, len(CONTRACT) + 1)
    fitting = [names for size in sizes for names in combinations(CONTRACT, size) if fit(names)]
    return [names for names in fitting if not any(set(names) < set(more) for more in fitting)]


BY_WORKER = "native by worker"
BY_TASK_ALONE = "native by task alone"
#: What is switched on, by the names of the exporters.
SETS = {"+".join(names): names for names in [*((name,) for name in CONTRACT), *together()]}
OPTIONS = {
    **{under: ("--profile", ",".join(names)) for under, names in SETS.items()},
    BY_WORKER: ("--task-labels", "queue_name,worker"),
    BY_TASK_ALONE: ("--task-labels", ""),
}
QUERIES = [
    (under, query)
    for under, names in SETS.items()
    for name in names
    for query in CONTRACT[name].get("queries", ())
] + [(BY_WORKER, query) for query in NATIVE["queries_with_worker_label"]]
FAMILIES = [
    pytest.param(under, family, promise, id=f"{under}-{family}")
    for under, names in SETS.items()
    for name in names
    for family, promise in CONTRACT[name].get("families", {}).items()
]


def test_our_copy_of_the_contract_is_the_shared_one():
    if not SHARED.exists():
        pytest.skip("this checkout has no ../shared")
    assert COPY.read_text() == SHARED.read_text()


def test_no_part_of_the_contract_is_left_out():
    assert set().union(*CONTRACT.values()) == {"profile", "from"} | HELD | HELD_ELSEWHERE


@pytest.fixture(scope="module")
def watched(redis_server, tmp_path_factory):
    """Return the exporters, and the Prometheus servers of those that are asked queries, by their names."""
    url, folder = redis_server.clean(), tmp_path_factory.mktemp("contracts")
    exporters = {under: Exporter(folder / under, url, *options) for under, options in OPTIONS.items()}
    servers = {
        (under, server): server(
            folder / under / server.__name__,
            f"127.0.0.1:{exporters[under].port}",
            job=JOB,
            relabel=SHORT_BOUNDS,
        )
        for under in {under for under, _ in QUERIES}
        for server in PROMETHEUSES
    }
    with side_by_side(*exporters.values(), *servers.values()):
        for exporter in exporters.values():
            eventually(lambda ask=exporter.get: ask("/-/ready").status == 200, LONG)
        with running_demo(folder, url):
            yield SimpleNamespace(exporters=exporters, servers=servers)


@pytest.mark.parametrize("server", PROMETHEUSES, ids=lambda each: each.__name__)
@pytest.mark.parametrize(("under", "query"), QUERIES)
def test_a_query_of_the_contract_returns_samples(watched, under, query, server):
    """At least one that is a number, and has a value in each label that the query groups by."""
    groups = set(re.findall(r"\w+", " ".join(re.findall(r"\bby \(([^)]*)\)", query))))

    def numbers():
        found = watched.servers[under, server].query(query.replace("$job", JOB))
        whole = [sample for sample in found if groups <= sample["metric"].keys()]
        return [sample for sample in whole if not math.isnan(float(sample["value"][1]))]

    eventually(numbers, LONG, every=0.5, what=query)


@pytest.mark.parametrize(("under", "family", "promise"), FAMILIES)
def test_a_family_of_the_contract_has_its_type_and_labels(watched, under, family, promise):
    """Those labels and no others on each sample, and a value in each of them on one at least."""
    exporter = watched.exporters[under]
    parts = ("_bucket", "_sum", "_count") if promise["type"] == "histogram" else ("",)
    names = {family + part for part in parts}

    def shown():
        samples = [dict(labels) for name, labels in exporter.samples() if name in names]
        return samples if any(all(labels.values()) for labels in samples) else []

    samples = eventually(shown, LONG, what=family)
    assert {frozenset(labels) - {"le"} for labels in samples} == {frozenset(promise["labels"])}
    assert f"# TYPE {family} {promise['type']}" in exporter.get().text.splitlines()


@pytest.mark.parametrize("line", NATIVE["curl"])
def test_a_line_of_the_guide_is_what_curl_shows(watched, line):
    """Its name and its labels, in the same order; values are those of the demo."""
    shape = re.sub(r'"[^"]*"', '"[^"]+"', re.escape(line))
    shape = re.compile(re.sub(r"\d+$", r"[\\d.]+", shape))
    curl = watched.exporters[BY_TASK_ALONE].get
    eventually(lambda: any(map(shape.fullmatch, curl().text.splitlines())), LONG, what=line)
