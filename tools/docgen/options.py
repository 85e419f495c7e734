"""Tables of the options, one for each group."""

from __future__ import annotations

from itertools import groupby

from celery_exporter.cli.params import shown
from celery_exporter.config.options import OPTIONS, Option
from tools.docgen.markdown import cell, table


def long() -> str:
    """Return a heading and a table for each group, with values, defaults and variables."""
    return "\n\n".join(
        f"## {group}\n\n"
        + table(
            ("option", "what it does"),
            [(_names(option), f"{_help(option)}<br>{_values(option)}") for option in options],
        )
        for group, options in groupby(OPTIONS, lambda option: option.group)
    )


def _values(option: Option) -> str:
    if option.is_flag:
        return "Takes no value; a variable takes `true` or `false`."
    return f"Takes {cell(option.expects)}." + (f" Default: {_default(option)}." if _default(option) else "")


def _names(option: Option) -> str:
    return f"`--{option.name}`" + (f", `-{option.short}`" if option.short else "")


def _default(option: Option) -> str:
    return f"`{shown(option)}`" if shown(option) else ""


def _help(option: Option) -> str:
    variables = " and ".join(f"`{variable}`" for variable in option.env)
    return option.help + (f" Also read from {variables}." if variables else "")
