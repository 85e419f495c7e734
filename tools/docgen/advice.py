"""What the status page, the log and `doctor` say is wrong, and what mends it: a table, read off their source.

What depends on the case is an ellipsis here. Nothing is run for it but what mends what a broker said, for
brokers that are somewhere at HOST.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from msgspec import structs

from celery_exporter.config.loader import load
from celery_exporter.doctor.remedies import REFUSALS, BrokerAddress, Refusal, grant, place_of
from tools.docgen.layers import PACKAGE

WRONG = {"warning", "critical"}
_CASE = "…"
_OR = ", or: "
#: Where it is said that a URL cannot be used, and where the rungs are whose names are in a table.
_URLS, _LADDER = PACKAGE / "broker" / "url.py", "connectivity.py"


class Text(NamedTuple):
    """What one check says when something is wrong."""

    check: str
    message: str
    remedy: str


def sources(package: Path = PACKAGE) -> list[Path]:
    """Return the modules that say it; none where there is no advice yet."""
    return [
        path
        for folder, pattern in (
            ("status", "checks.py"),
            ("status", "threshold_checks.py"),
            ("doctor", "*.py"),
        )
        for path in sorted((package / folder).glob(pattern))
    ]


def chapter(paths: Iterable[Path]) -> str:
    """Return a table of all, in the order of the source; nothing where nothing is said."""
    trees = {path: ast.parse(path.read_text()) for path in paths}
    functions = {
        node.name: node
        for tree in trees.values()
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef)
    }
    constants = {name: node for tree in trees.values() for name, node in _assigned(tree.body).items()}
    rows: dict[Text, None] = {}
    for path, tree in trees.items():
        if path.name == _LADDER:
            rows |= dict.fromkeys([*urls(), *rungs(), *denials()])
        rows |= dict.fromkeys(text for text in texts(tree, constants, functions) if text.check != "url")
    lines = [f"| {text.check} | {_cell(text.message)} | {_cell(text.remedy)} |" for text in rows]
    if not lines:
        return ""
    head = ["| check | message | remedy |", "|---|---|---|"]
    return "\n".join([*head, *lines])


def texts(
    tree: ast.Module, constants: Mapping[str, ast.expr], functions: Mapping[str, ast.FunctionDef]
) -> Iterator[Text]:
    """Yield what is in `Finding(check, level, found, remedy)`, of levels that are not well, or not known."""
    everywhere = {**constants, **_assigned(tree.body)}
    for function in (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)):
        for call in _calls(function, "Finding"):
            names = {**everywhere, **_before(call, function)}
            check, level, *rest = [*call.args, *(each.value for each in call.keywords)]
            levels = {each.value for each in ast.walk(level) if isinstance(each, ast.Constant)}
            found, remedy = (*rest, ast.Constant(""), ast.Constant(""))[:2]
            if (levels & WRONG or not levels) and (name := _said(check, names)) != _CASE:
                mends = dict.fromkeys(_returned(remedy, names, functions))
                yield Text(name, _said(found, names), _OR.join(mends))
        for call in _calls(function, "_judged"):  # by the table of thresholds
            names = {**everywhere, **_before(call, function)}
            yield Text(*(_said(each, names) for each in call.args))


def _calls(tree: ast.AST, name: str) -> list[ast.Call]:
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    ours = [call for call in calls if isinstance(call.func, ast.Name) and call.func.id == name]
    return sorted(ours, key=lambda call: call.lineno)


def _before(node: ast.expr | ast.stmt, function: ast.FunctionDef) -> dict[str, ast.expr]:
    """Return what names stand for where this is, in a function."""
    said = [each for each in ast.walk(function) if isinstance(each, ast.Assign)]
    return _assigned(
        sorted((each for each in said if each.lineno < node.lineno), key=lambda each: each.lineno)
    )


def _returned(
    node: ast.expr, names: Mapping[str, ast.expr], functions: Mapping[str, ast.FunctionDef]
) -> Iterator[str]:
    """Yield a text, or the texts of which one is chosen: those that a function returns."""
    if isinstance(node, ast.IfExp):
        yield from _returned(node.body, names, functions)
        yield from _returned(node.orelse, names, functions)
    elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in functions:
        function = functions[node.func.id]
        constants = {name: other for name, other in names.items() if name.isupper()}
        ends = [each for each in ast.walk(function) if isinstance(each, ast.Return)]
        for end in sorted(ends, key=lambda end: end.lineno):
            if end.value is not None:
                yield from _returned(end.value, {**constants, **_before(end, function)}, functions)
    else:
        yield _said(node, names)


def urls() -> Iterator[Text]:
    """Yield what is said of a URL that cannot be used."""
    for call in _calls(ast.parse(_URLS.read_text()), "UnusableURLError"):
        found, _, remedy = _said(call.args[0], {}).removeprefix("--broker-url: ").partition("; ")
        yield Text("url", found, f"--broker-url: {remedy}")


#: By whose URL what mends a refusal is told.
_PLACES = {
    "RabbitMQ": "amqp://USER:PASSWORD@HOST/VHOST",
    "RabbitMQ as guest": "amqp://guest:guest@HOST/VHOST",
    "Redis": "redis://USER:PASSWORD@HOST/0",
}
#: By what one sees that it is for the other broker.
_OTHER = {"RabbitMQ": "redis", "RabbitMQ as guest": "redis", "Redis": "rabbitmq"}


def rungs(rows: Iterable[Refusal] = REFUSALS) -> Iterator[Text]:
    """Yield what brokers say when a connection is opened."""
    places = {name: _place(url) for name, url in _PLACES.items()}
    socket = structs.replace(places["Redis"], host="/PATH", network=False)
    for row in rows:
        at = {"Redis": socket} if "/" in row.says else places
        mends = {name: re.sub(r"\b(5672|6379)\b", "PORT", row.remedy(place)) for name, place in at.items()}
        mends = {name: remedy for name, remedy in mends.items() if _OTHER[name] not in remedy} or mends
        check = "virtual-host" if row.rung == "database" and "Redis" not in mends else row.rung
        if mends.get("RabbitMQ as guest", "").replace("guest", "USER") == mends.get("RabbitMQ"):
            mends.pop("RabbitMQ as guest", None)
        told = [f"{name}: {remedy}" for name, remedy in mends.items()]
        found = re.sub(r"\(.*?\)|\.\*", _CASE, row.says).replace("|", " or ") or "anything else"
        yield Text(check, found, "; ".join(told if len({*mends.values()}) > 1 else [*mends.values()][:1]))


def denials() -> Iterator[Text]:
    """Yield what an ACL of Redis denies, where it is found out."""
    config, place = load({"broker_url": _PLACES["Redis"]}, {}).monitor.broker, _place(_PLACES["Redis"])
    for denied in ("run the 'psubscribe' command", "access one of the channels", "access one of the keys"):
        remedy = re.sub(r"\b6379\b", "PORT", grant(config, place, denied))
        yield Text("subscription", f"this user has no permissions to {denied}", remedy)


def _place(url: str) -> BrokerAddress:
    return structs.replace(place_of(load({"broker_url": url}, {}).monitor.broker), host="HOST")


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
