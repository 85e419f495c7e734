"""--loki-url: entries of a real cluster in a strict receiver, and what happens if it refuses some."""

from __future__ import annotations

import json
import time
from collections import Counter

import jsonschema
import pytest
from harness.broker_marks import on_redis
from harness.exporter import run_cli
from harness.loki import Answer, Loki
from harness.processes import ROOT
from harness.sinks import exposed, outcomes, publish, send_mixed_tasks
from harness.waiting import eventually, until_equal

from celery_exporter.sinks.loki import MAX_BODY_BYTES

#: The fields of a line are those of the event log. Loki has the time of an entry already.
SCHEMA = json.loads((ROOT / "docs/reference/event-log.schema.json").read_text())
SCHEMA["required"].remove("time")
WEEK = 7 * 86_400


@pytest.fixture
def loki():
    with Loki() as loki:
        yield loki
    assert loki.faults == []


@pytest.fixture
def pushing(exporter, loki):
    """`pushing()` returns an exporter that pushes to the receiver."""
    return lambda *arguments, **options: exporter("--loki-url", loki.url, *arguments, **options)


def test_entries_are_as_many_as_the_metrics_say(running, pushing, worker, client, loki):
    """Real workers, with retries and failures; the lines have fields of the event log."""
    app = running(pushing("--service-name", "shop", "--static-label", "env=test")).connected()
    running(worker("w@box", queues="left,right"))
    send_mixed_tasks(client)
    eventually(lambda: app.total("celery_tasks_total", state="FAILURE") >= 2, 30)
    until_equal(lambda: app.total("celery_tasks_total", state="SUCCESS"), 3, 30)
    until_equal(lambda: loki.counts("state", "queue"), exposed(app, "state", "queue_name"), 20)
    until_equal(lambda: outcomes(app, "loki"), {"delivered": len(loki.entries)})
    uuids = {dict(entry.metadata)["uuid"] for entry in loki.entries}
    for entry in loki.entries:
        line, labels, metadata = json.loads(entry.line), dict(entry.labels), dict(entry.metadata)
        jsonschema.validate(line, SCHEMA)
        expected = {"service": "shop", "env": "test", "state": line["state"], "queue": labels["queue"]}
        assert labels == expected
        assert (metadata["uuid"], metadata["task"]) == (line["uuid"], line["task_name"])
        assert metadata["root"] in uuids
        assert metadata.get("worker", "") == ("" if line["state"] == "PENDING" else "w@box")
    assert Counter(dict(entry.metadata).get("exception") for entry in loki.entries)["ValueError"] == 1


@on_redis
def test_at_most_a_mebibyte_a_second_is_sent(running, pushing, broker, loki):
    app = running(pushing("--sink-flush-interval", "0.1")).connected()
    begin = time.monotonic()
    for start in range(0, 2_000, 100):
        publish(broker.url, *range(start, start + 100))
    until_equal(lambda: outcomes(app, "loki"), {"delivered": 8_000}, 60)
    assert len(loki.requests) > 1
    assert all(request.size <= MAX_BODY_BYTES for request in loki.requests)
    total = sum(request.size for request in loki.requests)
    seconds = loki.requests[-1].at - begin  # a busy machine makes it more, and never less
    assert total - loki.requests[-1].size <= MAX_BODY_BYTES * seconds
    assert total > 4 * sum(request.compressed for request in loki.requests)


@on_redis
def test_refused_entries_are_counted_and_the_others_are_stored(running, pushing, broker, loki):
    app = running(pushing()).connected()
    publish(broker.url, 1)
    publish(broker.url, 2, offset=-2 * WEEK)
    publish(broker.url, 3, offset=3_600)
    publish(broker.url, 4, offset=1e10)  # the year 2343, which no Loki can store
    until_equal(lambda: outcomes(app, "loki"), {"delivered": 4, "rejected": 12})
    assert {dict(entry.metadata)["uuid"] for entry in loki.entries} == {"task-1"}
    assert "has timestamp too" in app.text()


@on_redis
def test_a_rate_limit_delays_entries_and_repeats_none(running, pushing, broker, loki):
    """Loki stores the entries of some streams, and refuses those of others with status 429."""
    refusals = iter([True, True])

    def refuse_after_storing(headers: dict[str, str], compressed: bytes) -> Answer | None:
        if next(refusals, False):
            loki.before = lambda *_: None
            loki._lock.release()
            loki.answer("/loki/api/v1/push", headers, compressed)
            loki._lock.acquire()
            loki.before = refuse_after_storing
            return Answer(429, "Per stream rate limit exceeded (limit: 3MB/sec)", (("Retry-After", "1"),))
        return None

    loki.before = refuse_after_storing
    app = running(pushing()).connected()
    publish(broker.url, *range(5))
    until_equal(lambda: outcomes(app, "loki"), {"delivered": 20}, 20)
    assert (len(loki.entries), loki.repeated) == (20, 40)
    assert "status 429" in app.text()


@on_redis
def test_a_token_that_is_written_later_needs_no_restart(running, pushing, broker, loki, tmp_path):
    token = tmp_path / "token"
    loki.authorization = "Bearer new"
    app = running(pushing("--loki-token-file", str(token))).connected()
    publish(broker.url, 1)
    eventually(lambda: f"cannot read {token}: No such file or directory" in app.text())
    assert loki.requests == []
    token.write_text("new\n")
    until_equal(lambda: outcomes(app, "loki"), {"delivered": 4}, 60)
    assert "works again" in app.text()


@on_redis
def test_a_token_that_is_replaced_needs_no_restart(running, pushing, broker, loki, tmp_path):
    token = tmp_path / "token"
    token.write_text("old-token\n")
    loki.authorization = "Bearer new"
    app = running(pushing("--loki-token-file", str(token))).connected()
    publish(broker.url, 1)
    eventually(lambda: "status 401" in app.text())
    token.write_text("new\n")
    until_equal(lambda: outcomes(app, "loki"), {"delivered": 4}, 60)
    assert "old-token" not in app.text()
    assert "works again" in app.text()


@on_redis
def test_entries_wait_for_a_loki_that_is_away_and_metrics_do_not(running, pushing, broker, loki):
    loki.before = lambda *_: Answer(503, "at least 1 live replicas required, could only find 0")
    app = running(pushing("--sink-buffer", "1000")).connected()
    for start in range(0, 500, 100):
        publish(broker.url, *range(start, start + 100))
    until_equal(lambda: app.total("celery_tasks_total", state="SUCCESS"), 500)
    begin = time.monotonic()
    assert app.samples().value("celery_exporter_sink_buffered_records", sink="loki") <= 1_000
    assert time.monotonic() - begin < 10
    loki.before = lambda *_: None
    until_equal(lambda: app.value("celery_exporter_sink_buffered_records", sink="loki"), 0, 60)
    assert sum(outcomes(app, "loki").values()) == 2_000
    assert outcomes(app, "loki")["delivered"] == len(loki.entries) >= 1_000


def test_contradicting_options_end_the_start():
    result = run_cli(
        "--broker-url", "redis://127.0.0.1:1/0", "--loki-url", "http://127.0.0.1:1", "--loki-user", "me"
    )
    assert result.returncode == 2
    assert result.stderr == (
        "celery-exporter: --loki-user and --loki-password-file: got one of them; give both or none\n"
    )
