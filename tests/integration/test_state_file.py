"""A restart with --state-file: counters continue, tasks keep their labels, and there is no counter reset."""

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

COUNTER_SUFFIXES = ("_total", "_count", "_bucket", "_sum")
EXPORTER_PREFIXES = (
    "process_",
    "celery_exporter_collector",
    "celery_exporter_reconnects",
    "celery_exporter_state",
)


def counters(samples):
    """Return the counters of tasks and workers."""
    return {
        series: value
        for series, value in samples.items()
        if series[0].endswith(COUNTER_SUFFIXES) and not series[0].startswith(EXPORTER_PREFIXES)
    }


@pytest.fixture
def state(tmp_path: Path) -> Path:
    return tmp_path / "saved" / "state"


@pytest.fixture
def with_state_file(exporter, state):
    """`with_state_file(port)` returns an exporter with the same state file each time."""
    state.parent.mkdir()

    def make(port: int = 0) -> Exporter:
        return exporter("--state-file", str(state), "--task-labels", "queue_name,worker", port=port)

    return make


def test_counters_and_unfinished_tasks_continue_after_a_restart(running, with_state_file, broker):
    """The unfinished task keeps its labels, and its queue wait is measured."""
    app = running(with_state_file()).connected()
    publish_events(broker.url, *task_events(1))
    publish_events(broker.url, *task_events(2)[:2])
    until_equal(lambda: app.total("celery_tasks_total", state="RECEIVED"), 2)
    before = counters(app.samples())
    app.stop_cleanly()

    app = running(with_state_file()).connected()
    assert counters(app.samples()) == before
    assert app.value("celery_tasks_in_flight", state="RECEIVED", task_name="made.up", queue_name="made") == 1
    publish_events(broker.url, *task_events(2)[2:])
    until_equal(lambda: app.total("celery_tasks_total", state="SUCCESS"), 2)
    assert app.samples().label_values("task_name", "celery_tasks_total") == {"made.up"}
    assert app.total("celery_task_queue_wait_seconds_count") == 2
    assert app.total("celery_exporter_label_fallbacks_total") == 0
    assert app.total("celery_exporter_state_file_errors_total") == 0
    assert app.value("celery_exporter_collector_success", collector="state") == 1


def last_saved(app: Exporter) -> float:
    return app.value("celery_exporter_collector_last_success_timestamp_seconds", collector="state") or 0


@on_redis
def test_no_exposed_counter_decreases_after_a_kill(running, with_state_file, broker):
    """A scrape shows only counts that are in the file."""
    app = running(with_state_file()).connected()
    publish_events(broker.url, *task_events(1))
    until_equal(lambda: app.total("celery_tasks_total", state="SUCCESS"), 1)
    exposed = counters(app.samples(SCRAPER))
    before = last_saved(app)
    eventually(lambda: last_saved(app) > before)
    os.kill(app.pid, signal.SIGKILL)
    app.wait()

    app = running(with_state_file()).connected()
    after = app.samples()
    assert [series for series, before in exposed.items() if after.get(series, 0) < before] == []
    assert app.total("celery_tasks_total", state="SUCCESS") == 1


@on_redis
def test_a_state_file_of_another_version_is_reported_and_moved_aside(running, with_state_file, state):
    """The exporter starts without state."""
    content = b"celery-exporter state 1 00\nof another version"
    app = with_state_file()
    state.write_bytes(content)
    running(app).connected()
    assert app.value("celery_exporter_state_file_errors_total", operation="read") == 1
    assert [line for line in app.text().splitlines() if "level=error" in line and str(state) in line]
    app.stop_cleanly()
    assert state.with_name("state.unread-1").read_bytes() == content
    assert state.read_bytes().startswith(b"celery-exporter state")


def write_other_file(state: Path) -> None:
    state.write_bytes(b"text\n")


@pytest.mark.parametrize(
    ("prepare", "error"),
    [
        (write_other_file, "is not a state file of celery-exporter, and stays unchanged"),
        (Path.mkdir, "is not a regular file"),
        (lambda state: state.parent.rmdir(), "does not exist"),
    ],
)
def test_an_unusable_state_file_path_is_an_invalid_value(state, prepare, error):
    state.parent.mkdir()
    prepare(state)
    command = run_cli("--broker-url", "redis://127.0.0.1:1/0", "--state-file", str(state), "--port", "0")
    assert command.returncode == 2
    assert error in command.stderr
    assert str(state.parent) in command.stderr
    assert not state.is_file() or state.read_bytes() == b"text\n"


@on_redis
def test_a_state_file_that_is_removed_while_in_use_is_rewritten(running, with_state_file, state, broker):
    app = running(with_state_file()).connected()
    publish_events(broker.url, *task_events(1))
    until_equal(lambda: app.total("celery_tasks_total", state="SUCCESS"), 1)
    state.unlink()
    eventually(lambda: state.exists() and state.stat().st_size)
    eventually(lambda: "it was removed or moved, and was rewritten" in app.text())
    app.stop_cleanly()
    app = running(with_state_file()).connected()
    assert app.total("celery_tasks_total", state="SUCCESS") == 1


@on_redis
@pytest.mark.parametrize("part", ["transitions", "queue_wait"])
def test_an_inconsistent_state_file_is_reported_and_moved_aside(
    running, with_state_file, state, broker, part
):
    """It decodes, but its counts do not match each other."""
    app = running(with_state_file()).connected()
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
    app = running(with_state_file()).connected()
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
def test_naming_options_apply_to_restored_series_without_a_zero_first(
    running, exporter, state, broker, setting, task_names
):
    """A restored count was exposed under another name. A 0 first would count it as an increase again."""
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
def test_a_write_error_of_the_state_file_is_logged_and_counted(running, with_state_file, state):
    """The exporter keeps running."""
    app = running(with_state_file()).connected()
    shutil.rmtree(state.parent)
    eventually(lambda: app.value("celery_exporter_state_file_errors_total", operation="write"))
    assert app.value("celery_exporter_collector_success", collector="state") == 0
    assert f"cannot write {state}" in app.text()


class PrometheusPair:
    """Two Prometheus servers with different client addresses."""

    def __init__(self, first: Prometheus, second: Prometheus) -> None:
        self.servers = (first, second)

    def wait_for(self, promql: str) -> None:
        """Wait until a query has samples on both."""
        for server in self.servers:
            eventually(lambda: server.query(promql), 40, what=promql)  # noqa: B023  called here


def count_of(exception: str) -> str:
    return f'celery_task_failures_total{{exception="{exception}"}}'


@on_redis
@pytest.mark.parametrize("has_state_file", [True, False])
def test_invariant_6_two_prometheus_servers_count_first_failures_across_a_restart(
    running, with_state_file, exporter, broker, tmp_path, has_state_file
):
    """Each receives 0 before 1, so increase() is 1. A restored count is not exposed at 0 again."""
    make = with_state_file if has_state_file else lambda port=0: exporter(port=port)
    app = running(make()).connected()

    def fail(number: int, exception: str) -> None:
        *events, end = task_events(number)
        publish_events(broker.url, *events, {**end, "type": "task-failed", "exception": f"{exception}('x')"})
        servers.wait_for(f"{count_of(exception)} == 1")
        servers.wait_for(f"changes({count_of(exception)}[1m]) == 1")
        servers.wait_for(f"resets({count_of(exception)}[1m]) == 0")

    with Proxy(app.port, source="127.0.0.2") as other_host:
        first = Prometheus(tmp_path / "first", f"127.0.0.1:{app.port}")
        second = Prometheus(tmp_path / "second", f"127.0.0.1:{other_host.port}")
        servers = PrometheusPair(*running(first, second))
        servers.wait_for("up == 1")
        fail(1, "FirstError")
        servers.wait_for(f"increase({count_of('FirstError')}[1m]) > 0.9")
        app.stop_cleanly()
        app = running(make(app.port)).connected()
        fail(2, "SecondError")
        servers.wait_for(f"increase({count_of('SecondError')}[1m]) > 0.9")
        if has_state_file:
            servers.wait_for(f"changes({count_of('FirstError')}[1m]) == 1")
            servers.wait_for(f"{count_of('FirstError')} == 1")


@on_redis
@pytest.mark.long
@pytest.mark.timeout(600)
def test_a_million_unfinished_tasks_are_restored(running, exporter, state, broker):
    """The last write happens at the end of the process."""
    count, step = 1_000_000, 1_000
    state.parent.mkdir()
    make = partial(exporter, "--state-file", str(state), "--max-tasks", str(count))
    app = running(make()).connected()
    head = {"type": "task-sent", "hostname": "client@box", "name": "made.up", "queue": "made"}
    head = {**head, "timestamp": time.time()}
    for first in range(0, count, step):
        publish_events(broker.url, *({**head, "uuid": f"task-{first + number}"} for number in range(step)))
    until_equal(lambda: app.total("celery_tasks_in_flight", state="PENDING"), count, 60)
    end(app)
    app = running(make()).connected(60)
    assert re.search(r"reading \d+ MB from", app.text())
    assert app.total("celery_tasks_in_flight", state="PENDING") == count
    assert app.total("celery_tasks_total", state="PENDING") == count
    end(app)


def end(app: Exporter) -> None:
    """Stop it, and wait for the last write."""
    os.kill(app.pid, signal.SIGTERM)
    assert app.wait(10) == 0
    assert "not saved" not in app.text()


@on_redis
def test_created_timestamps_are_those_of_the_start_of_the_state_file(
    running, with_state_file, broker, tmp_path
):
    """Prometheus adds a 0 at that time only, and none at a restart with the file."""
    start = time.time()
    app = running(with_state_file()).connected()
    prometheus = Prometheus3(
        tmp_path / "prometheus", f"127.0.0.1:{app.port}", features="created-timestamp-zero-ingestion"
    )
    series = 'celery_tasks_total{state="SUCCESS",worker="w@box"}'

    def values() -> list[tuple[float, float]]:
        result = prometheus.query(f"{series}[1h]")
        return [(float(at), float(text)) for at, text in result[0]["values"]] if result else []

    try:
        prometheus.start()
        prometheus.wait_ready()
        publish_events(broker.url, *task_events(1))
        until_equal(lambda: values()[-1:] and values()[-1][1], 1.0)
        first_scrape = float(prometheus.query("min_over_time(timestamp(up)[1h:1s])")[0]["value"][1])
        at, number = values()[0]
        assert number == 0
        assert start <= at < first_scrape

        app.stop_cleanly()
        app = running(with_state_file(app.port)).connected()
        publish_events(broker.url, *task_events(2))
        until_equal(lambda: values()[-1][1], 2.0)
        counts = [number for _, number in values()]
        assert counts == sorted(counts)
    finally:
        prometheus.kill()


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        (
            ("--shard", "0/2"),
            ("--shard", "1/2"),
            "it is of shard 0/2, and not of 1/2; give each shard a file",
        ),
        (("--shard", "0/2"), (), "it is of shard 0/2, and not of none"),
        ((), ("--shard", "0/2"), "it is of shard none, and not of 0/2"),
    ],
    ids=["another shard", "no shard", "a shard"],
)
def test_a_state_file_of_another_shard_is_refused(running, redis_broker, tmp_path, before, after, message):
    """Its counts are those of other tasks."""
    path = tmp_path / "state"
    app = running(Exporter(tmp_path / "exporter", redis_broker.url, "--state-file", str(path), *before))
    app.connected().stop_cleanly()
    content = path.read_bytes()
    refused = run_cli("--broker-url", redis_broker.url, "--state-file", str(path), "--port", "0", *after)
    assert (refused.returncode, message in refused.stderr) == (2, True), refused.stderr
    assert path.read_bytes() == content
