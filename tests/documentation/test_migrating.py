"""docs/rules/ is generated from the profiles, and the rules give the values of the profiles.

Run `make golden` after an intended change.
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
#: Worker, queue, reported active tasks, and number of messages at the end that it does not send.
WORKERS = (("prefork@tape", "celery", 1, 0), ("second@tape", "celery", 2, 9), ("third", "reports", 4, 20))
STOPPED_WORKER = "third"
#: Labels that some of the rules need.
SHAPE = MetricOptions(task_labels=("queue_name", "worker"))
#: Sums of floats depend on their order, so smaller differences are accepted.
PRECISION = 1e-6

Sample = tuple[str, dict[str, str], float]


def promtool(*arguments) -> str:
    """Run promtool, and return its output if it fails, or an empty string."""
    result = subprocess.run(
        [need("promtool"), *map(str, arguments)], capture_output=True, text=True, check=False
    )
    return "" if result.returncode == 0 else result.stdout + result.stderr


def failures(folder: Path, series: dict[str, str], cases: list[dict], *rules: Path) -> str:
    """Return the failures of test cases of promtool for series with a value per minute."""
    inputs = [{"series": name, "values": values} for name, values in series.items()]
    file = folder / "test.yml"
    file.write_text(
        yaml.safe_dump(
            {
                "rule_files": list(map(str, rules)),
                "evaluation_interval": "1m",
                "tests": [{"interval": "1m", "input_series": inputs, "promql_expr_test": cases}],
            }
        )
    )
    return promtool("test", "rules", file)


@pytest.mark.parametrize("path", migrating.made(), ids=lambda path: path.name)
def test_generated_rules_are_current(path):
    assert path.read_text() == migrating.made()[path]


def test_every_rule_file_belongs_to_a_profile():
    assert {path.stem for path in (ROOT / "docs/rules").iterdir()} == set(OTHERS)


@pytest.mark.parametrize("profile", OTHERS)
def test_promtool_accepts_the_rules(profile):
    rules = ROOT / f"docs/rules/{profile}.yml"
    assert promtool("check", "rules", "--lint=all", "--lint-fatal", rules) == ""


@pytest.mark.parametrize("namespace", ["shop-eu", 'a "b"', "c:\\new", "$1", "${name}", "one\ntwo"])
def test_a_rule_escapes_the_namespace(namespace, tmp_path):
    """PromQL escapes it twice: as a string, and as a replacement of label_replace."""
    rows = PROFILES["ovalmoney"].rows(MetricOptions(namespace=namespace))
    query = next(row.query for row in rows if row.name == "celery_workers")
    labels = f"{{namespace={json.dumps(namespace)}}}"
    expected = [{"labels": labels, "value": 1}]
    cases = [{"expr": f"sum by (namespace) ({query})", "eval_time": "1m", "exp_samples": expected}]
    assert failures(tmp_path, {"celery_workers_online": "1 1"}, cases) == ""


def test_metrics_without_a_native_equivalent():
    """A row is native, has a query, or is one of these."""
    without_query = {
        (name, row.name)
        for name in OTHERS
        for row in PROFILES[name].rows(MetricOptions())
        if not row.query and not migrating.is_native(row)
    }
    assert without_query == {
        ("danihodovic", "celery_active_worker_count"),  # equals the consumers on Redis only
        ("flower", "flower_worker_prefetched_tasks"),  # gauges of tasks have no worker
        ("flower", "flower_task_prefetch_time_seconds"),  # histograms have no newest value
    }


# -- the same values -----------------------------------------------------------------------------------


def busy() -> list[tuple[float, bytes]]:
    """Return the recording for several workers; two of them on one host run tasks at its end."""
    messages = []
    for number, (worker, queue, active, cut) in enumerate(WORKERS):
        messages_of_worker = [
            (at, body.decode())
            for at, body in read(RECORDING)
            if b"worker-offline" not in body or worker == STOPPED_WORKER
        ]
        count = len(messages_of_worker) - cut
        for at, body in messages_of_worker[:count] + messages_of_worker[-1:]:
            text = re.sub(r"\b[0-9a-f](?=[0-9a-f]{7}-[0-9a-f]{4}-)", str(number), body)
            text = text.replace("prefork@tape", worker).replace('"queue": "celery"', f'"queue": "{queue}"')
            messages.append((at, re.sub(r'"active": \d+', f'"active": {active}', text).encode()))
    return sorted(messages, key=lambda message: message[0])


def page(profile: str) -> list[Sample]:
    """Return the samples of a profile after these messages, without those about the exporter."""
    selection = select(
        (profile,), structs.replace(SHAPE, generic_hostname_task_sent_metric=profile == "danihodovic")
    )
    text = Exposition(selection.rows).render(replay(busy(), selection)).decode()
    return [sample for sample in map(parse, text.splitlines()) if sample and "_exporter_" not in sample[0]]


def parse(line: str) -> Sample | None:
    """Return the sample of a line, or None for a comment."""
    if line.startswith("#"):
        return None
    series, _, value = line.rpartition(" ")
    labels = {name: text for name, text in re.findall(r'(\w+)="([^"]*)"', series) if text}
    if labels.get("le", "+Inf") != "+Inf":  # rules write bounds like native metrics
        labels["le"] = f"{float(labels['le']):g}"
    return series.partition("{")[0], labels, float(value)


def format_labels(labels: dict[str, str]) -> str:
    """Return labels in the text format."""
    return "{" + ",".join(f'{name}="{value}"' for name, value in labels.items()) + "}"


def rounded(value: float) -> float:
    """Return a value rounded as by PromQL's round()."""
    return math.floor(value * (1 / PRECISION) + 0.5) / (1 / PRECISION)


def adapted(profile: str, samples: list[Sample]) -> Iterator[Sample]:
    """Yield the samples that rules can give, which cannot know the sender of a task."""
    sent: dict[str, Sample] = {}
    if profile == "danihodovic":  # exposes 0 failures before the first exception
        samples = [
            sample
            for sample in samples
            if sample[0] != "celery_task_failed_total" or "exception" in sample[1]
        ]
    for name, labels, value in samples:
        is_sent = labels.get("state") == "PENDING" or name == "celery_task_sent_total"
        if is_sent and labels.get("name", labels.get("task_type")) == "tasks.idle":
            continue  # never sent: other exporters show 0, and native metrics no sample
        if profile == "flower" and labels.get("type") == "task-sent":
            before = sent.get(labels["task"], (name, {}, 0))[2]
            without_worker = {label: text for label, text in labels.items() if label != "worker"}
            sent[labels["task"]] = (name, without_worker, before + value)
        else:
            yield name, labels, value
    yield from sent.values()


def bounds(samples: list[Sample]) -> dict[str, set[str]]:
    """Return the bucket bounds of each histogram."""
    bounds_by_name: dict[str, set[str]] = {}
    for name, labels, _ in samples:
        if name.endswith("_bucket"):
            bounds_by_name.setdefault(name, set()).add(labels["le"])
    return bounds_by_name


def case(row: MetricFamily, record: str, samples: list[Sample], shared: set[str]) -> dict[str, object]:
    """Return a test case for a recorded metric, for the buckets that both have."""
    expected = [
        (labels, value)
        for name, labels, value in samples
        if name == record and labels.get("le", "+Inf") in shared
    ]
    assert expected, record
    matchers = [f'{label}=""' for label in ("task_name", "worker") if label not in row.labels]
    if record.endswith("_bucket"):
        matchers.append(f'le=~"{"|".join(sorted(shared))}"'.replace("+", r"\\+"))
    return {
        "expr": f"round({record}{{{','.join(matchers)}}}, {PRECISION})",
        "eval_time": "1m",
        "exp_samples": [
            {"labels": format_labels(labels), "value": rounded(value)} for labels, value in expected
        ],
    }


@pytest.mark.parametrize("profile", OTHERS)
def test_the_rules_give_the_values_of_the_profile(profile, tmp_path):
    """The values differ from those a minute ago, so that a rule that uses its own result fails."""
    inputs = page("native")
    expected = list(adapted(profile, page(profile)))
    native, other = bounds(inputs), bounds(expected)
    cases = []
    for row in PROFILES[profile].rows(SHAPE):
        for record, query in migrating.rules(row).items():
            sources = re.findall(r"\w+_bucket", query)
            shared = native[sources[0]] & other[record] if sources else {"+Inf"}
            assert len(shared) > len(other.get(record, ())) / 2
            cases.append(case(row, record, expected, shared))
    series = {name + format_labels(labels): f"{value + 1!r} {value!r}" for name, labels, value in inputs}
    assert failures(tmp_path, series, cases, ROOT / f"docs/rules/{profile}.yml") == ""


# -- the pages -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("profile", OTHERS)
def test_the_page_of_a_profile_names_it_and_links_to_its_rules(profile):
    text = migrating.page(PROFILES[profile]).read_text()
    assert f"`--profile {profile}" in text
    assert f"](../rules/{profile}.yml)" in text


def test_the_page_shows_the_current_message_of_a_clash():
    with pytest.raises(ProfilesClashError) as clash:
        select(("native", "danihodovic"), MetricOptions())
    assert f"celery-exporter: {clash.value}\n" in (ROOT / "docs/how-to/migrate.md").read_text()
