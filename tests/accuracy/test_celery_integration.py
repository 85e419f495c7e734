"""The helpers of `make celery-integration`: pinned versions, the comparison, and the page."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from celery_integration import blame, comparison, page, source
from celery_integration.comparison import REDELIVERED, Difference, Unpublished
from celery_integration.run import Outcome, compare
from harness.events import task_events
from harness.exporter import Samples
from harness.processes import TESTS
from prometheus_client.parser import text_string_to_metric_families

TEST = "t/integration/test_canvas.py::test_chain::test_simple_chain"


def task(state: str, name: str = "add", task_id: str = "id", **more: object) -> str:
    """Return the record of a state change."""
    return json.dumps({"kind": "task", "state": state, "name": name, "id": task_id, "test": "", **more})


def result(outcome: str, test: str = TEST) -> str:
    """Return the record of the result of a test."""
    return json.dumps({"kind": "result", "test": test, "outcome": outcome})


def samples(text: str) -> Samples:
    """Return the samples of a page."""
    return Samples.of(text_string_to_metric_families(text))


# -- the source package --------------------------------------------------------------------------------


def test_one_release_is_pinned_with_the_hash_of_its_source_package_only():
    version, sha256 = source.pinned(source.SOURCE.read_text())
    locked = source.ENVIRONMENT.read_text()
    assert f"celery=={version} " in locked  # the tests belong to this release
    assert f"sha256:{sha256}" in locked
    for text in ("", "celery==1.0\n", f"celery==1.0 --hash=sha256:{sha256}\n" * 2):
        with pytest.raises(ValueError, match="must pin"):
            source.pinned(text)


def test_an_archive_with_another_hash_is_rejected_and_removed(tmp_path):
    archive = tmp_path / "celery.tar.gz"
    archive.write_bytes(b"right")
    source.verify(archive, hashlib.sha256(b"right").hexdigest())
    with pytest.raises(ValueError, match="has SHA-256"):
        source.verify(archive, hashlib.sha256(b"wrong").hexdigest())
    assert not archive.exists()


# -- records -------------------------------------------------------------------------------------------


def test_states_are_counted_by_name_under_each_id():
    lines = [
        task("PENDING", "old", test=TEST, root_id="id"),
        task("STARTED", "old"),
        task("IGNORED", "old"),  # a state without an event
        task("PENDING", "new", task_id="child", root_id="id"),
        task("STARTED", "new"),
    ]
    records = comparison.read_records(lines)
    assert records.sums() == {
        ("old", "PENDING"): 1,
        ("old", "STARTED"): 1,
        ("new", "PENDING"): 1,
        ("new", "STARTED"): 1,
    }
    assert (records.test_of("id"), records.test_of("child"), records.test_of("other")) == (TEST, TEST, "")


def test_redelivered_tasks_are_flagged_or_received_without_being_sent():
    flagged = [task("PENDING"), task("RECEIVED"), task("RECEIVED", redelivered=True)]
    unsent = [task("PENDING"), task("RECEIVED"), task("RECEIVED")]
    sent_twice = [task("PENDING"), task("RECEIVED")] * 2
    for lines, count in ((flagged, 1), (unsent, 1), (sent_twice, 0)):
        assert comparison.read_records(lines).sums()["add", REDELIVERED] == count


def test_outcomes_of_tests():
    lines = [
        result("rerun", "flaky"),
        result("passed", "flaky"),
        result("failed", "subtests"),
        result("passed", "subtests"),
        result("skipped", "skipped"),
        json.dumps({"kind": "finished"}),
    ]
    records = comparison.read_records(lines)
    assert records.outcomes == {"flaky": "passed", "subtests": "failed", "skipped": "skipped"}
    assert (records.reruns, records.finished) == (1, True)


# -- comparison ----------------------------------------------------------------------------------------

RECORDED = [task("PENDING", test=TEST), task("RECEIVED"), task("STARTED"), task("SUCCESS")]
EVENTS = [{"type": type_, "uuid": "id"} for type_ in ("task-sent", "task-received", "task-started")]
EXPOSED = """
celery_tasks_total{task_name="add",state="PENDING"} 1
celery_tasks_total{task_name="add",state="RECEIVED"} 1
celery_tasks_total{task_name="add",state="STARTED"} 1
celery_tasks_total{task_name="add",state="SUCCESS"} 0
celery_task_redeliveries_total{task_name="add"} 0
celery_tasks_in_flight{task_name="add",state="STARTED"} 1
celery_tasks_in_flight{task_name="add",state="PENDING"} 0
"""


def test_an_unpublished_change_is_no_difference():
    records = comparison.read_records(RECORDED)
    gaps = comparison.unpublished(records, EVENTS)
    assert gaps == [Unpublished(TEST, "id", "add", "SUCCESS", 1, 0)]
    assert comparison.differences(records.sums(), gaps, comparison.exposed_sums(samples(EXPOSED))) == []
    assert comparison.in_flight(samples(EXPOSED)) == {("add", "STARTED"): 1}


def test_higher_lower_and_unknown_sums_are_differences():
    records = comparison.read_records(RECORDED)
    gaps = comparison.unpublished(records, EVENTS)
    exposed = comparison.exposed_sums(samples(EXPOSED)) + Counter(
        {("add", REDELIVERED): 1, ("unknown", "SUCCESS"): 1}
    )
    exposed["add", "STARTED"] = 2
    assert comparison.differences(records.sums(), gaps, exposed) == [
        Difference("add", "STARTED", 1, 1, 2),
        Difference("add", REDELIVERED, 0, 0, 1),
        Difference("unknown", "SUCCESS", 0, 0, 1),
    ]


def test_a_surplus_event_is_not_expected():
    records = comparison.read_records(RECORDED[:3])
    twice = [*EVENTS, EVENTS[-1], {"type": "worker-heartbeat"}]
    assert comparison.unpublished(records, twice) == []
    exposed = comparison.exposed_sums(samples(EXPOSED))
    assert comparison.differences(records.sums(), [], exposed) == []


def test_a_task_with_correct_metrics_is_no_example():
    events = [{**event, "arrived": event["timestamp"]} for event in task_events(1)]
    lines = [task(state, "made.up", "task-1") for state in ("PENDING", "RECEIVED", "STARTED", "SUCCESS")]
    assert blame.examples(comparison.read_records(lines), events, [], {"made.up"}) == []


def test_a_task_with_wrong_metrics_is_an_example_that_names_its_test():
    events = [{**event, "arrived": event["timestamp"]} for event in task_events(1)[:3]]  # without an end
    lines = [task(state, "made.up", "task-1", test=TEST) for state in ("PENDING", "RECEIVED", "RETRY")]
    (example,) = blame.examples(comparison.read_records(lines), events, [], {"made.up"})
    assert example.differences == [
        Difference("made.up", "RETRY", 1, 1, 0),
        Difference("made.up", "STARTED", 0, 0, 1),
    ]
    assert example.in_flight == {("made.up", "STARTED"): 1}
    assert blame.blamed([example]) == {"made.up": {TEST}}
    assert example.text().splitlines()[0] == f"{TEST}  task-1"
    assert "task-received hostname=w@box pid=1 name=made.up" in example.text()
    assert blame.report([example, example]) == f"2 x {example.text()}"
    assert blame.examples(comparison.read_records(lines), events, [], {"another"}) == []


def test_a_recorded_run_can_be_evaluated_again(tmp_path, capsys):
    events = [{**event, "arrived": event["timestamp"]} for event in task_events(1)]
    lines = [task(state, "made.up", "task-1") for state in ("PENDING", "RECEIVED", "STARTED", "SUCCESS")]
    for name, text in (("tests/outcomes", lines), ("recorder/events", list(map(json.dumps, events)))):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).with_suffix(".jsonl").write_text("".join(f"{line}\n" for line in text))
    assert blame.main(tmp_path) == 0
    with (tmp_path / "tests/outcomes.jsonl").open("a") as outcomes:
        outcomes.write(f"{task('RETRY', 'made.up', 'task-1')}\n")  # not published
    assert blame.main(tmp_path) == 0
    with (tmp_path / "recorder/events.jsonl").open("a") as file:
        file.write(
            json.dumps({**events[1], "type": "task-received"}) + '\n{"type":'
        )  # received without being sent
    assert blame.main(tmp_path) == 1
    assert "made.up RECEIVED: published 1, shown 2" in capsys.readouterr().out


# -- page ----------------------------------------------------------------------------------------------


def outcome(**changes: object) -> Outcome:
    """Return the outcome of a run with some fields changed."""
    fields = {
        "broker": "Redis",
        "seconds": 60.0,
        "tests": Counter(passed=2),
        "failed": [],
        "reruns": 0,
        "recorded": Counter({("add", "SUCCESS"): 1_000, ("add", REDELIVERED): 1}),
        "exposed": Counter({("add", "SUCCESS"): 999, ("add", REDELIVERED): 1}),
        "published": Counter({("add", "SUCCESS"): 999, ("add", REDELIVERED): 1}),
        "differences": [],
        "unpublished": [Unpublished(TEST, "id", "add", "SUCCESS", 1, 0)],
        "in_flight": {},
        "blamed": {},
    }
    return Outcome(**{**fields, **changes})  # type: ignore[arg-type]


def test_the_page_of_runs_that_agree():
    text = page.markdown("Celery 1.0:", [outcome(), outcome(broker="RabbitMQ", unpublished=[])], {})
    lines = text.splitlines()
    assert "| state changes written by the tasks | 1,000 | 1,000 |" in lines
    assert "| SUCCESS | 1,000 | 999 | 999 | 1,000 | 999 | 999 |" in lines
    assert "| Redis | test_simple_chain | add | SUCCESS | 1 |" in lines
    assert "differ from" not in text
    assert "failed," not in text


def test_the_outcome_of_a_run():
    states = ("PENDING", "RECEIVED", "STARTED", "RETRY")  # the retry was not published
    lines = [task(state, "made.up", "task-1", test=TEST) for state in states]
    records = comparison.read_records([*lines, result("passed"), result("failed", "other")])
    events = [{**event, "arrived": event["timestamp"]} for event in task_events(1)[:3]]
    exposed = samples(EXPOSED.replace('"add"', '"made.up"'))
    compared, examples = compare("Redis", 60.0, records, events, exposed)
    assert (compared.tests, compared.failed) == (Counter(passed=1, failed=1), ["other"])
    assert [gap.state for gap in compared.unpublished] == ["RETRY"]
    assert compared.in_flight == {("made.up", "STARTED"): 1}
    assert compared.blamed == {"made.up": {TEST}}
    assert examples.startswith(f"1 x {TEST}  task-1\n  made.up STARTED: 1 in flight\n")


def test_the_page_of_a_run_that_differs():
    wrong = outcome(
        tests=Counter(passed=1, failed=1),
        failed=["t/test.py::test_a[x|y]"],
        differences=[Difference("add", "STARTED", 1, 1, 2)],
        in_flight={("add", "STARTED"): 1},
        blamed={"add": {TEST}},
    )
    lines = page.markdown("Celery 1.0:", [wrong], {"t/test.py::test_b": "needs a network"}).splitlines()
    assert "| Redis | add | STARTED | 1 | 1 | 2 | test_simple_chain |" in lines
    assert "| Redis | add | STARTED | 1 | test_simple_chain |" in lines
    assert "| Redis | t/test.py::test_a[x\\|y] |" in lines
    assert "| t/test.py::test_b | needs a network |" in lines
    assert not wrong.agrees


# -- the plugin ----------------------------------------------------------------------------------------

SUITE = """
import pytest
from celery import shared_task

@shared_task
def one(): return 1

@shared_task(bind=True)
def replaced(self): raise self.replace(one.s())

@pytest.fixture(scope="session")
def celery_config(): return {"broker_url": "memory://", "result_backend": "cache+memory://"}

def test_replaced(celery_session_app, celery_session_worker):
    assert replaced.delay().get(timeout=60) == 1

def test_eager(celery_session_app):
    assert one.apply().get() == 1
"""


def test_the_plugin_records_tasks_and_results_of_tests(tmp_path):
    (tmp_path / "test_suite.py").write_text(SUITE)
    outcomes, stop = tmp_path / "outcomes.jsonl", tmp_path / "stop"
    stop.touch()
    plugins = ("-p", "celery.contrib.pytest", "-p", "celery_integration.plugin", "-p", "no:cacheprovider")
    process = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", f"--rootdir={tmp_path}", "-c", os.devnull, *plugins, "."],
        cwd=tmp_path,
        env={
            **os.environ,
            "PYTHONPATH": str(TESTS),
            "INTEGRATION_OUTCOMES": str(outcomes),
            "INTEGRATION_STOP": str(stop),
        },
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert process.returncode == 0, process.stdout + process.stderr
    records = comparison.read_records(outcomes.read_text().splitlines())
    assert records.finished
    assert {test.rpartition("::")[2]: outcome for test, outcome in records.outcomes.items()} == {
        "test_replaced": "passed",
        "test_eager": "passed",
    }
    transitions = dict.fromkeys(("PENDING", "RECEIVED", "STARTED", "SUCCESS"), 1)
    sums = records.sums()
    assert {state: count for (name, state), count in sums.items() if name == "test_suite.one"} == transitions
    started = {state: count for (name, state), count in sums.items() if name == "test_suite.replaced"}
    assert started == {"PENDING": 1, "RECEIVED": 1, "STARTED": 1}
    (task_id,) = [task_id for task_id, by in records.by_id.items() if ("test_suite.one", "STARTED") in by]
    assert records.test_of(task_id).endswith("::test_replaced")


def test_make_test_collects_no_test_of_the_folder():
    assert not list(Path(source.HERE).glob("test_*.py"))
