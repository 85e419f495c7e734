"""A line is a JSON object with the documented fields, whatever texts a task has."""

from __future__ import annotations

import json

import jsonschema
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from celery_exporter.core.records import Arguments
from celery_exporter.core.types import State
from celery_exporter.sinks.log_line import LogLine, encode_lines, log_line
from tools.docgen import event_log

from .transitions import PARENT, ROOT, T0, UUID, failure, transition

SCHEMA = json.loads(event_log.made()[event_log.PATH])


def test_a_line_has_each_field_of_the_record():
    assert json.loads(encode_lines([failure()])) == {
        "time": "2023-11-14T22:13:24.500000Z",
        "state": "FAILURE",
        "task_name": "mail.send",
        "uuid": UUID,
        "queue_name": "emails",
        "worker": "w@h",
        "client": "gen1@web",
        "root_id": ROOT,
        "parent_id": PARENT,
        "retries": 1,
        "generation": 1,
        "exception": "ValueError",
        "sent": T0,
        "eta": T0 + 1,
        "received": T0 + 0.25,
        "started": T0 + 2.5,
        "queue_wait_seconds": 1.5,
        "prefetch_wait_seconds": 1.5,
        "runtime_seconds": 2.0,
        "args": "(1,)",
        "kwargs": "{'to': 'a'}",
        "result": "None",
    }


def test_a_field_that_is_unknown_is_absent():
    unknown = dict.fromkeys(("root", "parent", "queue", "worker", "client", "attempt", "sent"))
    assert json.loads(encode_lines([transition(state=State.PENDING, **unknown)])) == {
        "time": "2023-11-14T22:13:20.250000Z",
        "state": "PENDING",
        "task_name": "mail.send",
        "uuid": UUID,
    }


def test_only_the_end_of_an_attempt_has_its_times():
    """Each of them was the time of a line before."""
    line = json.loads(encode_lines([failure(state=State.STARTED, runtime=None)]))
    assert line.keys() & {"sent", "eta", "received", "started"} == set()
    assert line["queue_wait_seconds"] == 1.5


def test_the_first_attempt_is_known_and_0():
    assert json.loads(encode_lines([transition()]))["retries"] == 0


@pytest.mark.parametrize("state", State)
def test_every_state_is_in_the_schema(state):
    jsonschema.validate(json.loads(encode_lines([failure(state=state)])), SCHEMA)


def test_the_schema_has_the_fields_of_a_line_and_no_null():
    assert list(SCHEMA["properties"]) == list(LogLine.__struct_fields__)
    assert SCHEMA["required"] == ["time", "state", "task_name", "uuid"]
    assert "null" not in json.dumps(SCHEMA)
    for wrong in ({"worker": None}, {"state": "DONE"}, {"retries": "1"}):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate({**json.loads(encode_lines([failure()])), **wrong}, SCHEMA)


text = st.text(st.characters(exclude_categories=["Cs"]), min_size=1)  # the core refuses lone surrogates


@given(
    st.lists(st.tuples(text, text, text, st.floats(0, 1e11, exclude_min=True, exclude_max=True)), max_size=5)
)
def test_any_texts_and_times_are_one_line_for_each_record(values):
    records = [
        failure(uuid=uuid, name=name, timestamp=at, arguments=Arguments(args))
        for uuid, name, args, at in values
    ]
    *lines, rest = encode_lines(records).split(b"\n")
    assert rest == b""
    assert [msgspec.json.decode(line, type=LogLine) for line in lines] == list(map(log_line, records))
