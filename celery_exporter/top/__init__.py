"""The command `top`: the overview in a terminal, or its text where there is no terminal.

`status_source` reads the status, `view` decides which rows and texts are shown, and `app` draws them with
Textual, which is an extra that only `app` needs.
"""

from __future__ import annotations

import os
import sys
import threading

import click

from celery_exporter.installation import extra_command
from celery_exporter.quoting import encodable, printable
from celery_exporter.top.status_source import Source
from celery_exporter.top.view import plain
from celery_exporter.web.client import NoAnswerError

#: Seconds after which a script prints what it waits for.
SLOW_SECONDS = 1.0


def show(source: Source) -> int:
    """Show a source until the user quits; return the exit code.

    Without a terminal, print it once.
    """
    streams = (sys.stdin, sys.stdout, sys.stderr)  # Textual draws on stderr
    is_terminal = all(stream.isatty() for stream in streams) and os.environ.get("TERM") != "dumb"
    if not is_terminal:
        return _print(source)
    try:
        from celery_exporter.top.app import run  # noqa: PLC0415  needs an extra
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in {"textual", "rich"}:
            raise
        _say(f"Textual is not installed; run: {extra_command('top')}")
        return 1
    return run(source)


def _print(source: Source) -> int:
    timer = threading.Timer(SLOW_SECONDS, _say, [source.wait])
    timer.start()
    try:
        text = plain(source.read_once())
    except NoAnswerError as error:
        _say(str(error))
        return 1
    finally:
        timer.cancel()
    click.echo(encodable(text, sys.stdout.encoding))
    return 0


def _say(message: str) -> None:
    click.echo(f"top: {printable(message)}", err=True)
