"""click parameters for the options, shell completion, and --help with headings."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import click
from click.shell_completion import CompletionItem

from celery_exporter.config.options import OPTIONS, Option

#: The column of the help texts in --help. Longer option names have a line of their own.
HELP_COLUMN = 26
_OLD_NAMES = {option.old_name: option.name for option in OPTIONS if option.old_name}


def parameter(option: Option, *, hidden: bool = False) -> click.Option:
    """Return the click option. Its value is the text as it was typed, which `config.loader.load` parses.

    --help does not list it if it is `hidden`.
    """
    # The key is explicit, because click derives no valid one from a name with dots.
    names = [option.key, f"--{option.name}", *([f"-{option.short}"] if option.short else [])]
    if option.is_flag:
        return click.Option(
            names, is_flag=True, flag_value="true", default=None, help=option.help, hidden=hidden
        )
    note = f" [default: {shown(option).replace(',', ', ')}]" if shown(option) else ""
    return click.Option(
        names,
        type=str,
        metavar=option.metavar,
        multiple=option.multiple,
        help=option.help + note,
        shell_complete=_completion(option),
        hidden=hidden,
    )


def current_name(token: str) -> str:
    """Return the name of an option for its old name, and any other token unchanged."""
    return _OLD_NAMES.get(token, token)


def _completion(option: Option) -> Callable[..., list[CompletionItem]]:
    """Return a function that completes a value: to a path, or to one of the choices.

    Some options accept a comma-separated list of choices. Values are validated by `config.loader.load`.
    """

    def complete(_context: click.Context, _parameter: click.Parameter, typed: str) -> list[CompletionItem]:
        if option.metavar == "PATH":
            return [CompletionItem(typed, type="file")]
        before, comma, last = typed.rpartition(",")
        if comma and not isinstance(option.default, tuple):
            return []
        used = before.split(",")
        return [
            CompletionItem(before + comma + choice)
            for choice in option.choices
            if choice.startswith(last) and choice not in used
        ]

    return complete


def shown(option: Option) -> str:
    """Return an option's default as a user would type it; empty if it has none."""
    default = option.default if option.display_default is None else option.display_default
    return "" if default in (None, (), {}) else _typed(default)


def _typed(default: Any) -> str:
    if isinstance(default, tuple):
        return ",".join(map(_typed, default))
    if isinstance(default, bool):
        return str(default).lower()
    return f"{default:g}" if isinstance(default, float) else str(default)


class Number(click.FloatRange):
    """A number in a range. Unlike click.FloatRange it rejects NaN, which is within any range."""

    def convert(self, value: Any, parameter: click.Parameter | None, context: click.Context | None) -> float:
        """Return the number. Raises click.BadParameter."""
        number: float = super().convert(value, parameter, context)
        if math.isnan(number):
            self.fail(f"{value!r} is not a number.", parameter, context)
        return number


class Sections(click.Command):
    """A command whose --help shows the exporter's options under the headings of their groups."""

    own_heading = "Options"  # of the other options

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options under their headings."""
        groups = {option.key: option.group for option in OPTIONS}
        sections: dict[str, list[tuple[str, str]]] = {}
        for param in self.get_params(ctx):
            record = param.get_help_record(ctx)
            if record is not None and record[1]:  # FILE, which the usage line shows, has no help
                names, help_ = record
                section = sections.setdefault(groups.get(param.name or "", self.own_heading), [])
                section.append((names.ljust(HELP_COLUMN), help_))
        for heading, lines in sections.items():
            with formatter.section(heading):
                formatter.write_dl(lines, col_max=HELP_COLUMN)


class Group(Sections, click.Group):
    """The root command, with the exporter's options and the subcommands."""

    own_heading = "Other"

    def format_usage(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the usage of the exporter and of the subcommands."""
        formatter.write_usage(ctx.command_path, "--broker-url URL [OPTIONS]")
        formatter.write_usage(ctx.command_path, "COMMAND --help", prefix="       ")

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options under their headings, and then the commands."""
        super().format_options(ctx, formatter)
        self.format_commands(ctx, formatter)
