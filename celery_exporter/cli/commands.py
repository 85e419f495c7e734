"""The commands beside the exporter itself. Each imports what it needs when it runs."""

from __future__ import annotations

import os
import re
import textwrap
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import click

from celery_exporter.cli.common import EXIT_FAILED, EXIT_USAGE, ended_by, fail, say, take_signals
from celery_exporter.cli.params import Number, Sections, parameter
from celery_exporter.config.loader import load, load_listen
from celery_exporter.config.options import OPTIONS
from celery_exporter.config.schema import Settings
from celery_exporter.doctor.check_order import CHECKS_BY_SUBJECT
from celery_exporter.errors import BadSettingError
from celery_exporter.metrics.registry import PROFILES, overview, table
from celery_exporter.web.listen_config import ListenConfig

#: Options of subcommands that talk to the broker.
_OF_BROKER = frozenset(
    {
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


#: At the end of a command's --help.
_EXAMPLES = {
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
    "--port", type=click.IntRange(0, 65_535), default=9808, show_default=True, help="For the exporter."
)
@click.option("--seconds", type=Number(min=1), help="End by itself after so many seconds.")
@click.option("--with-problems", is_flag=True, help="More tasks fail and are retried than should.")
@click.pass_context
def demo(context: click.Context, port: int, seconds: float | None, *, with_problems: bool) -> None:
    """Run a broker, workers, a client and the exporter, to look at. All is well there."""
    take_signals()
    from celery_exporter.demo import run  # noqa: PLC0415  needs an extra that the exporter does not

    context.exit(run(port, seconds, with_problems=with_problems))


def _broker_command(
    name: str,
    function: Callable[..., int],
    *parameters: click.Parameter,
    keys: frozenset[str] = _OF_BROKER,
) -> click.Command:
    """Return a subcommand that talks to the broker: it takes these options as the exporter does."""

    @click.pass_context
    def run_it(context: click.Context, /, **argv: Any) -> None:
        take_signals()
        before = context.parent.params if context.parent else {}
        given = {key: argv.pop(key) or before.get(key) for key in list(argv) if key in keys}
        context.exit(function(load(given, os.environ), **argv))

    options = [parameter(option) for option in OPTIONS if option.key in keys]
    return Sections(
        name,
        callback=run_it,
        params=[*parameters, *options],
        help=function.__doc__,
        epilog=_EXAMPLES[name],
    )


def _refuse_url(file: str) -> None:
    """Raise BadSettingError for a URL, with its password, where a file belongs."""
    if re.search(":.*@|://", file):
        raise BadSettingError("FILE: takes a path; a broker's URL is given as --broker-url URL")


def _record(settings: Settings, file: str, seconds: float | None, *, scrub: bool) -> int:
    """Record the events of a broker into FILE.

    For a bug report, a test or a benchmark: compressed, with times. FILE must not exist. With --scrub names
    of tasks, queues and hosts are replaced, and of all else that senders write nothing is kept that this
    exporter does not read.
    """
    from celery_exporter.broker.connection import BrokerError  # noqa: PLC0415
    from celery_exporter.recording.commands import record  # noqa: PLC0415  the exporter does not need it

    _refuse_url(file)
    exists = f"FILE: got {file!r}, which exists; give the name of a new file, for none is written over"
    if os.path.lexists(file):
        return fail(exists, EXIT_USAGE)
    try:
        record(settings.monitor.broker, Path(file), scrub=scrub, ended=ended_by(seconds), say=say)
    except FileExistsError:
        return fail(exists, EXIT_USAGE)
    except (BrokerError, OSError) as error:
        return fail(str(error), EXIT_FAILED)
    return 0


def _replay(settings: Settings, file: str, speed: float | None, *, fast: bool) -> int:
    """Publish the events of FILE to a broker.

    As fast as they came, or faster; exit code 2 if the file is damaged. Whoever listens there gets them,
    other exporters too: use a broker that is for this.
    """
    from celery_exporter.broker.connection import BrokerError  # noqa: PLC0415
    from celery_exporter.recording.commands import replay  # noqa: PLC0415  the exporter does not need it
    from celery_exporter.recording.format import NotARecordingError  # noqa: PLC0415

    if fast and speed is not None:
        raise BadSettingError("--speed: got one, and --fast too; one of the two says how fast it goes")
    _refuse_url(file)
    pace = None if fast else speed or 1.0
    try:
        whole = replay(settings.monitor.broker, Path(file), speed=pace, ended=ended_by(None), say=say)
    except NotARecordingError as error:
        return fail(str(error), EXIT_USAGE)
    except BrokerError as error:
        return fail(str(error), EXIT_FAILED)
    return 0 if whole else EXIT_USAGE


def _doctor(
    settings: Settings, seconds: float, prometheus: str | None, management: str | None, *, json: bool
) -> int:
    """Find out why metrics are missing.

    Prints a line for each check, and the command or setting that helps. Exit code 0: no problem; 1: warnings;
    2: a critical problem.
    """
    from celery_exporter.doctor.report import as_json, printed  # noqa: PLC0415  the exporter does not need it
    from celery_exporter.doctor.runner import DoctorOptions, run_doctor  # noqa: PLC0415
    from celery_exporter.runtime.logging import forward  # noqa: PLC0415

    forward(say, ignored="celery_exporter.status.checks")  # the report has all findings
    options = DoctorOptions(seconds=seconds, prometheus=prometheus, management=management)
    print_finding = (lambda _: None) if json else lambda finding: click.echo(printed(finding))
    has_signal: list[Callable[[], bool]] = []

    def is_stopped() -> bool:
        """Take signals from the first call on, while listening; before, a signal ends the command at once."""
        has_signal[:] = has_signal or [ended_by(None)]
        return has_signal[0]()

    report = run_doctor(settings.monitor, options, report=print_finding, say=say, is_stopped=is_stopped)
    if json:
        click.echo(as_json(report))
    return report.exit_code


def _http_url(_: click.Context, parameter: click.Parameter, value: str | None) -> str | None:
    """Return a URL that can be asked; what else it is, is not printed, for there may be a password in it."""
    try:
        parts = urlsplit(value or "http://nobody")
        well = parts.scheme in {"http", "https"} and parts.hostname and parts.port != 0
    except ValueError:
        well = False
    if not well or "@" in (value or "") or "?" in (value or ""):
        raise BadSettingError(
            f"--{parameter.name}: takes a URL such as http://127.0.0.1:9090, without a login"
        )
    return value


_FILE = click.Argument(["file"], type=click.Path(dir_okay=False))
_RECORD = _broker_command(
    "record",
    _record,
    _FILE,
    click.Option(["--seconds"], type=Number(min=0.1), help="End by itself after so many."),
    click.Option(["--scrub"], is_flag=True, help="Replace names; leave out what is not read here."),
)
_REPLAY = _broker_command(
    "replay",
    _replay,
    _FILE,
    click.Option(["--speed"], type=Number(0, min_open=True), help="So many times as fast."),
    click.Option(["--fast"], is_flag=True, help="As fast as it goes."),
)
_DOCTOR = _broker_command(
    "doctor",
    _doctor,
    click.Option(
        ["--seconds"],
        type=Number(min=8),
        default=20,
        show_default=True,
        help="Listen for so many, fewer if all is known by then.",
    ),
    click.Option(["--json"], is_flag=True, help="One JSON document; what is going on is on stderr."),
    click.Option(
        ["--prometheus"],
        metavar="URL",
        callback=_http_url,
        help="A Prometheus that should scrape the exporter.",
    ),
    click.Option(
        ["--management"],
        metavar="URL",
        callback=_http_url,
        help="RabbitMQ's management API, if not on port 15672.",
    ),
    keys=_OF_BROKER | {"queues", "metric_prefix"},
)


@click.pass_context
def _top(context: click.Context, /, url: str | None, **argv: Any) -> None:
    """Show the status page in this terminal; q quits.

    Workers, queues, tasks, recent failures and problems of the exporter on this machine or at --url; with
    --broker-url, of a broker without an exporter. Without a terminal, prints one snapshot and exits.
    """
    take_signals()
    from celery_exporter.runtime.logging import forward  # noqa: PLC0415  the exporter does not need it
    from celery_exporter.top import show  # noqa: PLC0415
    from celery_exporter.top.status_source import broker, exporter_at, local_url  # noqa: PLC0415

    before = context.parent.params if context.parent else {}
    given = {key: argv[key] or before.get(key) for key in argv}
    if not (given["broker_url"] or given["broker_url_file"]):
        url = url or os.environ.get("CELERY_EXPORTER_URL") or local_url(load_listen(before, os.environ))
        context.exit(show(exporter_at(url)))
    if url:
        raise BadSettingError("--url: got one, and a --broker-url too; it takes a running exporter, alone")
    warnings: deque[str] = deque(maxlen=1)
    forward(warnings.append, ignored="celery_exporter.status.checks")  # the status has all findings
    with broker(load(given, os.environ).monitor, warnings) as source:
        code = show(source)
    context.exit(code)


_TOP = Sections(
    "top",
    callback=_top,
    epilog=_EXAMPLES["top"],
    params=[
        click.Option(["--url"], metavar="URL", help="A running exporter. [default: http://127.0.0.1:9808]"),
        *(parameter(option) for option in OPTIONS if option.key in _OF_BROKER | {"queues"}),
    ],
    help=_top.__doc__,
)


@click.command()
@click.argument("name", required=False, type=click.Choice(tuple(PROFILES)))
def profiles(name: str | None) -> None:
    """List the profiles for --profile with their metrics. Of one: all that it has."""
    take_signals()
    click.echo("\n\n".join(map(overview, PROFILES.values())) if name is None else table(PROFILES[name]))


@click.pass_context
def _healthcheck(context: click.Context, /, **argv: Any) -> None:
    """Ask the exporter here if it is well: exit code 0, or 1.

    For container engines. It takes these options as the exporter does, from the same environment; the broker
    is not asked.
    """
    take_signals()
    from celery_exporter.web.healthcheck import ask  # noqa: PLC0415  the exporter does not need it

    before = context.parent.params if context.parent else {}
    try:
        well, line = ask(load_listen({key: argv[key] or before.get(key) for key in argv}, os.environ))
    except BadSettingError as error:  # container engines know 0 and 1
        well, line = False, str(error)
    if well:
        click.echo(line)
    context.exit(0 if well else fail(line, EXIT_FAILED))


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
    _DOCTOR,
    _TOP,
    profiles,
    _HEALTHCHECK,
)
