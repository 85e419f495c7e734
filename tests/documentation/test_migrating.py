"""docs/rules/ is what the profiles say, and rules make the numbers of the profiles.

After a change that is meant: make golden.
"""

from __future__ import annotations

import json
import math
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from harness.processes import ROOT, need
from msgspec import structs
from unit.test_golden_replay import RECORDING, read, replay

from celery_exporter.metrics.exposition.text import Exposition
from celery_exporter.metrics.model import MetricFamily, MetricOptions
from celery_exporter.metrics.registry import PROFILES, ProfilesClashError, select
from tools.docgen import migrating

OTHERS = [name for name in PROFILES if name != "native"]
#: Which worker consumes which queue, how many tasks it says that it runs, how many messages it ends early.
WORKERS = (("prefork@tape", "celery", 1, 0), ("second@tape", "celery", 2, 9), ("third", "reports", 4, 20))
LEAVES = "third"
#: What some of the rules need.
SHAPE = MetricOptions(task_labels=("queue_name", "worker"))
#: What differs in 1e-6 and less does so because sums of floats depend on their order.
PRECISION = 1e-6

Sample = tuple[str, dict[str, str], float]


def promtool(*arguments) -> str:
    """Run promtool, and return what it said when it did not agree."""
    done = subprocess.run(
        [need("promtool"), *map(str, arguments)], capture_output=True, text=True, check=False
    )
    return "" if done.returncode == 0 else done.stdout + done.stderr


def untrue(folder: Path, series: dict[str, str], cases: list[dict], *rules: Path) -> str:
    """Return what promtool finds of series, with a value a minute, that is not as the cases say."""
    given = [{"series": name, "values": values} for name, values in series.items()]
    file = folder / "test.yml"
    file.write_text(
        yaml.safe_dump(
            {
                "rule_files": list(map(str, rules)),
                "evaluation_interval": "1m",
                "tests": [{"interval": "1m", "input_series": given, "promql_expr_test": cases}],
            }
        )
    )
    return promtool("test", "rules", file)


@pytest.mark.parametrize("path", migrating.made(), ids=lambda path: path.name)
def test_what_is_committed_is_what_the_profiles_say(path):
    assert path.read_text() == migrating.made()[path]


def test_there_are_no_other_rules():
    assert {path.stem for path in (ROOT / "docs/rules").iterdir()} == set(OTHERS)


@pytest.mark.parametrize("profile", OTHERS)
def test_promtool_takes_the_rules(profile):
    rules = ROOT / f"docs/rules/{profile}.yml"
    assert promtool("check", "rules", "--lint=all", "--lint-fatal", rules) == ""


@pytest.mark.parametrize("namespace", ["shop-eu", 'a "b"', "c:\\new", "$1", "${name}", "one\ntwo"])
def test_a_rule_names_the_namespace_whatever_is_in_it(namespace, tmp_path):
    """PromQL has two escapes for it: that of a string, and that of what label_replace replaces by."""
    rows = PROFILES["ovalmoney"].rows(MetricOptions(namespace=namespace))
    query = next(row.query for row in rows if row.name == "celery_workers")
    labels = f"{{namespace={json.dumps(namespace)}}}"
    found = [{"labels": labels, "value": 1}]
    cases = [{"expr": f"sum by (namespace) ({query})", "eval_time": "1m", "exp_samples": found}]
    assert untrue(tmp_path, {"celery_workers_online": "1 1"}, cases) == ""


def test_what_native_metrics_cannot_answer():
    """A row is native, or has a query, or is one of these."""
    unanswered = {
        (name, row.name)
        for name in OTHERS
        for row in PROFILES[name].rows(MetricOptions())
        if not row.query and not migrating.is_native(row)
    }
    assert unanswered == {
        ("danihodovic", "celery_active_worker_count"),  # consumers are that on Redis, and are not on RabbitMQ
        ("flower", "flower_worker_prefetched_tasks"),  # a gauge of tasks knows no worker
        ("flower", "flower_task_prefetch_time_seconds"),  # histograms know no newest value
    }


# -- the same numbers ----------------------------------------------------------------------------------


def busy() -> list[tuple[float, bytes]]:
    """Return the tape for several workers, of which two on one host are at work when it ends."""
    messages = []
    for number, (worker, queue, active, cut) in enumerate(WORKERS):
        mine = [
            (at, body.decode())
            for at, body in read(RECORDING)
            if b"worker-offline" not in body or worker == LEAVES
        ]
        for at, body in mine[: len(mine) - cut] + mine[-1:]:
            text = re.sub(r"\b[0-9a-f](?=[0-9a-f]{7}-[0-9a-f]{4}-)", str(number), body)
            text = text.replace("prefork@tape", worker).replace('"queue": "celery"', f'"queue": "{queue}"')
            messages.append((at, re.sub(r'"active": \d+', f'"active": {active}', text).encode()))
    return sorted(messages, key=lambda message: message[0])


def page(profile: str) -> list[Sample]:
    """Return the samples that a profile has of that, without those of the exporter itself."""
    selection = select(
        (profile,), structs.replace(SHAPE, generic_hostname_task_sent_metric=profile == "danihodovic")
    )
    text = Exposition(selection.rows).render(replay(busy(), selection)).decode()
    return [sample for sample in map(parse, text.splitlines()) if sample and "_exporter_" not in sample[0]]


def parse(line: str) -> Sample | None:
    if line.startswith("#"):
        return None
    series, _, value = line.rpartition(" ")
    labels = {name: text for name, text in re.findall(r'(\w+)="([^"]*)"', series) if text}
    if labels.get("le", "+Inf") != "+Inf":  # a rule's bounds are written as those of native metrics
        labels["le"] = f"{float(labels['le']):g}"
    return series.partition("{")[0], labels, float(value)


def shown(labels: dict[str, str]) -> str:
    return "{" + ",".join(f'{name}="{value}"' for name, value in labels.items()) + "}"


def rounded(value: float) -> float:
    """As PromQL's round() does."""
    return math.floor(value * (1 / PRECISION) + 0.5) / (1 / PRECISION)


def adapted(profile: str, samples: list[Sample]) -> Iterator[Sample]:
    """Yield samples as rules can make them, which do not know who sent a task."""
    sent: dict[str, Sample] = {}
    if profile == "danihodovic":  # which shows that there may be failures before there is one
        samples = [one for one in samples if one[0] != "celery_task_failed_total" or "exception" in one[1]]
    if profile == "flower":  # nobody sent this, and nobody is not a worker
        idle = {"task": "tasks.idle", "type": "task-sent"}
        sent["tasks.idle"] = ("flower_events_total", idle, 0)
    for name, labels, value in samples:
        if profile == "flower" and labels.get("type") == "task-sent":
            before = sent.get(labels["task"], (name, {}, 0))[2]
            kept = {label: text for label, text in labels.items() if label != "worker"}
            sent[labels["task"]] = (name, kept, before + value)
        else:
            yield name, labels, value
    yield from sent.values()


def bounds(samples: list[Sample]) -> dict[str, set[str]]:
    """Return the bucket bounds of each histogram."""
    found: dict[str, set[str]] = {}
    for name, labels, _ in samples:
        if name.endswith("_bucket"):
            found.setdefault(name, set()).add(labels["le"])
    return found


def case(row: MetricFamily, record: str, samples: list[Sample], shared: set[str]) -> dict[str, object]:
    """Return what promtool has to find under a name, in those buckets that both have."""
    mine = [
        (labels, value)
        for name, labels, value in samples
        if name == record and labels.get("le", "+Inf") in shared
    ]
    assert mine, record
    matchers = [f'{label}=""' for label in ("task_name", "worker") if label not in row.labels]
    if record.endswith("_bucket"):
        matchers.append(f'le=~"{"|".join(sorted(shared))}"'.replace("+", r"\\+"))
    return {
        "expr": f"round({record}{{{','.join(matchers)}}}, {PRECISION})",
        "eval_time": "1m",
        "exp_samples": [{"labels": shown(labels), "value": rounded(value)} for labels, value in mine],
    }


@pytest.mark.parametrize("profile", OTHERS)
def test_the_rules_make_the_numbers_of_the_profile(profile, tmp_path):
    """After other numbers a minute ago, so that a rule that reads its own result would be found out."""
    given = page("native")
    wanted = list(adapted(profile, page(profile)))
    native, old = bounds(given), bounds(wanted)
    cases = []
    for row in PROFILES[profile].rows(SHAPE):
        for record, query in migrating.rules(row).items():
            sources = re.findall(r"\w+_bucket", query)
            shared = native[sources[0]] & old[record] if sources else {"+Inf"}
            assert len(shared) > len(old.get(record, ())) / 2
            cases.append(case(row, record, wanted, shared))
    series = {name + shown(labels): f"{value + 1!r} {value!r}" for name, labels, value in given}
    assert untrue(tmp_path, series, cases, ROOT / f"docs/rules/{profile}.yml") == ""


# -- the pages -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("profile", OTHERS)
def test_the_page_of_a_profile_names_it_and_links_to_its_rules(profile):
    text = migrating.page(PROFILES[profile]).read_text()
    assert f"`--profile {profile}" in text
    assert f"](../rules/{profile}.yml)" in text


def test_the_clash_that_the_page_shows_is_one():
    with pytest.raises(ProfilesClashError) as clash:
        select(("native", "danihodovic"), MetricOptions())
    assert f"celery-exporter: {clash.value}\n" in (ROOT / "docs/how-to/migrate.md").read_text()
