"""The options: a table for the README, and chapters, one a group, for docs/configuration.md."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import groupby

from celery_exporter.cli import shown
from celery_exporter.options import OPTIONS, Option


def short() -> str:
    """Return one table of all."""
    lines = ["| option | default | what it does |", "|---|---|---|"]
    return "\n".join(
        [*lines, *(f"| {_names(each)} | {_default(each)} | {_help(each)} |" for each in OPTIONS)]
    )


def long() -> str:
    """Return a chapter for each group, with what the options take and the variables they are read from."""
    groups = groupby(OPTIONS, lambda option: option.group)
    return "\n\n".join(f"## {group}\n\n{_table(options)}" for group, options in groups)


def _table(options: Iterable[Option]) -> str:
    lines = ["| option | takes | default | what it does |", "|---|---|---|---|"]
    lines += [f"| {_names(each)} | {_takes(each)} | {_default(each)} | {_help(each)} |" for each in options]
    return "\n".join(lines)


def _names(option: Option) -> str:
    return f"`--{option.name}`" + (f", `-{option.short}`" if option.short else "")


def _takes(option: Option) -> str:
    return "nothing; `true` or `false` from the environment" if option.switch else _cell(option.takes)


def _default(option: Option) -> str:
    return f"`{shown(option.default)}`" if option.default not in (None, (), {}) else ""


def _help(option: Option) -> str:
    return option.help + "".join(f" Also read from `{variable}`." for variable in option.env)


def _cell(text: str) -> str:
    """Return a text as it has to be in a table: with no end of a cell, and no HTML."""
    return text.replace("|", "\\|").replace("<", "&lt;").replace("*", "\\*")
