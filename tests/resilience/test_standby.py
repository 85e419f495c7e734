"""Two exporters on one durable queue: one is active, and the other one takes over when that is gone."""

from __future__ import annotations

import itertools
import random
import time

import kombu
import pytest
from harness.events import publish_events
from harness.exporter import SCRAPER, run_cli
from harness.proxy import Proxy
from harness.relay import Relay, shard_arguments
from harness.servers import RabbitServer
from harness.waiting import eventually, stays, until_equal

from resilience.availability_contract import Watched
from resilience.test_durable import STATES, Traffic

#: Messages that count twice at most after a kill: what was saved, and not acknowledged yet.
MAX_REPEATED_TASKS = 400


#: Gauges of the cluster, which only the active one shows.
GAUGES = {"celery_worker_up", "celery_queue_length", "celery_tasks_in_flight"}


@pytest.fixture
def start_pair(running, tmp_path):
    """Return a function that starts two exporters with one durable queue and a state file each.

    The URLs are of one broker. `queue` are options. The first exporter becomes active.
    """

    def start(*urls, queue=("--event-queue-durable",)):
        replicas = [
            Watched(
                tmp_path / name,
                urls[1],
                *(*queue, "--state-file", str(tmp_path / f"{name}-state")),
                url=url,
            )
            for name, url in zip(("first", "second"), urls, strict=True)
        ]
        for replica in replicas:
            running(replica).connected()
        until_active(replicas, [True, False])
        return replicas

    return start


@pytest.fixture
def pair(start_pair, rabbit_broker):
    """Return two exporters, of which the first one is active."""
    return start_pair(rabbit_broker.url, rabbit_broker.url)


def is_active(replica):
    return replica.value("celery_exporter_active") == 1


def until_active(replicas, expected):
    """Wait until these replicas are active, and those are not."""
    until_equal(lambda: [is_active(replica) for replica in replicas], expected, 30)


def publish_gauges(url):
    """Publish events that make an exporter show `GAUGES`."""
    now = time.time()
    heartbeat = {"type": "worker-heartbeat", "hostname": "w@box", "timestamp": now, "freq": 2.0, "active": 1}
    received = {"type": "task-received", "hostname": "w@box", "timestamp": now, "uuid": "a", "name": "open"}
    publish_events(url, heartbeat, received)


def gauges(replica):
    """Return the names of `GAUGES` that a replica shows."""
    return GAUGES & {name for name, _ in replica.samples()}


def counted(replica):
    """Return the counted transitions by state, of those that are in the state file."""
    samples = replica.samples(SCRAPER)
    return {state: samples.total("celery_tasks_total", state=state) for state in STATES}


def test_a_standby_shows_no_gauges_of_the_cluster(pair, rabbit_broker):
    active, standby = pair
    publish_gauges(rabbit_broker.url)
    until_equal(lambda: gauges(active), GAUGES, 20)
    samples = standby.samples()
    assert gauges(standby) == set()
    assert samples.value("celery_exporter_active") == 0
    assert samples.value("celery_broker_up") == 1
    assert standby.is_ready()
    assert "this exporter is a standby" in found_by(standby, "--name", "open")
    assert "this exporter is a standby" in found_by(standby, "a")


def found_by(replica, *arguments):
    """Return what `find` prints about a task that a replica does not have."""
    result = run_cli("find", *arguments, "--url", f"http://127.0.0.1:{replica.port}")
    assert result.returncode == 1
    return result.stdout + result.stderr


@pytest.mark.parametrize("fault", ["refuse", "black_hole"])
def test_one_that_lost_its_connection_shows_no_gauges_either(start_pair, rabbit_broker, fault):
    """The other one took over, and shows them: sums over both are those of one exporter."""
    port = rabbit_broker.server.port
    with Proxy(port) as proxy:
        pair = start_pair(rabbit_broker.url.replace(f":{port}", f":{proxy.port}"), rabbit_broker.url)
        publish_gauges(rabbit_broker.url)
        until_equal(lambda: gauges(pair[0]), GAUGES, 20)
        getattr(proxy, fault)()
        until_active(pair, [False, True])
        publish_gauges(rabbit_broker.url)
        until_equal(lambda: [gauges(replica) for replica in pair], [set(), GAUGES], 20)
        assert [replica.value("celery_broker_up") for replica in pair] == [0, 1]
        proxy.forward()
        eventually(pair[0].is_ready, 30)
        until_equal(lambda: [gauges(replica) for replica in pair], [set(), GAUGES], 20)


@pytest.mark.parametrize("is_relayed", [False, True], ids=["durable", "relay"])
def test_in_a_cluster_without_events_the_other_one_takes_over(
    running, start_pair, rabbit_broker, tmp_path, is_relayed
):
    """The first one is back before the second one sees that it was alone."""
    port, queue = rabbit_broker.server.port, ["--event-queue-durable"]
    if is_relayed:
        running(Relay(tmp_path / "relay", rabbit_broker.url, 1))
        queue = shard_arguments(0, 1)
    with Proxy(port) as proxy:
        url = rabbit_broker.url.replace(f":{port}", f":{proxy.port}")
        pair = start_pair(url, rabbit_broker.url, queue=queue)
        name = "celeryev.0-of-1" if is_relayed else "celeryev.celery-exporter"
        assert pair[0].value("celery_exporter_active", event_queue=name) == 1
        proxy.cut()
        until_active(pair, [False, True])
        assert_nothing_is_counted(pair)
    until_equal(lambda: messages(rabbit_broker), 0, 30)  # test messages are acknowledged


def messages(broker):
    """Return the number of messages in all queues, with those that consumers hold."""
    vhost = broker.url.rpartition("/")[2]
    rows = broker.server.control("list_queues", "--vhost", vhost, "messages", "--no-table-headers")
    return sum(map(int, rows.split()))


def test_a_deleted_binding_is_restored_between_test_messages(pair, rabbit_broker):
    """The queue is bound again after some seconds without an event."""
    with kombu.Connection(rabbit_broker.url) as connection:
        connection.default_channel.exchange_delete("celeryev")
    pair[0].counts_events(1)


def test_one_is_active_after_a_restart_of_a_broker_without_events(start_pair, tmp_path):
    with RabbitServer(tmp_path / "rabbitmq") as server:
        pair = start_pair(server.url, server.url)
        server.kill()
        eventually(lambda: not any(replica.is_ready() for replica in pair), 30)
        server.start().wait_ready()
        for replica in pair:
            replica.connected()
        until_equal(lambda: sorted(map(is_active, pair)), [False, True], 30)
        stays(lambda: sorted(map(is_active, pair)) == [False, True], 5)
        assert sorted("celery_queue_length" in gauges(replica) for replica in pair) == [False, True]
        assert_nothing_is_counted(pair)


def assert_nothing_is_counted(pair):
    """Assert that test messages are neither messages nor events for the exporter that receives them."""
    for replica in pair:
        samples = replica.samples()
        for name in ("events_total", "events_malformed_total", "messages_duplicate_total"):
            assert samples.total(f"celery_exporter_{name}") == 0
        assert samples.value("celery_exporter_last_event_timestamp_seconds") is None


@pytest.mark.parametrize("kills", [4, pytest.param(20, marks=pytest.mark.long)], ids=["", "20 kills"])
def test_the_active_one_is_killed(running, pair, rabbit_broker, kills):
    """No event is lost, and no counter of a replica falls."""
    stream = Traffic(rabbit_broker.url)
    stream.start()
    shown = [counted(replica) for replica in pair]
    rng = random.Random(kills)
    for _ in range(kills):
        active = eventually(lambda: next((replica for replica in pair if is_active(replica)), None), 30)
        before = active.successes()
        eventually(lambda active=active, before=before: active.successes() > before + rng.randrange(200), 30)
        shown[pair.index(active)] = counted(active)
        active.kill()
        running(active).connected()
        for replica, earlier in zip(pair, shown, strict=True):
            now = counted(replica)
            assert all(now[state] >= earlier[state] for state in STATES), (earlier, now)
    tasks = stream.end()
    eventually(lambda: all(total >= tasks for total in totals(pair).values()), 30)
    assert max(totals(pair).values()) <= tasks + kills * MAX_REPEATED_TASKS


def totals(pair):
    """Return the sums over both replicas."""
    first, second = map(counted, pair)
    return {state: first[state] + second[state] for state in STATES}


def test_the_active_one_stops(running, pair, rabbit_broker):
    """Nothing counts twice if it ends by a signal."""
    stream = Traffic(rabbit_broker.url)
    stream.start()
    for replica in pair:
        eventually(lambda replica=replica: is_active(replica) and replica.successes() > 50, 30)
        replica.stop_cleanly()
        running(replica).connected()
    tasks = stream.end()
    until_equal(lambda: totals(pair), dict.fromkeys(STATES, tasks), 30)


def test_tasks_that_the_other_one_counted_are_not_missed(running, pair, rabbit_broker):
    """Heartbeats have the number of all tasks, of which each replica receives a part."""
    moments = itertools.count(time.time() - 100, 2)

    def send(kind, **fields):
        event = {"type": kind, "hostname": "w@box", "pid": 7, "freq": 2.0, "timestamp": next(moments)}
        publish_events(rabbit_broker.url, {**event, **fields})

    for tasks, replica in enumerate((*pair, pair[0])):
        eventually(lambda replica=replica: is_active(replica), 20)
        before = heartbeats(replica)
        send("worker-heartbeat", processed=tasks)
        send("task-started", uuid=f"task-{tasks}")
        for _ in range(3):
            send("worker-heartbeat", processed=tasks + 1)
        until_equal(lambda replica=replica: heartbeats(replica), before + 4, 20)
        replica.stop_cleanly()
        (other,) = [one for one in pair if one is not replica]
        eventually(lambda other=other: is_active(other), 20)
        running(replica).connected()
    assert [replica.total("celery_exporter_events_missed_total") for replica in pair] == [0, 0]


def heartbeats(replica):
    return replica.total("celery_exporter_events_total", kind="worker-heartbeat")


@pytest.mark.long
def test_one_that_was_frozen_takes_no_message_that_the_other_one_got(pair, rabbit_broker):
    """RabbitMQ closes a connection without heartbeats, and delivers again what it had sent there."""
    stream = Traffic(rabbit_broker.url)
    stream.start()
    frozen, other = pair
    eventually(lambda: frozen.successes() > 100, 30)
    frozen.pause()
    eventually(lambda: is_active(other) and other.successes() > 500, 60)
    frozen.resume()
    tasks = stream.end()
    eventually(lambda: all(total >= tasks for total in totals(pair).values()), 60)
    assert max(totals(pair).values()) <= tasks + MAX_REPEATED_TASKS / 4
