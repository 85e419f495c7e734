"""A relay gives each shard what it needs of a message, and no more."""

from __future__ import annotations

import json
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from celery_exporter.broker.message import EVENT_LINES, Message
from celery_exporter.core.events import WORKER_TYPES, Malformed, decode
from celery_exporter.core.json_array import MAX_ITEMS
from celery_exporter.core.shards import Shard, ShardOfCluster, part_of, shard_of
from celery_exporter.relay.split import EVERY_SHARD, MAX_TEXT_BYTES, Part, split
from unit.core.test_shards import NATIVE, samples
from unit.test_golden_replay import RECORDINGS, read, replay

TYPES = ("task-sent", "task-received", "task-started", "task-succeeded", *WORKER_TYPES, "custom")
EVENTS = st.lists(
    st.fixed_dictionaries(
        {
            "type": st.sampled_from(TYPES),
            "uuid": st.uuids().map(str),
            "hostname": st.sampled_from(["one@a", "two@b", "three@c"]),
            "timestamp": st.floats(1, 1e9),
        }
    )
)


def message(events: object) -> Message:
    return Message(json.dumps(events).encode(), "application/json", "utf-8")


def events_of(body: bytes) -> list[object]:
    events = json.loads(body)
    return events if isinstance(events, list) else [events]


def lines(messages: list[Message], count: int) -> list[tuple[str, bytes]]:
    """Return the lines, and the shards that they are for."""
    parts = split(messages, count)
    assert {part.message.content_type for part in parts} <= {EVENT_LINES}
    return [(part.shard, line) for part in parts for line in part.message.body.split(b"\n")]


@given(EVENTS, st.integers(1, 8))
def test_each_event_reaches_the_shard_of_its_task(events, count):
    received: Counter[tuple[int, str]] = Counter()
    for shard, line in lines([message(events)], count):
        for index in range(count):
            if shard in {str(index), EVERY_SHARD}:
                received.update((index, json.dumps(event)) for event in json.loads(line))
    for event in events:
        shards = {index for index, text in received if text == json.dumps(event)}
        if event["type"] in WORKER_TYPES:
            assert shards == set(range(count))
        elif event["type"] == "task-started":
            assert shards == {shard_of(event["uuid"], count), shard_of(event["hostname"], count)}
        else:
            assert shards == {shard_of(event["uuid"], count)}
    assert max(received.values(), default=1) <= max(Counter(map(json.dumps, events)).values(), default=1)


@given(
    st.lists(
        st.fixed_dictionaries(
            {"type": st.sampled_from(TYPES)},
            optional={"uuid": st.uuids().map(str) | st.integers(), "hostname": st.sampled_from(["a", 1])},
        )
    ),
    st.integers(1, 8),
)
def test_each_malformed_event_counts_in_one_shard(events, count):
    counting = 0
    for shard, line in lines([message(events)], count):
        for index in range(count):
            if shard in {str(index), EVERY_SHARD}:
                malformed = [event for event in decode(line) if isinstance(event, Malformed)]
                counting += sum(map(Shard(index, count).counts, malformed))
    assert counting == sum(isinstance(event, Malformed) for event in decode(json.dumps(events).encode()))


@pytest.mark.parametrize("count", [1, 2, 4, 8])
@pytest.mark.parametrize("recording", RECORDINGS, ids=lambda recording: recording.stem)
def test_sums_over_shards_behind_a_relay_are_those_of_one_exporter(recording, count):
    whole = replay(read(recording), NATIVE)
    total: Counter = Counter()
    missed: Counter = Counter()
    for index in range(count):
        shard = Shard(index, count)
        messages = [
            (at, line)
            for at, body in read(recording)
            for to, line in lines([Message(body)], count)
            if to in {str(index), EVERY_SHARD}
        ]
        snapshot = replay(messages, NATIVE, lambda cluster, shard=shard: ShardOfCluster(cluster, shard).apply)
        part = part_of(snapshot, shard)
        total.update(samples(part, NATIVE))
        missed.update({worker.name: worker.missed for worker in part.workers})
    assert dict(total) == pytest.approx(dict(samples(whole, NATIVE)))
    assert dict(missed) == {worker.name: worker.missed for worker in whole.workers}


@pytest.mark.parametrize("count", [1, 2, 8])
@pytest.mark.parametrize("recording", RECORDINGS, ids=lambda recording: recording.stem)
def test_events_that_are_relayed_together_stay_in_their_order(recording, count):
    """A relay that was away reads heartbeats and task events of minutes at a time."""
    events = [event for _, body in read(recording) for event in events_of(body)]
    received: dict[int, list[object]] = {index: [] for index in range(count)}
    for shard, line in lines([Message(body) for _, body in read(recording)], count):
        for index in range(count) if shard == EVERY_SHARD else [int(shard)]:
            received[index] += events_of(line)
    for relayed in received.values():
        assert relayed == [event for event in events if event in relayed]


def test_a_message_that_is_no_line_stays_behind_the_lines_before_it():
    line, other = b'{"type": "task-sent", "uuid": "a"}', b'{"type": "task-sent",\n"uuid": "a"}'
    compressed = Message(b"x", "application/json", "utf-8", "gzip")
    for message in (Message(other), compressed):
        bodies = [part.message.body for part in split([Message(line), message, Message(line)], 1)]
        assert bodies == [line, message.body, line]


def test_messages_are_joined_by_shard():
    bodies = [b'{"type": "task-sent", "uuid": "%d"}' % number for number in range(100)]
    parts = split(map(Message, bodies), 4)
    assert sorted(part.shard for part in parts) == ["0", "1", "2", "3"]
    assert sorted(line for _, line in lines(list(map(Message, bodies)), 4)) == sorted(bodies)


def test_joined_messages_have_a_limited_size():
    bodies = [b'{"type": "task-sent", "uuid": "a", "x": "%b"}' % (b"x" * 2**18) for _ in range(10)]
    assert [part.message.body.count(b"\n") + 1 for part in split(map(Message, bodies), 2)] == [3, 3, 3, 1]
    (part,) = split([Message(bodies[0] * 9)], 2)  # one that is too long stays whole
    assert len(part.message.body) > MAX_TEXT_BYTES


def test_what_cannot_be_read_goes_to_every_shard():
    bodies = [b"", b"{", b"[1]", b'[{"type": 1}]', b'{"uuid": "a"}', b"[" * 5_000, b"\xff", b"null", b"7"]
    for body in bodies:
        assert lines([Message(body)], 4) == [(shard, body) for shard in "0123"]


def test_other_serializers_and_compressed_bodies_stay_as_they_are():
    compressed = Message(b"[]", "application/json", "utf-8", "gzip")
    for message in (Message(b"[]", "application/x-yaml"), compressed, Message(b"x", content_type=7)):
        assert split([message], 4) == [Part(EVERY_SHARD, message)]


def test_lines_of_another_sender_are_not_those_of_a_relay():
    (part,) = split([Message(b"{}\n{}", EVENT_LINES)], 4)
    assert part.shard == EVERY_SHARD
    assert part.message.content_type != EVENT_LINES


@pytest.mark.parametrize("compression", [{"a": [1]}, 7, "x" * 1_000], ids=["table", "number", "long text"])
def test_a_header_that_cannot_be_published_is_not_passed_on(compression):
    parts = split([Message(b"[]", "application/json", "utf-8", compression)], 2)
    assert [part.message.compression for part in parts] == [None, None]
    assert [part.message.body for part in parts] == [b"", b""], "it counts as undecodable"


def test_a_body_of_many_items_is_not_divided():
    for item in (b"1", b"{}", b'{"type":""}'):
        body = b"[" + b",".join([item] * (MAX_ITEMS + 1)) + b"]"
        assert {part.message.body for part in split([Message(body)], 4)} == {body}


def test_a_body_of_several_lines_stays_a_message():
    body = b'{"type": "task-sent",\n"uuid": "a"}'
    assert split([Message(body)], 4) == [Part(str(shard_of("a", 4)), Message(body))]


def test_a_message_that_is_relayed_again_with_others_has_the_same_lines():
    events = [{"type": "task-started", "uuid": str(n), "hostname": f"{n}@h", "a": {}} for n in range(50)]
    again = lines([message(events)], 8)
    assert set(again) <= set(lines([message(events[:3]), message(events), message(events[7:])], 8))
    assert split([message([])], 8) == []
