"""The commands `record` and `replay`.

They write the events of a broker to a file, and publish a file to a broker.
"""

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
from celery_exporter.recording.format import Record, RecordingReader, RecordingWriter, paced, valid_property
from celery_exporter.recording.scrubber import Scrubber
from celery_exporter.runtime.backoff import back_off

#: Longest wait before `ended` is called again, and time between two lines of progress.
POLL_SECONDS, PROGRESS_SECONDS = 0.25, 1.0
#: Routing key of a batch of events (celery/events/dispatcher.py).
BATCH_ROUTING_KEY = "task.multi"


def record(
    config: BrokerConfig, path: Path, *, scrub: bool, ended: Callable[[], bool], say: Callable[[str], None]
) -> None:
    """Write arriving messages to a new file until `ended`; `say` prints progress.

    Raises BrokerError, UnusableURLError, or OSError for the file.
    """
    check(config)
    scrubber = Scrubber({CONTENT_TYPES[name] for name in config.accept_content}) if scrub else None
    if no_events := why_no_events(config):
        raise BrokerError(no_events)
    consumer = consumer_for(ConfigSource(config.read_only()))
    skipped = 0
    consumer.open()  # before the file is created, so that an unreachable broker leaves none behind
    with closing(consumer), closing(RecordingWriter(path)) as writer:
        say(f"recording from {masked(config.broker_url)} into {path}; Ctrl-C stops")
        start = reported = time.monotonic()
        try:
            for messages in _batches(consumer, config, ended, say):
                for message in messages:
                    recorded = message if scrubber is None else scrubber.scrub(message)
                    if recorded is None:
                        skipped += 1
                    else:
                        writer.write(Record(time.monotonic() - start, recorded))
                writer.flush()
                if time.monotonic() > reported + PROGRESS_SECONDS:
                    reported = time.monotonic()
                    say(f"{writer.messages:,} messages in {reported - start:.0f} s")
        finally:
            skipped += writer.too_large
            note = f"; {skipped:,} unreadable messages were left out" if skipped else ""
            say(f"{path}: {writer.messages:,} messages{note}")


def _batches(
    consumer: EventConsumer, config: BrokerConfig, ended: Callable[[], bool], say: Callable[[str], None]
) -> Iterator[list[Message]]:
    """Yield batches of messages until `ended`; reconnect as often as needed."""
    while not ended():
        try:
            while not ended():
                yield consumer.read(POLL_SECONDS)
        except BrokerError as error:
            say(f"recording is interrupted, reconnecting: {error}")
            _reconnect(consumer, config, ended, say)


def _reconnect(
    consumer: EventConsumer, config: BrokerConfig, ended: Callable[[], bool], say: Callable[[str], None]
) -> None:
    for wait in back_off(config.retry_interval):
        consumer.close()
        deadline = time.monotonic() + wait
        while time.monotonic() < deadline and not ended():
            time.sleep(min(wait, POLL_SECONDS))
        if ended():
            return
        with suppress(BrokerError):
            consumer.open()
            say("recording again; messages published meanwhile are missing")
            return


def replay(
    config: BrokerConfig,
    path: Path,
    *,
    speed: float | None,
    ended: Callable[[], bool],
    say: Callable[[str], None],
) -> bool:
    """Publish the messages of a file at `speed` times the recorded speed, None for as fast as possible.

    Return whether the file is undamaged. Raises NotARecordingError, BrokerError, or UnusableURLError.
    """
    check(config)
    reader = RecordingReader(path)
    records = paced(iter(reader), speed)
    due_record = next(records, None)  # before the connection, which another kind of file does not need
    with _connected(config) as connection:
        producer = Producer(connection.default_channel, event_exchange(config, connection))
        say(f"replaying {path} to {masked(config.broker_url)}")
        start = reported = time.monotonic()
        published = 0
        while due_record is not None and not ended():
            due, record_ = due_record
            while (wait := start + due - time.monotonic()) > 0 and not ended():
                _wait(connection, min(wait, POLL_SECONDS))
            if ended():
                break
            _publish(producer, record_.message)
            published += 1
            if time.monotonic() > reported + PROGRESS_SECONDS:
                reported = time.monotonic()
                say(f"{published:,} messages, {record_.at:.0f} s of the recording")
            due_record = next(records, None)
        # RabbitMQ replies when it has processed all messages; after a hard close it would drop the rest.
        producer.channel.close()
    say(f"{published:,} messages replayed")
    if reader.damage is not None:
        say(f"replayed up to the damage: {reader.damage}")
    return reader.damage is None


@contextmanager
def _connected(config: BrokerConfig) -> Iterator[Connection]:
    """Yield an open connection, and close it. Raises BrokerError."""
    connection = connect(config)
    try:
        with broker_errors(connection):
            open_(connection)
            yield connection
    finally:
        close_quietly(connection)


def _wait(connection: Connection, seconds: float) -> None:
    """Wait, with heartbeats on AMQP, whose broker closes a silent connection."""
    if connection.transport.driver_type != "amqp":
        time.sleep(seconds)
        return
    with suppress(TimeoutError):
        connection.drain_events(timeout=seconds)
    connection.heartbeat_check()


def _publish(producer: Producer, message: Message) -> None:
    producer.publish(
        message.body,
        routing_key=_routing_key(message),
        content_type=valid_property(message.content_type) or JSON,
        content_encoding=valid_property(message.content_encoding) or "utf-8",
        headers={"compression": message.compression} if message.compression else None,
        retry=False,
        delivery_mode=1,
    )


def _routing_key(message: Message) -> str:
    """Return the routing key of a message, which is not in the recording but follows from the event."""
    if message.content_type not in (JSON, None) or message.compression or message.body[:1] != b"{":
        return BATCH_ROUTING_KEY
    event_type = getattr(decode(message.body)[0], "type", BATCH_ROUTING_KEY)
    return valid_property(event_type.replace("-", ".")) or BATCH_ROUTING_KEY
