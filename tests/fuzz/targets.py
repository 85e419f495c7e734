"""The fuzzing targets: functions of bytes from the network that raise if an invariant does not hold."""

from __future__ import annotations

import importlib
import json
import logging
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import click
import hiredis
import msgspec
from harness.configs import broker_config
from harness.text_interpreters import bash_words, terminal_output
from kombu.utils import json as kombu_json
from unit.core.cluster_driver import sent

from celery_exporter.broker import inspect
from celery_exporter.broker.codecs import CONTENT_TYPES
from celery_exporter.broker.connection import BrokerError
from celery_exporter.broker.consumers import amqp_consumer as amqp
from celery_exporter.broker.consumers import redis_consumer as redis
from celery_exporter.broker.consumers.amqp_frames import Frames
from celery_exporter.broker.consumers.base import BatchFull
from celery_exporter.broker.message import Message, events_of
from celery_exporter.broker.message_lookup.envelope import read_head, read_unacknowledged_head
from celery_exporter.broker.queues import redis_queues, redis_unacked
from celery_exporter.broker.queues.redis_unacked import MAX_NAME_CHARACTERS
from celery_exporter.broker.source import ConfigSource
from celery_exporter.core.events import Event, Malformed, decode
from celery_exporter.core.json_array import MAX_ITEMS, items
from celery_exporter.core.task_names import clipped
from celery_exporter.core.workers import WorkerInfo
from celery_exporter.doctor.report import printed
from celery_exporter.quoting import printable, printable_json, shell_word, visible
from celery_exporter.runtime.logging import LineFormatter
from celery_exporter.status.checks import run_checks
from celery_exporter.status.recent import Recent

from .pipeline import Pipeline

HERE = Path(__file__).parent
CORPUS = HERE / "corpus"
RECORDINGS = HERE.parent / "data" / "recordings"

GOOD = json.dumps(sent("good", name="good", queue="good")).encode()
(GOOD_EVENT,) = decode(GOOD)

Target = Callable[[bytes], None]


def body(data: bytes) -> None:
    """Decode and apply a JSON body."""
    decoded = decode(data)
    assert isinstance(decoded, list)
    assert len(decoded) <= MAX_ITEMS + 1
    valid = sum(isinstance(event, Event) for event in decoded)
    pipeline = Pipeline(labels=("queue_name", "worker"))
    pipeline.take(decoded)
    pipeline.wait(pipeline.cluster.limits.reorder_window + 0.5)
    pipeline.shown()
    assert sum(pipeline.cluster.events.values()) == valid
    assert pipeline.malformed.total() == len(decoded) - valid


def between(data: bytes) -> None:
    """Decode an item of a batch between two valid events."""
    decoded = decode(b"[" + GOOD + b"," + data + b"," + GOOD + b"]")
    assert decoded[0] == GOOD_EVENT
    try:
        json.loads(data.decode())
    except (ValueError, RecursionError):
        return
    assert len(decoded) == 3
    assert decoded[2] == GOOD_EVENT


def split(data: bytes) -> None:
    """Split a batch into the texts of its items, which must be those of the JSON array."""
    texts = list(items(b"[" + data + b"]"))
    assert None not in texts[:-1]
    try:
        values = json.loads(b"[" + data + b"]")
    except (ValueError, RecursionError):
        return
    assert [json.loads(text) for text in texts] == values or b"NaN" in data


def page(data: bytes) -> None:
    """Render the page after a JSON body."""
    pipeline = Pipeline(labels=("queue_name", "worker"))
    pipeline.feed(data)
    pipeline.wait(pipeline.cluster.limits.reorder_window + 0.5)
    for samples in pipeline.pages():
        assert samples.total("celery_exporter_events_total") == sum(pipeline.cluster.events.values())


def _output_texts(data: bytes) -> list[str]:
    """Return the texts that appear in output after a JSON body."""
    pipeline = Pipeline(labels=("queue_name", "worker"))
    pipeline.feed(data)
    pipeline.wait(40)
    snapshot = pipeline.shown()
    names = {label_set.task_name for label_set in snapshot.aggregates}
    names |= {worker.name for worker in snapshot.workers}
    texts = [*names, *(failure.exception for failure in snapshot.failures)]
    for finding in run_checks(snapshot, Recent().growth(snapshot, 0.0)):
        texts += [finding.message, finding.remedy, *click.unstyle(printed(finding)).split("\n")]
    return texts


def terminal(data: bytes) -> None:
    """Print the output of doctor, top and the log to a terminal emulator, which must only draw it."""
    for text in _output_texts(data):
        record = logging.LogRecord("a", logging.INFO, "", 0, "%s", (text,), None)
        for line in (visible(text), printable(text), LineFormatter("logfmt").format(record)):
            assert terminal_output(line) == (line, [])


def log(data: bytes) -> None:
    """Parse the JSON of log lines and of printed documents."""
    texts = _output_texts(data)
    for text in texts:
        record = logging.LogRecord("a", logging.INFO, "", 0, "%s", (text,), None)
        line = LineFormatter("json").format(record)
        assert terminal_output(line) == (line, [])
        assert json.loads(line)["msg"] == text
    document = printable_json(msgspec.json.encode(texts).decode())
    assert terminal_output(document) == (document, [])
    assert json.loads(document) == texts


def command(data: bytes) -> None:
    """Parse printed commands with bash: each quoted text must be one word."""
    texts = [*_output_texts(data), data.decode(errors="replace")]
    assert bash_words(" ".join(map(shell_word, texts))) == [text.replace("\0", "?") for text in texts]


# -- messages --------------------------------------------------------------------------------------------

KINDS = [CONTENT_TYPES["json"], CONTENT_TYPES["yaml"], CONTENT_TYPES["msgpack"], CONTENT_TYPES["pickle"], "x"]
ACCEPT = set(KINDS[:3])


#: The compressions of kombu, and the modules that provide them.
_COMPRESSIONS = {
    "gzip": ["zlib"],
    "bzip2": ["bz2"],
    "xz": ["lzma"],
    "brotli": ["brotli"],
    "zstd": ["compression.zstd", "backports.zstd"],
}


def _available() -> dict[str, Callable[[bytes], bytes]]:
    functions = {}
    for name, modules in _COMPRESSIONS.items():
        for module in modules:
            with suppress(ImportError):
                functions[name] = importlib.import_module(module).compress
    return functions


COMPRESS = _available()
#: Compression header, change to the body, and whether the result is readable; None: depends on the body.
TREATMENTS: list[tuple[str | None, Callable[[bytes], bytes], bool | None]] = [(None, bytes, True)]
for _name, _compress in COMPRESS.items():
    TREATMENTS += [
        (_name, bytes, None),
        (_name, _compress, True),
        (_name, lambda data, compress=_compress: compress(data)[:-1], False),
        (_name, lambda data, compress=_compress: compress(data) + b"\0", False),
        (_name, lambda data, compress=_compress: compress(data) * 2, False),
    ]


def message(data: bytes) -> None:
    """Decode a message: two bytes choose its headers, and the rest is the body."""
    if len(data) < 2:
        return
    kind = KINDS[data[0] % len(KINDS)]
    compression, treat, readable = TREATMENTS[data[1] % len(TREATMENTS)]
    decoded = events_of(Message(treat(data[2:]), kind, "utf-8", compression), ACCEPT)
    pipeline = Pipeline()
    pipeline.take(decoded)
    pipeline.wait(pipeline.cluster.limits.reorder_window + 0.5)
    if kind not in ACCEPT:
        assert decoded == [Malformed("content_type")]
    elif readable is False:
        assert decoded == [Malformed("undecodable")]
    elif readable and compression:
        assert decoded == events_of(Message(data[2:], kind), ACCEPT)


def message_of(kind: str, compression: str | None, data: bytes) -> bytes:
    """Return the input of `message` for this body with a correct compression."""
    treatment = next(
        index for index, (name, _, readable) in enumerate(TREATMENTS) if name == compression and readable
    )
    return bytes((KINDS.index(kind), treatment)) + data


@cache
def _redis_consumer() -> Any:
    return redis.RedisConsumer(ConfigSource(broker_config("redis://127.0.0.1:1/0")))


def envelope(data: bytes) -> None:
    """Decode the envelope of a message on Redis."""
    consumer = _redis_consumer()
    consumer._start_batch()
    consumer._on_envelope(data)
    (decoded,) = consumer._batch
    Pipeline().take(events_of(decoded, ACCEPT))


def properties(data: bytes) -> None:
    """Decode the properties of a message on AMQP."""
    Pipeline().take(events_of(amqp._message(data, GOOD), ACCEPT))


def pushed(data: bytes) -> None:
    """Parse the bytes of a Redis subscription."""
    consumer = _redis_consumer()
    consumer._parser = hiredis.Reader()
    consumer._parser.feed(data)
    consumer._start_batch()
    with suppress(BrokerError, BatchFull):
        consumer._parse()


def frames(data: bytes) -> None:
    """Parse AMQP frames; the result must not depend on the sizes of the reads."""
    frames_at_once = _parse_frames([data])
    assert _parse_frames([data[:1], data[1:]]) == frames_at_once
    assert _parse_frames([data[at : at + 1] for at in range(len(data))]) == frames_at_once


def _parse_frames(pieces: list[bytes]) -> list[Any]:
    """Return the frames, and the error message if there is an error."""
    parser, results = Frames(1_000), []
    try:
        for piece in pieces:
            parser.feed(piece)
            while (frame := parser.next()) is not None:
                results.append(frame)
    except BrokerError as error:
        results.append(str(error))
    return results


def deliveries(data: bytes) -> None:
    """Parse AMQP frames with messages; other frames go to the library, or close the connection."""
    others: list[Any] = []
    consumer: Any = amqp.AmqpConsumer(ConfigSource(broker_config("amqp://127.0.0.1:1//")))
    consumer._amqp = SimpleNamespace(bytes_recv=0)
    consumer._channel = SimpleNamespace(channel_id=1)
    consumer._handle_by_amqp = others.append
    consumer._frames = Frames(131_072, data)
    with suppress(BrokerError, BatchFull):
        consumer._take_frames()
    assert all(channel != 1 or kind == 1 for kind, channel, _ in others), "the consumer handles its content"
    for decoded in consumer._batch:
        Pipeline().take(events_of(decoded, ACCEPT))


# -- replies of workers ------------------------------------------------------------------------------------


def answer(data: bytes) -> None:
    """Record the replies of a worker to inspection: statistics, queues, tasks."""
    try:
        replies = kombu_json.loads(data.decode())
    except Exception:  # noqa: BLE001  kombu decodes replies, and discards this one
        return
    replies = replies if isinstance(replies, list) else [replies]
    stats = dict(inspect._checked(replies, inspect._Stats))
    queues = dict(inspect._checked(replies, inspect._Queues))
    registered = dict(inspect._checked(replies, inspect._Names))
    infos = {name: WorkerInfo(**inspect._from_stats(reply)) for name, reply in stats.items()}
    infos |= {name: WorkerInfo(queues=tuple(queue.name for queue in reply)) for name, reply in queues.items()}
    infos |= {name: WorkerInfo(registered=tuple(reply)) for name, reply in registered.items()}
    pipeline = Pipeline()
    pipeline.cluster.record_inspection(infos, pipeline.timestamp())
    msgspec.msgpack.encode(list(pipeline.cluster.workers.values()))  # as the state file does
    snapshot = pipeline.shown()
    pipeline.exposition.render(snapshot).decode()
    assert {worker.name for worker in snapshot.workers} == {name for name in infos if clipped(name) == name}


def head(data: bytes) -> None:
    """Read the task id of the oldest message in a queue on Redis."""
    task_id = redis_queues._task_id(data)
    assert task_id is None or task_id.encode() is not None


def waiting(data: bytes) -> None:
    """Read the head of a message that waits on Redis, and of one that a worker holds."""
    held = read_unacknowledged_head(b"[" + data + b"]")
    for found in (read_head(data), read_unacknowledged_head(data), held):
        assert found is None or found.id is None or isinstance(found.id, str)
    for value in (data, b"[" + data + b', "work", "jobs"]', b"[{}," + data + b"]"):
        address = redis_unacked._address(value)
        assert address is None or len(address.exchange + address.routing_key) <= 2 * MAX_NAME_CHARACTERS


TARGETS: dict[str, Target] = {
    target.__name__: target
    for target in (
        *(body, between, split, page, terminal, log, command, message, envelope, properties),
        *(pushed, frames, deliveries, answer, head, waiting),
    )
}


# -- seeds ---------------------------------------------------------------------------------------------------


@cache
def seeds(name: str) -> list[bytes]:
    """Return real bodies, and the inputs of corpus/ that once failed."""
    files = [path.read_bytes() for path in sorted((CORPUS / name).glob("*"))]
    lines = [line for path in sorted(RECORDINGS.glob("*.jsonl")) for line in path.read_text().splitlines()]
    bodies = [json.loads(line)["body"].encode() for line in lines][::7]
    if name in ("body", "between", "split", "page", "terminal", "log", "command"):
        body_files = [path.read_bytes() for path in sorted((CORPUS / "body").glob("*"))]
        return [*dict.fromkeys([*files, *body_files, *bodies])]
    if name == "message":
        json_type = CONTENT_TYPES["json"]
        return files + [
            message_of(json_type, compression, text)
            for text in bodies[:3]
            for compression in (None, *COMPRESS)
        ]
    return files
