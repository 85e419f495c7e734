"""argv → Settings → what was asked for. Each command imports what it needs when it runs.

--help, completion and a wrong value need not wait for the rest.
"""

from __future__ import annotations

import math
import os
import re
import signal
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import click

from celery_exporter import __version__
from celery_exporter.cli.params import Group, Number, Sections, current_name, parameter
from celery_exporter.config.loader import BadSettingError, Listener, Settings, load, load_listener
from celery_exporter.config.options import OPTIONS
from celery_exporter.metrics.registry import PROFILES, overview, table
from celery_exporter.quoting import printable
from celery_exporter.runtime.signals import ending

EXIT_FAILED, EXIT_USAGE = 1, 2
#: As a shell has it of who is ended by Ctrl-C.
EXIT_INTERRUPTED = 130

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

_EPILOG = """\b
Examples:
  celery-exporter --broker-url redis://127.0.0.1:6379/0
  celery-exporter --broker-url-file /run/secrets/broker --enable-events
  CELERY_BROKER_URL=amqp://user:secret@rabbit// celery-exporter
  celery-exporter --profile native,triton --task-labels queue_name,worker
  eval "$(_CELERY_EXPORTER_COMPLETE=bash_source celery-exporter)"

Each option is also read from CELERY_EXPORTER_<NAME> and CE_<NAME>; an option beats a variable. Metrics are
at /metrics on --port. Exit code 2 is a wrong value, a broker URL of no use among them; 1 is a port in use.
"""


@click.pass_context
def _main(context: click.Context, /, **argv: Any) -> None:
    """Prometheus exporter for Celery: counts tasks, watches workers, measures queues."""
    if context.invoked_subcommand is None:
        context.exit(_serve(load(argv, os.environ)))


def _serve(settings: Settings) -> int:
    from celery_exporter.app import CannotServeError, serve  # noqa: PLC0415  half a second of imports

    try:
        serve(settings)
    except CannotServeError as error:
        return _fail(str(error), EXIT_FAILED)
    return 0


_command = Group(
    "celery-exporter",
    callback=_main,
    params=[parameter(option) for option in OPTIONS],
    help=_main.__doc__,
    invoke_without_command=True,
    epilog=_EPILOG,
    context_settings={
        "help_option_names": ["-h", "--help"],
        "max_content_width": 100,
        "token_normalize_func": current_name,  # of subcommands, too
    },
)


#: At the end of a command's --help.
_EXAMPLES = {
    "doctor": """\b
Looked at, in this order:
  the way there  url, transport, host, port, answer, tls, login,
                 database or virtual-host, subscription, publishers
  the broker     broker-version, eviction, output-buffer, transient-queues,
                 orphaned-queues
  events         listening, event-stream, first-event, serializer,
                 heartbeats, task-events, missed-events, task-sent-events,
                 series
  workers        workers, worker-versions, worker-names,
                 duplicate-node-names, remote-control, clock-skew,
                 silent-workers
  queues         queue-lengths, queue-names, queues-without-consumers,
                 unconsumed-messages, queue-depth, queue-waits,
                 oldest-messages
  tasks          failures, retries, redeliveries, slow-tasks, stuck-tasks,
                 orphaned-tasks
  Prometheus     prometheus, prometheus-agrees, prometheus-native

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


def _take_signals() -> None:
    """Let Ctrl-C and SIGTERM end this command at once, until it takes them in its own way."""
    signal.signal(signal.SIGINT, _exit_interrupted)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, ending())


def _exit_interrupted(*_: object) -> None:
    # Not by KeyboardInterrupt: Python drops what is raised in a finalizer, of which each import has several.
    with suppress(OSError, RuntimeError):  # a pipe that nobody reads; a line that is just being written
        sys.stdout.flush()
    os._exit(EXIT_INTERRUPTED)


def _print_version(context: click.Context, _parameter: click.Parameter, asked: bool) -> None:
    if asked and not context.resilient_parsing:
        from celery_exporter.runtime.version import about  # noqa: PLC0415  nobody else needs it

        click.echo(about(__version__))
        context.exit()


_command.params.append(
    click.Option(
        ["--version"],
        is_flag=True,
        expose_value=False,
        is_eager=True,
        callback=_print_version,
        help="Show the version, and those of what it runs on, and exit.",
    )
)


@_command.command()
@click.option(
    "--port", type=click.IntRange(0, 65_535), default=9808, show_default=True, help="For the exporter."
)
@click.option("--seconds", type=Number(min=1), help="End by itself after so many seconds.")
@click.option("--with-problems", is_flag=True, help="More tasks fail and are retried than should.")
@click.pass_context
def demo(context: click.Context, port: int, seconds: float | None, *, with_problems: bool) -> None:
    """Run a broker, workers, a client and the exporter, to look at. All is well there."""
    _take_signals()
    from celery_exporter.demo import run  # noqa: PLC0415  needs an extra that the exporter does not

    context.exit(run(port, seconds, with_problems=with_problems))


def _broker_command(
    name: str,
    function: Callable[..., int],
    *parameters: click.Parameter,
    keys: frozenset[str] = _OF_BROKER,
) -> None:
    """Add a subcommand that talks to the broker: it takes these options as the exporter does."""

    @click.pass_context
    def run_it(context: click.Context, /, **argv: Any) -> None:
        _take_signals()
        before = context.parent.params if context.parent else {}
        given = {key: argv.pop(key) or before.get(key) for key in list(argv) if key in keys}
        context.exit(function(load(given, os.environ), **argv))

    options = [parameter(option) for option in OPTIONS if option.key in keys]
    _command.add_command(
        Sections(
            name,
            callback=run_it,
            params=[*parameters, *options],
            help=function.__doc__,
            epilog=_EXAMPLES[name],
        )
    )


def _ended(seconds: float | None) -> Callable[[], bool]:
    """Return what tells whether a signal to end has come, or so many seconds have passed."""
    asked: list[int] = []
    for each in (signal.SIGTERM, signal.SIGINT):
        signal.signal(each, lambda number, _: asked.append(number))
    end = math.inf if seconds is None else time.monotonic() + seconds
    return lambda: bool(asked) or time.monotonic() > end


def _say(line: str) -> None:
    click.echo(printable(line), err=True)


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
        return _fail(exists, EXIT_USAGE)
    try:
        record(settings, Path(file), scrub=scrub, ended=_ended(seconds), say=_say)
    except FileExistsError:
        return _fail(exists, EXIT_USAGE)
    except (BrokerError, OSError) as error:
        return _fail(str(error), EXIT_FAILED)
    return 0


def _replay(settings: Settings, file: str, speed: float | None, *, fast: bool) -> int:
    """Publish the events of FILE to a broker.

    As fast as they came, or faster; exit code 2 if the file is damaged. Whoever listens there gets them,
    other exporters too: use a broker that is for this.
    """
    from celery_exporter.broker.connection import BrokerError  # noqa: PLC0415
    from celery_exporter.recording.commands import replay  # noqa: PLC0415  the exporter does not need it
    from celery_exporter.recording.format import NotATapeError  # noqa: PLC0415

    if fast and speed is not None:
        raise BadSettingError("--speed: got one, and --fast too; one of the two says how fast it goes")
    _refuse_url(file)
    pace = None if fast else speed or 1.0
    try:
        whole = replay(settings, Path(file), speed=pace, ended=_ended(None), say=_say)
    except NotATapeError as error:
        return _fail(str(error), EXIT_USAGE)
    except BrokerError as error:
        return _fail(str(error), EXIT_FAILED)
    return 0 if whole else EXIT_USAGE


def _doctor(
    settings: Settings, seconds: float, prometheus: str | None, management: str | None, *, json: bool
) -> int:
    """Find out why there is nothing to see.

    A line for each thing looked at, and the command or setting that mends it. Exit code 0: all is well; 1:
    warnings; 2: something fails.
    """
    from celery_exporter.doctor import DoctorOptions, run_doctor  # noqa: PLC0415  the exporter does not need it
    from celery_exporter.doctor.report import as_json, printed  # noqa: PLC0415

    what = DoctorOptions(seconds=seconds, prometheus=prometheus, management=management)
    tell = (lambda _: None) if json else lambda finding: click.echo(printed(finding))
    ended: list[Callable[[], bool]] = []

    def asked() -> bool:
        """Only while it listens does it go on to what is known by then; before, it just ends."""
        ended[:] = ended or [_ended(None)]
        return ended[0]()

    report = run_doctor(settings, what, tell=tell, say=_say, ended=asked)
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
_broker_command(
    "record",
    _record,
    _FILE,
    click.Option(["--seconds"], type=Number(min=0.1), help="End by itself after so many."),
    click.Option(["--scrub"], is_flag=True, help="Replace names; leave out what is not read here."),
)
_broker_command(
    "replay",
    _replay,
    _FILE,
    click.Option(["--speed"], type=Number(0, min_open=True), help="So many times as fast."),
    click.Option(["--fast"], is_flag=True, help="As fast as it goes."),
)
_broker_command(
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

    Workers, queues, tasks, recent failures, and what to look at: from the exporter that runs here, or the one
    at --url; with --broker-url from a broker, without any. Where there is no terminal it is written once.
    """
    _take_signals()
    from celery_exporter.top import show  # noqa: PLC0415  the exporter does not need it
    from celery_exporter.top.status_source import awaited, broker, exporter, here, patient  # noqa: PLC0415

    before = context.parent.params if context.parent else {}
    given = {key: argv[key] or before.get(key) for key in argv}
    if not (given["broker_url"] or given["broker_url_file"]):
        url = url or os.environ.get("CELERY_EXPORTER_URL") or here(load_listener(before, os.environ))
        context.exit(show(exporter(url), awaited))
    if url:
        raise BadSettingError("--url: got one, and a --broker-url too; it takes a running exporter, alone")
    with broker(load(given, os.environ)) as source:
        code = show(source, patient)
    context.exit(code)


_command.add_command(
    Sections(
        "top",
        callback=_top,
        epilog=_EXAMPLES["top"],
        params=[
            click.Option(
                ["--url"], metavar="URL", help="A running exporter. [default: http://127.0.0.1:9808]"
            ),
            *(parameter(option) for option in OPTIONS if option.key in _OF_BROKER | {"queues"}),
        ],
        help=_top.__doc__,
    )
)


@_command.command()
@click.argument("name", required=False, type=click.Choice(tuple(PROFILES)))
def profiles(name: str | None) -> None:
    """List the profiles for --profile with their metrics. Of one: all that it has."""
    _take_signals()
    click.echo("\n\n".join(map(overview, PROFILES.values())) if name is None else table(PROFILES[name]))


@click.pass_context
def _healthcheck(context: click.Context, /, **argv: Any) -> None:
    """Ask the exporter here if it is well: exit code 0, or 1.

    For container engines. It takes these options as the exporter does, from the same environment; the broker
    is not asked.
    """
    _take_signals()
    from celery_exporter.web.healthcheck import ask  # noqa: PLC0415  the exporter does not need it

    before = context.parent.params if context.parent else {}
    try:
        well, line = ask(load_listener({key: argv[key] or before.get(key) for key in argv}, os.environ))
    except BadSettingError as error:  # container engines know 0 and 1
        well, line = False, str(error)
    if well:
        click.echo(line)
    context.exit(0 if well else _fail(line, EXIT_FAILED))


_command.add_command(
    Sections(
        "healthcheck",
        callback=_healthcheck,
        params=[parameter(option) for option in OPTIONS if option.key in Listener.__struct_fields__],
        help=_healthcheck.__doc__,
    )
)


def _fail(message: str, code: int) -> int:
    click.echo(f"celery-exporter: {printable(message)}", err=True)
    return code


def _usage(message: str) -> str:
    """Return what is wrong with a command line. A URL in it has a password in it: it is not shown."""
    hidden = re.sub(r"\S*(?:://|:\S*@)\S*", "***", message)
    if hidden != message and message.startswith(("No such command", "Got unexpected extra argument")):
        return "a URL was given without an option; --broker-url URL takes it, or CELERY_BROKER_URL"
    return f"{hidden} (see celery-exporter --help)"


def run() -> int:
    """Run the command line; return its exit code. A wrong value gives one line and code 2, no usage text."""
    try:
        code = _command.main(prog_name="celery-exporter", standalone_mode=False)
    except click.Abort:
        code = EXIT_INTERRUPTED
    except click.UsageError as error:
        code = _fail(_usage(error.format_message()), EXIT_USAGE)
    except BadSettingError as error:
        code = _fail(str(error), EXIT_USAGE)
    return int(code or 0)
