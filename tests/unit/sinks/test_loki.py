"""Bodies are those that Loki documents, and what it does not store is counted."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from harness.loki import Answer, Loki
from hypothesis import given
from hypothesis import strategies as st

from celery_exporter.core.records import MeasuredRecord, Measurements, Record
from celery_exporter.core.types import State
from celery_exporter.errors import BadSettingError
from celery_exporter.sinks.base import REJECTED, TOO_LARGE, PermanentError, TemporaryError
from celery_exporter.sinks.compression import gzipped
from celery_exporter.sinks.config import LokiConfig
from celery_exporter.sinks.log_line import LogLine
from celery_exporter.sinks.loki import LABELS, MAX_TIMESTAMP, PUSH_PATH, Line, LokiSink, loki_sink

from .transitions import PARENT, ROOT, T0, UUID, failure, transition

HOUR = 3_600.0


@pytest.fixture
def loki():
    with Loki() as loki:
        yield loki


def config(url: str | None, **options: Any) -> LokiConfig:
    names = ("loki_tenant", "loki_user", "loki_password_file", "loki_token_file")
    return LokiConfig(loki_url=url, **{**dict.fromkeys(names), **options})


def sink_for(loki: Loki, static: dict[str, str] | None = None, **options: Any) -> LokiSink:
    sink = loki_sink(config(loki.url, **options), "shop", static or {})
    assert sink is not None
    return sink


def send(sink: LokiSink, *records: Record) -> None:
    sink.send(sink.encode(records).body, 5.0)


def now(offset: float = 0.0) -> dict[str, float]:
    return {"timestamp": time.time() + offset}


def body(sink: LokiSink, *records: Record) -> Any:
    return json.loads(sink.encode(records).body)


OFFLINE = LokiSink("http://127.0.0.1:1", config("http://127.0.0.1:1"), "shop", {})


# -- bodies --------------------------------------------------------------------------------------------


def test_transitions_are_wanted_and_measurements_are_not():
    record, measured = transition(), MeasuredRecord("u", None, "n", "w", T0, Measurements())
    assert OFFLINE.select([record, measured]) == [record]


def test_an_entry_has_time_line_and_metadata_and_its_stream_has_few_labels():
    line = {
        "state": "FAILURE",
        "task_name": "mail.send",
        "uuid": UUID,
        "client": "gen1@web",
        "parent_id": PARENT,
        "generation": 1,
        "queue_wait_seconds": 1.5,
        "prefetch_wait_seconds": 1.5,
        "runtime_seconds": 2.0,
        "sent": T0,
        "eta": T0 + 1,
        "received": T0 + 0.25,
        "started": T0 + 2.5,
        "args": "(1,)",
        "kwargs": "{'to': 'a'}",
        "result": "None",
    }
    metadata = {
        "uuid": UUID,
        "task": "mail.send",
        "root": ROOT,
        "worker": "w@h",
        "retries": "1",
        "exception": "ValueError",
    }
    (stream,) = body(OFFLINE, failure())["streams"]
    assert stream["stream"] == {"service": "shop", "state": "FAILURE", "queue": "emails"}
    ((time, text, structured),) = stream["values"]
    assert (time, json.loads(text), structured) == ("1700000004500000000", line, metadata)


def test_each_field_of_the_event_log_is_in_the_line_the_metadata_or_a_label():
    """The broker is a static label, if there are several."""
    elsewhere = {"time", "queue_name", "worker", "root_id", "retries", "exception", "broker"}
    assert {*LogLine.__struct_fields__} == {*Line.__struct_fields__} | elsewhere
    assert LABELS == ("service", "state", "queue")


def test_only_the_end_of_an_attempt_has_its_times():
    ((_, text, _),) = body(OFFLINE, failure(state=State.STARTED, runtime=None))["streams"][0]["values"]
    assert json.loads(text).keys() & {"sent", "eta", "received", "started"} == set()


def test_what_is_unknown_is_absent():
    unknown = dict.fromkeys(("root", "parent", "queue", "worker", "client", "attempt", "sent"))
    (stream,) = body(OFFLINE, transition(state=State.PENDING, **unknown))["streams"]
    assert stream["stream"] == {"service": "shop", "state": "PENDING"}
    ((_, text, metadata),) = stream["values"]
    assert metadata == {"uuid": UUID, "task": "mail.send"}
    assert json.loads(text) == {"state": "PENDING", "task_name": "mail.send", "uuid": UUID}


def test_static_labels_are_labels():
    sink = LokiSink("http://127.0.0.1:1", config("http://127.0.0.1:1"), "shop", {"env": "prod"})
    (stream,) = body(sink, transition())["streams"]
    assert stream["stream"] == {"env": "prod", "service": "shop", "state": "RECEIVED", "queue": "emails"}


def test_entries_are_grouped_by_labels_and_in_the_order_of_their_time():
    records = [
        transition(timestamp=T0 + offset, queue=queue, state=state)
        for offset, queue, state in [
            (3, "a", State.STARTED),
            (1, "a", State.STARTED),
            (2, "b", State.STARTED),
            (0, "a", State.PENDING),
            (2, "a", State.STARTED),
        ]
    ]
    streams = {
        (stream["stream"]["queue"], stream["stream"]["state"]): [
            int(time) // 10**9 - int(T0) for time, _, _ in stream["values"]
        ]
        for stream in body(OFFLINE, *records)["streams"]
    }
    assert streams == {("a", "STARTED"): [1, 2, 3], ("b", "STARTED"): [2], ("a", "PENDING"): [0]}


text = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=255)


@given(
    st.lists(
        st.tuples(text, text, text, st.sampled_from(State), st.floats(-HOUR / 2, 500)),
        min_size=1,
        max_size=20,
    )
)
def test_any_texts_are_accepted_and_stored(values):
    records = [
        failure(uuid=f"{number} {uuid}", name=name, queue=queue[:200], state=state, **now(offset))
        for number, (uuid, name, queue, state, offset) in enumerate(values)
    ]
    loki, headers = Loki(), {"Content-Type": "application/json", "Content-Encoding": "gzip"}
    assert loki.answer(PUSH_PATH, headers, gzipped(OFFLINE.encode(records).body)) == Answer(204)
    lines = {(line["uuid"], line["task_name"]) for line in (json.loads(entry.line) for entry in loki.entries)}
    assert lines == {(record.uuid, record.name) for record in records}
    assert loki.faults == []


def test_a_time_that_does_not_fit_is_left_out_since_loki_would_refuse_the_whole_body(loki):
    sink = sink_for(loki)
    payload = sink.encode([transition(**now()), transition(timestamp=MAX_TIMESTAMP)])
    assert payload.left_out == {REJECTED: 1}
    sink.send(payload.body, 5.0)
    assert len(loki.entries) == 1


# -- requests ------------------------------------------------------------------------------------------


def test_a_body_is_pushed_as_gzipped_json(loki):
    sink = sink_for(loki)
    for number in range(3):
        send(sink, transition(uuid=f"u{number}", **now()))
    assert loki.counts("service", "state", "queue") == {("shop", "RECEIVED", "emails"): 3}
    assert [request.answer.status for request in loki.requests] == [204] * 3
    assert loki.faults == []
    sink.close()


def test_a_body_that_comes_again_is_stored_once(loki):
    """So an answer that was lost does not double entries."""
    sink = sink_for(loki)
    records = [transition(uuid=f"u{number}", **now()) for number in range(3)]
    send(sink, *records)
    send(sink, *records)
    assert (len(loki.entries), loki.repeated) == (3, 3)


def test_the_tenant_is_a_header(loki):
    loki.tenant = "team-a"
    with pytest.raises(TemporaryError, match="status 401: no org id"):
        send(sink_for(loki), transition(**now()))
    send(sink_for(loki, loki_tenant="team-a"), transition(**now()))
    assert len(loki.entries) == 1


def test_passwords_and_tokens_are_read_again_for_each_request(loki, tmp_path):
    secret = tmp_path / "secret"
    makes: list[tuple[Callable[[], LokiSink], Callable[[str], str]]] = [
        (
            lambda: sink_for(loki, loki_user="me", loki_password_file=secret),
            lambda password: f"Basic {base64.b64encode(f'me:{password}'.encode()).decode()}",
        ),
        (lambda: sink_for(loki, loki_token_file=secret), lambda token: f"Bearer {token}"),
    ]
    for make, header in makes:
        secret.write_text("old\n")
        sink = make()
        loki.authorization = header("old")
        send(sink, transition(**now()))
        loki.authorization = header("new")
        with pytest.raises(TemporaryError, match="status 401"):
            send(sink, transition(**now()))
        secret.write_text("new\n")
        send(sink, transition(**now()))
        secret.unlink()
        with pytest.raises(TemporaryError, match=rf"^cannot read {secret}: No such file or directory$"):
            send(sink, transition(**now()))
    assert len(loki.entries) == 4


# -- answers -------------------------------------------------------------------------------------------


def lost(sink: LokiSink, *records: Record) -> tuple[str, int | None]:
    with pytest.raises(PermanentError) as error:
        send(sink, *records)
    return error.value.outcome, error.value.count


def test_entries_that_are_too_old_or_too_new_are_counted_and_the_others_are_stored(loki):
    sink = sink_for(loki)
    good = [transition(uuid=f"good{number}", **now()) for number in range(4)]
    old = [transition(uuid=f"old{number}", **now(-8 * 24 * HOUR)) for number in range(3)]
    new = [transition(uuid=f"new{number}", queue="other", **now(HOUR)) for number in range(2)]
    assert lost(sink, *good, *old, *new) == (REJECTED, 5)
    assert len(loki.entries) == 4
    assert lost(sink, *old[:1]) == (REJECTED, 1)


def test_entries_that_are_too_far_behind_their_stream_are_counted(loki):
    sink = sink_for(loki)
    send(sink, transition(uuid="first", **now()))
    late = [transition(uuid=f"late{number}", **now(-2 * HOUR)) for number in range(12)]
    assert lost(sink, *late, transition(uuid="good", **now())) == (REJECTED, 12)
    assert len(loki.entries) == 2


def test_loki_without_structured_metadata_rejects_all_entries(loki):
    loki.structured_metadata = False
    records = [transition(uuid=f"u{number}", **now()) for number in range(3)]
    assert lost(sink_for(loki), *records) == (REJECTED, 3)


def test_a_stream_with_too_many_labels_counts_all_entries(loki):
    """Loki does not say how many entries a stream had that it refused."""
    sink = sink_for(loki, {f"label{number}": "x" for number in range(13)})
    assert lost(sink, transition(**now()), transition(**now())) == (REJECTED, None)


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("", None),
        ("unexpected end of JSON input", None),
        ("entry for stream '{}' has timestamp too new: x; stream '{}' has label name too long: 'x'", None),
        ("7 errors like: missing required labels team for user fake for stream {}", None),
        ("7 errors like: Max entry size '262144' bytes exceeded for stream '{}' while adding", 7),
        ("stream '{}' has too many structured metadata labels: '129', limit: '128'. Please see x", 1),
        ("user 'fake', total ignored: 3 out of 5 for stream: {}", 3),
    ],
)
def test_the_count_is_unknown_unless_each_error_is_of_an_entry(loki, text, count):
    loki.before = lambda *_: Answer(400, text)
    assert lost(sink_for(loki), transition(**now())) == (REJECTED, count)


@pytest.mark.parametrize("status", [401, 403, 404, 429, 500, 502, 503])
def test_what_may_pass_later_is_tried_again(loki, status):
    loki.before = lambda *_: Answer(status, "later", (("Retry-After", "7"),))
    with pytest.raises(
        TemporaryError, match=f"{loki.url}/loki/api/v1/push answers with status {status}: later"
    ) as e:
        send(sink_for(loki), transition(**now()))
    assert e.value.retry_after == 7


def test_a_body_that_is_too_large_can_be_divided(loki):
    loki.before = lambda *_: Answer(413, "request body too large: 9 bytes, limit: 8 bytes")
    assert lost(sink_for(loki), transition(**now())) == (TOO_LARGE, None)


def test_a_tenant_whose_entries_are_dropped_has_delivered_none(loki):
    """Loki answers with status 260, which looks like a success."""
    loki.before = lambda *_: Answer(
        260, "ingestion blocked for user fake until '2030' with status code '260'"
    )
    with pytest.raises(PermanentError, match="drops all entries: ingestion blocked for user fake") as error:
        send(sink_for(loki), transition(**now()))
    assert (error.value.outcome, error.value.count) == (REJECTED, None)


def test_a_probe_checks_the_login_and_stores_nothing(loki, tmp_path):
    (tmp_path / "token").write_text("t")
    loki.authorization = "Bearer t"
    sink_for(loki, loki_token_file=tmp_path / "token").probe(5.0)
    with pytest.raises(TemporaryError, match="status 401"):
        sink_for(loki).probe(5.0)
    loki.before = lambda *_: Answer(204)  # Loki 2
    sink_for(loki).probe(5.0)
    assert loki.entries == []


# -- settings ------------------------------------------------------------------------------------------

FILE = Path("file")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"loki_user": "me"}, "--loki-user and --loki-password-file: got one of them; give both or none"),
        ({"loki_password_file": FILE}, "--loki-user and --loki-password-file: got one of them"),
        (
            {"loki_token_file": FILE, "loki_user": "me"},
            "--loki-token-file: got a user or password, too; give a token",
        ),
        (
            {"loki_token_file": FILE, "loki_password_file": FILE},
            "--loki-token-file: got a user or password, too",
        ),
        (
            {"loki_user": "a:b", "loki_password_file": FILE},
            "--loki-user: got 'a:b'; it takes a name without a colon",
        ),
        ({"loki_tenant": "a\nb"}, r"--loki-tenant: got 'a\\nb'; it takes up to 150 letters, digits and"),
        ({"loki_tenant": "a|b"}, r"--loki-tenant: got 'a\|b'"),
    ],
)
def test_settings_that_contradict_are_errors(options, message):
    with pytest.raises(BadSettingError, match=f"^{message}"):
        loki_sink(config("http://loki:3100", **options), "shop", {})


@pytest.mark.parametrize("name", ["loki_tenant", "loki_user", "loki_password_file", "loki_token_file"])
def test_a_setting_without_a_url_is_an_error(name):
    with pytest.raises(
        BadSettingError, match=f"^--{name.replace('_', '-')}: has no effect without --loki-url"
    ):
        loki_sink(config(None, **{name: "x"}), "shop", {})


def test_without_a_url_there_is_no_sink():
    assert loki_sink(config(None), "shop", {"queue": "x"}) is None


@pytest.mark.parametrize("name", ["service", "state", "queue"])
def test_a_static_label_that_the_sink_sets_is_an_error(name):
    message = f"^--static-label: got '{name}=x'; with --loki-url, Loki has a label {name}"
    with pytest.raises(BadSettingError, match=message):
        loki_sink(config("http://loki:3100"), "shop", {name: "x"})


def test_a_url_with_the_path_of_the_api_is_an_error():
    with pytest.raises(
        BadSettingError, match=r"^--loki-url: got 'http://loki:3100/loki/api/v1/push'; it takes the URL"
    ):
        loki_sink(config("http://loki:3100/loki/api/v1/push"), "shop", {})
