"""Where the message of a task is, on real brokers: what a look finds, what bounds it, that it only reads."""

import base64
import json
import threading
import time
import uuid
from collections import Counter
from typing import Any

import kombu
import pytest
from harness.configs import broker_config
from harness.servers import RabbitServer4, ValkeyServer
from harness.waiting import eventually, until_equal
from harness.workers import Worker, client

from celery_exporter.broker.connection import BrokerError, connect, open_
from celery_exporter.broker.message_lookup.base import MAX_MESSAGES, MAX_QUEUES
from celery_exporter.broker.message_lookup.factory import message_lookup_for
from celery_exporter.core.message_location import MessageLocation, QueueLook

#: Seconds for which a message stays where it is, and how often it moves: a look and its confirmation are over
#: before it moves twice, also on a busy machine.
MOVE_SECONDS, MOVES = 0.6, 12


def look(url: str, task: str, *queues: str, **options: Any) -> MessageLocation:
    """Look once, on a connection of its own."""
    connection = connect(broker_config(url, **options))
    with connection:
        open_(connection)
        return message_lookup_for(connection).look_up(task, queues)


def place(location: MessageLocation) -> tuple[str, str | None, int | None]:
    return location.place, location.queue, location.position


def send(url: str, *numbers: int, queue: str = "jobs", **options: Any) -> list[str]:
    """Send one task for each number, whose id ends with it; return the ids."""
    ids = [str(uuid.UUID(int=number)) for number in numbers]
    with client(url) as app:
        for task_id in ids:
            app.send_task("tasks.succeed", task_id=task_id, queue=queue, **options)
    return ids


# -- Redis and Valkey: found -------------------------------------------------------------------------------


def test_a_message_in_a_list_has_a_position_from_the_end_that_is_delivered_next(server):
    first, second, third = send(server.url, 1, 2, 3)
    assert place(look(server.url, first, "other", "jobs")) == ("queue", "jobs", 1)
    assert place(look(server.url, second, "other", "jobs")) == ("queue", "jobs", 2)
    location = look(server.url, third, "other", "jobs")
    assert place(location) == ("queue", "jobs", 3)
    assert location.queues == [QueueLook("other", 0), QueueLook("jobs", 3, examined=3)]
    assert (location.eta, location.expires, location.reason) == (None, None, "")


def test_messages_of_a_higher_priority_are_before_it(server):
    """0 is the highest priority on Redis."""
    (low,) = send(server.url, 1, priority=9)
    send(server.url, 2, 3, priority=0)
    (middle,) = send(server.url, 4, priority=5)
    assert place(look(server.url, low, "jobs")) == ("queue", "jobs", 4)
    assert place(look(server.url, middle, "jobs")) == ("queue", "jobs", 3)


def test_transport_options_name_the_keys(server):
    options = {"priority_steps": [0, 5], "sep": ":", "global_keyprefix": "{shop}"}
    with client(server.url, broker_transport_options=options) as app:
        sent = [app.send_task("x", queue="jobs", priority=priority).id for priority in (0, 5)]
    texts = ("priority_steps=[0, 5]", "sep=:", "global_keyprefix={shop}")
    arguments = {"broker_transport_option": texts}
    assert place(look(server.url, sent[1], "jobs", **arguments)) == ("queue", "jobs", 2)
    assert look(server.url, sent[1], "jobs").place == "absent"


@pytest.mark.parametrize("protocol", [1, 2])
def test_both_protocols_and_times_of_a_message(server, protocol):
    with client(server.url, task_protocol=protocol) as app:
        result = app.send_task("x", queue="jobs", countdown=600, expires=1_200)
    location = look(server.url, result.id, "jobs")
    assert place(location) == ("queue", "jobs", 1)
    assert 590 < location.eta - time.time() < 610
    assert 1_190 < location.expires - time.time() < 1_210


def test_protocol_1_of_another_client_has_the_id_in_the_body_only(server):
    body = base64.b64encode(b'{"id": "\\u0061-1", "task": "x", "args": []}').decode()
    properties = {"correlation_id": "other", "body_encoding": "base64", "delivery_tag": "1"}
    message = {"body": body, "headers": {}, "content-type": "application/json", "properties": properties}
    server.client().lpush("jobs", json.dumps(message))
    assert place(look(server.url, "a-1", "jobs")) == ("queue", "jobs", 1)


def test_a_message_that_a_worker_holds_is_unacknowledged(running, tmp_path, server):
    """It waits there for its eta."""
    before = time.time()
    running(Worker(tmp_path / "worker", server.url, queues="jobs", pool="solo"))
    (task,) = send(server.url, 1, countdown=600)
    location = eventually(lambda: (seen := look(server.url, task, "jobs")).place != "queue" and seen)
    assert location.place == "unacknowledged"
    assert before < location.since < time.time()
    assert 500 < location.eta - time.time() < 610
    assert (location.unacknowledged.length, location.unacknowledged.examined) == (1, 1)


# -- Redis and Valkey: not found -----------------------------------------------------------------------------


def test_absent_means_that_all_messages_were_read(server):
    send(server.url, 1, 2, 3)
    location = look(server.url, "other", "jobs", "nowhere")
    assert location.place == "absent"
    assert location.queues == [QueueLook("jobs", 3, examined=3), QueueLook("nowhere", 0)]
    assert (location.unacknowledged.length, location.unacknowledged.examined) == (0, 0)


def test_a_list_that_is_too_long_is_read_at_both_ends(server):
    """A message in the middle may be there: absent would be false."""
    filler = '{"headers": {"id": "filler"}}'
    for number, count in ((1, MAX_MESSAGES // 2), (2, MAX_MESSAGES // 2), (3, 0)):
        send(server.url, number)
        if count:
            server.client().lpush("jobs", *[filler] * count)
    oldest, middle, newest = (str(uuid.UUID(int=number)) for number in (1, 2, 3))
    assert place(look(server.url, oldest, "jobs")) == ("queue", "jobs", 1)
    assert place(look(server.url, newest, "jobs")) == ("queue", "jobs", MAX_MESSAGES + 3)
    location = look(server.url, middle, "jobs")
    assert location.place == "unknown"
    assert location.reason == "the look ended after 50,000 messages"
    assert location.queues[0].examined == MAX_MESSAGES


def test_a_look_reads_64_mib_at_most(server):
    server.client().lpush("jobs", *["x" * 2**20] * 80)
    location = look(server.url, "other", "jobs")
    assert location.place == "unknown"
    assert location.reason.startswith("the look ended after 64 MiB of messages; the ids of 6")
    assert location.queues[0].examined <= 65


def test_hostile_messages_hide_no_other_one(server):
    """An id that cannot be read may be the one that is looked for."""
    messages = [
        b"",
        b"\xff\x00 no JSON",
        b"null",
        b'{"headers": 1, "properties": []}',
        b"[" * 100_000,
        b'{"headers": {"id": ' + b"[" * 5_000 + b"]" * 5_000 + b"}}",
        json.dumps({"headers": {}, "body": "gASVKAAAAAAA", "content-type": "application/x-python-serialize"}),
        json.dumps({"headers": {}, "body": "no base64", "properties": {"body_encoding": "base64"}}),
    ]
    readable = [json.dumps({"headers": {"id": {"a": 1}, "eta": [], "expires": "no time"}})]
    (oldest,) = send(server.url, 1)
    server.client().lpush("jobs", *messages, *readable)
    server.client().hset("unacked", mapping=dict(enumerate(["", "[]", "{}", "[[]]", "[null]", *messages])))
    (newest,) = send(server.url, 2)
    assert place(look(server.url, oldest, "jobs")) == ("queue", "jobs", 1)
    assert place(look(server.url, newest, "jobs")) == ("queue", "jobs", 11)
    location = look(server.url, "other", "jobs")
    assert location.place == "unknown"
    assert location.reason.startswith("the ids of ")


def test_a_key_that_is_no_list_makes_absent_impossible(server):
    (task,) = send(server.url, 1)
    server.client().set("text", "x")
    assert place(look(server.url, task, "text", "jobs")) == ("queue", "jobs", 1)
    location = look(server.url, "other", "text", "jobs")
    assert (location.place, location.reason) == ("unknown", "a queue cannot be read")
    assert location.queues[0] == QueueLook("text", None)


def test_more_queues_than_the_limit_make_absent_impossible(server):
    location = look(server.url, "other", *map(str, range(MAX_QUEUES + 1)))
    assert (location.place, location.reason) == ("unknown", "only 50 of 51 queues were looked at")


def test_without_permission_for_the_hash_absent_is_impossible(server):
    """Workers that may read the lists only."""
    (task,) = send(server.url, 1)
    command = "ACL SETUSER reader on >pw resetkeys ~jobs* ~_kombu* +@all"
    server.client().execute_command(*command.split())
    url = server.url.replace("//", "//reader:pw@")
    try:
        assert place(look(url, task, "jobs")) == ("queue", "jobs", 1)
        location = look(url, "other", "jobs")
        assert location.place == "unknown"
        assert location.reason == "the unacknowledged messages cannot be read"
    finally:
        server.client().execute_command("ACL", "DELUSER", "reader")


def test_a_message_that_moves_during_the_look_is_not_absent(server):
    """A worker takes it and gives it back, again and again, as kombu does: in transactions."""
    (task,) = send(server.url, 1)
    send(server.url, *range(2, 400))
    redis = server.client()

    def move() -> None:
        for _ in range(MOVES // 2):
            message = redis.lindex("jobs", -1)
            held = json.dumps([json.loads(message), "", "jobs"])
            with redis.pipeline() as pipe:
                pipe.rpop("jobs").hset("unacked", "tag", held).execute()
            time.sleep(MOVE_SECONDS)
            with redis.pipeline() as pipe:
                pipe.hdel("unacked", "tag").rpush("jobs", message).execute()
            time.sleep(MOVE_SECONDS)

    places: Counter[str] = Counter()
    thread = threading.Thread(target=move)
    thread.start()
    while thread.is_alive():
        places[look(server.url, task, "jobs").place] += 1
    thread.join()
    assert places.keys() == {"queue", "unacknowledged"}, places


# -- Redis and Valkey: reading only --------------------------------------------------------------------------


def contents(server: Any) -> dict[bytes, Any]:
    redis = server.client()
    return {key: (redis.dump(key), redis.pttl(key)) for key in redis.scan_iter()}


def test_a_look_sends_reading_commands_only(server):
    send(server.url, *range(300))
    held = json.dumps([{"headers": {"id": "held"}}, "", "jobs"])
    server.client().hset("unacked", "tag", held)
    server.client().zadd("unacked_index", {"tag": 1.0})
    before = contents(server)
    with server.client().monitor() as monitor:
        found = [
            look(server.url, task, "jobs", "none").place for task in (str(uuid.UUID(int=7)), "held", "x")
        ]
        server.client().echo("the end")
        commands = []
        for entry in monitor.listen():
            if entry["command"].startswith("ECHO"):
                break
            commands.append(entry["command"].split()[0])
    assert found == ["queue", "unacknowledged", "absent"]
    assert contents(server) == before
    info = server.client().command()
    flags = {name: set(info[name.lower()]["flags"]) for name in set(commands)}
    reading = {name for name in flags if "readonly" in flags[name]}
    assert reading == {"LLEN", "LRANGE", "HLEN", "HSCAN", "ZSCORE"}
    assert not [name for name in flags if flags[name] & {"write", "pubsub", "admin"}], flags


def test_a_server_that_does_not_answer_ends_the_look(running, tmp_path):
    server = running(ValkeyServer(tmp_path / "valkey"))
    connection = connect(broker_config(server.url))
    open_(connection)
    lookup = message_lookup_for(connection)
    server.kill()
    with pytest.raises(BrokerError):
        lookup.look_up("x", ["jobs"])


# -- RabbitMQ and others -------------------------------------------------------------------------------------


def messages_of(server: Any, url: str) -> list[str]:
    columns = ("name", "messages_ready", "messages_unacknowledged", "consumers")
    return sorted(server.control("list_queues", "-p", url.rpartition("/")[2], *columns).splitlines())


def test_rabbitmq_shows_lengths_and_consumers_only(running, tmp_path, rabbit_broker):
    url = rabbit_broker.url
    running(Worker(tmp_path / "worker", url, queues="consumed", pool="solo"))
    ids = send(url, 1, 2, 3)
    before = messages_of(rabbit_broker.server, url)
    for _ in range(3):
        location = look(url, ids[0], "jobs", "consumed", "missing")
        assert location.place == "unknown"
        assert location.reason.startswith("RabbitMQ does not show which messages are in a queue")
        assert location.queues == [
            QueueLook("jobs", 3, 0),
            QueueLook("consumed", 0, 1),
            QueueLook("missing", None, is_missing=True),
        ]
        assert location.delayed is None
    assert messages_of(rabbit_broker.server, url) == before
    with kombu.Connection(url) as connection:
        assert kombu.Queue("jobs")(connection.default_channel).get().delivery_info["redelivered"] is False


def test_rabbitmq_counts_messages_in_delayed_delivery(running, tmp_path):
    """With quorum queues, a message with an eta waits on the broker."""
    server = running(RabbitServer4(tmp_path / "rabbitmq"))
    configuration = {
        "task_default_queue_type": "quorum",
        "task_default_exchange_type": "topic",
        "worker_detect_quorum_queues": True,
    }
    running(Worker(tmp_path / "worker", server.url, pool="solo", **configuration))
    assert look(server.url, "x", "celery").delayed == 0
    with client(server.url, **configuration) as app:
        task = app.send_task("tasks.succeed", countdown=600).id
    until_equal(lambda: look(server.url, task, "celery").delayed, 1)
    location = look(server.url, task, "celery")
    assert (location.place, location.queues) == ("unknown", [QueueLook("celery", 0, 1)])


def test_other_transports_cannot_read_a_message_without_taking_it():
    location = look("memory://", "x", "jobs")
    assert (location.place, location.queues) == ("unknown", ())
    assert location.reason == "kombu's memory transport cannot read a message without taking it"
