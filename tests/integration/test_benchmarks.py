"""The benchmark: its prepared messages, its floor, its measurements, and its tables."""

import base64
import json
import xml.etree.ElementTree as ET
from collections import Counter

import hiredis
import pytest
from harness.processes import need
from harness.waiting import eventually

from benchmarks import chart, floor
from benchmarks.__main__ import PAGE, inside, write
from benchmarks.brokers import Rabbit, Redis, due, replay
from benchmarks.capacity import relay_all
from benchmarks.contenders import Floor
from benchmarks.event_stream import START, Cluster, EventStream, Form, make_events, record
from benchmarks.inside import OPEN, bodies, shard_behind_relay
from benchmarks.measure import Attempt, search
from benchmarks.table import Row, Target, draw, draw_row
from celery_exporter.broker.connection import READ_BYTES
from celery_exporter.broker.consumers.amqp_frames import Frames
from celery_exporter.broker.consumers.redis_consumer import FEED_BYTES
from tools.docgen import costs

SMALL = Cluster(tasks=50, names=5, workers=3)


def bodies_on_redis(event_stream: EventStream) -> list[list[dict]]:
    parser = hiredis.Reader()
    for message in event_stream.messages:
        parser.feed(message)
    commands = [parser.gets() for _ in event_stream.messages]
    assert {command[0] for command in commands} == {b"PUBLISH"}
    return [loaded(base64.b64decode(json.loads(command[2])["body"])) for command in commands]


def bodies_on_amqp(event_stream: EventStream) -> list[list[dict]]:
    frames = Frames(2**17, b"".join(event_stream.messages))
    kinds, _, payloads = zip(*iter(frames.next, None), strict=True)
    assert kinds == (1, 2, 3) * len(event_stream.messages)
    return [loaded(payload) for payload in payloads[2::3]]


def loaded(body: bytes) -> list[dict]:
    events = json.loads(body)
    return events if isinstance(events, list) else [events]


def test_the_floor_reads_chunks_of_the_same_size_as_the_exporter():
    assert (floor.READ_BYTES, floor.FEED_BYTES) == (READ_BYTES, FEED_BYTES)


@pytest.mark.parametrize("size", [1, 10])
@pytest.mark.parametrize(("wire", "decode"), [("redis", bodies_on_redis), ("amqp", bodies_on_amqp)])
def test_a_event_stream_has_the_events_of_its_cluster_in_messages_of_its_form(wire, decode, size):
    event_stream = record(SMALL, Form(size, size), wire)
    assert event_stream == record(SMALL, Form(size, size), wire), "the same in each run"
    batches = decode(event_stream)
    events = [event for batch in batches for event in batch]
    kinds = ["task-sent", "task-received", "task-started", "task-succeeded"]
    assert event_stream.kinds == Counter(dict.fromkeys(kinds, 50) | {"worker-online": 3})
    assert Counter(event["type"] for event in events) == event_stream.kinds
    assert [len(batch) for batch in batches] == event_stream.sizes
    assert max(event_stream.sizes) == size
    assert {event["name"] for event in events if "name" in event} == {
        f"shop.tasks.handle_0{n}" for n in range(5)
    }
    assert len({event["uuid"] for event in events if "uuid" in event}) == 50

    def as_sorted_text(events: list[dict]) -> list[str]:
        return sorted(json.dumps(event, sort_keys=True) for event in events)

    assert as_sorted_text(events) == as_sorted_text(make_events(SMALL))


def test_each_task_on_a_event_stream_has_its_events_in_order():
    types: dict[str, list[str]] = {}
    for event in make_events(SMALL):
        assert START <= event["timestamp"] < START + 1
        types.setdefault(event.get("uuid", ""), []).append(event["type"])
    del types[""]
    assert set(map(tuple, types.values())) == {
        ("task-sent", "task-received", "task-started", "task-succeeded")
    }


def test_due_repeats_the_event_stream_at_the_rate():
    event_stream = record(Cluster(tasks=10), Form(1, 1), "redis")
    sent = sum(events for _, events in due(event_stream, 2_000, 0.3))
    assert sum(event_stream.sizes) < sent <= 600 + 1


@pytest.mark.parametrize("capacity", [1_000, 9_000, 100_000])
def test_search_finds_the_capacity(capacity):
    def attempt(rate: float) -> Attempt:
        return Attempt(0, rate, 1.0, rate <= capacity)

    assert 0.9 * capacity < search(attempt, guess=10_000).rate <= capacity


def test_search_ends_at_a_rate_that_cannot_be_published():
    assert search(lambda rate: Attempt(0, min(rate, 15_000), 1.0, True), 10_000) == (15_000, 1.0, True)


def test_scrapes_are_compared_for_the_same_number_of_samples():
    result = inside("scrape", "1000")
    assert result["samples"] == pytest.approx(1_000, rel=0.5)
    assert 50 < result["bytes"] / result["samples"] < 500
    assert min(result["later"], result["theirs"]) > 0


def test_memory_per_task_in_flight_is_plausible():
    result = inside("memory", "20000")
    assert all(100 < result[state] < 1_000 for state in OPEN)


def test_the_floor_counts_each_event(broker, tmp_path):
    need("redis-server")
    benchmark_broker = (Redis if broker.kind == "redis" else Rabbit)(broker.url)
    event_stream = record(Cluster(tasks=500), Form(1, 10), benchmark_broker.wire)
    with Floor(tmp_path / "floor", benchmark_broker) as floor:
        eventually(benchmark_broker.has_subscriber)
        probes = 0 if broker.kind == "redis" else 1  # the probe on RabbitMQ is a message
        replay(benchmark_broker, event_stream.messages)
        floor.wait_until_idle()
        assert floor.cpu() > 0
        assert floor.counted() - probes == floor.expected(event_stream.kinds) == 2_000 + 10


def test_judge_reports_targets_as_ok_missed_or_not_measured():
    at_most, at_least = Target("<= 2 x floor", 2), Target(">= 12 x peer", 12, at_least=True)
    assert at_most.judge(2.0) == "<= 2 x floor ok"
    assert at_most.judge(2.01) == "<= 2 x floor missed"
    assert at_least.judge(12.0) == ">= 12 x peer ok"
    assert at_least.judge(11.9) == ">= 12 x peer missed"
    assert at_least.judge(None) == ">= 12 x peer not measured"


def test_a_row_shows_median_spread_ratios_and_targets():
    row = Row("here", "us", [4.0, 3.0, 9.0], floor=2.0, peer=60.0, targets=[(Target("<= 3", 3), 4.0)])
    assert " ".join(draw_row(row).split()) == "here 4.0 us 3.0 … 9.0 2.0 x 1/15.0 <= 3 missed"
    lines = draw(["headline", row, Row("nothing", "ms", [])]).splitlines()
    assert lines[1] == "headline"
    assert lines[3].split() == ["nothing", "-", "ms"]


def test_the_chart_has_a_bar_for_each_figure():
    bars = [chart.Bar("a <floor>", 2.0, "floor"), chart.Bar("ours", 4.0, "ours")]
    picture = ET.fromstring(chart.draw({"Redis": bars, "RabbitMQ": bars}, "some machine"))
    bars_drawn = [rect.attrib for rect in picture.iter("{http://www.w3.org/2000/svg}rect")]
    assert [attributes["class"] for attributes in bars_drawn] == ["page", "floor", "ours", "floor", "ours"]
    assert float(bars_drawn[2]["width"]) == 2 * float(bars_drawn[1]["width"])


def test_write_puts_a_report_into_the_page_and_short_summarises_it(tmp_path):
    page = tmp_path / "benchmarks.md"
    page.write_text(PAGE.read_text())
    report = PAGE.read_text().partition("```text\n")[2].partition("\n```")[0]
    write(page, report)
    assert page.read_text() == PAGE.read_text()
    assert costs.short(page.read_text()).count("\n") == 7
    write(page, f"2027-01-01, another machine\n\n{draw([])}")
    assert "What it printed on 2027-01-01 (" in page.read_text()


def test_the_capacity_of_a_relay_and_its_shards_is_measured(rabbit_server, tmp_path):
    tasks = 5_000  # the relay takes some 50 ms of CPU time, which the kernel counts in ticks of 10 ms
    measured = relay_all(tmp_path / "relay", rabbit_server, 2, tasks)
    assert min(measured) > 0
    own = shard_behind_relay(bodies(Cluster(tasks=100)), 2)
    assert 0 < own < 1_000
