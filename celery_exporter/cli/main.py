"""argv → Settings → the exporter, or a command.

--help, completion and a wrong value need not wait for the rest.
"""

from __future__ import annotations

import os
import re
from typing import Any

import click

from celery_exporter import __version__
from celery_exporter.cli.commands import COMMANDS
from celery_exporter.cli.common import EXIT_FAILED, EXIT_INTERRUPTED, EXIT_USAGE, fail
from celery_exporter.cli.params import Group, current_name, parameter
from celery_exporter.config.loader import load
from celery_exporter.config.options import OPTIONS
from celery_exporter.config.schema import Settings
from celery_exporter.errors import BadSettingError

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
        return fail(str(error), EXIT_FAILED)
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


def _usage(message: str) -> str:
    """Return what is wrong with a command line. A URL in it has a password in it: it is not shown."""
    hidden = re.sub(r"\S*(?:://|:\S*@)\S*", "***", message)
    if hidden != message and message.startswith(("No such command", "Got unexpected extra argument")):
        return "a URL was given without an option; --broker-url URL takes it, or CELERY_BROKER_URL"
    return f"{hidden} (see celery-exporter --help)"


for _each in COMMANDS:
    _command.add_command(_each)


def run() -> int:
    """Run the command line; return its exit code. A wrong value gives one line and code 2, no usage text."""
    try:
        code = _command.main(prog_name="celery-exporter", standalone_mode=False)
    except click.Abort:
        code = EXIT_INTERRUPTED
    except click.UsageError as error:
        code = fail(_usage(error.format_message()), EXIT_USAGE)
    except BadSettingError as error:
        code = fail(str(error), EXIT_USAGE)
    return int(code or 0)
