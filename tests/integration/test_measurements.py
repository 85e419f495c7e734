"""What tasks of real workers measure: exact counts and sums on the page, and values in last records."""

import threading
from collections.abc import Iterable, Sequence
from typing import Any

import pytest
from harness.configs import monitor_config
from harness.events import publish_events
from harness.waiting import eventually, stays, until_equal

from celery_exporter.core.records import MeasuredRecord, Record
from celery_exporter.core.types import State
from celery_exporter.monitor.monitor import Monitor
from celery_exporter.sinks.base import Payload
from celery_exporter.sinks.pusher import Pusher

POOLS = [("prefork", 2), ("threads", 3), ("solo", 1)]
NAME = "tasks.measure"
COUNT, SUM = "celery_task_measurement_count", "celery_task_measurement_sum"


def summary(app, field: str) -> tuple[float | None, float | None]:
    samples = app.samples()
    labels = {"task_name": NAME, "field": field}
    return samples.value(COUNT, **labels), samples.value(SUM, **labels)


@pytest.mark.parametrize(("pool", "concurrency"), POOLS)
def test_count_and_sum_are_exact(running, exporter, worker, client, pool, concurrency):
    app = running(exporter()).connected()
    running(worker(pool=pool, concurrency=concurrency))
    for number in range(40):
        fields = {"orders": number, "share": number / 4, "was_cached": True, "market": "energy", "diff": -1}
        client.send_task(NAME, (fields, {"shard": "7"}), queue="celery")
    until_equal(lambda: summary(app, "orders"), (40, sum(range(40))), 30)
    assert summary(app, "share") == (40, sum(range(40)) / 4)
    count, seconds = summary(app, "block_seconds")
    assert count == 40
    assert 0 < seconds < 4
    fields = app.samples().by(COUNT, "field")
    assert set(fields) == {("orders",), ("share",), ("block_seconds",)}, "numbers that are not negative"
    until_equal(lambda: app.total("celery_tasks_total", state="SUCCESS", task_name=NAME), 40)
    samples = app.samples()
    assert samples.value("celery_exporter_events_total", kind="task-measured") == 40
    assert samples.total("celery_exporter_events_malformed_total") == 0
    assert samples.total("celery_tasks_total", state="PENDING") == 40
    assert samples.value("celery_exporter_tasks_tracked") == 0


@pytest.mark.parametrize(("pool", "concurrency"), POOLS)
def test_nothing_is_sent_while_the_worker_sends_no_task_events(
    running, exporter, worker, client, outcomes, pool, concurrency
):
    """Its processes notice, too, when events are enabled and disabled later, without task-sent events."""
    client.conf.task_send_sent_event = False
    app = running(exporter()).connected()
    running(worker(pool=pool, concurrency=concurrency, events=False))

    def measure(*, total: int) -> None:
        client.send_task(NAME, ({"orders": 5},), queue="celery")
        eventually(lambda: outcomes.total("SUCCESS") == total, 30)

    measure(total=1)
    eventually(lambda: client.control.enable_events(reply=True, timeout=5, limit=1))
    measure(total=2)
    until_equal(lambda: summary(app, "orders"), (1, 5), 30)
    eventually(lambda: client.control.disable_events(reply=True, timeout=5, limit=1))
    measure(total=3)
    stays(lambda: summary(app, "orders") == (1, 5), 2)


class CollectingSink:
    """A sink that keeps the records."""

    name, address = "collecting", "memory"
    max_body_bytes, min_interval = 2**20, 0.0
    states = tuple(State)

    def __init__(self) -> None:
        self.records: list[Any] = []

    def select(self, records: Iterable[Any]) -> list[Any]:
        return [*records]

    def encode(self, records: Sequence[Any]) -> Payload:
        self.records += records
        return Payload(b"")

    def send(self, body: bytes, timeout: float) -> None:
        pass

    def close(self) -> None:
        pass


@pytest.mark.parametrize(("pool", "concurrency"), POOLS)
def test_the_last_record_of_each_task_has_what_the_task_measured(
    running, broker, worker, client, pool, concurrency
):
    """That includes what RabbitMQ delivers after the end of the task, and what both attempts measured.

    The last record of the first task of a name does not wait for that: it is unknown that the task measures.
    """
    sink = CollectingSink()
    pusher = Pusher(sink, limit=100_000, flush_interval=0.1)
    monitor = Monitor(monitor_config(broker.url, event_log="-"), pushers=[pusher])
    stopping = threading.Event()
    pusher.start()
    thread = threading.Thread(target=monitor.subscription.run, args=(stopping,))
    thread.start()
    try:
        eventually(monitor.is_ready)
        running(worker(pool=pool, concurrency=concurrency))
        first = client.send_task(NAME, ({"number": 0}, {}, ""), queue="celery").id
        eventually(lambda: any(isinstance(record, MeasuredRecord) for record in sink.records), 60)
        sent = {}
        for number in range(300):
            outcome = {0: "fail", 1: "retry"}.get(number % 10, "")
            arguments = ({"number": number}, {"shard": str(number)}, outcome)
            sent[client.send_task(NAME, arguments, queue="celery").id] = (number, outcome)

        def last() -> list[Record]:
            records = [record for record in sink.records if isinstance(record, Record)]
            return [record for record in records if record.is_final and record.uuid != first]

        eventually(lambda: len(last()) == len(sent), 60)
    finally:
        stopping.set()
        thread.join()
        pusher.stop()
        pusher.join()
    for record in last():
        number, outcome = sent[record.uuid]
        assert record.state.name == ("FAILURE" if outcome == "fail" else "SUCCESS")
        assert record.measurements.tags == {"shard": str(number)}, record
        assert record.measurements.fields["number"] == number
    measured = [record for record in sink.records if isinstance(record, MeasuredRecord)]
    measured = [record for record in measured if record.uuid != first]
    assert len(measured) == 330, "a retried task measures twice"
    assert {(record.name, record.worker) for record in measured} == {(NAME, "worker@test")}
    assert {record.root for record in measured} == set(sent)


def test_an_invalid_event_is_malformed_and_a_custom_event_with_such_fields_is_not(running, exporter, broker):
    app = running(exporter()).connected()
    event = {"type": "task-measured", "uuid": "u", "hostname": "w@h", "timestamp": 1.7e9, "name": "sum"}
    publish_events(
        broker.url,
        {**event, "fields": {"orders": 2}},
        {**event, "fields": {"orders": [2]}},
        {**event, "tags": ["a"]},
        {**event, "type": "order-shipped", "tags": ["a"], "fields": 5},
        {**event, "type": "task-started", "tags": ["a"], "fields": 5},
    )
    kinds = "celery_exporter_events_total"
    until_equal(lambda: app.value(kinds, kind="other"), 1)
    samples = app.samples()
    assert samples.value(kinds, kind="task-measured") == samples.value(kinds, kind="task-started") == 1
    assert samples.value("celery_exporter_events_malformed_total", reason="bad_field") == 2
    assert samples.by(SUM, "task_name", "field") == {("sum", "orders"): 2}
