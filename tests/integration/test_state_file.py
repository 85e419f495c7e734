"""A restart with --state-file: sums go on, tasks keep their names, and Prometheus sees no reset."""

import os
import re
import shutil
import signal
import time
from functools import partial
from pathlib import Path

import msgspec
import pytest
from harness.broker_marks import on_redis
from harness.events import publish_events, task_events
from harness.exporter import SCRAPER, Exporter, run_cli
from harness.proxy import Proxy
from harness.servers import Prometheus, Prometheus3
from harness.waiting import eventually, until_equal

from celery_exporter.persistence.state_file import StateFile

COUNTING = ("_total", "_count", "_bucket", "_sum")
OWN = ("process_", "celery_exporter_collector", "celery_exporter_reconnects", "celery_exporter_state")


def counters(samples):
    """Return the sums over tasks and workers."""
    return {
        series: value
        for series, value in samples.items()
        if series[0].endswith(COUNTING) and not series[0].startswith(OWN)
    }


@pytest.fixture
def state(tmp_path: Path) -> Path:
    return tmp_path / "kept" / "state"


@pytest.fixture
def kept(exporter, state):
    """Make exporters that share a state file; it takes another's port to be its successor for Prometheus."""
    state.parent.mkdir()

    def make(port: int = 0) -> Exporter:
        return exporter("--state-file", str(state), "--task-labels", "queue_name,worker", port=port)

    return make


def test_sums_and_unfinished_tasks_outlast_a_restart(running, kept, broker):
    """Each counter is what it was, a task goes on under its name, and its wait is measured."""
    app = running(kept()).connected()
    publish_events(broker.url, *task_events(1))
    publish_events(broker.url, *task_events(2)[:2])
    until_equal(lambda: app.total("celery_tasks_total", state="RECEIVED"), 2)
    before = counters(app.samples())
    app.stop_cleanly()

    app = running(kept()).connected()
    assert counters(app.samples()) == before
    assert app.value("celery_tasks_in_flight", state="RECEIVED", task_name="made.up", queue_name="made") == 1
    publish_events(broker.url, *task_events(2)[2:])
    until_equal(lambda: app.total("celery_tasks_total", state="SUCCESS"), 2)
    assert app.samples().label_values("task_name", "celery_tasks_total") == {"made.up"}
    assert app.total("celery_task_queue_wait_seconds_count") == 2
    assert app.total("celery_exporter_label_fallbacks_total") == 0
    assert app.total("celery_exporter_state_file_errors_total") == 0
    assert app.value("celery_exporter_collector_success", collector="state") == 1


def saved(app: Exporter) -> float:
    return app.value("celery_exporter_collector_last_success_timestamp_seconds", collector="state") or 0


@on_redis
def test_no_counter_that_prometheus_saw_falls_when_the_process_is_killed(running, kept, broker):
    """A scrape is followed by a save, so what was shown is in the file soon after."""
    app = running(kept()).connected()
    publish_events(broker.url, *task_events(1))
    until_equal(lambda: app.total("celery_tasks_total", state="SUCCESS"), 1)
    seen = counters(app.samples(SCRAPER))
    when = saved(app)
    eventually(lambda: saved(app) > when)
    os.kill(app.pid, signal.SIGKILL)
    app.wait()

    app = running(kept()).connected()
    after = app.samples()
    assert [series for series, was in seen.items() if after.get(series, 0) < was] == []
    assert app.total("celery_tasks_total", state="SUCCESS") == 1


@on_redis
def test_a_state_of_another_version_is_said_shown_and_kept(running, kept, state):
    """The exporter starts fresh, and what was there is moved aside."""
    content = b"celery-exporter state 1 00\nof another version"
    app = kept()
    state.write_bytes(content)
    running(app).connected()
    assert app.value("celery_exporter_state_file_errors_total", operation="read") == 1
    assert [line for line in app.text().splitlines() if "level=error" in line and str(state) in line]
    app.stop_cleanly()
    assert state.with_name("state.unread-1").read_bytes() == content
    assert state.read_bytes().startswith(b"celery-exporter state")


def no_state(state: Path) -> None:
    state.write_bytes(b"somebody's\n")


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (no_state, "is not a state file of celery-exporter, and stays unchanged"),
        (Path.mkdir, "is not a regular file"),
        (lambda state: state.parent.rmdir(), "does not exist"),
    ],
)
def test_a_path_at_which_no_state_can_be_is_a_wrong_value(state, make, why):
    state.parent.mkdir()
    make(state)
    done = run_cli("--broker-url", "redis://127.0.0.1:1/0", "--state-file", str(state), "--port", "0")
    assert done.returncode == 2
    assert why in done.stderr
    assert str(state.parent) in done.stderr
    assert not state.is_file() or state.read_bytes() == b"somebody's\n"


@on_redis
def test_a_file_that_is_removed_while_it_is_in_use_is_written_anew(running, kept, state, broker):
    app = running(kept()).connected()
    publish_events(broker.url, *task_events(1))
    until_equal(lambda: app.total("celery_tasks_total", state="SUCCESS"), 1)
    state.unlink()
    eventually(lambda: state.exists() and state.stat().st_size)
    eventually(lambda: "it was removed or moved, and was rewritten" in app.text())
    app.stop_cleanly()
    app = running(kept()).connected()
    assert app.total("celery_tasks_total", state="SUCCESS") == 1


@on_redis
@pytest.mark.parametrize("part", ["transitions", "queue_wait"])
def test_a_state_that_no_exporter_wrote_is_said_shown_and_kept(running, kept, state, broker, part):
    """Whole, and of the right types, but with sums that do not fit together."""
    app = running(kept()).connected()
    publish_events(broker.url, *task_events(1))
    until_equal(lambda: app.total("celery_tasks_total", state="SUCCESS"), 1)
    app.stop_cleanly()
    records = []
    file = StateFile(state)
    file.load(lambda record: records.append(msgspec.msgpack.decode(record, strict=False)))
    for _, aggregate in (pair for record in records for pair in record["cluster"]["aggregates"]):
        if part == "transitions":
            aggregate["transitions"].pop()
        elif aggregate["queue_wait"]:
            aggregate["queue_wait"]["counts"].pop()
    file.rewrite(map(msgspec.msgpack.encode, records))
    file.close()
    app = running(kept()).connected()
    assert app.value("celery_exporter_state_file_errors_total", operation="read") == 1
    assert "cannot be used" in app.text()
    assert state.with_name("state.unread-1").exists()
    publish_events(broker.url, *task_events(2))
    until_equal(lambda: app.total("celery_tasks_total", state="SUCCESS"), 1)


@on_redis
@pytest.mark.parametrize(
    ("setting", "task_names"),
    [
        (("--task-name-rule", "made.*=named"), {"named"}),
        (("--task-exclude", "made.*"), set()),
        (("--task-labels", ""), {"made.up"}),
    ],
    ids=lambda value: value[0] if isinstance(value, tuple) else "",
)
def test_settings_of_names_apply_to_what_is_restored_and_a_new_name_is_no_news(
    running, exporter, state, broker, setting, task_names
):
    """What was counted under another name, and shown, is not shown at 0 again: that would be an increase."""
    state.parent.mkdir()
    app = running(exporter("--state-file", str(state))).connected()
    publish_events(broker.url, *task_events(1))
    until_equal(lambda: app.total("celery_tasks_total", state="SUCCESS"), 1)
    for _ in range(2):
        app.samples(SCRAPER)
    app.stop_cleanly()
    app = running(exporter("--state-file", str(state), *setting)).connected()
    samples = app.samples(SCRAPER)
    assert samples.label_values("task_name", "celery_tasks_total") == task_names
    assert samples.total("celery_tasks_total", state="SUCCESS") == len(task_names)


@on_redis
def test_a_file_that_cannot_be_written_is_said_and_shown(running, kept, state):
    """It runs all the same."""
    app = running(kept()).connected()
    shutil.rmtree(state.parent)
    eventually(lambda: app.value("celery_exporter_state_file_errors_total", operation="write"))
    assert app.value("celery_exporter_collector_success", collector="state") == 0
    assert f"cannot write {state}" in app.text()


class Walls:
    """Two Prometheus servers on two hosts, as the exporter sees it."""

    def __init__(self, first: Prometheus, second: Prometheus) -> None:
        self.servers = (first, second)

    def show(self, promql: str) -> None:
        """Wait until both of them have a sample for a query."""
        for server in self.servers:
            eventually(lambda: server.query(promql), 40, what=promql)  # noqa: B023  called here


def count_of(exception: str) -> str:
    return f'celery_task_failures_total{{exception="{exception}"}}'


@on_redis
@pytest.mark.parametrize("keeps", [True, False])
def test_invariant_6_first_failures_are_seen_by_two_prometheus_servers_across_a_restart(
    running, kept, exporter, broker, tmp_path, keeps
):
    """Each sees 0 before it sees 1, so increase() is 1; what was kept is not shown at 0 again."""
    make = kept if keeps else lambda port=0: exporter(port=port)
    app = running(make()).connected()

    def fails(number: int, exception: str) -> None:
        *life, end = task_events(number)
        publish_events(broker.url, *life, {**end, "type": "task-failed", "exception": f"{exception}('x')"})
        walls.show(f"{count_of(exception)} == 1")
        walls.show(f"changes({count_of(exception)}[1m]) == 1")
        walls.show(f"resets({count_of(exception)}[1m]) == 0")

    with Proxy(app.port, source="127.0.0.2") as other_host:
        first = Prometheus(tmp_path / "first", f"127.0.0.1:{app.port}")
        second = Prometheus(tmp_path / "second", f"127.0.0.1:{other_host.port}")
        walls = Walls(*running(first, second))
        walls.show("up == 1")
        fails(1, "FirstError")
        walls.show(f"increase({count_of('FirstError')}[1m]) > 0.9")
        app.stop_cleanly()
        app = running(make(app.port)).connected()
        fails(2, "SecondError")
        walls.show(f"increase({count_of('SecondError')}[1m]) > 0.9")
        if keeps:
            walls.show(f"changes({count_of('FirstError')}[1m]) == 1")
            walls.show(f"{count_of('FirstError')} == 1")


@on_redis
@pytest.mark.long
@pytest.mark.timeout(600)
def test_a_million_unfinished_tasks_outlast_a_restart(running, exporter, state, broker):
    """What was counted since the last saving is in the file when the process has ended."""
    count, step = 1_000_000, 1_000
    state.parent.mkdir()
    make = partial(exporter, "--state-file", str(state), "--max-tasks", str(count))
    app = running(make()).connected()
    head = {"type": "task-sent", "hostname": "client@box", "name": "made.up", "queue": "made"}
    head = {**head, "timestamp": time.time()}
    for first in range(0, count, step):
        publish_events(broker.url, *({**head, "uuid": f"task-{first + each}"} for each in range(step)))
    until_equal(lambda: app.total("celery_tasks_in_flight", state="PENDING"), count, 60)
    end(app)
    app = running(make()).connected(60)
    assert re.search(r"reading \d+ MB from", app.text())
    assert app.total("celery_tasks_in_flight", state="PENDING") == count
    assert app.total("celery_tasks_total", state="PENDING") == count
    end(app)


def end(app: Exporter) -> None:
    """Have it end well, which may take as long as saving does."""
    os.kill(app.pid, signal.SIGTERM)
    assert app.wait(10) == 0
    assert "not saved" not in app.text()


@on_redis
def test_a_prometheus_that_takes_created_timestamps_has_a_0_where_the_state_file_began(
    running, kept, broker, tmp_path
):
    """And none since: not at the start of the process that went on from the file."""
    began = time.time()
    app = running(kept()).connected()
    prometheus = Prometheus3(
        tmp_path / "prometheus", f"127.0.0.1:{app.port}", features="created-timestamp-zero-ingestion"
    )
    series = 'celery_tasks_total{state="SUCCESS",worker="w@box"}'

    def values() -> list[tuple[float, float]]:
        found = prometheus.query(f"{series}[1h]")
        return [(float(at), float(text)) for at, text in found[0]["values"]] if found else []

    try:
        prometheus.start()
        prometheus.wait_ready()
        publish_events(broker.url, *task_events(1))
        until_equal(lambda: values()[-1:] and values()[-1][1], 1.0)
        first_scrape = float(prometheus.query("min_over_time(timestamp(up)[1h:1s])")[0]["value"][1])
        at, number = values()[0]
        assert number == 0
        assert began <= at < first_scrape

        app.stop_cleanly()
        app = running(kept(app.port)).connected()
        publish_events(broker.url, *task_events(2))
        until_equal(lambda: values()[-1][1], 2.0)
        found = [number for _, number in values()]
        assert found == sorted(found)
    finally:
        prometheus.kill()
