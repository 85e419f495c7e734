"""Unacknowledged messages by queue on real servers: numbers, bounds, hostile content, reading only."""

import json
import uuid
from contextlib import contextmanager

import kombu
import pytest
from harness.broker_marks import on_redis
from harness.configs import broker_config
from harness.waiting import until_equal

from celery_exporter.broker.connection import connect, open_
from celery_exporter.broker.queues.factory import queue_reader_for
from celery_exporter.broker.queues.redis_unacked import MAX_BYTES, MAX_MATCHES, MAX_MESSAGES
from celery_exporter.core.queues import Absence
from celery_exporter.core.routing import MAX_BINDINGS, MAX_WORDS


@contextmanager
def reading(url, **options):
    """Return a function that polls queues with one reader, and returns the numbers of those that exist."""
    with connect(broker_config(url, **options)) as connection:
        open_(connection)
        reader = queue_reader_for(connection)

        def unacked(*queues, consumed=True):
            stats = reader.read(queues, requested=(), consumed=queues if consumed else ())
            return {name: value.unacked for name, value in stats.items() if value is not Absence.MISSING}

        yield unacked


@contextmanager
def holding(url, *queues, per_queue=1, priorities=(None,), routing_key=None, **options):
    """Publish messages and receive them without acknowledging, as a worker does; yield the messages."""
    with kombu.Connection(url, transport_options=options) as connection:
        producer = connection.Producer()
        for queue in queues:
            for priority in priorities * per_queue:
                key = routing_key if routing_key is not None else queue.routing_key or queue.name
                producer.publish(
                    {}, exchange=queue.exchange, routing_key=key, declare=queues, priority=priority
                )
        bound = [queue(connection.default_channel) for queue in queues]
        yield [message for queue in bound for message in iter(queue.get, None)]


def put(server, values):
    """Add these values to the hash, as if workers held them; return their delivery tags."""
    by_tag = {str(uuid.uuid4()): value for value in values}
    server.client().hset("unacked", mapping=by_tag)
    return list(by_tag)


def held(routing_key="jobs", exchange="", message=None):
    return json.dumps([message or {}, exchange, routing_key])


def bind(server, exchange, *members):
    server.client().sadd(f"_kombu.binding.{exchange}", *("\x06\x16".join(member) for member in members))


# -- numbers -------------------------------------------------------------------------------------------------


@on_redis
def test_messages_that_a_worker_holds_count_under_their_queue(running, exporter, worker, client, outcomes):
    """It runs one task, acknowledged late, and has prefetched the others."""
    app = running(exporter()).connected()
    running(worker(queues="mail,jobs", concurrency=1, worker_prefetch_multiplier=10))
    for queue in ("mail", "mail", "jobs", "mail", "jobs"):
        client.send_task("tasks.hold_late", ("gate",), queue=queue)

    def numbers():
        return app.samples().by("celery_queue_unacked_messages", "queue_name")

    until_equal(numbers, {("mail",): 3, ("jobs",): 2})
    assert app.value("celery_broker_unacked_messages") == 5
    outcomes.open_gate("gate")
    until_equal(numbers, {("mail",): 0, ("jobs",): 0})


def test_a_queue_of_which_none_are_held_has_0(server):
    with reading(server.url) as unacked:
        assert unacked("jobs") == {"jobs": 0}
        with holding(server.url, kombu.Queue("jobs"), per_queue=3) as messages:
            assert unacked("jobs", "mail") == {"jobs": 3, "mail": 0}
            messages[0].ack()
            assert unacked("jobs", "mail") == {"jobs": 2, "mail": 0}
            messages[1].reject(requeue=True)
            assert unacked("jobs", "mail") == {"jobs": 1, "mail": 0}


def test_a_queue_exists_while_a_worker_holds_its_messages(server):
    """Redis has no list of it then, and kombu returns the messages to it."""
    with reading(server.url) as unacked:
        put(server, [held()])
        assert unacked("jobs", "mail", consumed=False) == {"jobs": 1}


def test_messages_of_all_priorities_are_of_one_queue(server):
    with reading(server.url) as unacked, holding(server.url, kombu.Queue("jobs"), priorities=(0, 3, 9)):
        assert unacked("jobs") == {"jobs": 3}


def test_transport_options_name_the_keys(server):
    queue = kombu.Queue("jobs", kombu.Exchange("work"), "key")
    options = {"global_keyprefix": "{shop}", "sep": ":", "unacked_key": "taken"}
    texts = tuple(f"{name}={value}" for name, value in options.items())
    with holding(server.url, queue, per_queue=2, **options):
        with reading(server.url, broker_transport_option=texts) as unacked:
            assert unacked("jobs") == {"jobs": 2}
        with reading(server.url) as unacked:
            assert unacked("jobs") == {"jobs": 0}


# -- exchanges -----------------------------------------------------------------------------------------------

TOPIC = kombu.Exchange("logs", "topic")


@pytest.mark.parametrize(
    ("exchange", "bindings", "routing_key", "numbers"),
    [
        (kombu.Exchange("work"), ("first", "second"), "second", {"a": 0, "b": 1}),
        (TOPIC, ("*.error", "web.#"), "db.error", {"a": 1, "b": 0}),
        (TOPIC, ("*.error", "web.#"), "web.front.info", {"a": 0, "b": 1}),
        (TOPIC, ("a.b", "a.c"), "a.c", {"a": 0, "b": 1}),
    ],
)
def test_bindings_say_which_queue_a_message_is_of(server, exchange, bindings, routing_key, numbers):
    queues = [
        kombu.Queue(name, exchange, binding) for name, binding in zip(("a", "b"), bindings, strict=True)
    ]
    with kombu.Connection(server.url) as connection:
        connection.Producer().publish({}, exchange=exchange, routing_key=routing_key, declare=queues)
        messages = [queue(connection.default_channel).get() for queue in queues]
        assert [int(message is not None) for message in messages] == list(numbers.values())
        with reading(server.url) as unacked:
            assert unacked(*numbers) == numbers


def test_queues_are_unknown_if_a_message_may_be_of_any_of_them(server):
    """Two topics match, the routing key is too long to be matched, or no direct binding matches: the
    exchange may be a fanout exchange.
    """
    bind(
        server, "logs", ("a.*", "^a.[^.]+$", "one"), ("*.b", "^[^.]+.b$", "two"), ("c.#", "^c..*?$", "three")
    )
    bind(server, "alerts", ("", "", "bcast.1"), ("", "", "bcast.2"))
    with reading(server.url) as unacked:
        put(server, [held("a.b", "logs"), held("c.d", "logs"), held("jobs")])
        assert unacked("one", "two", "three", "jobs") == {"one": None, "two": None, "three": 1, "jobs": 1}
        put(server, [held("c" + ".d" * MAX_WORDS, "logs")])
        assert unacked("one", "three", "jobs") == {"one": None, "three": None, "jobs": 1}
        put(server, [held("x", "alerts")])
        assert unacked("bcast.1", "bcast.2", "jobs") == {"bcast.1": None, "bcast.2": None, "jobs": 1}


def test_a_message_without_any_binding_counts_under_no_queue(server):
    """Its queue is deleted. kombu cannot return it."""
    with reading(server.url) as unacked:
        put(server, [held("jobs", "gone"), held("jobs")])
        assert unacked("jobs") == {"jobs": 1}


def test_too_many_bindings_or_topics_make_the_numbers_unknown(server):
    bind(server, "many", *(("x", "", f"q{number}") for number in range(MAX_BINDINGS + 1)))
    topics = 100
    bind(server, "topics", *((f"{number}.#", "^x$", f"q{number}") for number in range(topics)))
    with reading(server.url) as unacked:
        tags = put(server, [held("x", "many")])
        assert unacked("jobs") == {"jobs": None}
        server.client().hdel("unacked", *tags)
        tags = put(server, [held(f"1.{number}", "topics") for number in range(MAX_MATCHES // topics + 1)])
        assert unacked("q1") == {"q1": None}
        server.client().hdel("unacked", tags[0])
        assert unacked("q1") == {"q1": MAX_MATCHES // topics}


# -- bounds --------------------------------------------------------------------------------------------------


def test_more_messages_than_the_limit_make_the_numbers_unknown(server):
    with reading(server.url) as unacked:
        tags = put(server, [held()] * (MAX_MESSAGES + 1))
        assert unacked("jobs") == {"jobs": None}
        server.client().hdel("unacked", tags[0])
        assert unacked("jobs") == {"jobs": MAX_MESSAGES}


def values_read(server):
    """Return the bytes that Redis has sent."""
    return server.client().info("stats")["total_net_output_bytes"]


def test_values_are_read_once_and_a_part_in_each_poll(server):
    """Beyond the bound the number is unknown, until later polls have read the rest."""
    large = MAX_BYTES // 8
    with reading(server.url) as unacked:
        put(server, [held(message={"body": "x" * large})] * 10)
        before = values_read(server)
        assert unacked("jobs") == {"jobs": None}
        first = values_read(server)
        assert 6 * large < first - before < MAX_BYTES + large
        assert unacked("jobs") == {"jobs": 10}
        second = values_read(server)
        assert unacked("jobs") == {"jobs": 10}
        assert values_read(server) - second < large


def test_a_value_beyond_the_limit_is_never_read(server):
    with reading(server.url) as unacked:
        put(server, [held(message={"body": "x" * MAX_BYTES})])
        before = values_read(server)
        assert unacked("jobs") == unacked("jobs") == {"jobs": None}
        assert values_read(server) - before < MAX_BYTES // 8
        server.client().delete("unacked")
        assert unacked("jobs") == {"jobs": 0}


# -- hostile content and permissions -------------------------------------------------------------------------


def test_hostile_values_count_under_no_queue(server):
    values = [
        b"",
        b"\xff\x00 no JSON",
        b"null",
        b"[]",
        b'[{}, "", "jobs"',
        b'[{}, "", "jobs", 1]',
        b'[{}, 1, {"a": []}]',
        b'[{}, "", "\xff"]',
        b"[" * 100_000,
        b"[" + b"[" * 5_000 + b"]" * 5_000 + b', "", "jobs"]',
        held("x" * 300),
        held("x" * 10, "y" * 300),
        json.dumps([{}, None, None]),
        held("*" * 100, "exchange"),
        held(".".join("x" * 100), "exchange"),
        b"\x80\x04\x95\x10\x00\x00\x00\x00\x00\x00\x00\x8c\x05posix\x94\x8c\x06system\x94\x93\x94.",
        held("jobs"),
    ]
    server.client().sadd("_kombu.binding.exchange", b"", b"\xff\x06\x16\x06\x16", b"\x06\x16" * 3)
    long = "x" * 300
    with reading(server.url) as unacked:
        put(server, values)
        assert unacked("jobs", long) == {"jobs": 1, long: None}


def test_a_hash_of_another_type_is_unknown_and_lengths_are_known(server):
    server.client().set("unacked", "x")
    with reading(server.url) as unacked:
        assert unacked("jobs") == {"jobs": None}


@pytest.mark.parametrize("keys", ["~jobs*", "~jobs* ~unacked*"])
def test_without_permission_the_numbers_are_unknown(server, keys):
    """For the hash, or for the bindings that are needed."""
    put(server, [held("key", "work")])
    bind(server, "work", ("key", "", "jobs"))
    rules = f"on >pw resetkeys ~_kombu.binding.jobs {keys} &* +@all"
    server.client().execute_command("ACL", "SETUSER", "reader", *rules.split())
    try:
        with reading(server.url.replace("//", "//reader:pw@")) as unacked:
            assert unacked("jobs") == {"jobs": None}
            server.client().execute_command("ACL", "SETUSER", "reader", "~*")
            assert unacked("jobs") == {"jobs": 1}
    finally:
        server.client().execute_command("ACL", "DELUSER", "reader")


def test_a_poll_sends_reading_commands_only(server):
    put(server, [held("key", "work"), held("jobs")])
    bind(server, "work", ("key", "", "jobs"))
    with reading(server.url) as unacked, server.client().monitor() as monitor:
        assert unacked("jobs") == {"jobs": 2}
        server.client().echo("the end")
        commands = []
        for entry in monitor.listen():
            if entry["command"].startswith("ECHO"):
                break
            commands.append(entry["command"].split()[0])
    info = server.client().command()
    flags = {name: set(info[name.lower()]["flags"]) for name in set(commands)}
    assert not [name for name in flags if flags[name] & {"write", "pubsub", "admin"}], flags
    assert flags.keys() >= {"HLEN", "HKEYS", "HSTRLEN", "HMGET", "SCARD", "SMEMBERS"}
    assert commands.count("HKEYS") == 1
