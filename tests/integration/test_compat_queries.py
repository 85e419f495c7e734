"""Prometheus returns samples for all queries of the compatibility contract (tests/data/compat/queries.yaml).

The demo runs once, on real workers. Exporters subscribe to its events with each profile alone, and with each
set of profiles to which no other can be added. Each exporter with queries has its own Prometheus, so that the
queries run unchanged. The exporter with the profile flower has the names that other products read from Flower
(tests/data/compat/scrapers.yaml).
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
from prometheus_client.parser import text_string_to_metric_families

from celery_exporter.metrics.model import MetricOptions
from celery_exporter.metrics.registry import ProfilesClashError, select

COPY = TESTS / "data" / "compat" / "queries.yaml"
SHARED = ROOT.parent / "shared" / "contracts" / "queries.yaml"
#: What other products read from the profile flower.
SCRAPERS = yaml.safe_load((TESTS / "data" / "compat" / "scrapers.yaml").read_text())
PAGE = ROOT / "docs/how-to/datadog-and-signoz.md"
CONTRACT = {entry["profile"]: entry for entry in yaml.safe_load(COPY.read_text())}
NATIVE = CONTRACT["native"]
TESTED_HERE = {"queries", "queries_with_worker_label", "curl", "families"}
#: In tests/alerts/test_rules.py and tests/dashboards/test_generated.py.
TESTED_ELSEWHERE = {"alerts", "panels"}

#: Prometheus 3 stores le="30" as le="30.0". This rule restores the bound (docs/reference/metrics.md).
SHORT_BOUNDS = [{"source_labels": ["le"], "regex": r"(\d+)\.0", "target_label": "le"}]

DEADLINE_SECONDS = 30.0  # for tasks that the demo sends rarely


def are_compatible(profiles):
    """Return whether profiles can be enabled together."""
    try:
        select(profiles, MetricOptions())
    except ProfilesClashError:
        return False
    return True


def maximal_sets():
    """Return the sets of compatible profiles to which no other profile can be added."""
    sizes = range(2, len(CONTRACT) + 1)
    compatible = [names for size in sizes for names in combinations(CONTRACT, size) if are_compatible(names)]
    return [names for names in compatible if not any(set(names) < set(other) for other in compatible)]


BY_WORKER = "native by worker"
BY_TASK_ALONE = "native by task alone"
#: The enabled profiles by the name of the exporter.
PROFILES = {"+".join(names): names for names in [*((name,) for name in CONTRACT), *maximal_sets()]}
OPTIONS = {
    **{exporter_name: ("--profile", ",".join(names)) for exporter_name, names in PROFILES.items()},
    BY_WORKER: ("--task-labels", "queue_name,worker"),
    BY_TASK_ALONE: ("--task-labels", ""),
}
QUERIES = [
    (exporter_name, query)
    for exporter_name, names in PROFILES.items()
    for name in names
    for query in CONTRACT[name].get("queries", ())
] + [(BY_WORKER, query) for query in NATIVE["queries_with_worker_label"]]
FAMILIES = [
    pytest.param(exporter_name, family, contract, id=f"{exporter_name}-{family}")
    for exporter_name, names in PROFILES.items()
    for name in names
    for family, contract in CONTRACT[name].get("families", {}).items()
]
NAMES = [
    pytest.param(scraper.get("family", False), name, contract, id=f"{scraper['product']}-{name}")
    for scraper in SCRAPERS
    for name, contract in scraper["names"].items()
]


def test_the_contract_equals_its_source():
    if not SHARED.exists():
        pytest.skip("this checkout has no ../shared")
    assert COPY.read_text() == SHARED.read_text()


def test_each_part_of_the_contract_has_a_test():
    assert set().union(*CONTRACT.values()) == {"profile", "from"} | TESTED_HERE | TESTED_ELSEWHERE


@pytest.fixture(scope="module")
def demo(redis_server, tmp_path_factory):
    """Return the exporters by name, and the Prometheus servers by the names of exporter and class."""
    url, folder = redis_server.clean(), tmp_path_factory.mktemp("contracts")
    exporters = {
        exporter_name: Exporter(folder / exporter_name, url, *options)
        for exporter_name, options in OPTIONS.items()
    }
    servers = {
        (exporter_name, server): server(
            folder / exporter_name / server.__name__,
            f"127.0.0.1:{exporters[exporter_name].port}",
            job=JOB,
            relabel=SHORT_BOUNDS,
        )
        for exporter_name in {exporter_name for exporter_name, _ in QUERIES}
        for server in PROMETHEUSES
    }
    with side_by_side(*exporters.values(), *servers.values()):
        for exporter in exporters.values():
            eventually(lambda ask=exporter.get: ask("/-/ready").status == 200, DEADLINE_SECONDS)
        with running_demo(folder, url):
            yield SimpleNamespace(exporters=exporters, servers=servers)


@pytest.mark.parametrize("server", PROMETHEUSES, ids=lambda server: server.__name__)
@pytest.mark.parametrize(("exporter_name", "query"), QUERIES)
def test_a_query_of_the_contract_returns_samples(demo, exporter_name, query, server):
    """At least one sample is a number, and has all labels by which the query groups."""
    groups = set(re.findall(r"\w+", " ".join(re.findall(r"\bby \(([^)]*)\)", query))))

    def numbers():
        samples = demo.servers[exporter_name, server].query(query.replace("$job", JOB))
        labelled = [sample for sample in samples if groups <= sample["metric"].keys()]
        return [sample for sample in labelled if not math.isnan(float(sample["value"][1]))]

    eventually(numbers, DEADLINE_SECONDS, every=0.5, what=query)


@pytest.mark.parametrize(("exporter_name", "family", "contract"), FAMILIES)
def test_a_family_of_the_contract_has_its_type_and_labels(demo, exporter_name, family, contract):
    """Each sample has exactly these labels, and at least one sample has a value in each."""
    exporter = demo.exporters[exporter_name]
    parts = ("_bucket", "_sum", "_count") if contract["type"] == "histogram" else ("",)
    names = {family + part for part in parts}

    def samples_of_family():
        samples = [dict(labels) for name, labels in exporter.samples() if name in names]
        return samples if any(all(labels.values()) for labels in samples) else []

    samples = eventually(samples_of_family, DEADLINE_SECONDS, what=family)
    assert {frozenset(labels) - {"le"} for labels in samples} == {frozenset(contract["labels"])}
    assert f"# TYPE {family} {contract['type']}" in exporter.get().text.splitlines()


@pytest.mark.parametrize(("is_family", "name", "contract"), NAMES)
def test_a_name_that_a_product_reads_from_flower_has_its_labels(demo, is_family, name, contract):
    """At least one sample has a value in each label."""
    exporter = demo.exporters["flower"]

    def labelled():
        families = list(text_string_to_metric_families(exporter.get().text))
        if is_family:
            families = [family for family in families if family.name == name]
            assert {family.type for family in families} == {contract["type"]}
        samples = [sample for family in families for sample in family.samples]
        samples = samples if is_family else [sample for sample in samples if sample.name == name]
        return [sample for sample in samples if all(map(sample.labels.get, contract["labels"]))]

    eventually(labelled, DEADLINE_SECONDS, what=name)


def test_a_name_that_a_product_reads_in_vain_is_absent_and_documented(demo):
    absent = {name: row for scraper in SCRAPERS for name, row in scraper.get("absent", {}).items()}
    assert absent.keys().isdisjoint({name for name, _ in demo.exporters["flower"].samples()})
    page = PAGE.read_text()
    metrics = [metric for row in absent.values() for metric in row["metrics"]]
    assert [metric for metric in metrics if f"`celery.flower.{metric}`" not in page] == []


def test_the_page_lists_the_metrics_of_datadog():
    page = PAGE.read_text()
    metrics = [metric for row in SCRAPERS[0]["names"].values() for metric in row["metrics"]]
    assert [metric for metric in metrics if f"`celery.flower.{metric}`" not in page] == []


@pytest.mark.parametrize("line", NATIVE["curl"])
def test_curl_shows_a_line_of_the_guide(demo, line):
    """Its name and its labels are the same, in the same order."""
    shape = re.sub(r'"[^"]*"', '"[^"]+"', re.escape(line))
    shape = re.compile(re.sub(r"\d+$", r"[\\d.]+", shape))
    curl = demo.exporters[BY_TASK_ALONE].get
    eventually(lambda: any(map(shape.fullmatch, curl().text.splitlines())), DEADLINE_SECONDS, what=line)
