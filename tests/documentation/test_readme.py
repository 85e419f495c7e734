"""What the README names exists; that its tables are printed from the tables that run is in test_docs.py."""

from __future__ import annotations

import re
from pathlib import Path

from celery_exporter.cli.main import _command
from celery_exporter.config.options import OPTIONS
from celery_exporter.metrics.model import MetricOptions
from celery_exporter.metrics.registry import select

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"


def test_every_make_target_that_the_readme_names_exists():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = set(re.findall(r"`?make ([a-z]+(?:-[a-z]+)*)", README.read_text()))
    assert named
    assert named <= targets


def test_every_file_that_the_readme_links_to_exists():
    links = re.findall(r"\]\((?!https?://|#)([^)#]+)", README.read_text())
    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_every_metric_and_option_that_the_readme_speaks_of_exists():
    text = README.read_text()
    names = {row.name for row in select(("native",), MetricOptions()).rows}
    known = names | {name + suffix for name in names for suffix in ("_bucket", "_sum", "_count")}
    spoken = set(re.findall(r"(?<!:)\bcelery_(?:tasks?|workers?|queue|broker|exporter)_?[a-z_]*\b", text)) - {
        "celery_exporter"
    }
    assert {name for name in spoken if name not in known and not name.endswith("_")} == set()
    flags = {f"--{option.name}" for option in OPTIONS} | {"--help", "--version", "--strict"}
    flags |= {flag for command in _command.commands.values() for one in command.params for flag in one.opts}
    flags |= {"--from-file", "--now", "--read-only", "--network", "--enable-feature"}  # of others
    assert set(re.findall(r"(?<![\w-])--[a-z][a-z.-]*[a-z]", text)) <= flags
