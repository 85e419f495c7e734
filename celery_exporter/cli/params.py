"""Options as click has them: parameters, what a shell completes, and --help under headings."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import click
from click.shell_completion import CompletionItem

from celery_exporter.config.options import OPTIONS, Option

#: Where what an option does begins in --help; longer names have a line of their own.
HELP_COLUMN = 26
_OLD_NAMES = {option.old_name: option.name for option in OPTIONS if option.old_name}


def parameter(option: Option) -> click.Option:
    """Return the option as click takes it: a text as it was typed, which `settings.load` reads."""
    # With its key: of a name with dots click would make none.
    names = [option.key, f"--{option.name}", *([f"-{option.short}"] if option.short else [])]
    if option.is_flag:
        return click.Option(names, is_flag=True, flag_value="true", default=None, help=option.help)
    note = f" [default: {shown(option).replace(',', ', ')}]" if shown(option) else ""
    return click.Option(
        names,
        type=str,
        metavar=option.metavar,
        multiple=option.multiple,
        help=option.help + note,
        shell_complete=_completion(option),
    )


def current_name(token: str) -> str:
    """Return the name of an option for its old name, and any other token unchanged."""
    return _OLD_NAMES.get(token, token)


def _completion(option: Option) -> Callable[..., list[CompletionItem]]:
    """Return what a shell completes a value to: a file, or words, of which some options take several.

    Only that: what a value may be, and how a wrong one is told of, is `settings.load`'s business.
    """

    def complete(_context: click.Context, _parameter: click.Parameter, typed: str) -> list[CompletionItem]:
        if option.metavar == "PATH":
            return [CompletionItem(typed, type="file")]
        before, comma, last = typed.rpartition(",")
        if comma and not isinstance(option.default, tuple):
            return []
        taken = before.split(",")
        return [
            CompletionItem(before + comma + word)
            for word in option.choices
            if word.startswith(last) and word not in taken
        ]

    return complete


def shown(option: Option) -> str:
    """Return an option's default as one would type it; empty where it has none."""
    default = option.default if option.display_default is None else option.display_default
    return "" if default in (None, (), {}) else _typed(default)


def _typed(default: Any) -> str:
    if isinstance(default, tuple):
        return ",".join(map(_typed, default))
    if isinstance(default, bool):
        return str(default).lower()
    return f"{default:g}" if isinstance(default, float) else str(default)


class Number(click.FloatRange):
    """A number in a range; click takes "nan" for one, and everything comes after it."""

    def convert(self, value: Any, parameter: click.Parameter | None, context: click.Context | None) -> float:
        """Return the number; raise click.BadParameter."""
        found: float = super().convert(value, parameter, context)
        if math.isnan(found):
            self.fail(f"{value!r} is no number.", parameter, context)
        return found


class Sections(click.Command):
    """A command whose --help has the exporter's options under their headings, as they are everywhere."""

    own = "Options"

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write them."""
        groups = {option.key: option.group for option in OPTIONS}
        sections: dict[str, list[tuple[str, str]]] = {}
        for each in self.get_params(ctx):
            line = each.get_help_record(ctx)
            if line is not None:
                names, does = line
                section = sections.setdefault(groups.get(each.name or "", self.own), [])
                section.append((names.ljust(HELP_COLUMN), does))
        for heading, lines in sections.items():
            with formatter.section(heading):
                formatter.write_dl(lines, col_max=HELP_COLUMN)


class Group(Sections, click.Group):
    """The exporter's options, and subcommands beside it."""

    own = "Other"

    def format_usage(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write how both are called."""
        formatter.write_usage(ctx.command_path, "--broker-url URL [OPTIONS]")
        formatter.write_usage(ctx.command_path, "COMMAND --help", prefix="       ")

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write options under the headings of their groups, and then the commands."""
        super().format_options(ctx, formatter)
        self.format_commands(ctx, formatter)
