"""With `--event-queue-durable` on RabbitMQ, each event is counted exactly once under all faults."""

from __future__ import annotations

import json
import threading
import time

import kombu
import pytest
from celery.events.event import get_exchange
from harness.events import task_events
from harness.exporter import SCRAPER
from harness.proxy import SUBSCRIPTION
from harness.waiting import eventually, stays, until_equal

from resilience.availability_contract import Watched, numbers

STATES = ("PENDING", "RECEIVED", "STARTED", "SUCCESS")
#: Seconds between two tasks: 200 tasks a second, in 400 messages.
TASK_INTERVAL_SECONDS = 0.005
#: Methods of the proxy, and their arguments.
FAULTS = {"cut": (), "half_close": (), "strand": (SUBSCRIPTION,), "stall": (10_000, SUBSCRIPTION)}


class Traffic(threading.Thread):
    """Publishes events of tasks like Celery: task-sent in a message, and the others in a second one."""

    def __init__(self, url):
        super().__init__(daemon=True)
        self.url = url
        self.tasks = 0
        self.stopping = threading.Event()

    def run(self):
        self.publish(interval=TASK_INTERVAL_SECONDS)

    def publish(self, *, interval=0.0, count=10**9):
        """Publish `count` tasks, or until `end` is called; `interval` is in seconds."""
        with kombu.Connection(self.url) as connection:
            producer = connection.Producer(exchange=get_exchange(connection))
            while count > 0 and not self.stopping.wait(interval):
                sent, *others = task_events(next(numbers))
                for events in ([sent], others):
                    producer.publish(
                        json.dumps(events),
                        routing_key="task.multi",
                        content_type="application/json",
                        content_encoding="utf-8",
                        delivery_mode="transient",
                    )
                self.tasks += 1
                count -= 1

    def end(self):
        """Stop publishing, and return the number of published tasks."""
        self.stopping.set()
        if self.is_alive():
            self.join()
        return self.tasks


@pytest.fixture
def traffic(rabbit_broker):
    """Yield a function that starts traffic."""
    streams = []

    def start():
        streams.append(Traffic(rabbit_broker.url))
        streams[-1].start()
        return streams[-1]

    yield start
    for stream in streams:
        stream.end()


@pytest.fixture
def app(rabbit_broker, tmp_path):
    """Return an exporter with a durable queue and a state file, which has not started."""
    state = str(tmp_path / "state")
    return Watched(tmp_path / "exporter", rabbit_broker.url, "--event-queue-durable", "--state-file", state)


def counts(app):
    """Return the counted transitions by state."""
    samples = app.samples()
    return {state: samples.total("celery_tasks_total", state=state) for state in STATES}


def all_of(tasks):
    """Return the expected counts of tasks that all succeeded."""
    return dict.fromkeys(STATES, tasks)


def await_counts(app, count=100):
    """Wait until more than this number of further tasks is counted."""
    before = counts(app)["SUCCESS"]
    eventually(lambda: counts(app)["SUCCESS"] > before + count, 20)


@pytest.mark.parametrize("seconds", [3, pytest.param(60, marks=pytest.mark.long)], ids=["", "a minute"])
def test_events_wait_while_the_exporter_is_stopped(running, app, traffic, seconds):
    """After a stop and a start under traffic, no event is lost, and none is counted twice."""
    running(app).connected()
    stream = traffic()
    await_counts(app)
    app.stop_cleanly()
    stays(stream.is_alive, seconds)
    running(app).connected()
    await_counts(app)
    tasks = stream.end()
    until_equal(lambda: counts(app), all_of(tasks), 30)
    stays(lambda: counts(app) == all_of(tasks), 2)


def test_a_backlog_is_read_by_two_processes(running, app, rabbit_broker):
    """The first process is stopped while it reads, with the maximum of unacknowledged messages."""
    with app:
        app.connected()
        app.stop_cleanly()
    stream = Traffic(rabbit_broker.url)
    stream.publish(count=20_000)
    running(app).connected()
    eventually(lambda: counts(app)["SUCCESS"], 20)
    app.stop_cleanly()
    running(app).connected()
    until_equal(lambda: counts(app), all_of(stream.tasks), 30)
    stays(lambda: counts(app) == all_of(stream.tasks), 2)


def test_events_wait_after_the_exporter_is_killed(running, app, traffic, tmp_path):
    """Later events and those in the state file are counted, and none is counted twice."""
    running(app).connected()
    stream = traffic()
    await_counts(app)
    begin = time.time()
    saved = app.samples(SCRAPER).total("celery_tasks_total", state="SUCCESS")  # exposed values are saved
    eventually(lambda: (tmp_path / "state").exists() and (tmp_path / "state").stat().st_mtime > begin, 10)
    await_counts(app)
    app.kill()
    before = stream.tasks
    eventually(lambda: stream.tasks > before + 300, 30)
    running(app).connected()
    await_counts(app)
    tasks = stream.end()
    eventually(lambda: saved + tasks - before <= counts(app)["SUCCESS"], 30)
    stays(lambda: counts(app)["SUCCESS"] <= tasks, 2)


@pytest.mark.parametrize("broker", ["rabbitmq"], indirect=True)
@pytest.mark.parametrize(
    "fault",
    ["cut", *(pytest.param(name, marks=pytest.mark.long) for name in ("half_close", "strand", "stall"))],
)
def test_lost_connections_lose_no_event(behind, proxy, traffic, fault):
    """Under traffic, events that are counted and redelivered are not counted again."""
    app = behind("--event-queue-durable")
    stream = traffic()
    for _ in range(3):
        before = app.reconnects()
        await_counts(app, count=50)
        getattr(proxy, fault)(*FAULTS[fault])
        eventually(lambda before=before: app.reconnects() > before, 20)
    tasks = stream.end()
    # RabbitMQ keeps the messages of a half-open connection unacknowledged for three missed heartbeats.
    until_equal(lambda: counts(app), all_of(tasks), 30)
    stays(lambda: counts(app) == all_of(tasks), 2)


@pytest.mark.parametrize("broker", ["rabbitmq"], indirect=True)
def test_it_stops_in_time_without_a_response_to_close(behind, proxy, traffic):
    app = behind("--event-queue-durable")
    traffic()
    await_counts(app)
    proxy.black_hole()
    app.stop_cleanly()
