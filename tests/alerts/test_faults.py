"""Each fault on a real cluster fires exactly the alerts of alerts/review.yml, and one cause pages once.

The rules are the shipped ones. A minute lasts 2 s in them and in the configuration of Alertmanager: in `for`,
in windows, and in thresholds that are seconds. The clusters of a batch run at the same time. Both versions of
Prometheus scrape them, and one sends alerts to an Alertmanager with the shipped routes and inhibit rules.
"""

import json
import re
import time
from contextlib import ExitStack
from types import SimpleNamespace

import pytest
import yaml
from harness.objectives import evaluate
from harness.processes import side_by_side
from harness.servers import PROMETHEUSES, ShippedAlertmanager
from harness.tables import add_row
from harness.waiting import eventually
from harness.webhook import Webhook

from .faults import FAULTS, Cluster
from .review import EXPECTED
from .rulebook import ALERTS, shortened

FACTOR = 30
#: Nothing else fires within the longest detection time of the other alerts, CeleryTasksOrphaned.
SETTLE_SECONDS = 24 * 60 / FACTOR
#: In seconds of the shipped rules. Heartbeats arrive every 2 s here, too, so silence cannot be as short.
THRESHOLDS = {
    "meanRuntimeSeconds": 60,
    "stuckSeconds": 1_200,
    "queueWaitSeconds": 300,
    "oldestWaitingSeconds": 900,
    "silenceSeconds": 180,
    "sinkFailingSeconds": 60,
    "historyFailingSeconds": 60,
}
#: The first one is in make test.
BATCHES = [list(FAULTS)[first : first + 5] for first in range(0, len(FAULTS), 5)]


def rules():
    """Return the rules, in which a minute lasts 2 s."""
    config = {name: seconds / FACTOR for name, seconds in THRESHOLDS.items()}
    result = evaluate(
        f'((import "mixin.libsonnet") + {{ _config+:: {json.dumps(config)} }}).prometheusAlerts'
    )
    assert result.returncode == 0, result.stderr
    return shortened(json.loads(result.stdout), FACTOR)


@pytest.fixture(
    scope="module",
    params=[BATCHES[0], *(pytest.param(batch, marks=pytest.mark.long) for batch in BATCHES[1:])],
    ids=[str(number) for number in range(len(BATCHES))],
)
def scene(request, tmp_path_factory):
    """Yield clusters that work, and two Prometheus with the rules."""
    folder = tmp_path_factory.mktemp("faults")
    rule_file = folder / "rules.yml"
    rule_file.write_text(yaml.safe_dump(rules()))
    clusters = [Cluster(folder / name.replace(" ", "-"), name) for name in request.param]
    with ExitStack() as stack:
        for cluster in clusters:
            stack.enter_context(cluster.broker)
        processes = [process for cluster in clusters for process in cluster.processes()]
        for cluster in clusters:
            stack.callback(cluster.close)
        stack.enter_context(side_by_side(*processes))
        for cluster in clusters:
            cluster.exporter.connected()
            eventually(cluster.healthy, 40, what=f"{cluster.name} healthy")
        pager = stack.enter_context(Webhook())
        manager = ShippedAlertmanager(folder / "alertmanager", pager.url, FACTOR)
        targets = {cluster.job: f"127.0.0.1:{cluster.exporter.port}" for cluster in clusters}
        servers = [
            server(folder / server.__name__, targets, rules=rule_file, alertmanager=address)
            for server, address in zip(PROMETHEUSES, (manager.address, None), strict=True)
        ]
        stack.enter_context(side_by_side(manager, *servers))
        yield SimpleNamespace(clusters=clusters, pager=pager, servers=servers)


def work(scene, seconds, condition=lambda: False):
    """Let the clients work for this time, or until the condition holds."""
    end = time.monotonic() + seconds
    while time.monotonic() < end and not condition():
        for cluster in scene.clusters:
            cluster.work()
        time.sleep(0.25)


def fired(server):
    """Return the names of the alerts that have fired, by job. Before the first scrape, one has none."""
    names = {}
    query = 'count by (job, alertname) (max_over_time(ALERTS{alertstate="firing",job!=""}[30m]))'
    for sample in server.query(query):
        names.setdefault(sample["metric"]["job"], set()).add(sample["metric"]["alertname"])
    return names


def outcome(scene, cluster):
    """Return the number of pages, and the alerts that paged, notified elsewhere, or were muted."""
    bodies = [
        body
        for body in list(scene.pager.bodies)
        if body["groupLabels"].get("job") == cluster.job and body["status"] == "firing"
    ]
    pages = [body for body in bodies if body["receiver"] == "page"]
    names = [{body["groupLabels"]["alertname"] for body in part} for part in (pages, bodies)]
    muted = fired(scene.servers[0]).get(cluster.job, set()) - names[1]
    return {"page": names[0], "other": names[1] - names[0], "muted": muted, "pages": len(pages)}


def expected(cluster):
    """Return the row of the review, as `outcome`."""
    row = EXPECTED[cluster.name]
    return {name: set(row[name]) for name in ("page", "other", "muted")} | {"pages": len(row["page"])}


def test_every_fault_is_in_the_review():
    assert list(FAULTS) == list(EXPECTED)


def test_every_rule_is_evaluated_without_an_error(scene):
    for server in scene.servers:
        rules = eventually(lambda: all_known(server.rules()), 20)  # noqa: B023
        assert {rule["name"] for rule in rules} >= set(ALERTS)
        assert [(rule["name"], rule["lastError"]) for rule in rules if rule["health"] != "ok"] == []


def all_known(rules):
    return rules if all(rule["health"] != "unknown" for rule in rules) else []


def test_faults_fire_exactly_the_alerts_of_the_review(request, scene):
    work(scene, 10)
    for cluster in scene.clusters:
        cluster.fault.begin(cluster)

    def all_fire():
        names = fired(scene.servers[0])
        return all(
            set(EXPECTED[cluster.name]["fires"]) <= names.get(cluster.job, set())
            for cluster in scene.clusters
        )

    work(scene, 180, all_fire)
    work(scene, SETTLE_SECONDS)
    outcomes = {cluster.name: outcome(scene, cluster) for cluster in scene.clusters}
    for name, row in outcomes.items():
        cells = {key: ", ".join(sorted(row[key])) for key in ("page", "other", "muted")}
        add_row(request.node, "alerts by fault", {"fault": name, "pages": row["pages"], **cells})
    assert outcomes == {cluster.name: expected(cluster) for cluster in scene.clusters}
    assert fired(scene.servers[1]) == fired(scene.servers[0])


def test_alerts_end_with_their_cause(scene):
    healed = [cluster for cluster in scene.clusters if cluster.fault.end]
    for cluster in healed:
        cluster.fault.end(cluster)

    def resolved():
        return {
            body["groupLabels"]["job"] for body in list(scene.pager.bodies) if body["status"] == "resolved"
        }

    work(scene, 180, lambda: resolved() >= {cluster.job for cluster in healed})
    assert resolved() >= {cluster.job for cluster in healed}


def test_delivered_alerts_have_texts_and_links(scene):
    alerts = [alert for body in scene.pager.bodies for alert in body["alerts"]]
    for alert in alerts:
        annotations = alert["annotations"]
        assert annotations["runbook_url"].endswith("#" + alert["labels"]["alertname"].lower())
        assert re.search(r"[?&]var-job=", annotations["dashboard_url"])
        assert "<" not in annotations["summary"] + annotations["description"]
