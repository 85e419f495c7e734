"""The commands `record` and `replay`: the event stream of a broker into a file, and a file onto a broker."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

from kombu import Connection, Producer

from celery_exporter.broker.codecs import CONTENT_TYPES, JSON
from celery_exporter.broker.config import BrokerConfig
from celery_exporter.broker.connection import (
    BrokerError,
    broker_errors,
    check,
    close_quietly,
    connect,
    event_exchange,
    open_,
    why_no_events,
)
from celery_exporter.broker.consumers.base import EventConsumer
from celery_exporter.broker.consumers.factory import consumer_for
from celery_exporter.broker.message import Message
from celery_exporter.broker.source import ConfigSource
from celery_exporter.broker.url import masked
from celery_exporter.core.events import decode
from celery_exporter.recording.format import Record, RecordingReader, Scrubber, Writer, paced, short
from celery_exporter.runtime.backoff import back_off

#: Seconds to wait for messages, and between two lines of progress.
POLL, PROGRESS = 0.25, 1.0
#: How a batch of events is addressed (celery/events/dispatcher.py).
BATCH_KEY = "task.multi"


def record(
    config: BrokerConfig, path: Path, *, scrub: bool, ended: Callable[[], bool], say: Callable[[str], None]
) -> None:
    """Write what comes into a new file until `ended`.

    Raises BrokerError, UnusableURLError, or OSError for the file.
    """
    check(config)
    scrubber = Scrubber({CONTENT_TYPES[name] for name in config.accept_content}) if scrub else None
    if no_events := why_no_events(config):
        raise BrokerError(no_events)
    reader = consumer_for(
        ConfigSource(config.read_only())
    )  # a queue that outlasts the exporter is the exporter's
    left_out = 0
    reader.open()  # before there is a file, which a broker that is away would leave behind
    with closing(reader), closing(Writer(path)) as tape:
        say(f"recording from {masked(config.broker_url)} into {path}; Ctrl-C ends it")
        start = said = time.monotonic()
        try:
            for payloads in _heard(reader, config, ended, say):
                for payload in payloads:
                    shown = payload if scrubber is None else scrubber.scrub(payload)
                    if shown is None:
                        left_out += 1
                    else:
                        tape.write(Record(time.monotonic() - start, shown))
                tape.keep()
                if time.monotonic() > said + PROGRESS:
                    said = time.monotonic()
                    say(f"{tape.messages:,} messages in {said - start:.0f} s")
        finally:
            left_out += tape.too_large
            also = f"; {left_out:,} that could not be read were left out" if left_out else ""
            say(f"{path}: {tape.messages:,} messages{also}")


def _heard(
    reader: EventConsumer, config: BrokerConfig, ended: Callable[[], bool], say: Callable[[str], None]
) -> Iterator[list[Message]]:
    """Yield what comes until `ended`, whatever becomes of the broker meanwhile."""
    while not ended():
        try:
            while not ended():
                yield reader.read(POLL)
        except BrokerError as error:  # noqa: PERF203  not a thousand times a second
            say(f"nothing is recorded now, trying again: {error}")
            _come_back(reader, config, ended, say)


def _come_back(
    reader: EventConsumer, config: BrokerConfig, ended: Callable[[], bool], say: Callable[[str], None]
) -> None:
    for wait in back_off(config.retry_interval):
        reader.close()
        end = time.monotonic() + wait
        while time.monotonic() < end and not ended():
            time.sleep(min(wait, POLL))
        if ended():
            return
        with suppress(BrokerError):
            reader.open()
            say("recording again; what was published meanwhile is missing")
            return


def replay(
    config: BrokerConfig,
    path: Path,
    *,
    speed: float | None,
    ended: Callable[[], bool],
    say: Callable[[str], None],
) -> bool:
    """Publish a file's messages, at `speed` times their own or at once; tell whether the file was whole.

    Raises NotATapeError, BrokerError, or UnusableURLError.
    """
    check(config)
    tape = RecordingReader(path)
    messages = paced(iter(tape), speed)
    first = next(messages, None)  # so that a file that is none costs no connection
    with _connected(config) as connection:
        producer = Producer(connection.default_channel, event_exchange(config, connection))
        say(f"replaying {path} to {masked(config.broker_url)}")
        start = said = time.monotonic()
        published = 0
        while first is not None and not ended():
            due, each = first
            while (wait := start + due - time.monotonic()) > 0 and not ended():
                _idle(connection, min(wait, POLL))
            if ended():
                break
            _publish(producer, each.payload)
            published += 1
            if time.monotonic() > said + PROGRESS:
                said = time.monotonic()
                say(f"{published:,} messages, {each.at:.0f} s of the recording")
            first = next(messages, None)
        # RabbitMQ answers when it has taken all that was published; of a line that is cut it drops the rest.
        producer.channel.close()
    say(f"{published:,} messages replayed")
    if tape.broken is not None:
        say(f"what could be read was used: {tape.broken}")
    return tape.broken is None


@contextmanager
def _connected(config: BrokerConfig) -> Iterator[Connection]:
    """Give out an open connection, and hang up after that; raise BrokerError when the broker is gone."""
    connection = connect(config)
    try:
        with broker_errors(connection):
            open_(connection)
            yield connection
    finally:
        close_quietly(connection)


def _idle(connection: Connection, seconds: float) -> None:
    """Wait, on AMQP with signs of life: its broker ends a connection of which it hears nothing."""
    if connection.transport.driver_type != "amqp":
        time.sleep(seconds)
        return
    with suppress(TimeoutError):
        connection.drain_events(timeout=seconds)
    connection.heartbeat_check()


def _publish(producer: Producer, payload: Message) -> None:
    producer.publish(
        payload.body,
        routing_key=_key(payload),
        content_type=short(payload.content_type) or JSON,
        content_encoding=short(payload.content_encoding) or "utf-8",
        headers={"compression": payload.compression} if payload.compression else None,
        retry=False,
        delivery_mode=1,
    )


def _key(payload: Message) -> str:
    """Return how such a message is addressed; the recording does not have it, and it is in the message."""
    if payload.content_type not in (JSON, None) or payload.compression or payload.body[:1] != b"{":
        return BATCH_KEY
    kind = getattr(decode(payload.body)[0], "type", BATCH_KEY)
    return short(kind.replace("-", ".")) or BATCH_KEY
