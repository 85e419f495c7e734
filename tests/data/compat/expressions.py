"""Evaluates expressions of public dashboards and alerts with the metrics of an original and with ours.

    python -m data.compat.expressions danihodovic FILE    # in tests/; FILE has lines {"family": …, "expr": …}

Both sets of metrics are those after the stream "made-up", spread over an hour. The program prints how many
expressions have a result for the original, and which of these have none for ours. The expressions belong to
other projects, so this repository has none.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

from data.compat.streams import HERE, messages, samples
from harness.servers import Prometheus3
from unit.test_golden_replay import replay

from celery_exporter.metrics.exposition.text import Exposition
from celery_exporter.metrics.model import MetricOptions
from celery_exporter.metrics.registry import select

ORIGINALS = {"danihodovic": "danihodovic-0.12.2", "flower": "flower-2.2.0"}
CASE = "made-up"
HAS_RESULT = "result"
RANGE_SECONDS, STEP_SECONDS = 3_600, 15
COUNTER = re.compile(r"\w+_(total|bucket|count|sum)\{")
#: Labels that Prometheus adds.
JOB = 'job="celery"'
TARGET = f'{JOB},namespace="default",cluster="here",instance="a:9808",service_name="celery"'
#: Metrics of both exporters from the broker and from inspection, which are in no stream.
POLLED = """\
celery_queue_length{queue_name="celery"} 3
celery_active_consumer_count{queue_name="celery"} 2
celery_active_worker_count{queue_name="celery"} 2
celery_active_process_count{queue_name="celery"} 8"""
#: Values for variables of Grafana, jsonnet and Helm.
VARIABLES = (
    (r"%\((\w*Selector|queue|task|default|defaultQueue)\)s", JOB),
    (r"%\(\w*Interval\)s|\$\{?(__\w+|Interval|window|range|TIME_FRAME)\}?", "5m"),
    (r"%\(\w*Threshold\)s", "1"),
    (r"%\(clusterLabel\)s", "cluster"),
    (r"%\(celeryIgnored\w+\)s", "none"),
    (r"\{\{[^}]*\}\}|\$\{?\w+\}?|\[\[\w+\]\]", ".*"),
)


def series(page: list[str], end: int) -> str:
    """Return samples in OpenMetrics over an hour: counters grow evenly, and others are constant."""
    lines = []
    for line in page:
        name, _, number = line.rpartition(" ")
        bare, _, labels = name.partition("{")
        full_name = f"{bare}{{{TARGET}{',' + labels if labels else '}'}"
        for at in range(end - RANGE_SECONDS, end + 1, STEP_SECONDS):
            share = (at - end + RANGE_SECONDS) / RANGE_SECONDS if COUNTER.match(f"{bare}{{") else 1.0
            lines.append(f"{full_name} {float(number) * share} {at}")
    return "\n".join([*lines, "# EOF", ""])


def without_variables(expression: str) -> str:
    """Return an expression with values for its variables, which select everything."""
    for pattern, text in VARIABLES:
        expression = re.sub(pattern, text, expression)
    return re.sub(r'=\s*"\.\*"', '=~".*"', expression)


def ours(profile: str) -> list[str]:
    """Return the samples of our profile."""
    selection = select((profile,), MetricOptions())
    page = Exposition(selection.rows).render(replay(messages(CASE), selection)).decode()
    polled = tuple(line.partition("{")[0] for line in POLLED.splitlines())
    return [line for line in samples(page).splitlines() if not line.startswith(("celery_exporter", *polled))]


def prometheus_with(folder: Path, page: list[str], end: int) -> Prometheus3:
    """Return a Prometheus with these samples, which has not started."""
    folder.mkdir()
    text = folder / "samples.txt"
    text.write_text(series(page, end))
    server = Prometheus3(folder, "127.0.0.1:1")
    command = [
        server.promtool(),
        "tsdb",
        "create-blocks-from",
        "openmetrics",
        str(text),
        str(folder / "data"),
    ]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return server


def evaluate(server: Prometheus3, expression: str, at: int) -> str:
    """Return `HAS_RESULT`, an empty string, or the error."""
    try:
        result = server.query(expression, at)
    except Exception as error:  # noqa: BLE001  an external expression can have any error
        return f"error: {error}"
    return HAS_RESULT if result else ""


def compare(family: str, expressions: list[str]) -> dict[str, list[str]]:
    """Return the outcomes of each expression with the original's metrics and with ours."""
    end = int(time.time()) // STEP_SECONDS * STEP_SECONDS
    pages = [(HERE / ORIGINALS[family] / f"{CASE}.txt").read_text().splitlines(), ours(family)]
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        polled = POLLED.splitlines()
        servers = [
            prometheus_with(Path(folder) / str(index), [*page, *polled], end)
            for index, page in enumerate(pages)
        ]
        for server in servers:
            stack.enter_context(server)
        return {
            expression: [evaluate(server, expression, end) for server in servers]
            for expression in expressions
        }


def main(family: str, file: Path) -> None:
    """Compare the expressions of a file, and print those without a result for our metrics."""
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    expressions = sorted({without_variables(row["expr"]) for row in rows if row["family"] == family})
    outcomes = compare(family, expressions)
    invalid = [expression for expression, (theirs, _) in outcomes.items() if theirs.startswith("error")]
    with_result = [expression for expression, (theirs, _) in outcomes.items() if theirs == HAS_RESULT]
    missing = [expression for expression in with_result if outcomes[expression][1] != HAS_RESULT]
    for expression in invalid:
        print("invalid:", expression)
    for expression in missing:
        print("no result:", expression)
    print(
        f"{len(outcomes)} expressions, {len(invalid)} of them invalid; {len(with_result)} have a result for "
        f"the original, and {len(with_result) - len(missing)} of these have one for ours"
    )


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
