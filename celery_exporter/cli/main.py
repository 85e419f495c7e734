"""The root command: argv → Settings → the exporter, or a subcommand.

The exporter is imported only when it runs, so that --help, completion and usage errors are fast.
"""

from __future__ import annotations

import errno
import os
import re
import sys
from collections.abc import Callable
from functools import partial
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

Each option can also be set by the variables CELERY_EXPORTER_<NAME> and CE_<NAME>; the option takes
precedence. Metrics are at /metrics on --port. Exit code 1: cannot listen on the port. Exit code 2: invalid
value, such as an invalid broker URL.
"""


@click.pass_context
def _main(context: click.Context, /, **argv: Any) -> None:
    """Prometheus exporter for Celery: metrics of tasks, workers and queues."""
    if context.invoked_subcommand is None:
        context.exit(_serve(partial(load, argv, os.environ)))


def _serve(load_settings: Callable[[], Settings]) -> int:
    from celery_exporter.app import CannotServeError, serve  # noqa: PLC0415  half a second of imports

    try:
        serve(load_settings)
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
        "token_normalize_func": current_name,  # also for subcommands
    },
)


def _print_version(context: click.Context, _parameter: click.Parameter, is_given: bool) -> None:
    if is_given and not context.resilient_parsing:
        from celery_exporter.runtime.version import version_text  # noqa: PLC0415  only --version needs it

        click.echo(version_text(__version__))
        context.exit()


_command.params.append(
    click.Option(
        ["--version"],
        is_flag=True,
        expose_value=False,
        is_eager=True,
        callback=_print_version,
        help="Show the versions of the exporter and its dependencies, and exit.",
    )
)


def _usage_error(message: str) -> str:
    """Return the message of a usage error, without URLs: they may contain a password."""
    masked = re.sub(r"\S*(?:://|:\S*@)\S*", "***", message)
    if masked != message and message.startswith(("No such command", "Got unexpected extra argument")):
        return "got a URL without an option; use --broker-url URL or CELERY_BROKER_URL"
    return f"{masked} (see celery-exporter --help)"


for _subcommand in COMMANDS:
    _command.add_command(_subcommand)


def run() -> int:
    """Run the command line; return its exit code.

    An invalid value causes one line on stderr and exit code 2, without a usage text.
    """
    try:
        code = _command.main(prog_name="celery-exporter", standalone_mode=False)
        if sys.stdout is not None:  # None: it was closed before
            sys.stdout.flush()
    except click.Abort:
        code = EXIT_INTERRUPTED
    except click.UsageError as error:
        code = fail(_usage_error(error.format_message()), EXIT_USAGE)
    except BadSettingError as error:
        code = fail(str(error), EXIT_USAGE)
    except OSError as error:
        if error.errno != errno.ENOSPC or error.filename is not None:
            raise
        code = fail(f"cannot write to stdout: {error.strerror}", EXIT_FAILED)
    return int(code or 0)
