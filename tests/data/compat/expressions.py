"""Ask a real Prometheus what public dashboards and alerts ask: of an original's numbers, and of ours.

    python -m data.compat.expressions danihodovic FILE    # in tests/; FILE has lines {"family": …, "expr": …}

Both are what the stream "made-up" comes to, spread over an hour. Prints how many expressions the original
answers, and each of these that we do not. The expressions are other people's, so none is kept here.
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
ANSWERED = "answered"
SECONDS, STEP = 3_600, 15
COUNTING = re.compile(r"\w+_(total|bucket|count|sum)\{")
#: What scrapes add.
JOB = 'job="celery"'
TARGET = f'{JOB},namespace="default",cluster="here",instance="a:9808",service_name="celery"'
#: What both read from the broker and from workers, which is in no stream.
ASKED = """\
celery_queue_length{queue_name="celery"} 3
celery_active_consumer_count{queue_name="celery"} 2
celery_active_worker_count{queue_name="celery"} 2
celery_active_process_count{queue_name="celery"} 8"""
#: What stands for what is filled in elsewhere: variables of Grafana, jsonnet and Helm.
FILLED = (
    (r"%\((\w*Selector|queue|task|default|defaultQueue)\)s", JOB),
    (r"%\(\w*Interval\)s|\$\{?(__\w+|Interval|window|range|TIME_FRAME)\}?", "5m"),
    (r"%\(\w*Threshold\)s", "1"),
    (r"%\(clusterLabel\)s", "cluster"),
    (r"%\(celeryIgnored\w+\)s", "none"),
    (r"\{\{[^}]*\}\}|\$\{?\w+\}?|\[\[\w+\]\]", ".*"),
)


def series(page: list[str], end: int) -> str:
    """Return samples in OpenMetrics over an hour: what counts grows evenly, the rest stays."""
    lines = []
    for line in page:
        name, _, number = line.rpartition(" ")
        bare, _, labels = name.partition("{")
        of_series = f"{bare}{{{TARGET}{',' + labels if labels else '}'}"
        for at in range(end - SECONDS, end + 1, STEP):
            share = (at - end + SECONDS) / SECONDS if COUNTING.match(f"{bare}{{") else 1.0
            lines.append(f"{of_series} {float(number) * share} {at}")
    return "\n".join([*lines, "# EOF", ""])


def asked(expression: str) -> str:
    """Return an expression without placeholders: what selects takes all there is."""
    for pattern, text in FILLED:
        expression = re.sub(pattern, text, expression)
    return re.sub(r'=\s*"\.\*"', '=~".*"', expression)


def ours(profile: str) -> list[str]:
    """Return the samples of our profile."""
    selection = select((profile,), MetricOptions())
    page = Exposition(selection.rows).render(replay(messages(CASE), selection)).decode()
    known = tuple(line.partition("{")[0] for line in ASKED.splitlines())
    return [line for line in samples(page).splitlines() if not line.startswith(("celery_exporter", *known))]


def started(folder: Path, page: list[str], end: int) -> Prometheus3:
    """Return a Prometheus that has these samples."""
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


def answer(server: Prometheus3, expression: str, at: int) -> str:
    """Return what it says: the values, nothing, or why it takes no such expression."""
    try:
        found = server.query(expression, at)
    except Exception as error:  # noqa: BLE001  whatever is wrong with an expression of somebody else
        return f"error: {error}"
    return ANSWERED if found else ""


def compared(family: str, expressions: list[str]) -> dict[str, list[str]]:
    """Return what is said of each expression: by the original's numbers, and by ours."""
    end = int(time.time()) // STEP * STEP
    pages = [(HERE / ORIGINALS[family] / f"{CASE}.txt").read_text().splitlines(), ours(family)]
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        asked_ = ASKED.splitlines()
        servers = [
            started(Path(folder) / str(place), [*page, *asked_], end) for place, page in enumerate(pages)
        ]
        for server in servers:
            stack.enter_context(server)
        return {each: [answer(server, each, end) for server in servers] for each in expressions}


def main(family: str, file: Path) -> None:
    """Compare the expressions of a file, and print where we have no answer."""
    known = [json.loads(line) for line in file.read_text().splitlines()]
    found = compared(family, sorted({asked(each["expr"]) for each in known if each["family"] == family}))
    wrong = [each for each, (theirs, _) in found.items() if theirs.startswith("error")]
    answered = [each for each, (theirs, _) in found.items() if theirs == ANSWERED]
    missing = [each for each in answered if found[each][1] != ANSWERED]
    for each in wrong:
        print("not taken:", each)
    for each in missing:
        print("not answered:", each)
    print(
        f"{len(found)} expressions, of which Prometheus does not take {len(wrong)}; "
        f"the original answers {len(answered)}, and we answer {len(answered) - len(missing)} of these"
    )


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
