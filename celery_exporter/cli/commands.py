"""The subcommands. Each imports its dependencies when it runs."""

from __future__ import annotations

import os
import re
import textwrap
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import click
from msgspec import structs

from celery_exporter.cli.common import (
    EXIT_FAILED,
    EXIT_USAGE,
    fail,
    print_progress,
    stop_condition,
    unblock_signals,
)
from celery_exporter.cli.params import Number, Sections, parameter
from celery_exporter.cli.shipped import SHIPPED_COMMANDS
from celery_exporter.config import parsers
from celery_exporter.config.loader import load, load_listen
from celery_exporter.config.options import OPTIONS, SINK_GROUPS
from celery_exporter.config.otel_variables import without_opentelemetry
from celery_exporter.config.schema import BrokerSettings
from celery_exporter.doctor.check_order import CHECKS_BY_SUBJECT
from celery_exporter.errors import BadSettingError
from celery_exporter.metrics.registry import PROFILES, overview, table
from celery_exporter.runtime.logging import configure, forward
from celery_exporter.web.listen_config import ListenConfig
from celery_exporter.web.task_query import PARAMETERS

#: The options of subcommands that connect to the broker.
_BROKER_OPTIONS = frozenset(
    {
        "config_file",
        "broker_url",
        "broker_url_file",
        "broker_transport_option",
        "broker_ssl_option",
        "accept_content",
        "event_exchange",
        "control_exchange",
        "event_consumer",
    }
)
#: Options that `doctor` lists, besides those of the broker: of what it checks. It takes all of the exporter.
_CHECKED_OPTIONS = frozenset(
    option.key for option in OPTIONS if option.group in {"Records of tasks", *SINK_GROUPS}
) | {
    "event_queue_durable",
    "event_queue",
    "queues",
    "shard",
    "state_file",
    "history_file",
    "metric_prefix",
    "static_label",
}
#: Options of a command that runs until it is stopped, and logs.
_LOG_OPTIONS = frozenset({"log_level", "log_format"})


def _doctor_checks() -> str:
    """Return the names of the checks of `doctor`, a paragraph for each subject."""
    return "\n".join(
        textwrap.fill(
            ", ".join(names),
            width=76,
            initial_indent=f"  {subject:12}",
            subsequent_indent=" " * 14,
            break_on_hyphens=False,
        )
        for subject, names in CHECKS_BY_SUBJECT.items()
    )


#: The text at the end of a command's --help.
_EPILOGS = {
    "doctor": f"""\b
Checks, in this order:
{_doctor_checks()}

\b
Examples:
  celery-exporter doctor --broker-url redis://127.0.0.1:6379/0
  celery-exporter doctor --broker-url-file /run/secrets/broker --seconds 60
  celery-exporter doctor --broker-url amqp://me:secret@rabbit// --json | jq .
  CELERY_BROKER_URL=redis://redis/0 celery-exporter doctor \\
    --prometheus http://prometheus:9090
""",
    "record": """\b
Examples:
  celery-exporter record events.gz --broker-url redis://127.0.0.1:6379/0
  celery-exporter record bug.gz --scrub --seconds 60 --broker-url redis://a/0
""",
    "replay": """\b
Examples:
  celery-exporter replay events.gz --broker-url redis://127.0.0.1:6379/1
  celery-exporter replay events.gz --speed 10 --broker-url redis://127.0.0.1/1
  celery-exporter replay events.gz --fast --broker-url amqp://127.0.0.1/test
""",
    "relay": """\b
Examples:
  celery-exporter relay --shards 4 --broker-url amqp://me:secret@rabbit//
  celery-exporter relay --shards 4 --broker-url-file /run/secrets/broker \\
    --to amqp://me:secret@rabbit-for-events//
""",
    "find": """\b
Examples:
  celery-exporter find d96e5adf-a2be-4e31-ac8b-e7d742840d2b
  celery-exporter find d96e5adf
  celery-exporter find --why d96e5adf
  celery-exporter find --name shop.tasks.pay --state FAILURE --since 1h
  celery-exporter find --worker celery@web-1 --state STARTED --json | jq .
""",
    "expected": """\b
Examples:
  celery-exporter expected --from-app shop.celery:app
  DJANGO_SETTINGS_MODULE=shop.settings celery-exporter expected --from-app shop
""",
    "top": """\b
Examples:
  celery-exporter top
  celery-exporter top --url https://exporter.example.org:9808
  CELERY_EXPORTER_URL=http://user:password@exporter:9808 celery-exporter top
  celery-exporter top --broker-url redis://127.0.0.1:6379/0
  celery-exporter top | grep down
""",
}


@click.command()
@click.option(
    "--port", type=click.IntRange(0, 65_535), default=9808, show_default=True, help="Port of the exporter."
)
@click.option("--seconds", type=Number(min=1), help="Stop after this many seconds.")
@click.option("--with-problems", is_flag=True, help="Let too many tasks fail and be retried.")
@click.pass_context
def demo(context: click.Context, port: int, seconds: float | None, *, with_problems: bool) -> None:
    """Run a demo: a broker, workers, a client and the exporter."""
    unblock_signals()
    from celery_exporter.demo import run  # noqa: PLC0415  it needs the extra `demo`

    context.exit(run(port, seconds, with_problems=with_problems))


def _broker_option() -> click.Option:
    return click.Option(
        ["--broker"], metavar="NAME", help="Name of the broker, if --config.file has several."
    )


def _broker_command(
    name: str,
    function: Callable[..., int],
    *parameters: click.Parameter,
    keys: frozenset[str] = _BROKER_OPTIONS,
    takes_all: bool = False,
) -> click.Command:
    """Return a subcommand that connects to the broker, with these options of the exporter.

    With `takes_all`, it takes the other ones as well, which its --help does not list.
    """

    @click.pass_context
    def callback(context: click.Context, /, broker: str | None, **argv: Any) -> None:
        unblock_signals()
        root = _root_params(context)
        values = {option.key: argv.pop(option.key) or root.get(option.key) for option in taken}
        environ = os.environ if takes_all else without_opentelemetry(os.environ)
        settings = load(values, environ)
        if keys >= _LOG_OPTIONS:
            configure(settings.log_level, settings.log_format)
        context.exit(function(settings.broker(broker), **argv))

    taken = [option for option in OPTIONS if takes_all or option.key in keys]
    options = [parameter(option, hidden=option.key not in keys) for option in taken]
    return Sections(
        name,
        callback=callback,
        params=[*parameters, _broker_option(), *options],
        help=function.__doc__,
        epilog=_EPILOGS[name],
    )


def _root_params(context: click.Context) -> dict[str, Any]:
    """Return the parameters before the subcommand's name."""
    return context.parent.params if context.parent else {}


def _reject_url(file: str) -> None:
    """Raise BadSettingError for a URL instead of a path.

    The message omits the URL, because it may contain a password.
    """
    if re.search(":.*@|://", file):
        raise BadSettingError("FILE: got a URL, expected a path; use --broker-url URL for the broker")


def _record(settings: BrokerSettings, file: str, seconds: float | None, *, scrub: bool) -> int:
    """Record the events of a broker into FILE.

    The recording is compressed and includes the times; use it for a bug report, a test or a benchmark. FILE
    must not exist. With --scrub, names of tasks, queues and hosts are replaced, and fields that the exporter
    does not use are removed.
    """
    from celery_exporter.broker.connection import BrokerError  # noqa: PLC0415
    from celery_exporter.recording.commands import record  # noqa: PLC0415  only this command needs it

    _reject_url(file)
    exists = f"FILE: {file!r} already exists; existing files are not overwritten, so use a new name"
    if os.path.lexists(file):
        return fail(exists, EXIT_USAGE)
    try:
        record(
            settings.monitor.broker,
            Path(file),
            scrub=scrub,
            ended=stop_condition(seconds),
            say=print_progress,
        )
    except FileExistsError:
        return fail(exists, EXIT_USAGE)
    except (BrokerError, OSError) as error:
        return fail(str(error), EXIT_FAILED)
    return 0


def _replay(settings: BrokerSettings, file: str, speed: float | None, *, fast: bool) -> int:
    """Publish the events of FILE to a broker.

    They are published at the recorded speed or faster. All consumers on the broker receive them, including
    other exporters, so use a broker for tests. Exit code 2: FILE is damaged.
    """
    from celery_exporter.broker.connection import BrokerError  # noqa: PLC0415
    from celery_exporter.recording.commands import replay  # noqa: PLC0415  only this command needs it
    from celery_exporter.recording.format import NotARecordingError  # noqa: PLC0415

    if fast and speed is not None:
        raise BadSettingError("--speed and --fast: got both; use one of the two")
    _reject_url(file)
    pace = None if fast else speed or 1.0
    try:
        is_complete = replay(
            settings.monitor.broker, Path(file), speed=pace, ended=stop_condition(None), say=print_progress
        )
    except NotARecordingError as error:
        return fail(str(error), EXIT_USAGE)
    except BrokerError as error:
        return fail(str(error), EXIT_FAILED)
    return 0 if is_complete else EXIT_USAGE


def _relay(settings: BrokerSettings, to: str | None, to_file: Path | None, shards: int) -> int:
    """Give each shard only its own events.

    Consumes all events of a cluster from a durable queue, and publishes them to a queue for each shard, which
    an exporter reads with --shard I/N and --event-queue. RabbitMQ only. This is the one command that declares
    queues and publishes to them; it logs their names.
    """
    from celery_exporter.broker.url_file import url_from_file  # noqa: PLC0415  only this command needs it
    from celery_exporter.relay.command import relay  # noqa: PLC0415

    if to and to_file:
        raise BadSettingError("--to and --to-file: got both; use one of the two")
    source = target = settings.monitor.broker
    if to or to_file:
        url = url_from_file(to_file, "--to-file") if to_file else to
        target = structs.replace(source, broker_url=url, broker_url_file=to_file)
    relay(source, target, shards, ended=stop_condition(None))
    return 0


def _doctor(
    settings: BrokerSettings, seconds: float, prometheus: str | None, management: str | None, *, json: bool
) -> int:
    """Find out why metrics are missing.

    Prints one line for each check, with the remedy of each problem. Takes all options of the exporter, and
    lists those of what it checks. Exit code 0: no problems; 1: warnings; 2: a critical problem.
    """
    from celery_exporter.doctor.report import as_json, printed  # noqa: PLC0415  only this command needs it
    from celery_exporter.doctor.runner import DoctorOptions, run_doctor  # noqa: PLC0415
    from celery_exporter.sinks.factory import sinks_for  # noqa: PLC0415

    sinks = sinks_for(settings.sinks)  # before the checks: contradicting settings end the command
    forward(print_progress, ignored="celery_exporter.status.checks")  # the report has all findings
    options = DoctorOptions(
        seconds=seconds,
        prometheus=prometheus,
        management=management,
        sinks=sinks,
        history_file=settings.monitor.history.history_file,
    )
    print_finding = (lambda _: None) if json else lambda finding: click.echo(printed(finding))
    conditions: list[Callable[[], bool]] = []

    def is_stopped() -> bool:
        """Return whether to stop listening and print the results so far.

        Before the first call, when the doctor does not listen yet, a signal ends the command.
        """
        conditions[:] = conditions or [stop_condition(None)]
        return conditions[0]()

    report = run_doctor(
        settings.monitor,
        options,
        report=print_finding,
        say=print_progress,
        is_stopped=is_stopped,
    )
    if json:
        click.echo(as_json(report))
    return report.exit_code


def _http_url(_: click.Context, parameter: click.Parameter, value: str | None) -> str | None:
    """Return a valid HTTP URL. The message omits an invalid one, because it may contain a password."""
    try:
        parts = urlsplit(value or "http://localhost")
        is_valid = parts.scheme in {"http", "https"} and parts.hostname and parts.port != 0
    except ValueError:
        is_valid = False
    if not is_valid or "@" in (value or "") or "?" in (value or ""):
        raise BadSettingError(
            f"--{parameter.name}: invalid URL; expected one such as http://127.0.0.1:9090, without a password"
        )
    return value


_FILE = click.Argument(["file"], type=click.Path(dir_okay=False))
_RECORD = _broker_command(
    "record",
    _record,
    _FILE,
    click.Option(["--seconds"], type=Number(min=0.1), help="Stop after this many seconds."),
    click.Option(["--scrub"], is_flag=True, help="Replace names and remove unused fields."),
)
_REPLAY = _broker_command(
    "replay",
    _replay,
    _FILE,
    click.Option(
        ["--speed"], type=Number(0, min_open=True), help="Speed, as a multiple of the recorded speed."
    ),
    click.Option(["--fast"], is_flag=True, help="Publish as fast as possible."),
)
_RELAY = _broker_command(
    "relay",
    _relay,
    click.Option(
        ["--to"],
        metavar="URL",
        help="RabbitMQ with the queues of the shards. [default: the broker of the events]",
    ),
    click.Option(["--to-file"], type=click.Path(path_type=Path), help="A file with this URL, instead."),
    click.Option(
        ["--shards"],
        metavar="N",
        type=click.IntRange(1, parsers.MAX_SHARDS),
        required=True,
        help="Number of shards.",
    ),
    keys=_BROKER_OPTIONS | {"retry_interval"} | _LOG_OPTIONS,
)
_DOCTOR = _broker_command(
    "doctor",
    _doctor,
    click.Option(
        ["--seconds"],
        type=Number(min=8),
        default=20,
        show_default=True,
        help="Seconds to listen for events; fewer if all checks are decided earlier.",
    ),
    click.Option(["--json"], is_flag=True, help="Print one JSON document; progress goes to stderr."),
    click.Option(
        ["--prometheus"],
        metavar="URL",
        callback=_http_url,
        help="Prometheus server that should scrape the exporter.",
    ),
    click.Option(
        ["--management"],
        metavar="URL",
        callback=_http_url,
        help="Management API of RabbitMQ, if not on port 15672.",
    ),
    keys=_BROKER_OPTIONS | _CHECKED_OPTIONS,
    takes_all=True,
)


def _url_option(text: str = "URL of a running exporter.", *, multiple: bool = False) -> click.Option:
    help_ = f"{text} [default: http://127.0.0.1:9808]"
    return click.Option(["--url"], metavar="URL", multiple=multiple, help=help_)


def _running_exporter(context: click.Context) -> str:
    """Return the URL of the exporter that the environment names, or else of the one on this machine."""
    from celery_exporter.web.client import local_urls  # noqa: PLC0415  only some commands need it

    named = os.environ.get("CELERY_EXPORTER_URL")
    return named or local_urls(load_listen(_root_params(context), os.environ))[0]


@click.pass_context
def _top(context: click.Context, /, url: str | None, broker: str | None, **argv: Any) -> None:
    """Show the overview in the terminal; q quits.

    Workers, queues, tasks, recent failures and problems of the exporter on this machine or at --url; with
    --broker-url, of a broker without an exporter. Without a terminal, prints one snapshot and exits.
    """
    unblock_signals()
    from celery_exporter.top import show  # noqa: PLC0415
    from celery_exporter.top.status_source import broker as subscribed  # noqa: PLC0415
    from celery_exporter.top.status_source import exporter  # noqa: PLC0415

    root = _root_params(context)
    values = {key: argv[key] or root.get(key) for key in argv}
    if not (values["broker_url"] or values["broker_url_file"]):
        context.exit(show(exporter(_of_broker(url or _running_exporter(context), broker))))
    if url:
        raise BadSettingError("--url and --broker-url: got both; use one of the two")
    warnings: deque[str] = deque(maxlen=1)
    forward(warnings.append, ignored="celery_exporter.status.checks")  # the status has all findings
    settings = load(values, without_opentelemetry(os.environ))
    with subscribed(settings.broker(broker).monitor, warnings) as source:
        code = show(source)
    context.exit(code)


_TOP = Sections(
    "top",
    callback=_top,
    epilog=_EPILOGS["top"],
    params=[
        _url_option(),
        _broker_option(),
        *(parameter(option) for option in OPTIONS if option.key in _BROKER_OPTIONS | {"queues"}),
    ],
    help=_top.__doc__,
)


@click.pass_context
def _find(  # noqa: PLR0913  its options
    context: click.Context,
    /,
    uuid: str | None,
    url: tuple[str, ...],
    broker: str | None,
    *,
    json: bool,
    why: bool,
    **query: Any,
) -> None:
    """Find a task by its id, or tasks by name, state and more.

    The first eight characters of an id are enough. Asks the exporter on this machine, or those at --url,
    about all brokers or about --broker. Exit code 0: found; 1: not found, or no answer.
    """
    unblock_signals()
    from celery_exporter.find import exporters_of, find  # noqa: PLC0415  only this command needs it
    from celery_exporter.web.client import exporter_at  # noqa: PLC0415

    given = {name: text for name, text in query.items() if text is not None}
    if uuid is not None and given:
        raise BadSettingError(f"--{next(iter(given)).replace('_', '-')}: got an id, too; use one of the two")
    if why and uuid is None:
        raise BadSettingError("--why: needs the id of a task")
    urls = url or (_running_exporter(context),)
    exporters = exporters_of([exporter_at(_of_broker(one, broker), "find") for one in urls])
    context.exit(find(exporters, uuid, given, why=why, as_json=json, is_remote=bool(url)))


_FIND = Sections(
    "find",
    callback=_find,
    epilog=_EPILOGS["find"],
    params=[
        click.Argument(["uuid"], required=False, metavar="[ID]"),
        *(
            click.Option(
                [f"--{name.replace('_', '-')}"], metavar="TEXT", help=f"{expects[0].upper()}{expects[1:]}."
            )
            for name, (_, expects) in PARAMETERS.items()
        ),
        click.Option(["--why"], is_flag=True, help="Say why the task is there: look at the broker now."),
        click.Option(["--json"], is_flag=True, help="Print the answer of the API."),
        _url_option("URL of a running exporter; repeat it to ask all shards.", multiple=True),
        _broker_option(),
    ],
    help=_find.__doc__,
)


def _of_broker(url: str, broker: str | None) -> str:
    """Return the URL at which the exporter has the pages of one broker."""
    return url if broker is None else f"{url.rstrip('/')}/brokers/{quote(broker, safe='')}"


@click.command("check-config")
@click.argument("file", type=click.Path(dir_okay=False))
@click.pass_context
def check_config(context: click.Context, file: str) -> None:
    """Check a configuration file.

    The variables of this environment count, too. Connects to nothing. Exit code 0: valid; 2: not valid.
    """
    unblock_signals()
    from celery_exporter.broker.connection import check  # noqa: PLC0415  only this command needs it
    from celery_exporter.broker.url import masked  # noqa: PLC0415
    from celery_exporter.sinks.factory import sinks_for  # noqa: PLC0415

    settings = load({"config_file": file}, os.environ)
    for broker in settings.brokers.values():
        check(broker.monitor.broker)
        sinks_for(broker.sinks)
    click.echo(f"{file}: valid, {_count(len(settings.brokers), 'broker')}")
    for name, broker in settings.brokers.items():
        tasks = len({task.name for task in broker.monitor.expected})
        expects = f" ({_count(tasks, 'expected task')})" if tasks else ""
        click.echo(f"  {f'{name}: ' if name else ''}{masked(broker.monitor.broker.broker_url)}{expects}")
    context.exit(0)


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


@click.command(epilog=_EPILOGS["expected"])
@click.option(
    "--from-app",
    "app",
    metavar="MODULE:APP",
    required=True,
    help="Application whose periodic tasks are printed, as for celery --app.",
)
@click.pass_context
def expected(context: click.Context, app: str) -> None:
    """Print the expected tasks of an application.

    Prints the section `expected` of a configuration file, with the tasks of beat_schedule and, if
    DJANGO_SETTINGS_MODULE is set, those in the tables of django-celery-beat. Run it where the application
    and its packages are installed. Connects to no broker. Exit code 0: printed; 1: the application
    or its tables cannot be read, or it has no periodic tasks.
    """
    unblock_signals()
    from celery_exporter.beat_schedule.app import AppError, entries_of  # noqa: PLC0415  imports Celery
    from celery_exporter.beat_schedule.section import section  # noqa: PLC0415

    try:
        entries = entries_of(app)
    except AppError as error:
        context.exit(fail(str(error), EXIT_FAILED))
    click.echo(section(entries))
    if not any(entry.schedule for entry in entries):  # the section says why each is left out
        reason = "its periodic tasks cannot be expected, for the printed reasons"
        context.exit(fail(f"--from-app: got {app!r}; {reason}", EXIT_FAILED))
    context.exit(0)


@click.command()
@click.argument("name", required=False, type=click.Choice(tuple(PROFILES)))
def profiles(name: str | None) -> None:
    """List the metric profiles, or the metrics of one."""
    unblock_signals()
    click.echo("\n\n".join(map(overview, PROFILES.values())) if name is None else table(PROFILES[name]))


@click.pass_context
def _healthcheck(context: click.Context, /, **argv: Any) -> None:
    """Check whether the local exporter is healthy.

    For container engines. Exit code 0: healthy; 1: unhealthy. It reads the same options and variables as the
    exporter, and does not connect to the broker.
    """
    unblock_signals()
    from celery_exporter.web.healthcheck import check_health  # noqa: PLC0415  only this command needs it

    root = _root_params(context)
    try:
        listen = load_listen({key: argv[key] or root.get(key) for key in argv}, os.environ)
        is_healthy, line = check_health(listen)
    except BadSettingError as error:  # container engines distinguish only 0 and 1
        is_healthy, line = False, str(error)
    if is_healthy:
        click.echo(line)
    context.exit(0 if is_healthy else fail(line, EXIT_FAILED))


_HEALTHCHECK = Sections(
    "healthcheck",
    callback=_healthcheck,
    params=[parameter(option) for option in OPTIONS if option.key in ListenConfig.__struct_fields__],
    help=_healthcheck.__doc__,
)


COMMANDS: tuple[click.Command, ...] = (
    demo,
    _RECORD,
    _REPLAY,
    _RELAY,
    _DOCTOR,
    _TOP,
    _FIND,
    profiles,
    *SHIPPED_COMMANDS,
    check_config,
    expected,
    _HEALTHCHECK,
)
