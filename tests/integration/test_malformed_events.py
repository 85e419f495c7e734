"""Any bytes may arrive on the event channel: each bad one is counted, its neighbours are used."""

import base64
import json
import pickle
import time
import zlib
from pathlib import Path

import kombu
import msgspec
import psutil
import pytest
import yaml
from celery.events.event import get_exchange
from harness.broker_marks import on_redis
from harness.events import publish_event_bytes, publish_events, task_events
from harness.exporter import Exporter
from harness.waiting import ANSWER_TIMEOUT, until_equal
from kombu import compression as compression_module

from celery_exporter.broker.codecs import MAX_BODY

NOW = time.time()
HEAD = {"timestamp": NOW, "hostname": "w@box", "uuid": "odd", "pid": 1, "clock": 1, "utcoffset": 0}
BODIES = {
    "not JSON": b"{",
    "empty": b"",
    "not UTF-8": b"\xff\xfe\x00\x80",
    "a number": b"42",
    "null": b"null",
    "no type": json.dumps(HEAD).encode(),
    "type null": json.dumps({**HEAD, "type": None}).encode(),
    "no uuid": json.dumps({**HEAD, "type": "task-succeeded", "uuid": None}).encode(),
    "no hostname": json.dumps({**HEAD, "type": "task-started", "hostname": None}).encode(),
    "no timestamp": json.dumps({**HEAD, "type": "worker-heartbeat", "timestamp": None}).encode(),
    "timestamp text": json.dumps({**HEAD, "type": "task-started", "timestamp": "now"}).encode(),
    "timestamp NaN": json.dumps({**HEAD, "type": "task-started", "timestamp": float("nan")}).encode(),
    "timestamp 1e308": json.dumps({**HEAD, "type": "task-started", "timestamp": 1e308}).encode(),
    "name of 10 kB": json.dumps({**HEAD, "type": "task-sent", "name": "n" * 10_000}).encode(),
    "lone surrogate": json.dumps({**HEAD, "type": "task-started", "uuid": "\ud800"}).encode(),
    "number of 10,000 digits": b'{"type": "task-started", "pid": ' + b"9" * 10_000 + b"}",
    "deep": b"[" * 100_000 + b"]" * 100_000,
    "deep inside": b'{"type": "task-started", "x": ' + b"[" * 10_000 + b"]" * 10_000 + b"}",
    "10 MB of text": b'"' + b"x" * 10_000_000 + b'"',
}


def successes(app):
    return app.total("celery_tasks_total", state="SUCCESS")


def malformed(app):
    return app.total("celery_exporter_events_malformed_total")


class Bomb:
    """A pickle that leaves a mark in the file system when somebody loads it."""

    def __init__(self, mark):
        self.mark = str(mark)

    def __reduce__(self):
        return (open, (self.mark, "w"))


def test_each_malformed_body_is_counted_and_the_next_event_is_used(running, exporter, broker):
    """One count for each, under a reason; the process lives, keeps its connection and counts on."""
    app = running(exporter()).connected()
    for number, (what, body) in enumerate(BODIES.items(), 1):
        publish_event_bytes(broker.url, body)
        until_equal(lambda what=what: (what, malformed(app)), (what, number))
        publish_events(broker.url, *task_events(number))
        until_equal(lambda what=what: (what, successes(app)), (what, number))
    samples = app.samples()
    reasons = samples.by("celery_exporter_events_malformed_total", "reason")
    assert all(reason for (reason,), count in reasons.items() if count)
    assert len([count for count in reasons.values() if count]) > 1
    assert samples.total("celery_exporter_reconnects_total") == 0


def test_the_rest_of_a_batch_is_used(running, exporter, broker):
    """Bad items between good ones: each is counted, and the good ones make a task's whole life."""
    app = running(exporter()).connected()
    sent, received, started, succeeded = (json.dumps(event).encode() for event in task_events(1))
    bad = [
        b"42",
        json.dumps({**HEAD, "type": "task-failed", "uuid": None}).encode(),
        b"[" + succeeded + b"]",
        b"[" * 10_000 + b"]" * 10_000,
        b'{"type": task-failed}',
        b'{"type": "task-failed", "uuid": "\xff"}',
    ]
    publish_event_bytes(broker.url, b"[" + b",".join([sent, *bad, received, started, succeeded, b'{"ty']))
    until_equal(lambda: (malformed(app), successes(app)), (len(bad) + 1, 1))
    labels = {"task_name": "made.up", "queue_name": "made"}
    for state in ("PENDING", "RECEIVED", "STARTED", "SUCCESS"):
        assert app.value("celery_tasks_total", state=state, **labels) == 1


def test_a_batch_of_a_hundred_thousand_events_is_used(running, exporter, broker):
    """While it is read pages are served, and what it takes in memory is given back, or bounded at least."""
    app = running(exporter()).connected()
    event = json.dumps({**HEAD, "type": "task-sent", "name": "made.up", "queue": "made"})
    publish_event_bytes(broker.url, f"[{','.join([event] * 100_000)}]".encode())
    counted = {"state": "PENDING", "task_name": "made.up", "queue_name": "made"}
    until_equal(lambda: app.value("celery_tasks_total", **counted), 100_000, 30)
    assert malformed(app) == 0
    assert app.total("celery_exporter_reconnects_total") == 0
    assert psutil.Process(app.pid).memory_info().rss < 300 * 2**20


def test_events_with_odd_fields_are_survived(running, exporter, broker):
    """`runtime: null`, `exception: null`, `freq: null`, a bad eta, a custom type: nobody falls over."""
    app = running(exporter()).connected()
    sent, received, started, succeeded = task_events(1)
    failed = {**started, "type": "task-failed", "exception": None, "traceback": None}
    odd = [
        {**sent, "eta": "tomorrow, perhaps"},
        {**received, "eta": 12, "retries": None},
        started,
        {**succeeded, "runtime": None},
        {**HEAD, "type": "worker-heartbeat", "freq": None, "active": None, "processed": None},
        {**HEAD, "type": "shop-order-placed", "order": 7},
        *({**event, "uuid": "b"} for event in (sent, received, started, failed)),
        *task_events(2),
    ]
    publish_event_bytes(broker.url, json.dumps(odd).encode())
    until_equal(lambda: app.value("celery_worker_up", worker="w@box"), 1)
    until_equal(lambda: app.total("celery_tasks_total", state="FAILURE", task_name="made.up"), 1)
    assert app.value("celery_task_failures_total", exception="unknown", task_name="made.up") == 1
    assert successes(app) >= 1


def test_pickle_is_never_loaded(running, exporter, broker, tmp_path):
    """A pickled body is one malformed event; it isn't loaded, so its bomb does not go off."""
    app = running(exporter()).connected()
    mark = tmp_path / "mark"
    bomb = pickle.dumps(Bomb(mark))
    for number, content_type in enumerate(("application/x-python-serialize", "application/json"), 1):
        publish_event_bytes(broker.url, bomb, content_type=content_type)
        until_equal(lambda: malformed(app), number)
    publish_events(broker.url, *task_events(1))
    until_equal(lambda: successes(app), 1)
    assert not mark.exists()


def test_pickle_is_loaded_when_asked_for(running, exporter, broker):
    """`--accept-content json,pickle` is for clusters that serialise their events so."""
    app = running(exporter("--accept-content", "json,pickle")).connected()
    body = pickle.dumps(list(task_events(1)))
    publish_event_bytes(broker.url, body, content_type="application/x-python-serialize")
    until_equal(lambda: successes(app), 1)
    assert malformed(app) == 0


def test_compressed_bodies_are_read_and_bombs_are_not(running, exporter, broker):
    """By each compression of kombu's, over one connection that outlives them."""
    app = running(exporter()).connected()
    for number, compression in enumerate(compression_module.encoders(), 1):
        publish_compressed(broker.url, json.dumps(task_events(number)).encode(), compression)
        until_equal(lambda: successes(app), number)
        publish_compressed(broker.url, b" " * (MAX_BODY + 1), compression)
        until_equal(lambda: malformed(app), number)
    assert app.total("celery_exporter_reconnects_total") == 0


def publish_compressed(url, body, compression):
    with kombu.Connection(url) as connection:
        connection.Producer(exchange=get_exchange(connection)).publish(
            body,
            routing_key="task.multi",
            content_type="application/json",
            content_encoding="utf-8",
            compression=compression,
        )


@on_redis
def test_an_answer_of_a_worker_that_inflates_to_anything_is_not_read(running, exporter, broker):
    """Whoever may publish can see the roster's question, and answer it."""
    app = running(exporter()).connected()
    deflater = zlib.compressobj()
    bomb = b"".join([deflater.compress(b" " * 2**20) for _ in range(500)]) + deflater.flush()
    questions = broker.server.client().pubsub()
    questions.psubscribe("*pidbox*")
    with kombu.Connection(broker.url) as connection:
        answered = 0
        while answered < 2:
            said = questions.get_message(timeout=ANSWER_TIMEOUT)
            assert said, "nobody was asked anything"
            question = (
                json.loads(base64.b64decode(json.loads(said["data"])["body"]))
                if said["type"] == "pmessage"
                else {}
            )
            if "reply_to" in question:
                connection.Producer().publish(
                    bomb,
                    **question["reply_to"],
                    content_type="application/json",
                    content_encoding="utf-8",
                    headers={"compression": "gzip", "ticket": question["ticket"]},
                )
                answered += 1
    publish_events(broker.url, *task_events(1))
    until_equal(lambda: successes(app), 1)
    assert most_memory(app) < 300 * 2**20


def most_memory(app):
    (line,) = [
        line for line in Path(f"/proc/{app.pid}/status").read_text().splitlines() if line.startswith("VmHWM")
    ]
    return int(line.split()[1]) * 1024


LAUGHS = b"a: &a [x, x]\n" + b"".join(b"%c: &%c [*%c, *%c]\n" % (i + 1, i + 1, i, i) for i in range(97, 121))
OTHERS = {
    "application/x-yaml": (yaml.safe_dump, [LAUGHS, b"!!python/none x", b"[" * 10_000]),
    "application/x-msgpack": (msgspec.msgpack.encode, [b"\xdd\xff\xff\xff\xff", b"\x91" * 10_000, b"\xc1"]),
}


@pytest.mark.parametrize("kind", OTHERS)
def test_other_serialisers_are_read_when_asked_for(running, exporter, broker, kind):
    app = running(exporter("--accept-content", "json,yaml,msgpack")).connected()
    dump, bad = OTHERS[kind]
    for number, body in enumerate(bad, 1):
        publish_event_bytes(broker.url, body, content_type=kind)
        until_equal(lambda: malformed(app), number)
    body = dump(list(task_events(1)))
    publish_event_bytes(broker.url, body if isinstance(body, bytes) else body.encode(), content_type=kind)
    until_equal(lambda: successes(app), 1)


ENVELOPES = [
    b"\xff\xfe",
    b"not JSON",
    b"[1]",
    b"null",
    b"{}",
    b'{"body": 3}',
    b'{"body": "%%%", "properties": {"body_encoding": "base64", "delivery_tag": "x", "delivery_info": {}}}',
    b'{"body": "e30=", "content-type": "application/json", "properties": null}',
]


@pytest.mark.parametrize("envelope", ENVELOPES, ids=lambda envelope: repr(envelope[:24]))
def test_redis_envelopes_that_kombu_never_wrote(redis_app, redis_broker_of_app, envelope):
    """On Redis anyone can publish to the channel without kombu's envelope: counted, and life goes on."""
    before, done = malformed(redis_app), successes(redis_app)
    receivers = redis_broker_of_app.client().publish("/0.celeryev/task.multi", envelope)
    assert receivers >= 1
    until_equal(lambda: malformed(redis_app), before + 1)
    publish_events(redis_broker_of_app.url, *task_events(done + 100))
    until_equal(lambda: successes(redis_app), done + 1)
    assert redis_app.total("celery_exporter_reconnects_total") == 0


@pytest.fixture(scope="module")
def redis_broker_of_app(redis_server):
    redis_server.clean()
    return redis_server


@pytest.fixture(scope="module")
def redis_app(redis_broker_of_app, tmp_path_factory):
    """Return one exporter for all broken envelopes."""
    with Exporter(tmp_path_factory.mktemp("exporter"), redis_broker_of_app.url) as app:
        yield app.connected()
