"""The command `top`: what the status page says, in a terminal.

`sources` is where it comes from, `screen` what is seen of it and what keys change, `drawing` how a cell is
written, and `app` the terminal, which alone needs an extra.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable

import click

from celery_exporter.quoting import printable
from celery_exporter.top.status_source import NoStatusError, Source
from celery_exporter.top.view import News, View, screen

#: Cells of a line where nobody says: room for all columns.
PLAIN_WIDTH = 200


def show(source: Source, once: Callable[[Source, Callable[[str], None]], Source]) -> int:
    """Show it until somebody ends it; where there is no terminal, write it once. Return the exit code.

    `once` makes of the source one that is good for a single look, and says what takes a while.
    """
    return _live(source) if is_terminal() else _written(once(source, _say))


def is_terminal() -> bool:
    """Tell whether there is one to be drawn on, and to take keys from."""
    streams = (sys.stdin, sys.stdout, sys.stderr)  # textual draws on the last one
    return all(stream.isatty() for stream in streams) and os.environ.get("TERM") != "dumb"


def _live(source: Source) -> int:
    try:
        from celery_exporter.top.app import run  # noqa: PLC0415  needs an extra
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in {"textual", "rich"}:
            raise
        return _failed("no textual to draw with: pip install 'celery-event-exporter[top]'")
    return run(source)


def _written(source: Source) -> int:
    try:
        status = source.look()
    except NoStatusError as error:
        return _failed(str(error))
    cells = shutil.get_terminal_size((PLAIN_WIDTH, 24)).columns
    lines = screen(News(source.name, status), View(), cells).lines
    text = "\n".join("".join(part for part, _ in line).rstrip() for line in lines)
    encoding = sys.stdout.encoding or "ascii"
    click.echo(text.encode(encoding, "replace").decode(encoding))
    return 0


def _failed(message: str) -> int:
    _say(message)
    return 1


def _say(message: str) -> None:
    click.echo(f"top: {printable(message)}", err=True)
