"""The variables of OpenTelemetry → how spans are sent."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from celery_exporter.cli.main import run
from celery_exporter.config.loader import load
from celery_exporter.errors import BadSettingError
from celery_exporter.sinks.config import OtlpConfig

BASE, TRACES = "OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"


def settings(environ=None, **argv):
    return load({"broker_url": "redis://host:6379/0", **argv}, environ or {})


def otlp(environ=None, **argv) -> OtlpConfig:
    return settings(environ, **argv).sinks.otlp


def complaint(environ) -> str:
    with pytest.raises(BadSettingError) as caught:
        otlp({BASE: "http://tempo:4318", **environ})
    text = str(caught.value)
    assert "\n" not in text
    return text


@pytest.mark.parametrize(
    ("environ", "argv", "url"),
    [
        ({}, {}, None),
        ({}, {"otlp_endpoint": "http://a:4318"}, "http://a:4318/v1/traces"),
        ({}, {"otlp_endpoint": "https://a/otlp/"}, "https://a/otlp/v1/traces"),
        ({BASE: "http://b:4318"}, {}, "http://b:4318/v1/traces"),
        ({BASE: "http://b:4318"}, {"otlp_endpoint": "http://a:4318"}, "http://a:4318/v1/traces"),
        ({BASE: "http://b:4318", "CE_OTLP_ENDPOINT": "http://c"}, {}, "http://c/v1/traces"),
        ({BASE: "http://b:4318", TRACES: "http://d/x/"}, {}, "http://d/x/"),
        ({TRACES: "http://d:4318"}, {}, "http://d:4318"),
        ({TRACES: "http://d:4318"}, {"otlp_endpoint": "http://a:4318"}, "http://a:4318/v1/traces"),
        ({TRACES: "http://d:4318", "CE_OTLP_ENDPOINT": "http://c"}, {}, "http://c/v1/traces"),
        ({BASE: "", TRACES: ""}, {}, None),
    ],
)
def test_the_url_of_traces(environ, argv, url):
    """The URL of the variable for traces is used as it is; the others are base URLs."""
    config = settings(environ, **argv)
    assert config.sinks.otlp.otlp_endpoint == url
    assert config.sinks.is_any_on == config.monitor.records == config.monitor.traces == (url is not None)


@pytest.mark.parametrize(
    "off",
    [{"OTEL_TRACES_EXPORTER": "none"}, {"OTEL_TRACES_EXPORTER": "console"}, {"OTEL_SDK_DISABLED": " True"}],
)
def test_variables_turn_off_what_variables_turn_on(off):
    assert otlp({BASE: "localhost:4317", **off}).otlp_endpoint is None
    assert otlp(off, otlp_endpoint="http://a").otlp_endpoint == "http://a/v1/traces"
    assert otlp({BASE: "http://b", **dict.fromkeys(off, "")}).otlp_endpoint is not None


def test_defaults():
    config = otlp(otlp_endpoint="http://a:4318")
    assert (config.headers, config.timeout_seconds, config.is_compressed) == ({}, 10.0, False)
    assert config.certificate is None
    assert config.resource == {"service.name": "celery"}


@pytest.mark.parametrize(
    ("name", "text", "field", "value"),
    [
        ("HEADERS", "api-key=s3cret", "headers", {"api-key": "s3cret"}),
        ("HEADERS", " a = b%20c ,, d=e==", "headers", {"a": "b c", "d": "e=="}),
        ("HEADERS", "Authorization=Basic%20dTpw", "headers", {"Authorization": "Basic dTpw"}),
        ("TIMEOUT", "2500", "timeout_seconds", 2.5),
        ("TIMEOUT", "0", "timeout_seconds", 10.0),
        ("COMPRESSION", "gzip", "is_compressed", True),
        ("COMPRESSION", "none", "is_compressed", False),
        ("CERTIFICATE", "/etc/ca.pem", "certificate", Path("/etc/ca.pem")),
        ("PROTOCOL", "http/protobuf", "timeout_seconds", 10.0),
    ],
)
def test_a_setting_has_a_variable_for_traces_and_one_for_all_signals(name, text, field, value):
    for_all, for_traces = f"OTEL_EXPORTER_OTLP_{name}", f"OTEL_EXPORTER_OTLP_TRACES_{name}"
    for environ in ({for_all: text}, {for_traces: text}, {for_all: "other", for_traces: text}):
        assert getattr(otlp({BASE: "http://a:4318", **environ}), field) == value


@pytest.mark.parametrize(
    ("environ", "labels", "service_name", "resource"),
    [
        ({"OTEL_SERVICE_NAME": "shop"}, (), None, {"service.name": "shop"}),
        ({"OTEL_RESOURCE_ATTRIBUTES": "service.name=shop"}, (), None, {"service.name": "shop"}),
        (
            {"OTEL_SERVICE_NAME": "shop", "OTEL_RESOURCE_ATTRIBUTES": "service.name=other,a=b%2Cc"},
            (),
            None,
            {"service.name": "shop", "a": "b,c"},
        ),
        ({"OTEL_RESOURCE_ATTRIBUTES": "service.name=shop"}, (), "celery", {"service.name": "celery"}),
        (
            {"OTEL_RESOURCE_ATTRIBUTES": "env=test,site=a"},
            ("env=prod",),
            None,
            {"service.name": "celery", "env": "prod", "site": "a"},
        ),
    ],
)
def test_the_resource(environ, labels, service_name, resource):
    config = otlp({BASE: "http://a", **environ}, static_label=labels, service_name=service_name)
    assert config.resource == resource


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("PROTOCOL", "grpc", "got 'grpc'; it takes http/protobuf. Set OTEL_EXPORTER_OTLP_TRACES_PROTOCOL="),
        ("PROTOCOL", "http/json", "got 'http/json'; it takes http/protobuf"),
        ("TIMEOUT", "10s", "got '10s'; it takes milliseconds"),
        ("TIMEOUT", "-1", "got '-1'"),
        ("COMPRESSION", "zstd", "got 'zstd'; it takes gzip or none"),
    ],
)
def test_an_invalid_value_is_named_with_its_variable(name, text, expected):
    assert complaint({f"OTEL_EXPORTER_OTLP_{name}": text}).startswith(
        f"OTEL_EXPORTER_OTLP_{name}: {expected}"
    )
    assert complaint({f"OTEL_EXPORTER_OTLP_TRACES_{name}": text}).startswith("OTEL_EXPORTER_OTLP_TRACES_")


@pytest.mark.parametrize(
    "text", ["hunter2", "=hunter2", "a b=hunter2", "a=hunter2%0Ab", "a=hunter2%FF", "a=hunter2é", "é=hunter2"]
)
def test_headers_are_secrets(text):
    assert complaint({"OTEL_EXPORTER_OTLP_HEADERS": text}) == (
        "OTEL_EXPORTER_OTLP_HEADERS: got something else; it takes name=value pairs, separated by commas, "
        "with other characters percent-encoded"
    )


def test_invalid_resource_attributes():
    assert complaint({"OTEL_RESOURCE_ATTRIBUTES": "a=b,c"}).startswith(
        "OTEL_RESOURCE_ATTRIBUTES: got 'a=b,c'"
    )
    assert "OTEL_RESOURCE_ATTRIBUTES" in complaint({"OTEL_RESOURCE_ATTRIBUTES": "a=\udce9"})


def test_settings_of_spans_are_not_read_while_none_are_sent():
    assert otlp({"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}).otlp_endpoint is None


@pytest.mark.parametrize(
    "environ",
    [{BASE: "http://tempo:4317", "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}, {BASE: "tempo:4317"}],
)
@pytest.mark.parametrize(
    ("words", "is_refused"),
    [((), True), (("doctor",), True), (("record", "/dev/null"), False), (("replay", "/dev/null"), False)],
)
def test_only_commands_with_sinks_read_the_variables(monkeypatch, capsys, environ, words, is_refused):
    """Other programs share them. So they must not stop commands that send no spans."""
    for name, text in environ.items():
        monkeypatch.setenv(name, text)
    monkeypatch.setattr(sys, "argv", ["celery-exporter", *words, "--broker-url", "redis://127.0.0.1:1/0"])
    assert run() == 2, "an existing file is not overwritten, and an empty one is no recording"
    assert ("OTEL_EXPORTER_OTLP_" in capsys.readouterr().err) == is_refused
