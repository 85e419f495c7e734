"""Runs the tests on both brokers, and writes the tables into docs/explanation/accuracy.md.

The exit code is 1 if the exporter differs from the records of the tasks. Failed tests of Celery are listed.
With test ids or options of pytest (`PYTHONPATH=tests .venv/bin/python -m celery_integration
t/integration/test_tasks.py -k retry`), it runs these tests only, and does not change the page.
"""

from __future__ import annotations

import datetime as dt
import platform
import sys
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from importlib.metadata import version

from harness.processes import ROOT

from celery_integration import page, source
from celery_integration.run import BROKERS, DESELECTED, FILES, Outcome, prepare, run
from tools.docgen.marks import filled

PAGE = ROOT / "docs" / "explanation" / "accuracy.md"
#: With more failures than this, the tests did not run properly, and the sums are not conclusive.
MAX_FAILED = 15


def main(*tests: str) -> int:
    """Run the tests, print and write the tables, and return the exit code."""
    job = prepare(tests or FILES)
    folder = source.CACHE / "runs" / f"{_now():%Y-%m-%dT%H-%M-%S}"
    run_name = f"Celery {source.version()} on {' and '.join(BROKERS)}"
    print(f"celery-integration: {run_name}; logs in {folder.relative_to(ROOT)}", flush=True)
    with ProcessPoolExecutor(len(BROKERS)) as pool:  # with processes, Ctrl-C stops the servers of each run
        outcomes = list(pool.map(partial(run, folder=folder, job=job), BROKERS))
    text = page.markdown(heading(), outcomes, DESELECTED)
    print(text)
    if not tests:
        PAGE.write_text(filled(PAGE.read_text(), {"celery integration": text}))
    return 0 if all(map(_is_good, outcomes)) else 1


def heading() -> str:
    """Return the line above the tables: versions and date."""
    packages = " and ".join(f"{name} {version(name)}" for name in ("kombu", "redis"))
    python = f"Python {platform.python_version()}"
    return f"Celery {source.version()}, on {_now():%Y-%m-%d}, with {python}, {packages}:"


def _is_good(outcome: Outcome) -> bool:
    return outcome.agrees and outcome.tests["failed"] <= MAX_FAILED


def _now() -> dt.datetime:
    return dt.datetime.now(dt.UTC)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
