"""What takes bytes off the wire. Each target is a function of them that raises when something is wrong."""

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

from celery_exporter.broker import inspect as roster
from celery_exporter.broker.codecs import CONTENT_TYPES
from celery_exporter.broker.connection import BrokerError
from celery_exporter.broker.consumers import amqp_consumer as amqp
from celery_exporter.broker.consumers import redis_consumer as redis
from celery_exporter.broker.consumers.amqp_frames import Frames
from celery_exporter.broker.consumers.base import BatchFull
from celery_exporter.broker.message import Message, events_of
from celery_exporter.broker.queues import redis_queues as redis_depths
from celery_exporter.broker.source import ConfigSource
from celery_exporter.core.events import Event, Malformed, decode
from celery_exporter.core.json_array import MAX_ITEMS, items
from celery_exporter.core.task_names import clipped
from celery_exporter.core.workers import WorkerInfo
from celery_exporter.doctor.report import printed
from celery_exporter.quoting import printable, printable_json, shell_word
from celery_exporter.runtime.logging import LineFormatter
from celery_exporter.status.checks import run_checks
from celery_exporter.status.recent import Recent
from celery_exporter.top.cells import clean

from .pipeline import Pipeline

HERE = Path(__file__).parent
CORPUS = HERE / "corpus"
TAPES = HERE.parent / "data" / "recordings"

GOOD = json.dumps(sent("good", name="good", queue="good")).encode()
(GOOD_EVENT,) = decode(GOOD)

Target = Callable[[bytes], None]


def body(data: bytes) -> None:
    """A JSON body."""
    found = decode(data)
    assert isinstance(found, list)
    assert len(found) <= MAX_ITEMS + 1
    told = sum(isinstance(each, Event) for each in found)
    pipeline = Pipeline(labels=("queue_name", "worker"))
    pipeline.take(found)
    pipeline.wait(pipeline.cluster.limits.reorder_window + 0.5)
    pipeline.shown()
    assert sum(pipeline.cluster.events.values()) == told
    assert pipeline.malformed.total() == len(found) - told


def between(data: bytes) -> None:
    """An item of a batch, between two good events."""
    found = decode(b"[" + GOOD + b"," + data + b"," + GOOD + b"]")
    assert found[0] == GOOD_EVENT
    try:
        json.loads(data.decode())
    except (ValueError, RecursionError):
        return
    assert len(found) == 3
    assert found[2] == GOOD_EVENT


def split(data: bytes) -> None:
    """The same, as texts: what is told apart is what was there."""
    found = list(items(b"[" + data + b"]"))
    assert None not in found[:-1]
    try:
        values = json.loads(b"[" + data + b"]")
    except (ValueError, RecursionError):
        return
    assert [json.loads(item) for item in found] == values or b"NaN" in data


def page(data: bytes) -> None:
    """A JSON body, up to the page."""
    pipeline = Pipeline(labels=("queue_name", "worker"))
    pipeline.feed(data)
    pipeline.wait(pipeline.cluster.limits.reorder_window + 0.5)
    for samples in pipeline.pages():
        assert samples.total("celery_exporter_events_total") == sum(pipeline.cluster.events.values())


def _told(data: bytes) -> list[str]:
    """Return the texts that a JSON body brings into what people read."""
    pipeline = Pipeline(labels=("queue_name", "worker"))
    pipeline.feed(data)
    pipeline.wait(40)
    shown = pipeline.shown()
    names = {key.task_name for key in shown.aggregates} | {worker.name for worker in shown.workers}
    texts = [*names, *(failure.exception for failure in shown.failures)]
    for finding in run_checks(shown, Recent().growth(shown, 0.0)):
        texts += [finding.message, finding.remedy, *click.unstyle(printed(finding)).split("\n")]
    return texts


def terminal(data: bytes) -> None:
    """A JSON body, up to a terminal: it draws what doctor, top and the log print, and does nothing else."""
    for text in _told(data):
        record = logging.LogRecord("a", logging.INFO, "", 0, "%s", (text,), None)
        for line in (clean(text), printable(text), LineFormatter("logfmt").format(record)):
            assert terminal_output(line) == (line, [])


def log(data: bytes) -> None:
    """A JSON body, up to what reads JSON of ours: log lines, and documents that are printed."""
    texts = _told(data)
    for text in texts:
        record = logging.LogRecord("a", logging.INFO, "", 0, "%s", (text,), None)
        line = LineFormatter("json").format(record)
        assert terminal_output(line) == (line, [])
        assert json.loads(line)["msg"] == text
    document = printable_json(msgspec.json.encode(texts).decode())
    assert terminal_output(document) == (document, [])
    assert json.loads(document) == texts


def command(data: bytes) -> None:
    """A JSON body, up to bash: whatever is printed to be pasted is one word for it."""
    texts = [*_told(data), data.decode(errors="replace")]
    assert bash_words(" ".join(map(shell_word, texts))) == [text.replace("\0", "?") for text in texts]


# -- messages --------------------------------------------------------------------------------------------

KINDS = [CONTENT_TYPES["json"], CONTENT_TYPES["yaml"], CONTENT_TYPES["msgpack"], CONTENT_TYPES["pickle"], "x"]
ACCEPT = set(KINDS[:3])


#: kombu's compressions, and where they are to be had.
_COMPRESSIONS = {
    "gzip": ["zlib"],
    "bzip2": ["bz2"],
    "xz": ["lzma"],
    "brotli": ["brotli"],
    "zstd": ["compression.zstd", "backports.zstd"],
}


def _available() -> dict[str, Callable[[bytes], bytes]]:
    found = {}
    for name, modules in _COMPRESSIONS.items():
        for module in modules:
            with suppress(ImportError):
                found[name] = importlib.import_module(module).compress
    return found


COMPRESS = _available()
#: What is done to a body, and whether it can be read then.
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
    """A message: what its sender says of it (two bytes), and its body."""
    if len(data) < 2:
        return
    kind = KINDS[data[0] % len(KINDS)]
    compression, treat, readable = TREATMENTS[data[1] % len(TREATMENTS)]
    found = events_of(Message(treat(data[2:]), kind, "utf-8", compression), ACCEPT)
    pipeline = Pipeline()
    pipeline.take(found)
    pipeline.wait(pipeline.cluster.limits.reorder_window + 0.5)
    if kind not in ACCEPT:
        assert found == [Malformed("content_type")]
    elif readable is False:
        assert found == [Malformed("undecodable")]
    elif readable and compression:
        assert found == events_of(Message(data[2:], kind), ACCEPT)


def message_of(kind: str, compression: str | None, data: bytes) -> bytes:
    """Return the bytes for which `message` takes this body, compressed as it should be."""
    which = next(
        index for index, (name, _, readable) in enumerate(TREATMENTS) if name == compression and readable
    )
    return bytes((KINDS.index(kind), which)) + data


@cache
def _redis_reader() -> Any:
    return redis.RedisConsumer(ConfigSource(broker_config("redis://127.0.0.1:1/0")))


def envelope(data: bytes) -> None:
    """What is published on Redis."""
    reader = _redis_reader()
    reader._start_batch()
    reader._on_envelope(data)
    (payload,) = reader._batch
    Pipeline().take(events_of(payload, ACCEPT))


def properties(data: bytes) -> None:
    """What stands round a message on AMQP."""
    Pipeline().take(events_of(amqp._message(data, GOOD), ACCEPT))


def pushed(data: bytes) -> None:
    """What Redis sends on a subscription."""
    reader = _redis_reader()
    reader._parser = hiredis.Reader()
    reader._parser.feed(data)
    reader._start_batch()
    with suppress(BrokerError, BatchFull):
        reader._parse()


def frames(data: bytes) -> None:
    """Frames off AMQP: the same ones, and the same end, whatever pieces the bytes come in."""
    whole = _framed([data])
    assert _framed([data[:1], data[1:]]) == whole
    assert _framed([data[at : at + 1] for at in range(len(data))]) == whole


def _framed(pieces: list[bytes]) -> list[Any]:
    reader, found = Frames(1_000), []
    try:
        for piece in pieces:
            reader.feed(piece)
            while (frame := reader.next()) is not None:
                found.append(frame)
    except BrokerError as error:
        found.append(str(error))
    return found


def deliveries(data: bytes) -> None:
    """Frames with messages in them, off AMQP: the rest is the library's, or ends the connection."""
    taken: list[Any] = []
    reader: Any = amqp.AmqpConsumer(ConfigSource(broker_config("amqp://127.0.0.1:1//")))
    reader._amqp = SimpleNamespace(bytes_recv=0)
    reader._channel = SimpleNamespace(channel_id=1)
    reader._handle_by_amqp = taken.append
    reader._frames = Frames(131_072, data)
    with suppress(BrokerError, BatchFull):
        reader._take_frames()
    assert all(channel != 1 or kind == 1 for kind, channel, _ in taken), "content of our channel is ours"
    for payload in reader._batch:
        Pipeline().take(events_of(payload, ACCEPT))


# -- answers -----------------------------------------------------------------------------------------------


def answer(data: bytes) -> None:
    """What a worker answers when it is asked: statistics, queues, tasks."""
    try:
        replies = kombu_json.loads(data.decode())
    except Exception:  # noqa: BLE001  kombu reads it before we do
        return
    replies = replies if isinstance(replies, list) else [replies]
    stats = dict(roster._checked(replies, roster._Stats))
    queues = dict(roster._checked(replies, roster._Queues))
    registered = dict(roster._checked(replies, roster._Names))
    profiles = {name: WorkerInfo(**roster._from_stats(found)) for name, found in stats.items()}
    profiles |= {
        name: WorkerInfo(queues=tuple(queue.name for queue in found)) for name, found in queues.items()
    }
    profiles |= {name: WorkerInfo(registered=tuple(found)) for name, found in registered.items()}
    pipeline = Pipeline()
    pipeline.cluster.record_inspection(profiles, pipeline.timestamp())
    msgspec.msgpack.encode(list(pipeline.cluster.workers.values()))  # as the state file does
    shown = pipeline.shown()
    pipeline.exposition.render(shown).decode()
    assert {worker.name for worker in shown.workers} == {each for each in profiles if clipped(each) == each}


def head(data: bytes) -> None:
    """The oldest message in a queue on Redis."""
    found = redis_depths._task_id(data)
    assert found is None or found.encode() is not None


TARGETS: dict[str, Target] = {
    target.__name__: target
    for target in (
        *(body, between, split, page, terminal, log, command, message, envelope, properties),
        *(pushed, frames, deliveries, answer, head),
    )
}


# -- seeds ---------------------------------------------------------------------------------------------------


@cache
def seeds(name: str) -> list[bytes]:
    """Return what is known to lead somewhere: real bodies, and files of what once did harm."""
    files = [path.read_bytes() for path in sorted((CORPUS / name).glob("*"))]
    lines = [line for tape in sorted(TAPES.glob("*.jsonl")) for line in tape.read_text().splitlines()]
    bodies = [json.loads(line)["body"].encode() for line in lines][::7]
    if name in ("body", "between", "split", "page", "terminal", "log", "command"):
        bodied = [path.read_bytes() for path in sorted((CORPUS / "body").glob("*"))]
        return [*dict.fromkeys([*files, *bodied, *bodies])]
    if name == "message":
        json_type = CONTENT_TYPES["json"]
        return files + [message_of(json_type, how, text) for text in bodies[:3] for how in (None, *COMPRESS)]
    return files
