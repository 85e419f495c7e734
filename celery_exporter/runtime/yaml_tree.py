"""YAML → texts, lists and dicts: what configuration files are made of.

All scalars are texts, so that 123 and yes are valid names. Duplicate keys are errors. Keys with an empty
value are left out, unless the caller wants them.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import yaml

_NULLS = frozenset({"", "~", "null", "Null", "NULL"})
_DUPLICATE_KEY = "duplicate key"


class InvalidYamlError(ValueError):
    """The text is no valid YAML; the message is one line without any of the text, which may hold secrets."""


class Quoted(str):
    """A scalar in quotes, which is a text whatever is in it."""

    __slots__ = ()


class _Loader(yaml.BaseLoader):
    keeps: frozenset[str] = frozenset()

    def construct_scalar(self, node: yaml.ScalarNode) -> Any:
        text = super().construct_scalar(node)
        return None if node.style is None and text in _NULLS else text

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value]
        mapping = super().construct_mapping(node, deep)
        if len(mapping) < len(keys):
            raise yaml.constructor.ConstructorError(None, None, _DUPLICATE_KEY, node.start_mark)
        return {key: value for key, value in mapping.items() if value is not None or key in self.keeps}


class _QuotesLoader(_Loader):
    def construct_scalar(self, node: yaml.ScalarNode) -> Any:
        text = super().construct_scalar(node)
        return text if node.style is None else Quoted(text)


def load_yaml(text: bytes, *, marks_quotes: bool = False, keeps: Iterable[str] = ()) -> Any:
    """Return the tree of a file's content, None if there is none. Raises InvalidYamlError.

    With `marks_quotes`, scalars in quotes are of the type `Quoted`. `keeps` are keys that stay with an
    empty value.
    """
    try:
        loader = _QuotesLoader(text) if marks_quotes else _Loader(text)
        loader.keeps = frozenset(keeps)
        return loader.get_single_data()
    except RecursionError:
        raise InvalidYamlError("invalid YAML: nested too deeply") from None
    except yaml.YAMLError as error:
        # PyYAML's own message quotes the line, which may contain a hash or a key.
        mark = getattr(error, "problem_mark", None)
        is_duplicate = getattr(error, "problem", "") == _DUPLICATE_KEY
        problem = "duplicate key in the mapping" if is_duplicate else "invalid YAML"
        position = f" at line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise InvalidYamlError(f"{problem}{position}") from None
