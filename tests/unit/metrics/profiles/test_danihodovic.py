"""Who leaves danihodovic's exporter for ours: the same numbers, the same options.

The numbers are those that contracts/record.py recorded of the original: of its newest source, 0.12.2, and of
the newest package on the index, 0.11.2.
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

#: What the original asks the broker and the workers for, and what is our own.
OURS = re.compile(r"celery_(queue_length|active_|exporter_)|process_")
#: A task that nobody sent: the workers of a replay say that they know it.
REGISTERED = 'name="tasks.idle"'
#: What the remark says of celery_task_failed_total.
REJECT = ('exception="Reject"', 'exception="UnknownException"')
#: A sample of what happened to tasks: the label set, and the value.
COUNTED = re.compile(r'celery_task_(?:(?!sent)\w+)_total\{(?:exception="\w*",)?(.*)\} (.*)')
#: Of the package alone: a 0 for each worker of a task, as if it had been sent there, and one for a worker
#: that was purged before it said goodbye; and it knows no waits.
BETTER_SINCE = re.compile(r'(celery_task_sent_total\{.*|celery_worker_up\{hostname="box-2")\} 0\.0')
WAITS = "celery_task_queue_wait_time"

SHAPES = {
    "generic-sent": MetricOptions(generic_hostname_task_sent_metric=True),
    "generic-worker": MetricOptions(generic_hostname_worker_task_metric=True),
    "buckets": MetricOptions(buckets=(0.25, 1.0, 30.0)),
    "wait-buckets": MetricOptions(queue_wait_buckets=(1.0, 20.0, 60.0)),
    "unsent": MetricOptions(default_queue_name="celery"),
}


def shown(case: str) -> list[str]:
    """Return the samples that our profile shows of a stream, as far as the original has them from events."""
    stream, _, sendings = CASES[case]
    selection = select(("danihodovic",), SHAPES.get(case, MetricOptions()))
    snapshot = replay(messages(stream, sendings=sendings), selection)
    page = samples(Exposition(selection.rows).render(snapshot).decode()).splitlines()
    known = [line for line in page if not OURS.match(line) and REGISTERED not in line]
    return sorted(line.replace(*REJECT) for line in without_idle(known))


def without_idle(lines: list[str]) -> list[str]:
    """Leave out label sets under which nothing happened.

    The original has them for the host of each client, too; we have them for each task that workers know.
    """
    found = [(line, COUNTED.fullmatch(line)) for line in lines]
    busy = {match[1] for _, match in found if match and match[2] != "0.0"}
    return [line for line, match in found if match is None or match[1] in busy]


@pytest.mark.parametrize("case", FOLDERS["danihodovic-0.12.2"])
def test_a_stream_is_shown_as_by_the_original_sample_by_sample(case):
    recorded = without_idle((HERE / "danihodovic-0.12.2" / f"{case}.txt").read_text().splitlines())
    if case == "unsent":  # it knows no wait then; we do, of a task with an eta
        assert [line for line in shown(case) if WAITS not in line] == recorded
        assert f'{WAITS}_sum{{hostname="box-1",name="shop.remind",queue_name="celery"}} 2.03125' in shown(
            case
        )
    else:
        assert shown(case) == recorded


@pytest.mark.parametrize("case", FOLDERS["danihodovic-0.11.2"])
def test_a_stream_is_shown_as_by_the_package_but_for_what_became_better_since(case):
    recorded = (HERE / "danihodovic-0.11.2" / f"{case}.txt").read_text().splitlines()
    there = [line for line in without_idle(recorded) if not BETTER_SINCE.match(line)]
    assert [line for line in shown(case) if WAITS not in line and not BETTER_SINCE.match(line)] == there


# -- what flags do ---------------------------------------------------------------------------------------


def page(*events: dict, **shape) -> list[str]:
    """Return the lines of what was told."""
    selection = select(("danihodovic",), MetricOptions(**shape))
    driver = ClusterDriver(labels=selection.labels, clients=selection.clients)
    driver.apply(*events)
    driver.wait(3)  # for a task-sent that does not come
    return Exposition(selection.rows).render(driver.shown()).decode().splitlines()


def of(family: str, *events: dict, **shape) -> set[str]:
    """Return a family's samples without its name."""
    return {line.removeprefix(family) for line in page(*events, **shape) if line.startswith(family + "{")}


def life(uuid: str, client: str, worker: str) -> list[dict]:
    done = [each(uuid, host=worker) for each in (received, started, succeeded)]
    return [sent(uuid, hostname=client), *done]


LIVES = [*life("u1", "gen1@web-1", "a@box-1"), *life("u2", "gen2@web-2", "a@box-2")]


def test_clients_and_workers_are_told_apart_by_their_hosts():
    assert of("celery_task_sent_total", *LIVES) == {
        '{hostname="web-1",name="add",queue_name="q"} 1.0',
        '{hostname="web-2",name="add",queue_name="q"} 1.0',
    }


def test_a_client_on_the_host_of_a_worker_and_a_node_name_without_a_host():
    lives = [*life("u1", "gen1@box-1", "a@box-1"), sent("u2", hostname="laptop")]
    assert of("celery_task_sent_total", *lives) == {
        '{hostname="box-1",name="add",queue_name="q"} 1.0',
        '{hostname="laptop",name="add",queue_name="q"} 1.0',
    }


def test_generic_clients_are_added_up_and_workers_keep_their_hosts():
    assert of("celery_task_sent_total", *LIVES, generic_hostname_task_sent_metric=True) == {
        '{hostname="generic",name="add",queue_name="q"} 2.0',
    }
    assert of("celery_task_succeeded_total", *LIVES, generic_hostname_task_sent_metric=True) == {
        '{hostname="box-1",name="add",queue_name="q"} 1.0',
        '{hostname="box-2",name="add",queue_name="q"} 1.0',
    }


def test_no_client_is_remembered_where_all_are_called_the_same():
    assert not select(("danihodovic",), MetricOptions(generic_hostname_task_sent_metric=True)).clients


def test_clients_that_were_told_apart_before_the_flag_was_set_are_not_counted_twice():
    driver = ClusterDriver(labels=("queue_name", "worker"), clients=True)  # as a state file brings it
    driver.apply(*LIVES)
    rows = select(("danihodovic",), MetricOptions(generic_hostname_task_sent_metric=True)).rows
    text = Exposition(rows).render(driver.shown()).decode()
    assert 'celery_task_sent_total{hostname="generic",name="add",queue_name="q"} 2.0' in text
    assert "web-1" not in text


@pytest.mark.parametrize(
    "given",
    [
        ["--default-queue-name", "celery"],
        ["--namespace", "jobs"],
        ["--generic-hostname-task-sent-metric"],
        ["--generic-hostname-worker-task-metric"],
    ],
    ids=lambda given: given[0],
)
def test_series_that_a_flag_renames_are_no_news_after_a_restart(given):
    changed, defaults = begun("--broker-url", URL, *given), begun("--broker-url", URL)
    assert naming_of(changed.monitor) != naming_of(defaults.monitor)


def test_generic_workers_are_added_up_on_task_metrics_alone():
    events = [*LIVES, received("u3", host="a@box-2"), failed("u3", host="a@box-2")]
    generic = '{hostname="generic",name="add",queue_name="q"}'
    found = page(*LIVES, heartbeat("a@box-1", active=2), generic_hostname_worker_task_metric=True)
    assert f"celery_task_succeeded_total{generic} 2.0" in found
    assert f"celery_task_runtime_count{generic} 2.0" in found
    assert f"celery_task_queue_wait_time_count{generic} 2.0" in found
    assert 'celery_worker_tasks_active{hostname="box-1"} 2.0' in found
    assert of("celery_worker_up", *LIVES, generic_hostname_worker_task_metric=True) == {
        '{hostname="box-1"} 1.0',
        '{hostname="box-2"} 1.0',
    }
    assert of("celery_task_failed_total", *events, generic_hostname_worker_task_metric=True) == {
        '{exception="",hostname="generic",name="add",queue_name="q"} 0.0',
        '{exception="",hostname="generic",name="add",queue_name="unknown"} 0.0',
        '{exception="ValueError",hostname="generic",name="add",queue_name="unknown"} 1.0',
    }


def test_both_hosts_may_be_generic_and_are_one_sum_then():
    found = of(
        "celery_task_sent_total",
        *LIVES,
        generic_hostname_task_sent_metric=True,
        generic_hostname_worker_task_metric=True,
    )
    assert found == {'{hostname="generic",name="add",queue_name="q"} 2.0'}


def test_a_queue_that_nobody_told_is_unknown_or_what_somebody_chose():
    events = [received(), started(), succeeded()]
    for shape, queue in (({}, "unknown"), ({"default_queue_name": "celery"}, "celery")):
        found = {f'{{hostname="h",name="add",queue_name="{queue}"}} 1.0'}
        assert of("celery_task_succeeded_total", *events, **shape) == found


def test_a_queue_of_the_chosen_name_and_those_that_nobody_told_are_one_sum():
    told = [*life("u1", "c@web", "w@h"), received("u2"), started("u2"), succeeded("u2")]
    found = of("celery_task_succeeded_total", *told, default_queue_name="q")
    assert found == {'{hostname="h",name="add",queue_name="q"} 2.0'}


def test_of_several_workers_on_a_host_one_that_is_up_will_do_and_tasks_are_added_up():
    workers = [heartbeat("a@h", active=2), heartbeat("b@h", active=3), heartbeat("c@h", active=9)]
    found = page(*workers, heartbeat("c@h", kind="offline", active=9))
    assert 'celery_worker_up{hostname="h"} 1.0' in found
    assert 'celery_worker_tasks_active{hostname="h"} 5.0' in found
    both = page(*(heartbeat(f"{name}@h", kind="offline") for name in "ab"))
    assert 'celery_worker_up{hostname="h"} 0.0' in both
    assert 'celery_worker_tasks_active{hostname="h"} 0.0' in both


def test_of_several_workers_on_a_host_tasks_are_added_up():
    lives = [*life("u1", "c@web", "a@h"), *life("u2", "c@web", "b@h")]
    assert of("celery_task_succeeded_total", *lives) == {'{hostname="h",name="add",queue_name="q"} 2.0'}


@pytest.mark.parametrize(
    ("exception", "shown"),
    [
        ("ValueError('x')", "ValueError"),
        ("1 validation error for Order", "UnknownException"),
        # The remark of the metric says so:
        ("requests.exceptions.HTTPError('x')", "HTTPError"),
        ("reject requeue=False", "Reject"),
    ],
)
def test_what_an_exception_is_called(exception, shown):
    events = [sent(), received(), started(), failed(exception=exception)]
    labels = f'exception="{shown}",hostname="h",name="add",queue_name="q"'
    assert f"{{{labels}}} 1.0" in of("celery_task_failed_total", *events)


# -- options: those of src/cli.py of 0.11.2 --------------------------------------------------------------

URL = "redis://redis.service.consul/1"
RECOMMENDED = {"CE_PROFILE": "danihodovic"}  # the one thing that is added
BUCKETS = "0.005,0.01,0.025,0.05,0.075,0.1,0.25,0.5,0.75,1.0,2.5,5.0,7.5,10.0,inf"

#: Option, type of its value there, and which texts are taken as which of our settings.
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
    ),  # we never give up
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
    # Of 0.12; what they do is below.
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


def begun(*argv: str, **environ: str) -> Settings:
    """Return the settings of a command line, read by the parser that is in use."""
    params = _command.make_context("celery-exporter", list(argv)).params
    return load(params, {**RECOMMENDED, **environ})


def variable(option: str) -> str:
    return f"CE_{option.replace('-', '_').upper()}"


def test_the_command_of_its_readme_starts_ours():
    assert begun(f"--broker-url={URL}").monitor.broker.broker_url == URL


@pytest.mark.parametrize(("option", "kind", "text", "field", "expected"), VALUES)
def test_an_option_of_the_original_is_taken(option, kind, text, field, expected):
    given = [f"--{option}"] if kind is bool else [f"--{option}", text]
    assert attrgetter(field)(begun("--broker-url", URL, *given)) == expected


@pytest.mark.parametrize(("option", "kind", "text", "field", "expected"), VALUES)
def test_a_variable_of_the_original_is_taken(option, kind, text, field, expected):  # noqa: ARG001
    environ = {"CE_BROKER_URL": URL, variable(option): text}
    assert attrgetter(field)(begun(**environ)) == expected


@pytest.mark.parametrize("text", ["1", "true", "True", "t", "yes", "Y", "on", " on "])
def test_a_flag_is_on_by_a_variable_as_there(text):
    found = begun(CE_BROKER_URL=URL, CE_GENERIC_HOSTNAME_TASK_SENT_METRIC=text)
    assert found.monitor.metrics.selection.clients is False


@pytest.mark.parametrize("text", ["0", "false", "f", "no", "N", "off", ""])
def test_a_flag_is_off_by_a_variable_as_there(text):
    found = begun(CE_BROKER_URL=URL, CE_GENERIC_HOSTNAME_TASK_SENT_METRIC=text)
    assert found.monitor.metrics.selection.clients is True


def test_lists_are_repeated_options_and_variables_with_spaces():
    given = ["--static-label", "a=1", "--static-label", "b=2", "-Q", "celery,mail"]
    for found in (
        begun("--broker-url", URL, *given),
        begun(CE_BROKER_URL=URL, CE_STATIC_LABEL="a=1 b=2", CE_QUEUES="celery,mail"),
    ):
        assert (found.monitor.metrics.static_label, found.monitor.queues) == (
            {"a": "1", "b": "2"},
            ("celery", "mail"),
        )


@pytest.mark.parametrize("option", [option for option, *_ in ORIGINAL if option != "broker-url"])
def test_an_empty_variable_is_none_as_there(option):
    with_empty = begun(**{"CE_BROKER_URL": URL, variable(option): ""})
    assert fields_of(with_empty) == fields_of(begun(CE_BROKER_URL=URL))


def fields_of(config: Struct) -> dict[str, object]:
    """Return the values of a config, and of the configs in it, by name."""
    values = {name: getattr(config, name) for name in config.__struct_fields__}
    values.pop("selection", None)  # has functions, which are made anew
    return {name: fields_of(value) if isinstance(value, Struct) else value for name, value in values.items()}


def test_an_empty_variable_opens_no_door_and_takes_labels_off():
    assert begun(CE_BROKER_URL=URL, CE_WEB_CONFIG_FILE="").listen.web_config_file is not None
    native = begun("--profile", "native", CE_BROKER_URL=URL, CE_TASK_LABELS="")
    assert native.monitor.metrics.selection.labels == ()


@pytest.mark.parametrize("timeout", ["0", "60"])
def test_that_there_is_no_worker_is_known_after_a_while_without_a_timeout_as_with_one(timeout):
    monitor = Monitor(begun("--broker-url", URL, "--worker-timeout", timeout).monitor)
    monitor.workers._inspected = 0.0
    for listened, known in ((9.0, False), (11.0, True)):
        monitor.state.listening = listened
        assert monitor.workers.has_result() is known


def test_metrics_may_have_no_prefix():
    metrics = begun("--broker-url", URL, "--metric-prefix", "").monitor.metrics
    page = Exposition(metrics.selection.rows, metrics.metric_prefix).render(replay(messages("made-up")))
    assert b"\nworker_up{" in page


def test_a_static_label_is_refused_where_a_metric_that_is_shown_has_it():
    for name in ("hostname", "queue_name", "exception", "le"):
        with pytest.raises(BadSettingError, match=f"--static-label: got '{name}=x'"):
            begun("--broker-url", URL, "--static-label", f"{name}=x")


def test_a_metric_of_the_exporter_itself_keeps_its_own_label():
    metrics = begun("--broker-url", URL, "--static-label", "version=mine").monitor.metrics
    page = Exposition(metrics.selection.rows, static_labels=metrics.static_label).render(
        replay(messages("made-up"))
    )
    assert b'celery_worker_up{hostname="box-1",version="mine"} 1.0' in page
    assert b'celery_exporter_build_info{version="0.0.0"} 1.0' in page


def test_options_keep_their_names():
    assert {option for option, *_ in ORIGINAL} <= {option.name for option in OPTIONS}
