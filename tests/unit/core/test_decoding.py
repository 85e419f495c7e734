"""What is judged of a body that the fast decoder does not take as it is."""

from __future__ import annotations

import json

import pytest

from celery_exporter.core.events import MAX_LOOSE_BYTES, Event, Malformed, decode, from_objects

from .cluster_driver import failed, sent

GOOD = sent()
TEXT = json.dumps(GOOD).encode()


@pytest.mark.parametrize("space", [b"\x0b", b"\x0c", b"\xc2\xa0"])
def test_what_is_white_space_elsewhere_is_none_in_json(space):
    assert decode(b"[" + space + TEXT + b"," + TEXT + b"]")[0] == Malformed("undecodable")
    assert decode(b"[" + TEXT + b"]" + space)[1:] == [Malformed("undecodable")]


def test_nothing_between_two_commas_is_one_bad_event():
    assert decode(b"[" + TEXT + b",," + TEXT + b"]")[1] == Malformed("undecodable")


def test_a_bad_event_longer_than_a_megabyte_is_not_looked_into():
    bad = b'[{"type": NaN, "args": "%s"}]'
    longest = b"x" * (MAX_LOOSE_BYTES - len(bad % b"") + 2)  # the brackets are no part of it
    assert decode(bad % longest) == [Malformed("bad_field")]
    assert decode(bad % (longest + b"x")) == [Malformed("undecodable")]


def test_a_number_of_any_length_is_judged_like_others_out_of_range():
    digits = b"9" * 5_000
    assert decode(TEXT.replace(b'"retries": 0', b'"retries": ' + digits)) == [Malformed("bad_field")]


def test_an_application_s_own_event_is_its_type_and_nothing_else():
    own = {"type": "order-shipped", "timestamp": 17, "hostname": "shop@h", "uuid": {"a": 1}}
    assert decode(json.dumps(own).encode()) == [Event("order-shipped", 0.0, "")]


@pytest.mark.parametrize("missing", ["type", "timestamp", "hostname", "uuid"])
def test_an_object_of_another_serialiser_lacks_what_it_lacks(missing):
    event = {field: value for field, value in GOOD.items() if field != missing}
    assert from_objects(event) == from_objects([event]) == [Malformed("missing_field")]


def test_one_object_of_another_serialiser_is_one_event():
    assert from_objects(GOOD) == from_objects((GOOD,)) == decode(TEXT)


def test_a_lone_surrogate_in_a_traceback_does_not_cost_the_failure():
    event = failed(exception="ExceptionWithTraceback()", traceback="\ud800 x")
    (found,) = decode(json.dumps(event).encode())
    assert isinstance(found, Event)
    assert found.traceback == "? x"
