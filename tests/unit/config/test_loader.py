"""argv, environment and files → Settings, or one line that says what is wrong."""

from __future__ import annotations

import math
from operator import attrgetter

import pytest

from celery_exporter.broker.config import BrokerConfig
from celery_exporter.broker.url import masked
from celery_exporter.config.loader import load
from celery_exporter.config.options import OPTIONS
from celery_exporter.config.schema import Settings
from celery_exporter.core.limits import Limits
from celery_exporter.core.task_names import QUEUE_NAME_RULES
from celery_exporter.errors import BadSettingError
from celery_exporter.history.config import HistoryConfig
from celery_exporter.metrics.config import MetricsConfig
from celery_exporter.metrics.model import COMMON_BUCKETS, MetricOptions
from celery_exporter.monitor.config import MonitorConfig
from celery_exporter.sinks.config import InfluxConfig, LokiConfig, OtlpConfig, SinksConfig
from celery_exporter.web.listen_config import ListenConfig

URL = "redis://:pass@host:6379/0"


def settings(environ=None, **argv):
    return load({"broker_url": URL, **argv}, environ or {})


def complaint(environ=None, **argv) -> str:
    with pytest.raises(BadSettingError) as caught:
        load({"broker_url": URL, **argv}, environ or {})
    text = str(caught.value)
    assert "\n" not in text
    return text


def test_defaults_are_those_of_the_table():
    defaults = settings()
    selection = defaults.monitor.metrics.selection
    assert (defaults.listen.port, selection.labels, defaults.monitor.limits.reorder_window) == (
        9808,
        ("queue_name",),
        2.0,
    )
    assert 30.0 in selection.runtime_bounds, "a query of the integration guide asks for this bound"


def test_default_buckets_are_those_of_the_profile():
    for option, field in (("buckets", "runtime_bounds"), ("queue_wait_buckets", "wait_bounds")):
        (usual,) = (row.display_default for row in OPTIONS if row.key == option)
        assert getattr(settings().monitor.metrics.selection, field) == usual
        assert getattr(settings(profile="zerok").monitor.metrics.selection, field) == COMMON_BUCKETS
        chosen = {option: ",".join(map(str, usual))}
        assert getattr(settings(profile="zerok", **chosen).monitor.metrics.selection, field) == usual


@pytest.mark.parametrize(
    ("argv", "environ", "port"),
    [
        ({}, {}, 9808),
        ({}, {"PROMETHEUS_PORT": "1"}, 1),
        ({}, {"PROMETHEUS_PORT": "1", "CE_PORT": "2"}, 2),
        ({}, {"CE_PORT": "2", "CELERY_EXPORTER_PORT": "3"}, 3),
        ({"port": "4"}, {"CELERY_EXPORTER_PORT": "3"}, 4),
    ],
)
def test_an_option_beats_its_variables_and_ours_beat_the_others(argv, environ, port):
    assert settings(environ, **argv).listen.port == port


@pytest.mark.parametrize(
    ("variable", "value", "field", "expected"),
    [
        ("METRICS_UPDATE_INTERVAL", "30", "monitor.update_interval", 30.0),
        ("CE_QUEUES", "a,b c", "monitor.queues", ("a", "b", "c")),
        ("CE_ENABLE_EVENTS", "true", "monitor.enable_events", True),
        ("CE_ENABLE_EVENTS", "0", "monitor.enable_events", False),
        ("CE_BUCKETS", "1,2,inf", "monitor.metrics.selection.runtime_bounds", (1.0, 2.0)),
        ("CE_TASK_LABELS", "", "monitor.metrics.selection.labels", ()),
        (
            "CE_TASK_LABELS",
            "queue_name, worker",
            "monitor.metrics.selection.labels",
            ("queue_name", "worker"),
        ),
        ("CE_STATIC_LABEL", "env=prod zone=a", "monitor.metrics.static_label", {"env": "prod", "zone": "a"}),
        (
            "CE_BROKER_TRANSPORT_OPTION",
            '{"master_name": "my master", "sentinel_kwargs": {"password": "x"}}',
            "monitor.broker.broker_transport_option",
            {"master_name": "my master", "sentinel_kwargs": {"password": "x"}},
        ),
    ],
)
def test_values_from_the_environment(variable, value, field, expected):
    assert attrgetter(field)(settings({variable: value})) == expected


def test_repeatable_options_take_json_values_and_text_with_spaces():
    config = settings(
        broker_transport_option=(
            "visibility_timeout=3600",
            "global_keyprefix=a b",
            "password=0042",
            'x={"y": 1}',
        ),
        queues=("a,b", "c"),
    ).monitor
    assert config.broker.broker_transport_option == {
        "visibility_timeout": 3600,
        "global_keyprefix": "a b",
        "password": "0042",
        "x": {"y": 1},
    }
    assert config.queues == ("a", "b", "c")


def test_purging_is_off_at_0_which_is_how_other_exporters_spell_never():
    assert settings(purge_offline_worker_metrics="0").monitor.limits.purge_offline_worker_metrics is None
    assert settings(series_ttl="0").monitor.limits.series_ttl is None


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("port", "abc"),
        ("port", "70000"),
        ("buckets", "2,1"),
        ("buckets", "1,1"),
        ("buckets", "x"),
        ("buckets", ""),
        ("buckets", "inf"),
        ("reorder_window", "-1"),
        ("reorder_window", "nan"),
        ("update_interval", "0"),
        ("worker_timeout", "inf"),
        ("max_tasks", "1.5"),
        ("task_labels", "hostname"),
        ("profile", "nosuch"),
        ("log_level", "loud"),
        ("metric_prefix", "1x"),
        ("accept_content", "exe"),
        ("enable_events", "maybe"),
        ("accept_content", ""),
        ("profile", ""),
        ("event_exchange", ""),
        ("namespace", ""),
        ("namespace", " "),
        ("default_queue_name", ""),
        ("default_queue_name", "\udcff"),
        ("namespace", "\udcff"),
        ("series_ttl", "5"),
        ("task_include", "("),
        ("task_exclude", "*"),
    ],
)
def test_a_wrong_value_names_the_option_what_it_got_and_what_it_takes(option, value):
    text = complaint(**{option: value})
    assert f"--{option.replace('_', '-')}" in text
    assert repr(value) in text
    takes = next(row.expects for row in OPTIONS if row.key == option)
    assert text.endswith(f"it takes {takes}")


@pytest.mark.parametrize("pairs", [("novalue",), ("=x",)])
@pytest.mark.parametrize("option", ["static_label", "broker_transport_option", "broker_ssl_option"])
def test_a_pair_needs_a_name_and_an_equals_sign(option, pairs):
    assert f"--{option.replace('_', '-')}" in complaint(**{option: pairs})


@pytest.mark.parametrize("rule", ["job", "=job", "job=", "(=job", r"job-.*=\1", r"job-.*=\g<number>"])
def test_a_name_rule_is_a_pattern_and_a_replacement_that_fits_it(rule):
    assert f"got {rule!r}; it takes regex=replacement" in complaint(task_name_rule=(rule,))


@pytest.mark.parametrize("value", ["shop-eu.1", "Läden", 'a "b"'])
def test_what_ends_as_the_value_of_a_label_may_be_any_text(value):
    options = settings(namespace=value, default_queue_name=value).monitor.metrics.selection.options
    assert (options.namespace, options.default_queue_name) == (value, value)


@pytest.mark.parametrize("variable", ["CELERY_EXPORTER_NAMESPACE", "CE_DEFAULT_QUEUE_NAME"])
def test_a_variable_that_is_empty_is_the_default_as_in_the_originals(variable):
    metrics, defaults = settings({variable: ""}).monitor.metrics, settings().monitor.metrics
    assert metrics.selection.options == defaults.selection.options


def test_a_static_label_is_text():
    assert "--static-label" in complaint(static_label=("a=\udcff",))


def test_a_port_that_kubernetes_made_up_for_a_service_is_no_setting():
    assert settings({"CELERY_EXPORTER_PORT": "tcp://10.0.0.7:9808", "CE_PORT": "1"}).listen.port == 1


def test_0_is_the_default_retry_interval_as_in_other_exporters():
    assert settings(retry_interval="0").monitor.broker.retry_interval == 5.0


@pytest.mark.parametrize("name", ["1a", "a-b", "__a", "queue_name", "worker", "le"])
def test_a_static_label_has_a_name_prometheus_takes(name):
    assert "--static-label" in complaint(static_label=(f"{name}=x",))


def test_a_wrong_value_from_the_environment_names_the_variable():
    assert "(from CE_PORT)" in complaint({"CE_PORT": "x"})


def test_what_may_hold_a_secret_is_not_repeated():
    for url in ("hunter2", "redis//:hunter2@h/0", "hunter2@h:5672", "hunter-2://h"):
        assert "hunter" not in complaint(broker_url=url).replace("redis://host", "")
    assert "hunter2" not in complaint(broker_transport_option=("hunter2",))


@pytest.mark.parametrize(
    ("url", "missing"),
    [
        ("redis//127.0.0.1:6379/0", "a text without a scheme (there is no ://)"),
        ("127.0.0.1:6391", "a text without a scheme (there is no ://)"),
        ("://127.0.0.1:6391", "a text without a valid scheme before ://"),
        ("127.0.0.1?url=redis://h", "a text without a valid scheme before ://"),
        (" ", "an empty text"),
    ],
)
def test_what_a_text_lacks_that_is_no_broker_url(url, missing, tmp_path):
    message = f"--broker-url: got {missing}; it takes a URL such as redis://host:6379/0"
    assert complaint(broker_url=url).startswith(message)
    path = tmp_path / "url"
    path.write_text(url)
    message = f"'{path}' holds no URL, but {missing}; it takes one URL and nothing else"
    assert message in complaint(broker_url=None, broker_url_file=str(path))


def test_the_url_from_a_file(tmp_path):
    path = tmp_path / "url"
    path.write_text("amqp://u:p@h//\n")
    assert load({"broker_url_file": str(path)}, {}).monitor.broker.broker_url == "amqp://u:p@h//"
    loaded = load({"broker_url": URL}, {"CE_BROKER_URL_FILE": str(path)})
    assert loaded.monitor.broker.broker_url == URL, "an option beats a variable"
    assert loaded.monitor.broker.broker_url_file is None, "which is not read again, either"
    assert "got both" in complaint(broker_url=URL, broker_url_file=str(path))
    path.write_text("hunter2")
    assert "hunter2" not in complaint(broker_url=None, broker_url_file=str(path))
    assert "No such file" in complaint(broker_url=None, broker_url_file=str(tmp_path / "none"))


@pytest.mark.parametrize("queue", [{"event_queue_durable": "true"}, {"event_queue": "mine"}])
def test_a_durable_queue_is_not_for_a_consumer_that_acknowledges_nothing(queue):
    message = complaint(**queue, event_consumer="kombu")
    assert message.startswith("--event-consumer: got 'kombu'")


@pytest.mark.parametrize("patterns", [{"queue_exclude": "slow|extra.*"}, {"queue_include": "celery"}])
def test_a_queue_that_is_asked_for_and_left_out(patterns):
    message = complaint(queues=("celery,slow",), **patterns)
    assert message.startswith("--queues: got 'slow', which --queue-include or --queue-exclude excludes")


def test_no_url_at_all():
    with pytest.raises(BadSettingError, match="--broker-url is missing"):
        load({}, {})


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://h:1/0", "redis://h:1/0"),
        ("redis://:s3cret@h:1/0", "redis://:***@h:1/0"),
        ("amqp://u:p@ss:w/rd@h//", "amqp://u:***@h//"),
        ("amqp://u:s3cret@a//;amqp://u:s3cret@b//", "amqp://u:***@a//;amqp://u:***@b//"),
        ("rediss://u:s3cret@h/0?ssl_keyfile=x&password=s3cret", "rediss://u:***@h/0"),
        ("redis+socket:///run/redis.sock", "redis+socket:///run/redis.sock"),
        ("redis://:se;cr@et@h:1/0", "redis://:***@h:1/0"),
        ("redis://:se?cret@h:1/0", "redis://***"),
        ("redis://h/0?password=a@b", "redis://***"),
        ("amqp://u:p@h1//;u:s3cret@h2//", "amqp://u:***@h2//"),
        ("sentinel://:0042@h:26379", "sentinel://:***@h:26379"),
        ("redis://s3cret-token@h:1/0", "redis://***@h:1/0"),
    ],
)
def test_urls_are_shown_without_secrets(url, shown):
    assert masked(url) == shown


def test_every_option_is_a_field_of_the_same_name():
    configs = (
        *(Settings, MonitorConfig, BrokerConfig, ListenConfig, MetricsConfig, Limits, MetricOptions),
        *(SinksConfig, InfluxConfig, LokiConfig, OtlpConfig, HistoryConfig),
    )
    fields = {name for config in configs for name in config.__struct_fields__}
    assert {option.key for option in OPTIONS} - fields == {"profile"}, "which becomes `selection`"


def test_defaults_are_values_that_the_options_themselves_would_take():
    for option in OPTIONS:
        if isinstance(option.default, float | int) and not isinstance(option.default, bool):
            assert option.parse(str(option.default)) == option.default
            assert math.isfinite(option.default)


# -- rules for queues ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("environ", "argv", "own", "shipped"),
    [
        ({}, {}, [], True),
        ({}, {"queue_name_rule": ("a=b",)}, ["b"], True),
        ({}, {"queue_name_rule": ("",)}, [], False),
        ({}, {"queue_name_rule": ("a=b", "", "c=d")}, ["b", "d"], False),
        ({"CE_QUEUE_NAME_RULE": ""}, {}, [], False),
        ({"CE_QUEUE_NAME_RULE": "a=b c=d"}, {}, ["b", "d"], True),
    ],
)
def test_rules_for_queues_come_before_the_shipped_ones_which_an_empty_one_turns_off(
    environ, argv, own, shipped
):
    rules = settings(environ, **argv).monitor.queue_name_rule
    assert [replacement for _, replacement in rules[: len(own)]] == own
    assert rules[len(own) :] == (QUEUE_NAME_RULES if shipped else ())


def test_no_history_and_a_history_file_contradict():
    complaint_text = complaint(no_history="true", history_file="/var/lib/history")
    assert "--history-file: got --no-history, too; give one of them" in complaint_text


@pytest.mark.parametrize("option", [None, "no_history", "no_status_page"])
def test_tasks_are_remembered_only_if_a_page_shows_them(option):
    argv = {} if option is None else {option: "true"}
    assert settings(**argv).monitor.history.is_on == (option is None)


@pytest.mark.parametrize(
    "url",
    [
        "https://jaeger/trace/{trace_id}",
        "http://g:3000/explore?left={trace_id}#x",
        "jaeger/{trace_id}",
        "https://jaeger/trace/",
        "https://me:secret@jaeger/{trace_id}",
    ],
)
def test_a_trace_url_is_a_link_without_a_login_that_has_the_id_in_it(url):
    if url.startswith(("https://jaeger/trace/{", "http://g")):
        assert settings(trace_url=url).trace_url == url
    else:
        text = complaint(trace_url=url)
        assert "an http or https URL with {trace_id} in it" in text
        assert "secret" not in text
