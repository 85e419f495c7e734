"""What /api/v1/status answers: a table for each object, read off the structs that are encoded."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator

from msgspec import Struct
from msgspec import inspect as types

from celery_exporter.status.model import Status

_FIELD = re.compile(r"    (\w+): [^#]*(?:# (.*))?")


def fields() -> str:
    """Return a heading and a table for the answer, and for each object in it."""
    return "\n\n".join(map(_chapter, structs(Status)))


def structs(first: type[Struct]) -> Iterator[type[Struct]]:
    """Yield a struct and those in it, from the top down."""
    yield first
    for field in _fields(first):
        for inner in _inside(field.type):
            yield from structs(inner)


def _chapter(struct: type[Struct]) -> str:
    meanings = dict(_meanings(struct))
    rows = [f"| `{each.name}` | {_words(each.type)} | {meanings[each.name]} |" for each in _fields(struct)]
    title = "The answer" if struct is Status else struct.__name__
    head = [
        f"## {title}",
        "",
        inspect.getdoc(struct) or "",
        "",
        "| field | type | meaning |",
        "|---|---|---|",
    ]
    return "\n".join([*head, *rows])


def _fields(struct: type[Struct]) -> tuple[types.Field, ...]:
    found = types.type_info(struct)
    return found.fields if isinstance(found, types.StructType) else ()


def _meanings(struct: type[Struct]) -> Iterator[tuple[str, str]]:
    """Yield what the comment beside each field says."""
    for line in inspect.getsource(struct).splitlines():
        found = _FIELD.fullmatch(line)
        if found:
            yield found[1], found[2] or ""


def _inside(kind: types.Type) -> list[type[Struct]]:
    if isinstance(kind, types.StructType):
        return [kind.cls]
    return _inside(kind.item_type) if isinstance(kind, types.CollectionType) else []


def _words(kind: types.Type) -> str:
    if isinstance(kind, types.StructType):
        return f"[{kind.cls.__name__}](#{kind.cls.__name__.lower()})"
    if isinstance(kind, types.UnionType):
        return " or ".join(map(_words, kind.types))
    if isinstance(kind, types.CollectionType):
        return f"list of {_words(kind.item_type)}"
    if isinstance(kind, types.TupleType):
        return f"pairs ({', '.join(map(_words, kind.item_types))})"
    if isinstance(kind, types.DictType):
        return f"object: {_words(kind.key_type)} to {_words(kind.value_type)}"
    if isinstance(kind, types.LiteralType):
        return " or ".join(f"`{value}`" for value in kind.values)
    return _PLAIN[type(kind)]


_PLAIN = {
    types.IntType: "integer",
    types.FloatType: "number",
    types.StrType: "string",
    types.BoolType: "boolean",
    types.NoneType: "null",
}
