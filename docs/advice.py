"""What the status page, the log and `doctor` say is wrong, and what mends it: a table, read off their source.

Nothing is run for it: what depends on the case is an ellipsis here.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from docs.house import PACKAGE

WRONG = {"warn", "fail"}
_CASE = "…"


class Text(NamedTuple):
    """What one check says when something is wrong."""

    check: str
    found: str
    mend: str


def sources(package: Path = PACKAGE) -> list[Path]:
    """Return the modules that say it; none where there is no advice yet."""
    return [
        path for path in (package / "advice.py", *sorted((package / "doctor").glob("*.py"))) if path.exists()
    ]


def chapter(paths: Iterable[Path]) -> str:
    """Return a table of all, in the order of the source; nothing where nothing is said."""
    rows = dict.fromkeys(text for path in paths for text in texts(ast.parse(path.read_text())))
    lines = [f"| {text.check} | {_cell(text.found)} | {_cell(text.mend)} |" for text in rows]
    if not lines:
        return ""
    head = [
        "## What the doctor says",
        "",
        "| check | what is wrong | what mends it |",
        "|---|---|---|",
    ]
    return "\n".join([*head, *lines])


def texts(tree: ast.Module) -> Iterator[Text]:
    """Yield what is in `Finding(check, level, found, mend)`, of the levels that are not well."""
    everywhere = _assigned(tree.body)
    for function in (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)):
        for call in ast.walk(function):
            if isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id == "Finding":
                said = [node for node in ast.walk(function) if isinstance(node, ast.Assign)]
                before = [node for node in said if node.lineno < call.lineno]
                names = {**everywhere, **_assigned(sorted(before, key=lambda node: node.lineno))}
                check, level, *rest = [*call.args, *(each.value for each in call.keywords)]
                levels = {each.value for each in ast.walk(level) if isinstance(each, ast.Constant)}
                found, mend = (_said(each, names) for each in (*rest, ast.Constant(""))[:2])
                if levels & WRONG and isinstance(check, ast.Constant) and found != _CASE:
                    yield Text(str(check.value), found, mend)


def _assigned(nodes: Iterable[ast.stmt]) -> dict[str, ast.expr]:
    """Return what names stand for, by the last of these that says it."""
    return {
        target.id: node.value
        for node in nodes
        if isinstance(node, ast.Assign)
        for target in node.targets
        if isinstance(target, ast.Name)
    }


def _said(node: ast.expr, names: Mapping[str, ast.expr]) -> str:
    """Return a text as far as the source has it."""
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.JoinedStr):
        return re.sub(f"{_CASE}+", _CASE, "".join(_said(part, names) for part in node.values))
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return _said(node.left, names) + _said(node.right, names)
    if isinstance(node, ast.FormattedValue):
        constant = isinstance(node.value, ast.Name) and node.value.id.isupper()
        return _said(node.value, names) if constant else _CASE
    if isinstance(node, ast.Name) and node.id in names:
        return _said(names[node.id], {name: other for name, other in names.items() if name != node.id})
    return _CASE


def _cell(text: str) -> str:
    if text == _CASE:
        return "it says what"
    return text.replace("|", "\\|").replace("<", "&lt;").replace("*", "\\*")
