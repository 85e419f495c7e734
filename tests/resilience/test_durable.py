"""`--event-queue-durable` on RabbitMQ: whatever happens in between, each event counts once."""

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
#: Seconds between two tasks: 200 a second, in 400 messages.
PACE = 0.005
#: What the proxy does to the subscription, and how.
FAULTS = {"cut": (), "half_close": (), "close_client_side": (SUBSCRIPTION,), "stall": (10_000, SUBSCRIPTION)}


class Traffic(threading.Thread):
    """Publishes tasks' events as Celery does: task-sent alone, the rest in one message."""

    def __init__(self, url):
        super().__init__(daemon=True)
        self.url = url
        self.tasks = 0
        self.stopping = threading.Event()

    def run(self):
        self.publish(pace=PACE)

    def publish(self, *, pace=0.0, most=10**9):
        """Publish until that is enough, or it is stopped; `pace` in seconds."""
        with kombu.Connection(self.url) as connection:
            producer = connection.Producer(exchange=get_exchange(connection))
            while most > 0 and not self.stopping.wait(pace):
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
                most -= 1

    def end(self):
        """Stop it; return how many tasks it has published."""
        self.stopping.set()
        if self.is_alive():
            self.join()
        return self.tasks


@pytest.fixture
def traffic(rabbit_broker):
    """`traffic()` starts it."""
    started = []

    def start():
        started.append(Traffic(rabbit_broker.url))
        started[-1].start()
        return started[-1]

    yield start
    for each in started:
        each.end()


@pytest.fixture
def app(rabbit_broker, tmp_path):
    """An exporter that was not started yet, with a durable queue and a state file."""
    state = str(tmp_path / "state")
    return Watched(tmp_path / "exporter", rabbit_broker.url, "--event-queue-durable", "--state-file", state)


def counts(app):
    samples = app.samples()
    return {state: samples.total("celery_tasks_total", state=state) for state in STATES}


def all_of(tasks):
    return dict.fromkeys(STATES, tasks)


def some_are_counted(app, more=100):
    before = counts(app)["SUCCESS"]
    eventually(lambda: counts(app)["SUCCESS"] > before + more, 20)


@pytest.mark.parametrize("seconds", [3, pytest.param(60, marks=pytest.mark.long)], ids=["", "a minute"])
def test_events_wait_while_the_exporter_is_away(running, app, traffic, seconds):
    """Stopped under traffic, and started again: not one is lost, and none counts twice."""
    running(app).connected()
    stream = traffic()
    some_are_counted(app)
    app.stop_cleanly()
    stays(stream.is_alive, seconds)
    running(app).connected()
    some_are_counted(app)
    tasks = stream.end()
    until_equal(lambda: counts(app), all_of(tasks), 30)
    stays(lambda: counts(app) == all_of(tasks), 2)


def test_a_backlog_is_read_by_two(running, app, rabbit_broker):
    """The first is stopped while it reads, with as many messages on their way to it as it may be given."""
    with app:
        app.connected()
        app.stop_cleanly()
    stream = Traffic(rabbit_broker.url)
    stream.publish(most=20_000)
    running(app).connected()
    eventually(lambda: counts(app)["SUCCESS"], 20)
    app.stop_cleanly()
    running(app).connected()
    until_equal(lambda: counts(app), all_of(stream.tasks), 30)
    stays(lambda: counts(app) == all_of(stream.tasks), 2)


def test_events_wait_when_the_exporter_was_killed(running, app, traffic, tmp_path):
    """What came after it is counted, and what was in the state file; nothing counts twice."""
    running(app).connected()
    stream = traffic()
    some_are_counted(app)
    begin = time.time()
    saved = app.samples(SCRAPER).total("celery_tasks_total", state="SUCCESS")  # what a scraper sees is saved
    eventually(lambda: (tmp_path / "state").exists() and (tmp_path / "state").stat().st_mtime > begin, 10)
    some_are_counted(app)
    app.kill()
    before = stream.tasks
    eventually(lambda: stream.tasks > before + 300, 30)
    running(app).connected()
    some_are_counted(app)
    tasks = stream.end()
    eventually(lambda: saved + tasks - before <= counts(app)["SUCCESS"], 30)
    stays(lambda: counts(app)["SUCCESS"] <= tasks, 2)


@pytest.mark.parametrize("broker", ["rabbitmq"], indirect=True)
@pytest.mark.parametrize(
    "fault",
    [
        "cut",
        *(
            pytest.param(each, marks=pytest.mark.long)
            for each in ("half_close", "close_client_side", "stall")
        ),
    ],
)
def test_connections_that_are_lost_cost_no_event(behind, proxy, traffic, fault):
    """Time and again, under traffic: what was counted, and comes again, is known."""
    app = behind("--event-queue-durable")
    stream = traffic()
    for _ in range(3):
        before = app.reconnects()
        some_are_counted(app, more=50)
        getattr(proxy, fault)(*FAULTS[fault])
        eventually(lambda before=before: app.reconnects() > before, 20)
    tasks = stream.end()
    # A connection of whose end RabbitMQ was not told keeps what it was given for three silent heartbeats.
    until_equal(lambda: counts(app), all_of(tasks), 30)
    stays(lambda: counts(app) == all_of(tasks), 2)


@pytest.mark.parametrize("broker", ["rabbitmq"], indirect=True)
def test_it_ends_in_time_though_nobody_takes_its_farewell(behind, proxy, traffic):
    app = behind("--event-queue-durable")
    traffic()
    some_are_counted(app)
    proxy.black_hole()
    app.stop_cleanly()
