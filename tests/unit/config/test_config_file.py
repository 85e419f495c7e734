import json
from pathlib import Path

import jsonschema
import pytest
from harness.servers import ROOT

from celery_exporter.config.config_file import BROKER_KEYS, KEYS, Setting, read
from celery_exporter.config.loader import load, load_listen
from celery_exporter.errors import BadSettingError

SCHEMA = json.loads((ROOT / "docs/reference/config.schema.json").read_text())

EXAMPLE = """
task_ttl: 60
queues: [celery, emails]
enable_events: yes
buckets: [0.1, 1, 10]
static_label: {env: prod, "tier": "1"}
log_level:
brokers:
  shop:
    url: redis://redis:6379/0
    transport_options: {visibility_timeout: 3600, password: "123", nested: {list: [1, x]}}
  billing:
    url: amqp://user:secret@rabbit//
    queues: invoices
    task_ttl: 120
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "config.yml"


def loaded(path: Path, text: str, *, environ: dict[str, str] | None = None, **argv: str):
    path.write_text(text)
    return load({"config_file": str(path), **argv}, environ or {})


def test_each_broker_has_its_settings_and_the_common_ones(path):
    settings = loaded(path, EXAMPLE)
    shop, billing = (settings.brokers[name].monitor for name in ("shop", "billing"))
    assert list(settings.brokers) == ["shop", "billing"]
    assert (shop.queues, billing.queues) == (("celery", "emails"), ("invoices",))
    assert (shop.limits.task_ttl, billing.limits.task_ttl) == (60.0, 120.0)
    assert (shop.enable_events, settings.log_level) == (True, "info")
    assert settings.metrics.selection.runtime_bounds == (0.1, 1.0, 10.0)
    assert settings.metrics.static_label == {"env": "prod", "tier": "1"}


def test_values_of_transport_options_have_the_types_of_yaml(path):
    options = loaded(path, EXAMPLE).brokers["shop"].monitor.broker.broker_transport_option
    assert options == {"visibility_timeout": 3600, "password": "123", "nested": {"list": [1, "x"]}}


def test_records_have_the_name_of_the_broker(path):
    shop = loaded(path, EXAMPLE).brokers["shop"].sinks
    assert (shop.broker, shop.static_label["broker"]) == ("shop", "shop")
    only = loaded(path, "broker_url: redis://redis").sinks
    assert (only.broker, only.static_label) == (None, {})


def test_the_command_line_precedes_variables_and_these_the_file(path):
    text = "broker_url: redis://file\nport: 1\ntask_ttl: 1\nmax_tasks: 1000"
    environ = {"CE_PORT": "2", "CE_TASK_TTL": "2"}
    settings = loaded(path, text, environ=environ, port="3")
    limits = settings.monitor.limits
    assert (settings.listen.port, limits.task_ttl, limits.max_tasks) == (3, 2.0, 1000)
    assert load_listen({"config_file": str(path)}, {}).port == 1


def test_a_url_on_the_command_line_precedes_the_file_of_a_url(path, tmp_path):
    (tmp_path / "url").write_text("redis://from-file")
    text = f"broker_url_file: {tmp_path / 'url'}"
    assert loaded(path, text).monitor.broker.broker_url == "redis://from-file"
    assert loaded(path, text, broker_url="redis://given").monitor.broker.broker_url == "redis://given"


def test_a_path_for_all_brokers_is_the_beginning_of_theirs(path):
    text = EXAMPLE.replace("billing:\n", "billing:\n    history_file: /data/own\n")
    settings = loaded(path, f"state_file: /data/state\nhistory_file: /data/history\n{text}")
    assert [str(broker.monitor.state_file) for broker in settings.brokers.values()] == [
        "/data/state.shop",
        "/data/state.billing",
    ]
    assert str(settings.brokers["billing"].monitor.history.history_file) == "/data/own"


def test_equal_sections_are_given_equally(path):
    """A reload leaves these brokers alone."""
    before = loaded(path, EXAMPLE).brokers
    changed = EXAMPLE.replace("task_ttl: 120", "task_ttl: 121").replace("task_ttl: 60", "task_ttl: 6e1")
    after = loaded(path, EXAMPLE.replace("task_ttl: 120", "task_ttl: 121")).brokers
    assert before["shop"].given == after["shop"].given
    assert before["billing"].given != after["billing"].given
    assert loaded(path, changed).brokers["shop"].given != before["shop"].given


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("update_intervall: 3", "update_intervall: unknown key; did you mean update_interval?"),
        ("brokers: {a: {ulr: redis://a}}", "brokers.a.ulr: unknown key; did you mean url?"),
        ("brokers: {a: {port: 1}}", "brokers.a.port: unknown key"),
        ("borkers: {}", "borkers: unknown key; did you mean brokers?"),
        ("config_file: x", "config_file: unknown key"),
        ("brokers: [a]", "brokers: expected a mapping, such as name: value"),
        ("brokers: {a: redis://a}", "brokers.a: expected a mapping, such as name: value"),
        ("- a", "the file: expected a mapping, such as name: value"),
        ("brokers: {a/b: {url: redis://a}}", "brokers: got the name 'a/b'; it takes up to 63 letters"),
        ("brokers: {a: {}}", "brokers.a: url is missing; give url or url_file"),
        ("brokers: {a: {url: redis://a, url_file: x}}", "brokers.a: got url and url_file; give one of them"),
        ("task_ttl: x", "task_ttl: got 'x'; it takes seconds, 1 or more"),
        ("task_ttl: {a: 1}", "task_ttl: expected a single value"),
        ("queues: [[a]]", "queues: expected a single value"),
        ("a: 1\na: 2", "duplicate key in the mapping at line 1, column 1"),
        ("a: [", "invalid YAML at line 1, column 5"),
        ("broker_url: redis://a\nbrokers: {a: {url: redis://b}}", "broker_url: got brokers in "),
        (
            "brokers: {a: {url: redis://a, state_file: x}, b: {url: redis://b, state_file: ./x}}",
            "brokers.b: 'x' is that of brokers.a",
        ),
        (
            "broker_url: amqp://\nevent_queue: mine\nevent_queue_durable: true",
            "--event-queue: got --event-queue-durable, too",
        ),
        (
            "broker_url: amqp://\nevent_queue: celeryev.1-of-2\nshard: 0/2",
            "--event-queue: got 'celeryev.1-of-2', the queue of shard 1/2; give --shard 1/2",
        ),
        ("broker_url: amqp://\nevent_queue: celeryev.1-of-2", "give --shard 1/2"),
        ("broker_url: redis://\nshard: 2/2", "shard: got '2/2'; it takes I/N, such as 0/4"),
        ("broker_url: redis://\nshard: '2'", "shard: got '2'; it takes I/N, such as 0/4"),
        ("static_label: {broker: x}\nbrokers: {a: {url: redis://a}}", "--static-label: got 'broker=x'"),
    ],
)
def test_what_is_wrong_is_named(path, text, error):
    with pytest.raises(BadSettingError) as raised:
        loaded(path, text)
    assert error in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    "text", ["brokers: {a: {url: 'hunter2 x'}}", "broker_url: hunter2 x", "x: [hunter2 x"]
)
def test_no_error_has_a_secret(path, text):
    with pytest.raises(BadSettingError) as raised:
        loaded(path, text)
    assert "hunter2" not in str(raised.value)


@pytest.mark.parametrize(
    ("variable", "value"),
    [("CELERY_BROKER_URL", "redis://x"), ("CE_BROKER_URL_FILE", "/x"), ("CE_BROKER_SSL_OPTION", "a=b")],
)
def test_variables_of_one_broker_contradict_several(path, variable, value):
    with pytest.raises(BadSettingError, match=f"^{variable}: got brokers in "):
        loaded(path, EXAMPLE, environ={variable: value})


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    with pytest.raises(BadSettingError, match=r"--config.file: cannot read '.*': Is a directory"):
        load({"config_file": str(tmp_path)}, {})


@pytest.mark.parametrize(
    ("name", "error"),
    [
        ("CELERY_EXPORTER_TASK_TTLL", "unknown variable; did you mean CELERY_EXPORTER_TASK_TTL?"),
        ("CELERY_EXPORTER_QZXW", "unknown variable; remove it"),
    ],
)
def test_an_unknown_variable_is_an_error(name, error):
    with pytest.raises(BadSettingError) as raised:
        load({"broker_url": "redis://"}, {name: "1"})
    assert str(raised.value) == f"{name}: {error}"


@pytest.mark.parametrize(
    "name",
    [
        "CELERY_EXPORTER_SERVICE_HOST",
        "CELERY_EXPORTER_SERVICE_PORT",
        "CELERY_EXPORTER_SERVICE_PORT_METRICS",
        "CELERY_EXPORTER_PORT",
        "CELERY_EXPORTER_PORT_9808_TCP",
        "CELERY_EXPORTER_PORT_9808_TCP_ADDR",
        "CELERY_EXPORTER_SHOP_SERVICE_HOST",
        "CELERY_EXPORTER_SHOP_PORT",
        "CELERY_EXPORTER_URL",
        "CELERY_EXPORTER_READER",
        "OTHER_CELERY_EXPORTER_X",
    ],
)
def test_variables_of_kubernetes_and_other_commands_are_known(name):
    load({"broker_url": "redis://"}, {name: "tcp://10.0.0.1:9808" if "READER" not in name else "auto"})


def test_commands_for_one_broker_name_those_of_the_file(path):
    settings = loaded(path, EXAMPLE)
    assert settings.broker("billing") is settings.brokers["billing"]
    with pytest.raises(BadSettingError, match=r"--broker is missing; .* has shop, billing"):
        settings.broker(None)
    with pytest.raises(BadSettingError, match=r"--broker: got 'x'; .* has shop, billing"):
        settings.broker("x")
    with pytest.raises(BadSettingError, match=r"--broker: got 'x'; no --config.file has brokers"):
        loaded(path, "broker_url: redis://").broker("x")


def test_the_schema_knows_all_keys():
    assert SCHEMA["properties"].keys() == {*KEYS, "brokers", "expected"}
    of_broker = SCHEMA["properties"]["brokers"]["additionalProperties"]["properties"]
    assert of_broker.keys() == {*BROKER_KEYS, "expected"}


@pytest.mark.parametrize(
    ("config", "is_valid"),
    [
        ({"task_ttl": 60, "brokers": {"a": {"url": "redis://"}}}, True),
        ({"profile": ["native", "triton"], "static_label": {"a": "b"}, "enable_events": True}, True),
        ({"broker_url": "redis://", "brokers": {"a": {"url": "redis://"}}}, False),
        ({"brokers": {"a b": {"url": "redis://"}}}, False),
        ({"brokers": {"a": {"ulr": "redis://"}}}, False),
        ({"task_ttl": "soon"}, False),
        ({"expected": [{"task": "a", "every": "1h"}, {"task": "a", "every": 60, "grace": 5}]}, True),
        ({"expected": [{"task": "a", "cron": "0 3 * * *", "timezone": "UTC"}]}, True),
        ({"brokers": {"a": {"url": "redis://", "expected": [{"task": "a", "every": 60}]}}}, True),
        ({"expected": []}, False),
        ({"expected": [{"task": "a"}]}, False),
        ({"expected": [{"task": "a", "every": 60, "cron": "0 3 * * *"}]}, False),
        ({"expected": [{"task": "a", "every": 60, "timezone": "UTC"}]}, False),
        ({"expected": [{"every": 60}]}, False),
    ],
)
def test_the_schema_says_which_files_are_valid(config, is_valid):
    assert jsonschema.Draft202012Validator(SCHEMA).is_valid(config) is is_valid


def test_settings_say_where_they_are(path):
    path.write_text(EXAMPLE)
    assert read(path).brokers["billing"]["queues"] == Setting(("invoices",), "brokers.billing.queues")
