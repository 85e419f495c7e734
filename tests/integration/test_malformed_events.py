"""Malformed events are counted, and all valid events are applied."""

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
    """A pickle that creates a file when it is loaded."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return (open, (self.path, "w"))


def test_each_malformed_body_is_counted_and_the_next_event_is_applied(running, exporter, broker):
    """Each count has a reason. The connection stays open."""
    app = running(exporter()).connected()
    for number, (name, body) in enumerate(BODIES.items(), 1):
        publish_event_bytes(broker.url, body)
        until_equal(lambda name=name: (name, malformed(app)), (name, number))
        publish_events(broker.url, *task_events(number))
        until_equal(lambda name=name: (name, successes(app)), (name, number))
    samples = app.samples()
    reasons = samples.by("celery_exporter_events_malformed_total", "reason")
    assert all(reason for (reason,), count in reasons.items() if count)
    assert len([count for count in reasons.values() if count]) > 1
    assert samples.total("celery_exporter_reconnects_total") == 0


def test_the_valid_events_of_a_damaged_batch_are_applied(running, exporter, broker):
    """Malformed items between valid ones are counted."""
    app = running(exporter()).connected()
    sent, received, started, succeeded = (json.dumps(event).encode() for event in task_events(1))
    malformed_items = [
        b"42",
        json.dumps({**HEAD, "type": "task-failed", "uuid": None}).encode(),
        b"[" + succeeded + b"]",
        b"[" * 10_000 + b"]" * 10_000,
        b'{"type": task-failed}',
        b'{"type": "task-failed", "uuid": "\xff"}',
    ]
    publish_event_bytes(
        broker.url, b"[" + b",".join([sent, *malformed_items, received, started, succeeded, b'{"ty'])
    )
    until_equal(lambda: (malformed(app), successes(app)), (len(malformed_items) + 1, 1))
    labels = {"task_name": "made.up", "queue_name": "made"}
    for state in ("PENDING", "RECEIVED", "STARTED", "SUCCESS"):
        assert app.value("celery_tasks_total", state=state, **labels) == 1


def test_a_batch_of_100_000_events_is_applied_in_bounded_memory(running, exporter, broker):
    """Pages are served meanwhile."""
    app = running(exporter()).connected()
    event = json.dumps({**HEAD, "type": "task-sent", "name": "made.up", "queue": "made"})
    publish_event_bytes(broker.url, f"[{','.join([event] * 100_000)}]".encode())
    labels = {"state": "PENDING", "task_name": "made.up", "queue_name": "made"}
    until_equal(lambda: app.value("celery_tasks_total", **labels), 100_000, 30)
    assert malformed(app) == 0
    assert app.total("celery_exporter_reconnects_total") == 0
    assert psutil.Process(app.pid).memory_info().rss < 300 * 2**20


def test_events_with_null_or_invalid_fields_are_applied(running, exporter, broker):
    """Such as `runtime: null`, an invalid eta, or a custom type."""
    app = running(exporter()).connected()
    sent, received, started, succeeded = task_events(1)
    failed = {**started, "type": "task-failed", "exception": None, "traceback": None}
    events = [
        {**sent, "eta": "tomorrow, perhaps"},
        {**received, "eta": 12, "retries": None},
        started,
        {**succeeded, "runtime": None},
        {**HEAD, "type": "worker-heartbeat", "freq": None, "active": None, "processed": None},
        {**HEAD, "type": "shop-order-placed", "order": 7},
        *({**event, "uuid": "b"} for event in (sent, received, started, failed)),
        *task_events(2),
    ]
    publish_event_bytes(broker.url, json.dumps(events).encode())
    until_equal(lambda: app.value("celery_worker_up", worker="w@box"), 1)
    until_equal(lambda: app.total("celery_tasks_total", state="FAILURE", task_name="made.up"), 1)
    assert app.value("celery_task_failures_total", exception="unknown", task_name="made.up") == 1
    assert successes(app) >= 1


def test_pickle_is_not_loaded_by_default(running, exporter, broker, tmp_path):
    """A pickled body is one malformed event."""
    app = running(exporter()).connected()
    created = tmp_path / "created"
    bomb = pickle.dumps(Bomb(created))
    for number, content_type in enumerate(("application/x-python-serialize", "application/json"), 1):
        publish_event_bytes(broker.url, bomb, content_type=content_type)
        until_equal(lambda: malformed(app), number)
    publish_events(broker.url, *task_events(1))
    until_equal(lambda: successes(app), 1)
    assert not created.exists()


def test_pickle_is_loaded_with_accept_content(running, exporter, broker):
    """For clusters with pickled events."""
    app = running(exporter("--accept-content", "json,pickle")).connected()
    body = pickle.dumps(list(task_events(1)))
    publish_event_bytes(broker.url, body, content_type="application/x-python-serialize")
    until_equal(lambda: successes(app), 1)
    assert malformed(app) == 0


def test_compressed_bodies_are_applied_up_to_the_size_limit(running, exporter, broker):
    """For each compression of kombu, over one connection."""
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
def test_a_compression_bomb_in_an_inspection_reply_is_not_decompressed(running, exporter, broker):
    """Any client that may publish can reply to an inspection."""
    app = running(exporter()).connected()
    deflater = zlib.compressobj()
    bomb = b"".join([deflater.compress(b" " * 2**20) for _ in range(500)]) + deflater.flush()
    requests = broker.server.client().pubsub()
    requests.psubscribe("*pidbox*")
    with kombu.Connection(broker.url) as connection:
        replies = 0
        while replies < 2:
            message = requests.get_message(timeout=ANSWER_TIMEOUT)
            assert message, "no inspection request"
            request = (
                json.loads(base64.b64decode(json.loads(message["data"])["body"]))
                if message["type"] == "pmessage"
                else {}
            )
            if "reply_to" in request:
                connection.Producer().publish(
                    bomb,
                    **request["reply_to"],
                    content_type="application/json",
                    content_encoding="utf-8",
                    headers={"compression": "gzip", "ticket": request["ticket"]},
                )
                replies += 1
    publish_events(broker.url, *task_events(1))
    until_equal(lambda: successes(app), 1)
    assert peak_memory(app) < 300 * 2**20


def peak_memory(app):
    (line,) = [
        line for line in Path(f"/proc/{app.pid}/status").read_text().splitlines() if line.startswith("VmHWM")
    ]
    return int(line.split()[1]) * 1024


BILLION_LAUGHS = b"a: &a [x, x]\n" + b"".join(
    b"%c: &%c [*%c, *%c]\n" % (i + 1, i + 1, i, i) for i in range(97, 121)
)
SERIALIZERS = {
    "application/x-yaml": (yaml.safe_dump, [BILLION_LAUGHS, b"!!python/none x", b"[" * 10_000]),
    "application/x-msgpack": (msgspec.msgpack.encode, [b"\xdd\xff\xff\xff\xff", b"\x91" * 10_000, b"\xc1"]),
}


@pytest.mark.parametrize("kind", SERIALIZERS)
def test_other_serializers_are_read_with_accept_content(running, exporter, broker, kind):
    app = running(exporter("--accept-content", "json,yaml,msgpack")).connected()
    dump, malformed_bodies = SERIALIZERS[kind]
    for number, body in enumerate(malformed_bodies, 1):
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
def test_malformed_redis_envelopes_are_counted_and_the_next_event_is_applied(
    redis_app, redis_broker_of_app, envelope
):
    """On Redis, clients can publish to the channel without the envelope of kombu."""
    before, completed = malformed(redis_app), successes(redis_app)
    receivers = redis_broker_of_app.client().publish("/0.celeryev/task.multi", envelope)
    assert receivers >= 1
    until_equal(lambda: malformed(redis_app), before + 1)
    publish_events(redis_broker_of_app.url, *task_events(completed + 100))
    until_equal(lambda: successes(redis_app), completed + 1)
    assert redis_app.total("celery_exporter_reconnects_total") == 0


@pytest.fixture(scope="module")
def redis_broker_of_app(redis_server):
    redis_server.clean()
    return redis_server


@pytest.fixture(scope="module")
def redis_app(redis_broker_of_app, tmp_path_factory):
    """Return one exporter for all malformed envelopes."""
    with Exporter(tmp_path_factory.mktemp("exporter"), redis_broker_of_app.url) as app:
        yield app.connected()
