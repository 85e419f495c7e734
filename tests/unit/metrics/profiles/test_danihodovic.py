"""The danihodovic profile: the same values and the same options as danihodovic/celery-exporter.

The values are those that tests/data/compat/record.py recorded with the original: its newest source, 0.12.2,
and its newest package on PyPI, 0.11.2.
"""

from __future__ import annotations

import math
import re
from operator import attrgetter

import pytest
from data.compat.record import CASES, FOLDERS
from data.compat.streams import HERE, messages, samples
from msgspec import Struct

from celery_exporter.cli.main import _command
from celery_exporter.config.loader import load
from celery_exporter.config.options import OPTIONS
from celery_exporter.config.schema import Settings
from celery_exporter.errors import BadSettingError
from celery_exporter.metrics.exposition.text import Exposition
from celery_exporter.metrics.model import MetricOptions
from celery_exporter.metrics.registry import select
from celery_exporter.monitor.monitor import Monitor
from celery_exporter.monitor.naming import naming_of
from unit.core.cluster_driver import ClusterDriver, failed, heartbeat, received, sent, started, succeeded
from unit.test_golden_replay import replay

#: Metrics that the original reads from the broker and from inspection, and metrics of this exporter.
NOT_COMPARED = re.compile(r"celery_(queue_length|active_|exporter_)|process_")
#: A task that was never sent: the workers of a replay register it.
REGISTERED = 'name="tasks.idle"'
#: The difference that the remark of celery_task_failed_total describes.
REJECT = ('exception="Reject"', 'exception="UnknownException"')
#: A sample of a task counter: the label set, and the value.
TASK_COUNTER = re.compile(r'celery_task_(?:(?!sent)\w+)_total\{(?:exception="\w*",)?(.*)\} (.*)')
#: Samples of only the package: a 0 of celery_task_sent_total for each worker of a task, and one for a worker
#: that was removed before its worker-offline. It has no wait times.
FIXED_IN_SOURCE = re.compile(r'(celery_task_sent_total\{.*|celery_worker_up\{hostname="box-2")\} 0\.0')
WAITS = "celery_task_queue_wait_time"

OPTIONS_BY_CASE = {
    "generic-sent": MetricOptions(generic_hostname_task_sent_metric=True),
    "generic-worker": MetricOptions(generic_hostname_worker_task_metric=True),
    "buckets": MetricOptions(buckets=(0.25, 1.0, 30.0)),
    "wait-buckets": MetricOptions(queue_wait_buckets=(1.0, 20.0, 60.0)),
    "unsent": MetricOptions(default_queue_name="celery"),
}


def shown(case: str) -> list[str]:
    """Return the samples of our profile for a stream, as far as the original computes them from events."""
    stream, _, sendings = CASES[case]
    selection = select(("danihodovic",), OPTIONS_BY_CASE.get(case, MetricOptions()))
    snapshot = replay(messages(stream, sendings=sendings), selection)
    page = samples(Exposition(selection.rows).render(snapshot).decode()).splitlines()
    compared = [line for line in page if not NOT_COMPARED.match(line) and REGISTERED not in line]
    return sorted(line.replace(*REJECT) for line in without_idle(compared))


def without_idle(lines: list[str]) -> list[str]:
    """Return the lines without the label sets whose counters are all 0.

    The original also has them for the host of each client; we have them for each registered task.
    """
    matches = [(line, TASK_COUNTER.fullmatch(line)) for line in lines]
    busy = {match[1] for _, match in matches if match and match[2] != "0.0"}
    return [line for line, match in matches if match is None or match[1] in busy]


@pytest.mark.parametrize("case", FOLDERS["danihodovic-0.12.2"])
def test_stream_has_the_samples_of_the_original(case):
    recorded = without_idle((HERE / "danihodovic-0.12.2" / f"{case}.txt").read_text().splitlines())
    if case == "unsent":  # the original has no wait time then; we have that of a task with an eta
        assert [line for line in shown(case) if WAITS not in line] == recorded
        assert f'{WAITS}_sum{{hostname="box-1",name="shop.remind",queue_name="celery"}} 2.03125' in shown(
            case
        )
    else:
        assert shown(case) == recorded


@pytest.mark.parametrize("case", FOLDERS["danihodovic-0.11.2"])
def test_stream_has_the_samples_of_the_package_except_what_its_source_fixed(case):
    recorded = (HERE / "danihodovic-0.11.2" / f"{case}.txt").read_text().splitlines()
    expected = [line for line in without_idle(recorded) if not FIXED_IN_SOURCE.match(line)]
    assert [line for line in shown(case) if WAITS not in line and not FIXED_IN_SOURCE.match(line)] == expected


# -- flags ----------------------------------------------------------------------------------------------


def page(*events: dict, **options) -> list[str]:
    """Return the lines of the page after these events."""
    selection = select(("danihodovic",), MetricOptions(**options))
    driver = ClusterDriver(labels=selection.labels, clients=selection.clients)
    driver.apply(*events)
    driver.wait(3)  # for a task-sent that does not come
    return Exposition(selection.rows).render(driver.shown()).decode().splitlines()


def of(family: str, *events: dict, **options) -> set[str]:
    """Return a family's samples without its name."""
    return {line.removeprefix(family) for line in page(*events, **options) if line.startswith(family + "{")}


def life(uuid: str, client: str, worker: str) -> list[dict]:
    worker_events = [event(uuid, host=worker) for event in (received, started, succeeded)]
    return [sent(uuid, hostname=client), *worker_events]


LIVES = [*life("u1", "gen1@web-1", "a@box-1"), *life("u2", "gen2@web-2", "a@box-2")]


def test_clients_are_distinguished_by_their_hosts():
    assert of("celery_task_sent_total", *LIVES) == {
        '{hostname="web-1",name="add",queue_name="q"} 1.0',
        '{hostname="web-2",name="add",queue_name="q"} 1.0',
    }


def test_client_may_share_a_workers_host_or_have_a_name_without_a_host():
    lives = [*life("u1", "gen1@box-1", "a@box-1"), sent("u2", hostname="laptop")]
    assert of("celery_task_sent_total", *lives) == {
        '{hostname="box-1",name="add",queue_name="q"} 1.0',
        '{hostname="laptop",name="add",queue_name="q"} 1.0',
    }


def test_generic_clients_are_one_sum_and_workers_keep_their_hosts():
    assert of("celery_task_sent_total", *LIVES, generic_hostname_task_sent_metric=True) == {
        '{hostname="generic",name="add",queue_name="q"} 2.0',
    }
    assert of("celery_task_succeeded_total", *LIVES, generic_hostname_task_sent_metric=True) == {
        '{hostname="box-1",name="add",queue_name="q"} 1.0',
        '{hostname="box-2",name="add",queue_name="q"} 1.0',
    }


def test_generic_clients_need_no_counts_by_client():
    assert not select(("danihodovic",), MetricOptions(generic_hostname_task_sent_metric=True)).clients


def test_counts_by_client_from_before_the_flag_are_not_counted_twice():
    driver = ClusterDriver(labels=("queue_name", "worker"), clients=True)  # as restored from a state file
    driver.apply(*LIVES)
    rows = select(("danihodovic",), MetricOptions(generic_hostname_task_sent_metric=True)).rows
    text = Exposition(rows).render(driver.shown()).decode()
    assert 'celery_task_sent_total{hostname="generic",name="add",queue_name="q"} 2.0' in text
    assert "web-1" not in text


@pytest.mark.parametrize(
    "argv",
    [
        ["--default-queue-name", "celery"],
        ["--namespace", "jobs"],
        ["--generic-hostname-task-sent-metric"],
        ["--generic-hostname-worker-task-metric"],
    ],
    ids=lambda argv: argv[0],
)
def test_flag_that_renames_series_changes_the_naming_in_the_state_file(argv):
    changed, defaults = settings("--broker-url", URL, *argv), settings("--broker-url", URL)
    assert naming_of(changed.monitor) != naming_of(defaults.monitor)


def test_generic_workers_are_one_sum_only_on_task_metrics():
    events = [*LIVES, received("u3", host="a@box-2"), failed("u3", host="a@box-2")]
    generic = '{hostname="generic",name="add",queue_name="q"}'
    lines = page(*LIVES, heartbeat("a@box-1", active=2), generic_hostname_worker_task_metric=True)
    assert f"celery_task_succeeded_total{generic} 2.0" in lines
    assert f"celery_task_runtime_count{generic} 2.0" in lines
    assert f"celery_task_queue_wait_time_count{generic} 2.0" in lines
    assert 'celery_worker_tasks_active{hostname="box-1"} 2.0' in lines
    assert of("celery_worker_up", *LIVES, generic_hostname_worker_task_metric=True) == {
        '{hostname="box-1"} 1.0',
        '{hostname="box-2"} 1.0',
    }
    assert of("celery_task_failed_total", *events, generic_hostname_worker_task_metric=True) == {
        '{exception="",hostname="generic",name="add",queue_name="q"} 0.0',
        '{exception="",hostname="generic",name="add",queue_name="unknown"} 0.0',
        '{exception="ValueError",hostname="generic",name="add",queue_name="unknown"} 1.0',
    }


def test_generic_clients_and_workers_together_are_one_sum():
    samples = of(
        "celery_task_sent_total",
        *LIVES,
        generic_hostname_task_sent_metric=True,
        generic_hostname_worker_task_metric=True,
    )
    assert samples == {'{hostname="generic",name="add",queue_name="q"} 2.0'}


def test_unknown_queue_has_the_default_queue_name():
    events = [received(), started(), succeeded()]
    for options, queue in (({}, "unknown"), ({"default_queue_name": "celery"}, "celery")):
        expected = {f'{{hostname="h",name="add",queue_name="{queue}"}} 1.0'}
        assert of("celery_task_succeeded_total", *events, **options) == expected


def test_unknown_queue_and_a_queue_with_the_default_name_are_one_sum():
    events = [*life("u1", "c@web", "w@h"), received("u2"), started("u2"), succeeded("u2")]
    samples = of("celery_task_succeeded_total", *events, default_queue_name="q")
    assert samples == {'{hostname="h",name="add",queue_name="q"} 2.0'}


def test_host_is_up_if_one_of_its_workers_is_and_active_tasks_are_summed():
    workers = [heartbeat("a@h", active=2), heartbeat("b@h", active=3), heartbeat("c@h", active=9)]
    lines = page(*workers, heartbeat("c@h", kind="offline", active=9))
    assert 'celery_worker_up{hostname="h"} 1.0' in lines
    assert 'celery_worker_tasks_active{hostname="h"} 5.0' in lines
    lines = page(*(heartbeat(f"{name}@h", kind="offline") for name in "ab"))
    assert 'celery_worker_up{hostname="h"} 0.0' in lines
    assert 'celery_worker_tasks_active{hostname="h"} 0.0' in lines


def test_task_counts_of_several_workers_on_a_host_are_summed():
    lives = [*life("u1", "c@web", "a@h"), *life("u2", "c@web", "b@h")]
    assert of("celery_task_succeeded_total", *lives) == {'{hostname="h",name="add",queue_name="q"} 2.0'}


@pytest.mark.parametrize(
    ("exception", "shown"),
    [
        ("ValueError('x')", "ValueError"),
        ("1 validation error for Order", "UnknownException"),
        # The original shows other classes, see the remark of the metric:
        ("requests.exceptions.HTTPError('x')", "HTTPError"),
        ("reject requeue=False", "Reject"),
    ],
)
def test_exception_class(exception, shown):
    events = [sent(), received(), started(), failed(exception=exception)]
    labels = f'exception="{shown}",hostname="h",name="add",queue_name="q"'
    assert f"{{{labels}}} 1.0" in of("celery_task_failed_total", *events)


# -- options: those of src/cli.py of 0.11.2 --------------------------------------------------------------

URL = "redis://redis.service.consul/1"
RECOMMENDED = {"CE_PROFILE": "danihodovic"}  # the only setting that users have to add
BUCKETS = "0.005,0.01,0.025,0.05,0.075,0.1,0.25,0.5,0.75,1.0,2.5,5.0,7.5,10.0,inf"

#: Option, type of its value in the original, our setting, and text → value of our setting.
ORIGINAL = [
    (
        "broker-url",
        str,
        "monitor.broker.broker_url",
        {URL: URL, "amqp://u:p@rabbit:5672/v": "amqp://u:p@rabbit:5672/v"},
    ),
    (
        "broker-transport-option",
        list,
        "monitor.broker.broker_transport_option",
        {
            "visibility_timeout=7200": {"visibility_timeout": 7200},
            "global_keyprefix=danihodovic": {"global_keyprefix": "danihodovic"},
            'sentinel_kwargs={"password":"x=y"}': {"sentinel_kwargs": {"password": "x=y"}},
            "master_name=": {"master_name": ""},
        },
    ),
    (
        "broker-ssl-option",
        list,
        "monitor.broker.broker_ssl_option",
        {
            "certfile=/var/ssl/amqp-server-cert.pem": {"certfile": "/var/ssl/amqp-server-cert.pem"},
            "ssl_cert_reqs=CERT_NONE": {"ssl_cert_reqs": "CERT_NONE"},
            "ssl_version=5": {"ssl_version": 5},
        },
    ),
    (
        "accept-content",
        str,
        "monitor.broker.accept_content",
        {
            "json,pickle": ("json", "pickle"),
            "application/json,application/x-python-serialize": ("json", "pickle"),
        },
    ),
    (
        "retry-interval",
        int,
        "monitor.broker.retry_interval",
        {"0": 5.0, "5": 5.0, "600": 600.0},
    ),  # 0: no retries there; we always retry
    ("host", str, "listen.host", {"0.0.0.0": "0.0.0.0", "::": "::"}),
    ("port", int, "listen.port", {"9808": 9808, "80": 80}),
    (
        "buckets",
        str,
        "monitor.metrics.selection.runtime_bounds",
        {"1,2.5, 10": (1.0, 2.5, 10.0), BUCKETS: tuple(map(float, BUCKETS.split(",")[:-1]))},
    ),
    (
        "log-level",
        str,
        "log_level",
        {
            **{level.upper(): level for level in ("debug", "info", "warning", "error", "critical")},
            "TRACE": "debug",
            "SUCCESS": "warning",
        },
    ),
    ("worker-timeout", int, "monitor.limits.worker_timeout", {"0": math.inf, "300": 300.0}),
    (
        "purge-offline-worker-metrics",
        int,
        "monitor.limits.purge_offline_worker_metrics",
        {"0": None, "600": 600.0},
    ),
    ("generic-hostname-task-sent-metric", bool, "monitor.metrics.selection.clients", {"true": False}),
    ("queues", str, "monitor.queues", {"celery,mail": ("celery", "mail")}),
    ("metric-prefix", str, "monitor.metrics.metric_prefix", {"celery_": "celery_", "my_": "my_", "a:": "a:"}),
    (
        "static-label",
        list,
        "monitor.metrics.static_label",
        {"env=prod": {"env": "prod"}, "namespace=jobs": {"namespace": "jobs"}, "worker=": {"worker": ""}},
    ),
    # Options of 0.12; the tests of flags above show their effect.
    (
        "generic-hostname-worker-task-metric",
        bool,
        "monitor.metrics.selection.names",
        {"true": ("danihodovic",)},
    ),
    ("default-queue-name", str, "monitor.metrics.selection.names", {"celery": ("danihodovic",)}),
]
VALUES = [
    pytest.param(option, kind, text, field, expected, id=f"{option}={text}")
    for option, kind, field, values in ORIGINAL
    for text, expected in values.items()
]


def settings(*argv: str, **environ: str) -> Settings:
    """Return the settings of a command line, parsed as the exporter does."""
    params = _command.make_context("celery-exporter", list(argv)).params
    return load(params, {**RECOMMENDED, **environ})


def variable(option: str) -> str:
    return f"CE_{option.replace('-', '_').upper()}"


def test_command_line_of_the_originals_readme_is_accepted():
    assert settings(f"--broker-url={URL}").monitor.broker.broker_url == URL


@pytest.mark.parametrize(("option", "kind", "text", "field", "expected"), VALUES)
def test_option_of_the_original_is_accepted(option, kind, text, field, expected):
    argv = [f"--{option}"] if kind is bool else [f"--{option}", text]
    assert attrgetter(field)(settings("--broker-url", URL, *argv)) == expected


@pytest.mark.parametrize(("option", "kind", "text", "field", "expected"), VALUES)
def test_variable_of_the_original_is_accepted(option, kind, text, field, expected):  # noqa: ARG001
    environ = {"CE_BROKER_URL": URL, variable(option): text}
    assert attrgetter(field)(settings(**environ)) == expected


@pytest.mark.parametrize("text", ["1", "true", "True", "t", "yes", "Y", "on", " on "])
def test_variable_turns_a_flag_on_as_in_the_original(text):
    result = settings(CE_BROKER_URL=URL, CE_GENERIC_HOSTNAME_TASK_SENT_METRIC=text)
    assert result.monitor.metrics.selection.clients is False


@pytest.mark.parametrize("text", ["0", "false", "f", "no", "N", "off", ""])
def test_variable_turns_a_flag_off_as_in_the_original(text):
    result = settings(CE_BROKER_URL=URL, CE_GENERIC_HOSTNAME_TASK_SENT_METRIC=text)
    assert result.monitor.metrics.selection.clients is True


def test_list_is_a_repeated_option_or_a_variable_with_spaces():
    argv = ["--static-label", "a=1", "--static-label", "b=2", "-Q", "celery,mail"]
    for result in (
        settings("--broker-url", URL, *argv),
        settings(CE_BROKER_URL=URL, CE_STATIC_LABEL="a=1 b=2", CE_QUEUES="celery,mail"),
    ):
        assert (result.monitor.metrics.static_label, result.monitor.queues) == (
            {"a": "1", "b": "2"},
            ("celery", "mail"),
        )


@pytest.mark.parametrize("option", [option for option, *_ in ORIGINAL if option != "broker-url"])
def test_empty_variable_is_ignored_as_in_the_original(option):
    with_empty = settings(**{"CE_BROKER_URL": URL, variable(option): ""})
    assert fields_of(with_empty) == fields_of(settings(CE_BROKER_URL=URL))


def fields_of(config: Struct) -> dict[str, object]:
    """Return the values of a config, and of the configs in it, by name."""
    values = {name: getattr(config, name) for name in config.__struct_fields__}
    values.pop("selection", None)  # its functions differ in each instance
    if "brokers" in values:
        values |= values.pop("brokers")
    return {name: fields_of(value) if isinstance(value, Struct) else value for name, value in values.items()}


def test_empty_variable_keeps_security_on_and_turns_labels_off():
    assert settings(CE_BROKER_URL=URL, CE_WEB_CONFIG_FILE="").listen.web_config_file is not None
    native = settings("--profile", "native", CE_BROKER_URL=URL, CE_TASK_LABELS="")
    assert native.monitor.metrics.selection.labels == ()


@pytest.mark.parametrize("timeout", ["0", "60"])
def test_absence_of_workers_is_certain_after_a_while_with_any_timeout(timeout):
    monitor = Monitor(settings("--broker-url", URL, "--worker-timeout", timeout).monitor)
    monitor.workers._inspected = 0.0
    for listened, is_certain in ((9.0, False), (11.0, True)):
        monitor.state.listening = listened
        assert monitor.workers.has_result() is is_certain


def test_metric_prefix_may_be_empty():
    metrics = settings("--broker-url", URL, "--metric-prefix", "").monitor.metrics
    page = Exposition(metrics.selection.rows, metrics.metric_prefix).render(replay(messages("made-up")))
    assert b"\nworker_up{" in page


def test_static_label_is_rejected_if_a_metric_has_it():
    for name in ("hostname", "queue_name", "exception", "le"):
        with pytest.raises(BadSettingError, match=f"--static-label: got '{name}=x'"):
            settings("--broker-url", URL, "--static-label", f"{name}=x")


def test_metric_about_the_exporter_keeps_its_own_label():
    metrics = settings("--broker-url", URL, "--static-label", "version=mine").monitor.metrics
    page = Exposition(metrics.selection.rows, static_labels=metrics.static_label).render(
        replay(messages("made-up"))
    )
    assert b'celery_worker_up{hostname="box-1",version="mine"} 1.0' in page
    assert b'celery_exporter_build_info{shard="",version="0.0.0"} 1.0' in page


def test_options_of_the_original_exist():
    assert {option for option, *_ in ORIGINAL} <= {option.name for option in OPTIONS}
