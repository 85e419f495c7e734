"""When a lost subscription is opened again, and how its messages become events of the cluster."""

from __future__ import annotations

import json
import threading
import time

import pytest
from harness.configs import monitor_config
from harness.waiting import eventually
from msgspec.structs import replace

from celery_exporter.broker.connection import BrokerError
from celery_exporter.broker.message import Message
from celery_exporter.core.expected import ExpectedTask
from celery_exporter.core.schedules import Every
from celery_exporter.monitor.cluster_state import ClusterState, new_cluster
from celery_exporter.monitor.event_subscription import READY_MAX_SILENCE_SECONDS, EventSubscription

HEARTBEAT = {"type": "worker-heartbeat", "hostname": "w@h", "timestamp": 1.7e9, "freq": 2.0}


class FailingConsumer:
    """A consumer that fails at the second read; the first one returns messages if `has_messages`."""

    mark = None
    is_active: bool | None = None
    takeovers = 0
    duplicates = 0

    def __init__(self, *, has_messages: bool) -> None:
        self.last_alive = 0.0
        self.opened = self._read = 0
        self._has_messages = has_messages

    def open(self) -> None:
        self.opened += 1
        self._read = 0

    def read(self, _timeout: float) -> list[Message]:
        self._read += 1
        if self._read > 1:
            raise BrokerError("connection lost")
        return [
            Message(json.dumps(HEARTBEAT).encode(), "application/json", "utf-8", None)
        ] * self._has_messages

    def close(self) -> None:
        pass

    def is_waiting(self) -> bool:
        return False


def subscription(consumer: FailingConsumer, retry_interval: str = "60") -> EventSubscription:
    config = monitor_config("redis://127.0.0.1:1/0", retry_interval=retry_interval)
    state = ClusterState(new_cluster(config), config)
    return EventSubscription(config.broker, consumer, state, lambda: "redis://", lambda: False)


@pytest.fixture
def opened():
    """Start a subscription in a thread, which waits a minute at most between two attempts."""
    stopping, threads = threading.Event(), []

    def start(consumer: FailingConsumer) -> FailingConsumer:
        threads.append(threading.Thread(target=subscription(consumer).run, args=[stopping]))
        threads[-1].start()
        return consumer

    yield start
    stopping.set()
    for thread in threads:
        thread.join(60)


def test_a_subscription_that_failed_after_events_is_opened_again_at_once(opened):
    """With a wait that doubles each time, this would take five minutes."""
    consumer = opened(FailingConsumer(has_messages=True))
    eventually(lambda: consumer.opened > 12, 60)


def test_a_subscription_that_failed_without_events_waits_longer_each_time(opened):
    """It misses no events meanwhile, and causes less load on a broker that refuses it."""
    quick, slow = opened(FailingConsumer(has_messages=True)), opened(FailingConsumer(has_messages=False))
    eventually(lambda: quick.opened > 60, 60)
    assert slow.opened < 12


class ScriptedConsumer(FailingConsumer):
    """A consumer whose attempts to open have these outcomes: an error, or None. `read` waits for the test."""

    def __init__(self, *outcomes: Exception | None) -> None:
        super().__init__(has_messages=False)
        self._outcomes = iter(outcomes)
        self.failure: Exception | None = None  # of the next read

    def open(self) -> None:
        error = next(self._outcomes, None)
        if error is not None:
            raise error
        self.opened += 1
        self.last_alive = time.monotonic()

    def read(self, _timeout: float) -> list[Message]:
        time.sleep(0.01)
        failure, self.failure = self.failure, None
        if failure is not None:
            raise failure
        return []


@pytest.fixture
def running():
    """Run a subscription in a thread, which tries again at once."""
    stopping, threads = threading.Event(), []

    def run(consumer: FailingConsumer) -> EventSubscription:
        events = subscription(consumer, retry_interval="0.1")
        threads.append(threading.Thread(target=events.run, args=[stopping]))
        threads[-1].start()
        return events

    yield run
    stopping.set()
    for thread in threads:
        thread.join(60)


def test_an_outage_before_the_first_subscription_is_since_the_start(running):
    before = time.time()
    refused = [BrokerError("Connection refused")] * 1_000
    events = running(ScriptedConsumer(*refused))
    outage = eventually(lambda: (view := events.outage()) and view.error and view, 20)
    assert outage.error == "Connection refused"
    assert before <= outage.since <= before + 5


def test_an_outage_has_the_newest_error_and_the_last_sign_of_life(running):
    consumer = ScriptedConsumer(None, *[BrokerError("Connection refused")] * 30)
    events = running(consumer)
    eventually(lambda: events.is_ready() and events.outage() is None, 20)
    alive = time.time()
    consumer.last_alive = time.monotonic()
    consumer.failure = BrokerError("the broker closed the connection")
    first = events.opened_at
    outage = eventually(events.outage, 20)
    assert outage.error in {"the broker closed the connection", "Connection refused"}
    later = eventually(lambda: (view := events.outage()) and "refused" in view.error and view, 20)
    assert outage.since == later.since == pytest.approx(alive, abs=1)
    eventually(lambda: consumer.opened == 2 and events.outage() is None, 60)
    assert first == pytest.approx(alive, abs=20)
    assert events.opened_at > outage.since


def test_a_subscription_without_a_sign_of_life_is_an_outage_since_the_last_one(running):
    consumer = ScriptedConsumer()
    events = running(consumer)
    eventually(events.is_ready, 20)
    consumer.last_alive -= READY_MAX_SILENCE_SECONDS + 8
    outage = events.outage()
    assert outage.error == "no sign of life on the event subscription"
    assert outage.since == pytest.approx(time.time() - READY_MAX_SILENCE_SECONDS - 8, abs=5)


@pytest.mark.parametrize("is_active", [True, False, None])
def test_another_one_can_be_active_after_a_long_silence(is_active):
    """After a short outage it may receive events as before, and its gauges do not come and go."""
    consumer = ScriptedConsumer()
    events, consumer.is_active = subscription(consumer), is_active
    consumer.last_alive = time.monotonic() - READY_MAX_SILENCE_SECONDS / 2
    assert not events.is_open
    assert events.active() is is_active
    consumer.last_alive -= READY_MAX_SILENCE_SECONDS
    assert events.active() is (None if is_active is None else False)


def test_an_unexpected_error_is_shown_without_its_text(running):
    """The text is that of another library, and could hold a password."""
    events = running(ScriptedConsumer(*[ValueError("secret")] * 1_000))
    outage = eventually(lambda: (view := events.outage()) and view.error and view, 20)
    assert outage.error == "ValueError"


@pytest.mark.parametrize("takeovers", [0, 1])
def test_what_is_known_of_workers_is_old_after_a_time_as_a_standby(running, takeovers):
    consumer = ScriptedConsumer()
    events = running(consumer)
    events.apply([Message(json.dumps(HEARTBEAT).encode())])
    worker = events._state.cluster.workers["w@h"]
    consumer.takeovers, listening = takeovers, events._state.listening
    eventually(lambda: events._state.listening > listening + 0.1, 20)
    assert worker.up == (takeovers == 0)
    events.apply([Message(json.dumps(HEARTBEAT).encode())])
    assert worker.up


def test_messages_become_events_and_unreadable_ones_are_counted():
    events = subscription(FailingConsumer(has_messages=True))
    events.apply([Message(json.dumps(HEARTBEAT).encode(), "application/json", "utf-8", None), Message(b"{")])
    assert events._state.cluster.workers["w@h"].up
    assert {reason: count for reason, count in events.malformed.items() if count} == {"undecodable": 1}
    assert (events.last_event or 0) > 0
    assert (events.event_lag or 0) > 0


class OpenConsumer(FailingConsumer):
    """A consumer that answers at each read, without a message."""

    def read(self, _timeout: float) -> list[Message]:
        self.last_alive = time.monotonic()
        return []


@pytest.mark.parametrize(
    ("is_active", "is_blocked", "is_watched"),
    [(None, False, True), (True, False, True), (False, False, False), (None, True, False)],
    ids=["open", "active", "standby", "blocked"],
)
def test_expected_tasks_are_judged_while_events_arrive(is_active, is_blocked, is_watched):
    consumer = OpenConsumer(has_messages=False)
    consumer.is_active = is_active
    config = replace(monitor_config("redis://127.0.0.1:1/0"), expected=(ExpectedTask("add", Every(60.0)),))
    state, stopping = ClusterState(new_cluster(config), config), threading.Event()
    app = EventSubscription(config.broker, consumer, state, lambda: "redis://", lambda: is_blocked)
    thread = threading.Thread(target=app.run, args=(stopping,))
    thread.start()
    try:
        eventually(lambda: app.is_ready() and (state.cluster.expected.watched or not is_watched))
    finally:
        stopping.set()
        thread.join()
    assert (state.cluster.expected.watched is not None) is is_watched
