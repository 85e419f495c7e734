"""The options: chapters, one a group, for docs/reference/options.md."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import groupby

from celery_exporter.cli.params import shown
from celery_exporter.config.options import OPTIONS, Option


def long() -> str:
    """Return a chapter for each group, with what the options take and the variables they are read from."""
    groups = groupby(OPTIONS, lambda option: option.group)
    return "\n\n".join(f"## {group}\n\n{_table(options)}" for group, options in groups)


def _table(options: Iterable[Option]) -> str:
    lines = ["| option | what it does |", "|---|---|"]
    return "\n".join(
        [*lines, *(f"| {_names(each)} | {_help(each)}<br>{_values(each)} |" for each in options)]
    )


def _values(option: Option) -> str:
    if option.is_flag:
        return "Takes no value; a variable takes `true` or `false`."
    return f"Takes {_cell(option.expects)}." + (f" Default: {_default(option)}." if _default(option) else "")


def _names(option: Option) -> str:
    return f"`--{option.name}`" + (f", `-{option.short}`" if option.short else "")


def _default(option: Option) -> str:
    return f"`{shown(option)}`" if shown(option) else ""


def _help(option: Option) -> str:
    return option.help + "".join(f" Also read from `{variable}`." for variable in option.env)


def _cell(text: str) -> str:
    """Return a text as it has to be in a table: with no end of a cell, and no HTML."""
    return text.replace("|", "\\|").replace("<", "&lt;").replace("*", "\\*")
