"""The README's tables are printed from the tables that run, and its commands are those of the Makefile.

After a change that is meant: UPDATE_GOLDEN=1 pytest tests/test_readme.py
"""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from celery_exporter.cli import _command, shown
from celery_exporter.options import OPTIONS
from celery_exporter.profiles import Shape
from celery_exporter.profiles.catalogue import select

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"


def options() -> str:
    lines = ["| option | default | what it does |", "|---|---|---|"]
    for option in OPTIONS:
        names = f"`--{option.name}`" + (f", `-{option.short}`" if option.short else "")
        also = "".join(f" Also read from `{variable}`." for variable in option.env)
        default = f"`{shown(option)}`" if shown(option) else ""
        lines.append(f"| {names} | {default} | {option.help}{also} |")
    return "\n".join(lines)


def metrics() -> str:
    lines = ["| metric | type | labels | meaning |", "|---|---|---|---|"]
    lines += [
        f"| `{row.name}` | {row.type} | {', '.join(row.labels)} | {row.help} |"
        for row in select(("native",), Shape()).rows
    ]
    return "\n".join(lines)


@pytest.mark.parametrize("table", [options, metrics])
def test_a_table_is_printed_from_the_code(table):
    text = README.read_text()
    mark = f"<!-- {table.__name__} -->"
    before, _, rest = text.partition(mark + "\n")
    old, end, after = rest.partition(f"\n<!-- end of {table.__name__} -->")
    assert end, "the README has lost a mark"
    if "UPDATE_GOLDEN" in os.environ:
        README.write_text(f"{before}{mark}\n{table()}\n<!-- end of {table.__name__} -->{after}")
    else:
        assert old == table()


def test_every_make_target_that_the_readme_names_exists():
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = set(re.findall(r"`?make ([a-z]+)", README.read_text()))
    assert named
    assert named <= targets


def test_every_file_that_the_readme_links_to_exists():
    links = re.findall(r"\]\((?!https?://|#)([^)#]+)", README.read_text())
    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_every_metric_and_option_that_the_readme_speaks_of_exists():
    text = README.read_text()
    names = {row.name for row in select(("native",), Shape()).rows}
    known = names | {name + suffix for name in names for suffix in ("_bucket", "_sum", "_count")}
    spoken = set(re.findall(r"\bcelery_(?:tasks?|workers?|queue|broker|exporter)_?[a-z_]*\b", text)) - {
        "celery_exporter"
    }
    assert {name for name in spoken if name not in known and not name.endswith("_")} == set()
    flags = {f"--{option.name}" for option in OPTIONS} | {"--help", "--version", "--strict"}
    flags |= {flag for command in _command.commands.values() for one in command.params for flag in one.opts}
    flags |= {"--from-file", "--now", "--read-only", "--network"}  # of kubectl, systemctl, docker
    assert set(re.findall(r"(?<![\w-])--[a-z][a-z.-]*[a-z]", text)) <= flags
