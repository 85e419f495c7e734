"""The sink of InfluxDB: its settings, requests, and what it makes of answers."""

from __future__ import annotations

import base64
import json

import pytest
from harness.receiver import Answer, Receiver

from celery_exporter.core.records import Record
from celery_exporter.core.types import State
from celery_exporter.errors import BadSettingError
from celery_exporter.sinks.base import REJECTED, TOO_LARGE, PermanentError, TemporaryError
from celery_exporter.sinks.factory import pushers_for
from celery_exporter.sinks.influxdb import InfluxSink, rejected_points

from .configs import sinks_config
from .line_reader import read

BODY = b"m x=1 1\n"
V1 = {"influx_version": 1, "influx_database": "celery"}
V2 = {"influx_org": "org", "influx_bucket": "bucket"}
V3 = {"influx_version": 3, "influx_database": "celery"}


def sink(url: str = "http://influxdb:8086", **options) -> InfluxSink:
    return InfluxSink(sinks_config(influx_url=url, **options))


def complaint(**options) -> str:
    with pytest.raises(BadSettingError) as caught:
        sink(**options)
    text = str(caught.value)
    assert "\n" not in text
    return text


@pytest.fixture
def receiver():
    with Receiver() as receiver:
        yield receiver


# -- settings ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "address"),
    [
        (V1, "http://influxdb:8086/write?db=celery&precision=ns"),
        (V2, "http://influxdb:8086/api/v2/write?org=org&bucket=bucket&precision=ns"),
        (V3, "http://influxdb:8086/api/v3/write_lp?db=celery&precision=nanosecond"),
        (
            {**V2, "influx_org": "a&b c/d"},
            "http://influxdb:8086/api/v2/write?org=a%26b+c%2Fd&bucket=bucket&precision=ns",
        ),
    ],
)
def test_each_version_has_its_path(options, address):
    assert sink(**options).address == address


def test_a_path_of_the_url_is_kept():
    assert sink("https://gateway/influx/", **V1).address.startswith("https://gateway/influx/write?db=")


OTHER_VERSION = "{0}: --influx-version {1} does not use it; give {2}, or choose --influx-version {3}"
MISSING = "{0} is missing; --influx-version {1} needs {2}"
NOT_BOTH = "{0} is missing; give both --influx-user and --influx-password-file, or none"
LABEL = (
    "--static-label: got {0!r}; with --influx-url it takes a name that begins with a letter and that points "
    "do not have"
)
DATABASE, ORG_AND_BUCKET = "--influx-database", "--influx-org and --influx-bucket"


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"influx_version": 1}, MISSING.format(DATABASE, 1, DATABASE)),
        ({"influx_version": 3}, MISSING.format(DATABASE, 3, DATABASE)),
        ({}, MISSING.format("--influx-org", 2, ORG_AND_BUCKET)),
        ({"influx_org": "org"}, MISSING.format("--influx-bucket", 2, ORG_AND_BUCKET)),
        ({"influx_database": "celery"}, OTHER_VERSION.format(DATABASE, 2, ORG_AND_BUCKET, "1 or 3")),
        ({**V1, "influx_bucket": "b"}, OTHER_VERSION.format("--influx-bucket", 1, DATABASE, 2)),
        ({**V3, "influx_org": "org"}, OTHER_VERSION.format("--influx-org", 3, DATABASE, 2)),
        ({**V3, "influx_user": "me"}, OTHER_VERSION.format("--influx-user", 3, DATABASE, 1)),
        (
            {**V1, "influx_token_file": "/t"},
            OTHER_VERSION.format("--influx-token-file", 1, DATABASE, "2 or 3"),
        ),
        ({**V1, "influx_user": "me"}, NOT_BOTH.format("--influx-password-file")),
        ({**V1, "influx_password_file": "/p"}, NOT_BOTH.format("--influx-user")),
        (
            {**V1, "influx_user": "a:b", "influx_password_file": "/p"},
            "--influx-user: got 'a:b'; it takes a name without a colon",
        ),
        ({**V2, "static_label": ("error_code=x",)}, LABEL.format("error_code=x")),
        ({**V2, "static_label": ("_x=1",)}, LABEL.format("_x=1")),
    ],
)
def test_settings_that_do_not_fit_are_named(options, text):
    assert complaint(**options) == text


def test_the_sink_is_on_with_a_url_only():
    assert [pusher.name for pusher in pushers_for(sinks_config(influx_url="http://h", **V2))] == ["influxdb"]
    assert pushers_for(sinks_config(influx_version=1, influx_layout="luna")) == []
    with pytest.raises(BadSettingError, match=r"^--influx-database: has no effect without --influx-url"):
        pushers_for(sinks_config(**V1))


def test_layout_service_and_version_reach_the_points():
    record = Record(
        *("uuid", "root", None, "tasks.add", "q", "w@h", None, 0, 0, State.FAILURE, 1.7e9, "ValueError"),
        is_final=True,
    )
    luna = sink(influx_layout="luna", service_name="shop", static_label=("env=prod",), **V3)
    assert luna.select([record]) == [record]
    error, final = read(luna.encode([record]).body)
    tags = {"service": "shop", "env": "prod", "task_type": "tasks.add", "error_code": "ValueError"}
    assert error.tags == {**tags, "task_id": "root", "subtask_id": "uuid"}
    assert (error.fields, final.fields) == ({"error": "ValueError"}, {"final_status": "FAILURE"})
    (error, _) = read(sink(**V1).encode([record]).body)
    assert error.fields["error_code"] == "ValueError"
    assert (error.tags["service"], error.tags["queue"]) == ("celery", "q")


# -- requests ----------------------------------------------------------------------------------------------


def test_a_payload_is_posted_with_the_login_of_each_version(receiver, tmp_path):
    secret = tmp_path / "secret"
    secret.write_text("s3:cret\n")
    user = {"influx_user": "me", "influx_password_file": secret}
    token = {"influx_token_file": secret}
    for options in ({**V1, **user}, {**V2, **token}, {**V3, **token}, V1):
        writer = sink(receiver.url, **options)
        writer.send(BODY, 5.0)
        writer.close()
    requests = receiver.requests
    assert {request.body for request in requests} == {BODY}
    assert [request.headers.get("authorization") for request in requests] == [
        "Basic " + base64.b64encode(b"me:s3:cret").decode(),
        "Token s3:cret",
        "Bearer s3:cret",
        None,
    ]
    assert all("cret" not in request.path for request in requests)
    assert requests[0].path == "/write?db=celery&precision=ns"


def test_a_secret_is_read_for_each_request(receiver, tmp_path):
    token = tmp_path / "token"
    token.write_text("old")
    writer = sink(receiver.url, influx_token_file=token, **V2)
    writer.send(BODY, 5.0)
    token.unlink()
    with pytest.raises(TemporaryError, match=f"cannot read {token}: No such file"):
        writer.send(BODY, 5.0)
    token.write_text("new")
    writer.send(BODY, 5.0)
    writer.close()
    assert [request.headers["authorization"] for request in receiver.requests] == ["Token old", "Token new"]


def failure(receiver: Receiver, answer: Answer) -> PermanentError | TemporaryError:
    receiver.answer = answer
    writer = sink(receiver.url, **V1)
    with pytest.raises((PermanentError, TemporaryError)) as caught:
        writer.send(BODY, 5.0)
    writer.close()
    assert "\n" not in str(caught.value)
    return caught.value


def test_a_partial_write_counts_the_points_that_were_rejected(receiver):
    answer = b'{"error":"partial write: points beyond retention policy dropped=3"}\n'
    error = failure(receiver, Answer(400, answer))
    assert isinstance(error, PermanentError)
    assert (error.outcome, error.count) == (REJECTED, 3)
    assert "points beyond retention policy" in str(error)


@pytest.mark.parametrize("status", [401, 403, 404, 429, 500, 503])
def test_what_may_change_is_tried_again(receiver, status):
    error = failure(receiver, Answer(status, b'{"error":"database not found"}', {"Retry-After": "7"}))
    assert isinstance(error, TemporaryError)
    assert error.retry_after == 7


def test_a_payload_that_is_too_large_is_no_partial_write(receiver):
    error = failure(receiver, Answer(413, b'{"error":"Request Entity Too Large"}'))
    assert isinstance(error, PermanentError)
    assert (error.outcome, error.count) == (TOO_LARGE, None)


# -- answers to partial writes -----------------------------------------------------------------------------

V1_CONFLICT = (
    'partial write: field type conflict: input field "x" on measurement "m" is type float, already exists as '
    "type string dropped=2"
)
V2_RETENTION = (
    "failure writing points to database: partial write: dropped 4 points outside retention policy of "
    "duration 24h0m0s - oldest point home,space=a at 1970-01-01T00:00:01Z dropped because it violates a "
    "Retention Policy Lower Bound dropped=4 for database: 9f282d63c7d3a5c0 for retention policy: autogen"
)
CLOUD = (
    "partial write error (5 accepted): 1 out of 6 points rejected (check rejected_points in your _monitoring "
    "bucket for further information)"
)


def listed(*numbers: int, **fields: str) -> str:
    lines = [{"original_line": "m x=hi", "line_number": number, **fields} for number in numbers]
    return json.dumps({"error": "partial write of line protocol occurred", "data": lines})


@pytest.mark.parametrize(
    ("answer", "count"),
    [
        (json.dumps({"error": V1_CONFLICT}), 2),
        (json.dumps({"error": "partial write: unable to parse 'x': a??unable to parse 'y': b dropped=0"}), 2),
        (json.dumps({"error": "partial write: dropped=99 in a tag dropped=1"}), 1),
        (json.dumps({"code": "unprocessable entity", "message": V2_RETENTION}), 4),
        (json.dumps({"code": "invalid", "message": CLOUD}), 1),
        (listed(2), 1),
        (listed(2, 5, 9, 9), 3),
        (listed(1, error_message='"line_number":7 in a text'), 1),
        (listed(*range(100)), None),  # 100 lines are listed at most, so there may be more
        (listed(*range(50))[:-20], None),  # cut
        (json.dumps({"error": "unable to parse 'x': missing fields"}), None),
        (json.dumps({"error": "partial write: something else"}), None),
        (json.dumps({"error": "partial write: nothing counted dropped=0"}), None),
        ("", None),
        ("<html>400 Bad Request</html>", None),
    ],
)
def test_rejected_points_are_counted_as_each_version_reports_them(answer, count):
    assert rejected_points(answer) == count
